"""Slides of the course: one HTML file a lesson, one idea a page, from the same cells, readable without a network.

make slides      # writes site/slides/; arrow keys turn
"""

import html, json, math, re, runpy, sys
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
SITE = runpy.run_path(str(ROOT / "tools" / "site.py"))  # `site` is the name of a module of Python's own
readable, title_of = SITE["readable"], SITE["title_of"]
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?(?:\n[^$\n]+?)?)\$", re.DOTALL)
POINTS = 28  # of all text on a page of 1280 × 720 pixels, which is 960 × 540 points
SIZE = POINTS * 4 / 3  # pixels
LINE, CODE_LINE = 1.25 * SIZE, 1.2 * SIZE  # pixels, of text and of code
ROOM = 590.0  # pixels of a page of 1280 × 720 without its margins
WIDTH, CODE_WIDTH = 60, 50  # characters of a line
LOOK = """
body { margin: 0; font: 37.4px/1.25 sans-serif; color: #111; background: #fff; }
section { display: none; box-sizing: border-box; min-height: 100vh; padding: 20px 50px 30px; max-width: 1280px; margin: auto; }
section.now { display: block; }
h1, h2, h3 { margin: 0 0 .4em; line-height: 1.2; } p { margin: .5em 0; } ul, ol { margin: .4em 0; }
h1, h2, h3 { font-size: 1.1em; } math { font-size: 1em; }
pre, code { font-size: 37.4px; line-height: 1.2; white-space: pre-wrap; overflow-wrap: anywhere; }
pre { background: #f4f4f4; padding: 0 .3em; margin: .2em 0; }
.jp-OutputPrompt, .jp-InputPrompt, .anchor-link, .prompt { display: none; }
img { display: block; width: 100%; max-height: 500px; object-fit: contain; } table { border-collapse: collapse; font-size: 37.4px; }
td, th { padding: .15em .7em; border-bottom: 1px solid #ccc; text-align: left; }
pre.mermaid { background: none; white-space: pre-wrap; text-align: center; } pre.mermaid svg { max-height: 480px; width: 100%; }
footer { position: fixed; right: 1em; bottom: 0; color: #595959; font-size: 37.4px; line-height: 1; background: #fff; }
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


def split_text(source: str) -> list:  # Markdown, each at most half a page
    "Split a paragraph at its items, or at its sentences; a table at its rows, under the same head."
    if source.startswith(("#", "```")):
        return [source]
    rows = source.split("\n")
    if source.startswith("|"):
        head, body = rows[:2], rows[2:]
        pages = [[]]
        for row in body:
            if pages[-1] and text_height("\n".join([*head, *pages[-1], row])) > ROOM - 2 * LINE:
                pages.append([])
            pages[-1].append(row)
        return ["\n".join([*head, *page]) for page in pages]
    parts = re.split(r"\n(?=\s*(?:[-*]|\d+\.) )|(?<=[.?!:])\s+(?=[A-Z*`>(])", source)
    pieces = [parts[0]]
    for part in parts[1:]:
        is_item = bool(re.match(r"\s*(?:[-*]|\d+\.) ", part))
        longer = pieces[-1] + ("\n" if is_item else " ") + part
        if text_height(longer) > ROOM / 2:
            pieces.append(part)
        else:
            pieces[-1] = longer
    return pieces


def wrapped(text: str) -> int:
    "Lines of a text in the type of code."
    return sum(math.ceil(max(1, len(line)) / CODE_WIDTH) for line in text.strip("\n").split("\n"))


MOST_LINES = 10  # of code or of its output on a page


def code_blocks(cell: dict) -> list:
    "The code, if it is short enough to read from the back row, and the first lines of what it printed."
    source, blocks = "".join(cell["source"]), []
    if wrapped(source) <= MOST_LINES:
        blocks.append(dict(cell, outputs=[]))
    for output in cell["outputs"]:
        if not (text := "".join(output.get("text", "")).strip("\n")):
            continue
        lines = text.split("\n")
        while wrapped("\n".join(lines)) > MOST_LINES and len(lines) > 1:
            lines = [*lines[: -2 if lines[-1] == "…" else -1], "…"]
        blocks.append(dict(cell, source="", outputs=[dict(output, text="\n".join(lines)[: CODE_WIDTH * MOST_LINES])]))
    return blocks


def blocks_of(cells: list) -> list:  # cells: a heading, a piece of text, a table, a diagram, code, an output, a picture
    "What pages are made of. A picture stands without its code, and imports and long code are left out."
    blocks = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks += [dict(cell, source=piece) for text in paragraphs(source) for piece in split_text(text)]
        elif picture_of(cell):
            shown = [one for one in cell["outputs"] if "image/png" in one.get("data", {})]
            blocks.append(dict(cell, source="", outputs=shown[:1]))
        elif cell["outputs"] or not is_setup(source):
            blocks += code_blocks(cell)
    return blocks


def text_height(source: str) -> float:  # pixels, estimated
    "How high a piece of Markdown is."
    rows = source.split("\n")
    if source.startswith("|"):
        cells = [re.sub(r"FORMULA\d+X", "x" * 14, re.sub(r"[*`]|\]\([^)]*\)", "", row)) for row in rows]
        return sum(1.25 * LINE * math.ceil(len(row) / 52) for row in cells if not set(row) <= set("|-: "))
    marked = re.split(r"\n(?=\s*(?:[-*]|\d\.) )", source)
    words = [re.sub(r"FORMULA\d+X", "x" * 14, re.sub(r"[*`>]|\]\([^)]*\)", "", part)) for part in marked]
    alone = len(re.findall(r"(?m)^FORMULA\d+X", source))
    return sum(math.ceil(len(" ".join(part.split())) / WIDTH) for part in words) * LINE + 40 + 110 * alone


def height_of(block: dict) -> float:  # pixels, estimated
    "How high a block is on a page of 1280 × 720 pixels."
    source = "".join(block["source"])
    if block["cell_type"] == "code":
        if picture_of(block):
            return 520.0
        texts = [source] * bool(source)
        texts += ["".join(output.get("text", "")) for output in block.get("outputs", [])]
        return sum(wrapped(text) * CODE_LINE + 20 for text in texts if text)
    if source.startswith("```"):
        return 500.0
    if source.startswith("#"):
        return 1.6 * LINE * math.ceil(len(source) / 52)
    return text_height(source)


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
        is_full |= bool(picture_of(block)) or any(map(picture_of, page))  # one figure a page, alone
        if len(page) > 1 and (is_full or source.startswith("**Exercise")):
            is_lead = len(page) > 2 and "".join(page[-1]["source"]).endswith(":")
            is_lead &= sum(map(height_of, [page[0], page[-1], block])) <= ROOM
            leads = [page.pop()] if is_lead else []
            pages.append([page[0], *leads, block])
        else:
            page.append(block)
    return [page for page in pages if len(page) > 1 or "".join(page[0]["source"]).startswith("# ")]


def lesson_pages(notebook: Path) -> tuple:  # (notebook as a dictionary, pages, formulas)
    "The pages of a lesson before they are drawn."
    whole = json.loads(readable(notebook))
    formulas = without_formulas(whole["cells"])
    return whole, pages_of(whole["cells"]), formulas


def draw_page(whole: dict, page: list, exporter) -> str:
    "The HTML of one page, all in one size."
    cells = [dict(cell, id=f"{cell['id'][:40]}-{place}") for place, cell in enumerate(page)]
    one = nbformat.reads(json.dumps(whole | dict(cells=cells)), 4)
    body = exporter.from_notebook_node(one)[0]
    body = re.sub(
        r'<div class="[^"]*highlight[^"]*"><pre><span></span>\s*</pre></div>', "", body
    )  # code that is not shown
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
