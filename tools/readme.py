"""README.md is nbs/index.ipynb written as Markdown; it is made here, without Quarto.

    python tools/readme.py           # write README.md
    python tools/readme.py --check   # fail if README.md is not what would be written

Code cells become fenced blocks with their saved text outputs below them. `#| hide` leaves a cell out, `#| echo: false`
its code. Links are relative to nbs/ in the notebook and to the project's folder in the README.
"""

import json, posixpath, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook. -->"


def relink(text, folder="nbs"):
    "Links as they are seen from the project's folder; web addresses and anchors stay, and so does code."

    def moved(match):
        target = match[2]
        outside = re.match(r"[a-z][a-z0-9+.-]*:|#|/", target, re.IGNORECASE)
        return match[0] if outside else f"{match[1]}{posixpath.normpath(posixpath.join(folder, target))}{match[3]}"

    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [re.sub(r"(\]\()([^)\s]+)([^)]*\))", moved, part) for part in parts[::2]]
    return "".join(parts)


def fenced(text, language=""):
    "A fenced block, with a fence longer than any inside."
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def output_text(output):
    "A saved output as Markdown: Markdown itself, or plain text in a fence; pictures belong in files."
    if output["output_type"] == "error":
        raise SystemExit(f"{INDEX}: a cell was saved with an error; run the notebook again")
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "text/markdown" in data:
        return relink("".join(data["text/markdown"]))
    text = re.sub(r"\x1b\[[0-9;]*m", "", "".join(data.get("text/plain", "")))
    return fenced(text, "text") if text.strip() else ""


def cell_text(cell):
    "One cell as Markdown, empty when it is hidden."
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return relink(source.strip())
    if cell["cell_type"] != "code":
        return ""
    directives = dict(cell["metadata"].get("nbdev", {}))
    lines = source.splitlines()
    while lines and (found := re.match(r"\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*?)\s*$", lines[0])):
        directives[found[1]] = found[2]
        lines.pop(0)
    if "hide" in directives or directives.get("include") == "false":
        return ""
    code = "\n".join(lines).strip()
    parts = [fenced(code, "python")] if code and directives.get("echo") != "false" else []
    if directives.get("output") != "false":
        parts += [output_text(output) for output in cell.get("outputs", [])]
    return "\n\n".join(part for part in parts if part)


def readme(notebook):
    "The whole README."
    return "\n\n".join([NOTE] + [text for text in map(cell_text, notebook["cells"]) if text]) + "\n"


def main(arguments):
    text = readme(json.loads(INDEX.read_text(encoding="utf-8")))
    if arguments == ["--check"]:
        if not README.exists() or README.read_text(encoding="utf-8") != text:
            raise SystemExit("README.md is not what nbs/index.ipynb says: run `make readme`")
    elif arguments:
        raise SystemExit(__doc__)
    elif not README.exists() or README.read_text(encoding="utf-8") != text:
        README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
