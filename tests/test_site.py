"The site is made of the notebooks: links, formulas, order, reference."

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("mkdocs", reason="the site needs: pip install -e .[docs]")
pytest.importorskip("latex2mathml")


@pytest.fixture(scope="module")
def hooks():
    return runpy.run_path(str(ROOT / "tools" / "site.py"))  # `site` is the name of a module of Python's own


def test_links_to_notebooks_lead_to_pages(hooks):
    text = "[a](../2_buffer/01_scoring.ipynb#x) [b](https://e.org/c.ipynb) [c](../../LICENSE) [d](../SECURITY.md)"
    wanted = "[a](../2_buffer/01_scoring.md#x) [b](https://e.org/c.ipynb) [c](../LICENSE) [d](SECURITY.md)"
    assert hooks["as_pages"]("[e](course)") == "[e](course/00_course.md)"
    assert hooks["as_pages"](text) == wanted


def test_formulas_become_mathml(hooks):
    made = hooks["on_page_content"](r'<span class="arithmatex">\(a_i &lt; 2\)</span>', None, None, None)
    assert "<math" in made and "<msub>" in made and "arithmatex" not in made


def test_the_course_and_the_acts_have_one_order(hooks):
    course = [path.stem for path in hooks["notebooks_of"]("course")]
    assert course[0] == "00_course" and [name.split("_")[1] for name in course[1:11]] == [str(n) for n in range(1, 11)]
    assert course[-1].startswith("00_") and not [name for name in course if name.startswith(("solution", "tasks"))]
    assert hooks["acts"]()[0] == "2_buffer" and len(hooks["acts"]()) == 9


EXPERIMENTS = [
    path
    for path in sorted((ROOT / "nbs" / "experiments").glob("*.ipynb"))
    if "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).startswith("# Experiment: ")
]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_numbers_of_a_one_line_answer_stand_in_its_notebook(path):
    "A number of the answer is one of the notebook's, or what one of them rounds to."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells] + [json.dumps(cell.get("outputs", "")) for cell in cells]
    answer = re.search(r"(?s)\*\*In one line\.\*\*(.+?)(?:\n\n|\Z)", texts[0])
    answer = answer[1] if answer else ""  # an experiment whose rows are being measured
    numbers = {
        float(number) for number in re.findall(r"(?<![\w.])\d*\.?\d+(?!\d)", " ".join(texts).replace(answer, ""))
    }
    asked = re.findall(r"\d*\.?\d+", " ".join(answer.split()))
    digits = {number: len(number.partition(".")[2]) for number in asked}
    assert [x for x in asked if not any(round(y, digits[x]) == float(x) for y in numbers)] == []


@pytest.mark.later
def test_the_site_has_no_broken_link_and_no_raw_formula(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    pages = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', text)) for page, text in pages.items()}
    broken = []
    for page, text in pages.items():
        plain = re.sub(r"(?s)<(code|pre|script|math|annotation)\b.*?</\1>", "", text)
        assert not re.search(r"\\(?:frac|lVert|sum|cdot|mathrm)\b|\$\$", plain), f"{page.name} shows raw TeX"
        for link in re.findall(r'(?:href|src)="(?![a-z]+:|/|#?")([^"]*)"', plain) if page.name != "404.html" else []:
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or anchor and anchor not in anchors.get(target, ()):
                broken.append((page.name, link))
    assert broken == []
    order = re.findall(
        r'href="([^"]+)"[^>]*rel="next"|rel="next"[^>]*href="([^"]+)"', pages[tmp_path / "course/lesson_1_likely.html"]
    )
    assert any("lesson_2_streams" in "".join(found) for found in order)


@pytest.mark.later
def test_slides_have_a_page_for_each_heading_and_no_flags(tmp_path):
    lesson = ROOT / "nbs" / "course" / "lesson_1_likely.ipynb"
    words = ["--log-level", "ERROR", "--to", "slides", "--config", "tools/slides.py", "--output-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "nbconvert", *words, str(lesson)], cwd=ROOT, check=True)
    text = next(tmp_path.glob("*.html")).read_text(encoding="utf-8")
    cells = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    headings = [cell for cell in cells if cell["cell_type"] == "markdown" and "".join(cell["source"]).startswith("#")]
    assert text.count("<section><section") >= len(headings) > 3 and "#|" not in text
