"""Write personal_llm/ from the notebooks: nbdev's export, with no line over 120 characters.

nbdev wraps `__all__` before it writes the name in front, and its index has one long line an entry.
"""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "personal_llm"
WIDTH = 120  # characters


def wrapped(found: re.Match) -> str:
    "The list of public names in lines of at most `HIDDEN_SIZE` characters."
    names = ", ".join(re.findall(r"'[^']+'", found[0]))
    start = "__all__ = ["
    return textwrap.fill(start + names + "]", WIDTH, subsequent_indent=" " * len(start), break_long_words=False)


def rewrap(path: Path) -> None:
    "Wrap the public names of one module again."
    text = path.read_text(encoding="utf-8")
    new = re.sub(r"^__all__ = \[[^\]]*\]", wrapped, text, count=1, flags=re.MULTILINE)
    if new != text:
        path.write_text(new, encoding="utf-8")


def main() -> None:
    subprocess.run([Path(sys.executable).with_name("nbdev-export")], check=True)
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "__init__.py":
            rewrap(path)
    index = [PACKAGE / "_modidx.py"]
    subprocess.run(
        [Path(sys.executable).with_name("ruff"), "format", "--quiet", "--no-force-exclude", *index], check=True
    )


if __name__ == "__main__":
    main()
