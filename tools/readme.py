"""`readme.py` writes README.md from nbs/index.ipynb; `readme.py --check` fails if README.md is something else.

Code cells become fenced blocks with their saved text outputs below them. `#| hide` leaves a cell out, `#| echo: false`
its code. Links are relative to nbs/ in the notebook and to the project's folder in the README.
"""

import json, posixpath, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->"


def relink(text):
    "Links as they are seen from the project's folder; web addresses and anchors stay, and so does code."
    moved = lambda found: f"]({posixpath.normpath(posixpath.join('nbs', found[1]))}"
    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [re.sub(r"\]\((?![a-z][a-z0-9+.-]*:|#|/)([^)\s]+)", moved, part) for part in parts[::2]]
    return "".join(parts)


def output_text(output):
    "A saved output as Markdown: Markdown itself, or plain text in a fence; pictures belong in files."
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "text/markdown" in data:
        return relink("".join(data["text/markdown"]))
    text = "".join(data.get("text/plain", "")).rstrip()
    return f"```text\n{text}\n```" if text else ""


def cell_text(cell):
    "One cell as Markdown, empty when it is hidden."
    source = "".join(cell["source"]).strip()
    if cell["cell_type"] == "markdown":
        return relink(source)
    flags = re.findall(r"(?m)^#\| *(.+?) *$", source)
    code = re.sub(r"(?m)^#\|.*\n?", "", source).strip()
    if "hide" in flags:
        return ""
    parts = [f"```python\n{code}\n```"] * bool(code and "echo: false" not in flags)
    return "\n\n".join(filter(None, parts + [output_text(output) for output in cell["outputs"]]))


def main(arguments):
    cells = json.loads(INDEX.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join([NOTE, *filter(None, map(cell_text, cells))]) + "\n"
    if arguments != ["--check"]:
        README.write_text(text, encoding="utf-8")
    elif README.read_text(encoding="utf-8") != text:
        raise SystemExit("README.md is not what nbs/index.ipynb says: run `make readme`")


if __name__ == "__main__":
    main(sys.argv[1:])
