"What the notebooks and the papers at the top point to is there."

import json
import re
from pathlib import Path

from cases import case


ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def targets(text: str) -> list:
    "Relative links outside of code, without their anchors."
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    found = (one.split("#")[0] for one in LINK.findall(prose))
    return [one for one in found if one and not re.match(r"[a-z]+:", one)]


def broken(folder: Path, text: str) -> list:
    return [one for one in targets(text) if not (folder / one).exists()]


def prose_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def test_links_of_a_notebook():
    for notebook in NOTEBOOKS:
        with case(notebook):
            assert broken(notebook.parent, prose_of(notebook)) == []


def test_links_at_the_top():
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]:
        with case(name):
            assert broken(ROOT, (ROOT / name).read_text(encoding="utf-8")) == []


def test_what_a_link_is():
    text = "[a](x.ipynb#part) `[b](y)` [c](https://e.org/z) [d](#here)"
    assert targets(text) == ["x.ipynb"] and broken(ROOT, text) == ["x.ipynb"]
