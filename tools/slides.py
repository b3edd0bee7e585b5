"""Slides of the course: one HTML file a lesson, one idea a page, from the same cells, readable without a network.

make slides      # writes site/slides/; arrow keys turn
"""

import base64, html, json, math, re, runpy, sys
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
SITE = runpy.run_path(str(ROOT / "tools" / "site.py"))  # `site` is the name of a module of Python's own
readable, title_of = SITE["readable"], SITE["title_of"]
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?(?:\n[^$\n]+?)?)\$", re.DOTALL)
LINE, CODE_LINE = 29.4, 18.2  # pixels, of text and of code
ROOM = 600.0  # pixels of a page of 1280 × 720 without its margins
WIDTH = 92  # characters of a line of text
LEAST_ZOOM = 0.6  # of what does not fit on a page in its own size
LOOK = """
body { margin: 0; font: 21px/1.4 sans-serif; color: #111; background: #fff; }
section { display: none; box-sizing: border-box; min-height: 100vh; padding: 20px 6vw 40px; max-width: 1280px; margin: auto; }
section.now { display: block; }
h1, h2, h3 { margin: 0 0 .4em; line-height: 1.2; } p { margin: .5em 0; } ul, ol { margin: .4em 0; }
pre { font-size: 14px; line-height: 1.3; background: #f4f4f4; padding: .6em; margin: .5em 0; white-space: pre-wrap; }
.jp-OutputPrompt, .jp-InputPrompt, .anchor-link, .prompt { display: none; }
img { max-width: 100%; } table { border-collapse: collapse; font-size: 18px; }
td, th { padding: .15em .7em; border-bottom: 1px solid #ccc; text-align: left; }
pre.mermaid { background: none; white-space: pre; text-align: center; } pre.mermaid svg { max-height: 380px; }
footer { position: fixed; right: 1em; bottom: .5em; color: #767676; font-size: 14px; background: #fff; }
@media print { section { display: block; page-break-after: always; } footer { display: none; } }
"""
TURN = """
const all = [...document.querySelectorAll('section')], foot = document.querySelector('footer');
let at = Math.min(all.length, Math.max(1, +location.hash.slice(1) || 1)) - 1;
if (window.mermaid) mermaid.initialize({startOnLoad: false});
function turn(by) {
  all[at].classList.remove('now'); at = Math.min(all.length - 1, Math.max(0, at + by)); all[at].classList.add('now');
  foot.textContent = `${at + 1} / ${all.length}`; history.replaceState(null, '', '#' + (at + 1)); scrollTo(0, 0);
  if (window.mermaid) mermaid.run({nodes: all[at].querySelectorAll('pre.mermaid:not([data-processed])')});
}
addEventListener('keydown', e => {
  if (['ArrowRight', 'PageDown'].includes(e.key)) turn(1); else if (['ArrowLeft', 'PageUp'].includes(e.key)) turn(-1);
  else if (e.key === 'Home') turn(-all.length); else if (e.key === 'End') turn(all.length);
});
turn(0);
"""


def without_formulas(cells: list) -> list:
    "Formulas become marks, so that Markdown does not read them; gives what stands for each mark."
    made = []

    def mark(found):
        made.append(convert((found[1] or found[2]).strip(), display="block" if found[1] else "inline"))
        return f"FORMULA{len(made) - 1}X"

    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = MATH.sub(mark, "".join(cell["source"]))
    return made


