"""Slides of the course: one HTML file a lesson, from the same cells, readable without a network.

make slides      # writes site/slides/; a slide a heading, arrow keys turn
"""

import json, re, runpy, sys
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parent.parent
SITE = runpy.run_path(str(ROOT / "tools" / "site.py"))  # `site` is the name of a module of Python's own
readable, title_of = SITE["readable"], SITE["title_of"]
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?(?:\n[^$\n]+?)?)\$", re.DOTALL)
LOOK = """
body { margin: 0; font: 21px/1.4 sans-serif; color: #111; background: #fff; }
section { display: none; box-sizing: border-box; min-height: 100vh; padding: 3vh 6vw 8vh; max-width: 1200px; margin: auto; }
section.now { display: block; }
pre { font-size: 16px; line-height: 1.3; background: #f4f4f4; padding: .6em; overflow-x: auto; }
.jp-OutputPrompt, .jp-InputPrompt, .anchor-link, .prompt { display: none; }
img { max-width: 100%; } table { border-collapse: collapse; } td, th { padding: .2em .8em; border-bottom: 1px solid #ccc; }
footer { position: fixed; right: 1em; bottom: .5em; color: #767676; font-size: 14px; background: #fff; }
@media print { section { display: block; page-break-after: always; } footer { display: none; } }
"""
TURN = """
const all = [...document.querySelectorAll('section')], foot = document.querySelector('footer');
let at = Math.min(all.length, Math.max(1, +location.hash.slice(1) || 1)) - 1;
function turn(by) {
  all[at].classList.remove('now'); at = Math.min(all.length - 1, Math.max(0, at + by)); all[at].classList.add('now');
  foot.textContent = `${at + 1} / ${all.length}`; history.replaceState(null, '', '#' + (at + 1)); scrollTo(0, 0);
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


def at_headings(cells: list) -> list:
    "Lists of cells: a new one begins at each heading, also inside a cell."
    slides = []
    for cell in cells:
        if cell["cell_type"] != "markdown":
            slides[-1].append(cell)
            continue
        for place, text in enumerate(re.split(r"(?m)^(?=#{1,3} )", cell["source"])):
            if not text.strip():
                continue
            if text.startswith("#") or not slides:
                slides.append([])
            slides[-1].append(cell | dict(source=text, id=f"{cell['id']}-{place}"))
    return slides


def slides_of(notebook: Path) -> str:
    "The HTML of a lesson's slides."
    told = json.loads(readable(notebook))
    formulas = without_formulas(told["cells"])
    exporter = HTMLExporter(template_name="basic")
    pages = []
    for cells in at_headings(told["cells"]):
        one = nbformat.reads(json.dumps(told | dict(cells=cells)), 4)
        pages.append(f"<section>{exporter.from_notebook_node(one)[0]}</section>")
    body = re.sub(r"FORMULA(\d+)X", lambda found: formulas[int(found[1])], "\n".join(pages))
    style = LOOK + HtmlFormatter().get_style_defs(".highlight")
    head = f"<meta charset='utf-8'><title>{title_of(notebook)}</title><style>{style}</style>"
    return f"<!doctype html><html lang='en'>{head}{body}<footer></footer><script>{TURN}</script></html>"


def write(to: Path = ROOT / "site" / "slides") -> None:
    "One file a lesson."
    to.mkdir(parents=True, exist_ok=True)
    for notebook in sorted((ROOT / "nbs" / "course").glob("lesson_*.ipynb")):
        (to / f"{notebook.stem}.html").write_text(slides_of(notebook), encoding="utf-8")
        print(to / f"{notebook.stem}.html")


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:]))
