"Every chapter has a title and says what it is about, and its outputs are saved whole and described."

import ast
import json
import re
from pathlib import Path

import pytest

from conftest import Cell, is_skipped
from tools.outputs import agree, contradiction, saved_text

ROOT = Path(__file__).parents[1]
BOOK = sorted((ROOT / "nbs").glob("[0-9]_*/[0-9][0-9]_*.ipynb"))
PAGES = [*sorted((ROOT / "nbs").rglob("*.ipynb")), *sorted(ROOT.glob("*.md"))]
DIAGRAMS = ROOT / "nbs" / "images" / "diagrams"


def cells(path, hidden=False):  # [(kind, source, outputs)], hidden cells left out unless asked for
    out = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            out.append(("text", source.strip(), []))
        elif hidden or not source.startswith("#| hide"):
            out.append(("code", source, cell.get("outputs", [])))
    return out


def prints(source):  # also inside a loop or `except`; not in the body of a function, which may never be called
    nodes = [ast.parse(source)]
    for node in nodes:  # it grows
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            nodes += ast.iter_child_nodes(node)
    return any(isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print" for node in nodes)


def outputs_wrong(shown):
    wrong = []
    for kind, source, outputs in shown:
        if kind == "code" and not outputs and prints(source) and not re.match(r"#\| (slow|eval: false)", source):
            wrong.append(f"a cell that prints and has no output saved: {source[:60]!r}")
        pieces = [output.get("name") for output in outputs if output["output_type"] == "stream"]
        if len(pieces) != len(set(pieces)):
            wrong.append(f"a printed text in pieces, as chance cut it: {source[:60]!r}")
        for output in outputs:
            content = json.dumps(output.get("text", [])) + json.dumps(
                [value for type_, value in output.get("data", {}).items() if type_.startswith("text")]
            )
            if output.get("name") == "stderr":
                wrong.append("stderr")
            if any("widget-view" in type_ for type_ in output.get("data", {})):
                wrong.append(f"a progress bar: {source[:60]!r}")
            if found := re.search(r"\b0x[0-9a-f]{8,}", content):
                wrong.append(f"an address of one machine: {found[0]}")
            if "image/png" in output.get("data", {}) and not described(source):
                wrong.append(f"a figure without alternative text: {source[-80:]!r}")
            drawn_here = "image/png" in output.get("data", {}) and "subplots(" in source
            if drawn_here and not ("title" in source and "xlabel" in source):
                wrong.append(f"a figure without a title or a label: {source[:60]!r}")
    return wrong


def prose(path):  # of a notebook, or of a page at the top
    if path.suffix == ".md":
        return path.read_text("utf-8")
    return "\n".join(source for kind, source, _ in cells(path) if kind == "text")


def described(source):  # by `show(figure, "…")`, `draw_bars` of `base.plots`, or an `Image` with `alt`
    found = re.search(r"(?<!plt\.)\bshow(?:_figure)?\(|\balt=|\bdraw_bars\(", source)
    return bool(found) and len(source) - found.end() >= 10


@pytest.mark.parametrize("path", BOOK, ids=lambda path: path.stem)
def test_a_chapter_opens_and_its_outputs_are_whole(path):
    kind, opening, _ = cells(path)[0]
    blocks = [block for block in opening.split("\n\n") if not re.match(r"[>*|`#]", block)]
    assert kind == "text" and re.match(r"# \S", opening), "a chapter begins with its title"
    assert blocks and len(blocks[0].split()) >= 10, "a paragraph says what the chapter is about"
    assert not outputs_wrong(cells(path, hidden=True))


def targets(text):  # relative links outside of code, without their anchors
    plain = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    found = [one.split("#")[0] for one in re.findall(r"\]\(([^)\s]+)\)", plain)]
    return [one for one in found if one and not re.match(r"[a-z]+:", one)]


def test_links_lead_somewhere():
    broken = [(path.name, one) for path in PAGES for one in targets(prose(path)) if not (path.parent / one).exists()]
    assert broken == []
    assert targets("[a](x.ipynb#part) `[b](y)` [c](https://e.org/z) [d](#here)") == ["x.ipynb"]


def test_pictures_are_files_with_a_description():
    used = set()
    for path in PAGES:
        text = prose(path)
        assert "```mermaid" not in text, f"{path.name}: what only GitHub draws; see nbs/images/diagrams"
        for alternative, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", text):
            picture = (path.parent / target).resolve()
            assert picture.is_file(), f"{path.name}: {target}"
            assert len(alternative.split()) >= 5, f"{path.name}: {target} has no description"
            used.add(picture)
    assert {picture for picture in used if picture.suffix == ".svg"} == set(DIAGRAMS.glob("*.svg"))


def test_a_diagram_is_small_and_fetches_nothing():
    sources = sorted(DIAGRAMS.glob("*.dot"))
    assert [source.stem for source in sources] == sorted(picture.stem for picture in DIAGRAMS.glob("*.svg"))
    for source in sources:
        drawn = source.with_suffix(".svg").read_text("utf-8")
        title = re.match(r'digraph "(.+)" \{', source.read_text("utf-8"))[1]
        assert f"<title>{title}</title>" in drawn, source.name
        labels = " ".join(re.findall(r'label="([^"]+)"', source.read_text("utf-8"))).replace("\\n", " ")
        assert set(re.findall(r"\w+", labels)) <= set(re.findall(r"\w+", drawn)), (
            f"{source.name} changed: make diagrams"
        )
        assert len(drawn) < 30_000 and not re.search(r"<script|<style|<image|href=|@import|url\(", drawn), source.name


def test_a_run_of_all_cells_changes_no_environment():
    for path in PAGES:
        code = (
            [source for kind, source, _ in cells(path, hidden=True) if kind == "code"] if path.suffix != ".md" else []
        )
        assert not re.search(r"(?m)^\s*[%!]", "\n".join(code)), f"{path.name}: a cell with a magic or shell command"


@pytest.mark.parametrize(
    "saved, printed, is_same",
    [
        ("loss 2.31 nats", "loss 2.32 nats", True),  # one in the last digit
        ("loss 2.31 nats", "loss 2.41 nats", False),
        ("habits .82", "habits .83", True),
        ("36 tokens", "37 tokens", False),
        ("1,000 tokens", "1,015 tokens", True),  # 2 %
        ("1e-05", "1.01e-05", True),
        ("1e-05", "2e-05", False),
        ("largest difference 6e-08", "largest difference 3e-08", True),
        ("from 1 answer", "from 3 answers", False),
        ("In short: blue.", "The sky is blue.", False),
        ("[1, 2,\n 3]", "[1, 2, 3]", True),  # Jupyter breaks long values
        ("tuned in 3.2 s at 2026-01-01 10:00", "tuned in 8.9 s at 2026-02-03 11:30", True),
        ("target='8b7e1035', time=1796013649.52", "target='fbc2a31b', time=1796022137.85", True),
        ("saved to /tmp/a1/me", "saved to /tmp/b2/me", True),
        ("", "a line more", False),
    ],
)
def test_a_run_agrees_with_what_was_saved(saved, printed, is_same):
    assert agree(saved, printed) == is_same


def test_what_varies_keeps_its_words_and_its_shape():
    saved, numbers = [dict(text="loss 2.31 nats after 8 steps\n")], "numbers, a model is trained here"
    assert not contradiction(saved, "loss 1.90 nats after 12 steps\n", numbers)
    assert contradiction(saved, "loss 1.90 nats after 12 steps\n") and contradiction(saved, "", numbers)
    assert contradiction(saved, "loss 1.90 bits after 12 steps\n", numbers)
    assert contradiction(saved, "loss 1.90 nats after 12 steps\nstopped\n", numbers)


def test_of_a_reply_only_the_first_words_are_compared():
    saved, words = [dict(text="In short: Vaccines are medicines that help.\n")], "words, a model generates here"
    assert not contradiction(saved, "In short: Vaccines are medicines that prevent.\n", words)
    assert contradiction(saved, "In short: Vaccines are medicines that prevent.\n")
    assert contradiction(saved, "A vaccine is a medicine.\n", words) and contradiction(saved, "", words)
    lines = "lines, what it generates was trained"
    assert not contradiction(saved, "In other words.\n", lines) and contradiction(saved, "In\nshort\n", lines)


def test_most_saved_outputs_are_compared_whole_and_the_rest_says_why():
    "Of the cells that tests execute where all weights are there; no page is exempt."
    whole, varies = 0, []
    for path in PAGES:
        content = json.loads(path.read_text("utf-8"))["cells"] if path.suffix == ".ipynb" else []
        if content and is_skipped(content):
            continue
        for number, row in enumerate(content, 1):
            cell = Cell(row, number, path.name) if row["cell_type"] == "code" else None
            if not cell or not cell.has_code or "slow" in cell.directives:
                continue
            if reason := cell.directives.get("varies"):
                assert re.match(r"(numbers|words|lines), (\S+ ){2,}\S+$", reason), f"{cell.filename}: {reason}"
                assert saved_text(cell.outputs).strip(), f"{cell.filename} prints nothing that could vary"
                varies.append(cell.filename)
            else:
                whole += bool(saved_text(cell.outputs).strip())
    assert whole > 700 and len(varies) <= 0.1 * (whole + len(varies)), varies