def picture_of(cell: dict) -> str:  # base64 of a PNG, or ""
    "The picture that a code cell shows."
    shown = [output["data"]["image/png"] for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    return "".join(shown[0]).replace("\n", "") if shown else ""


def paragraphs(source: str) -> list:  # texts
    "Split Markdown at blank lines and after headings, not inside a diagram."
    parts, fenced = [[]], False
    for line in source.split("\n"):
        if not fenced and (not line.strip() or line.startswith("#")):
            parts.append([])
        if line.strip() or fenced:
            parts[-1].append(line)
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            parts.append([])
    return ["\n".join(part) for part in parts if part]


def is_setup(source: str) -> bool:
    "Whether a code cell begins with imports."
    return source.lstrip().startswith(("import ", "from "))


def blocks_of(cells: list) -> list:  # cells: a heading, a paragraph, a table, a diagram, code with output, a picture
    "What a page is made of. A picture stands without its code, and imports are left out."
    blocks = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks += [dict(cell, source=text) for text in paragraphs(source)]
        elif picture_of(cell):
            blocks.append(dict(cell, source=""))
        elif cell["outputs"] or not is_setup(source):
            blocks.append(cell)
    return blocks


def height_of(block: dict) -> float:  # pixels, estimated
    "How high a block is on a page of 1280 pixels."
    source = "".join(block["source"])
    if block["cell_type"] == "code":
        if picture := picture_of(block):
            return min(int.from_bytes(base64.b64decode(picture[:48])[20:24], "big"), 460) + 20
        texts = [source] * bool(source)
        for output in block.get("outputs", []):
            texts.append("".join(output.get("text") or output.get("data", {}).get("text/plain", "")).strip("\n"))
        lines = sum(math.ceil(max(1, len(line)) / 122) for text in texts for line in text.split("\n"))
        return lines * CODE_LINE + 34 * len(texts)
    if source.startswith("```"):
        return 400.0
    if source.startswith("#"):
        return (2.0 if source.startswith("# ") else 1.6) * LINE
    rows = source.split("\n")
    if source.startswith("|"):
        return sum(33 * math.ceil(len(row) / 105) for row in rows if not set(row) <= set("|-: ")) + 10
    marked = re.split(r"\n(?=\s*(?:[-*]|\d\.) )", source)
    words = [re.sub(r"FORMULA\d+X", "x" * 14, re.sub(r"[*`>]|\]\([^)]*\)", "", part)) for part in marked]
    alone = len(re.findall(r"(?m)^FORMULA\d+X", source))
    return sum(math.ceil(len(" ".join(part.split())) / WIDTH) for part in words) * LINE + 16 + 60 * alone


def pages_of(cells: list) -> list:  # lists of blocks; the first is the heading
    "Begin a page at each heading and exercise, and go on with the same heading when a page is full."
    pages = []
    for block in blocks_of(cells):
        source = "".join(block["source"])
        if source.startswith("#"):
            pages.append([block])
            continue
        page = pages[-1]
        is_full = sum(map(height_of, page)) + height_of(block) > ROOM
        if len(page) > 1 and (is_full or source.startswith("**Exercise")):
            leads = [page.pop()] if len(page) > 2 and "".join(page[-1]["source"]).endswith(":") else []
            pages.append([page[0], *leads, block])
        else:
            page.append(block)
    return [page for page in pages if len(page) > 1 or "".join(page[0]["source"]).startswith("# ")]


def zoom_of(page: list) -> float:  # at most 1
    "How much smaller the blocks of a page must be to fit."
    title = height_of(page[0])
    return min(1.0, (ROOM - title) / max(1.0, sum(map(height_of, page)) - title))


def lesson_pages(notebook: Path) -> tuple:  # (notebook as a dictionary, pages, formulas)
    "The pages of a lesson before they are drawn."
    whole = json.loads(readable(notebook))
    formulas = without_formulas(whole["cells"])
    return whole, pages_of(whole["cells"]), formulas


def draw_page(whole: dict, page: list, exporter) -> str:
    "The HTML of one page."
    cells = [dict(cell, id=f"{cell['id'][:40]}-{place}") for place, cell in enumerate(page)]
    one = nbformat.reads(json.dumps(whole | dict(cells=cells)), 4)
    body, zoom = exporter.from_notebook_node(one)[0], zoom_of(page)
    if zoom < 1:
        body = f'<div style="zoom: {zoom:.2f}">{body}</div>'
    return f"<section>{body}</section>"


def slides_of(notebook: Path, scripts: tuple = ()) -> str:
    "The HTML of a lesson's slides."
    whole, pages, formulas = lesson_pages(notebook)
    exporter = HTMLExporter(template_name="basic")
    body = "\n".join(draw_page(whole, page, exporter) for page in pages)
    body = re.sub(r"FORMULA(\d+)X", lambda found: formulas[int(found[1])], body)
    style = LOOK + HtmlFormatter().get_style_defs(".highlight")
    head = f"<meta charset='utf-8'><title>{html.escape(title_of(notebook))}</title><style>{style}</style>"
    head += "".join(f"<script src='javascripts/{name}'></script>" for name in scripts)
    return f"<!doctype html><html lang='en'>{head}{body}<footer></footer><script>{TURN}</script></html>"


def write(to: Path = ROOT / "site" / "slides") -> None:
    "One file a lesson."
    to.mkdir(parents=True, exist_ok=True)
    scripts = tuple(name for name in SITE["fetch_scripts"](to) if name == "mermaid.js")
    for notebook in sorted((ROOT / "nbs" / "course").glob("lesson_*.ipynb")):
        (to / f"{notebook.stem}.html").write_text(slides_of(notebook, scripts), encoding="utf-8")
        print(to / f"{notebook.stem}.html")


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
