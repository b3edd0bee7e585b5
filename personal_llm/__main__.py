"`python -m personal_llm` is `personal-llm`."

import sys

from .app.cli import main

if __name__ == "__main__":
    sys.exit(main())
