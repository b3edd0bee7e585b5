"The site is made of the notebooks: pages, formulas, reference."

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("mkdocs", reason="the site needs: pip install -e .[docs]")
pytest.importorskip("latex2mathml")


@pytest.fixture(scope="module")
def site():
    return runpy.run_path(str(ROOT / "tools" / "site.py"))  # `site` is the name of a module of Python's own


def test_formulas_become_mathml_and_code_stays(site):
    marked = site["keep_formulas"]("With $a_i$ it costs `$c`:\n\n```sh\necho $HOME $x$\n```\n$$\\frac{1}{2}$$")
    assert re.sub(r"A\d+X", "A0X", marked) == "With FORMULA0X it costs `$c`:\n\n```sh\necho $HOME $x$\n```\nFORMULA0X"
    page = site["on_page_content"](marked, None, None, None)
    assert page.count("<math") == 2 and "<mfrac>" in page


def test_the_reference_lists_exactly_the_public_names(site):
    from test_architecture import act, public

    for name in ("2_buffer", "5_selection"):
        page = site["reference_page"](name)
        wanted = {one for module, names in public().items() if act(module) == name[2:] for one in names}
        listed = set(re.findall(r"(?m)^### (\w+) \{", page)) | set(re.findall(r"(?m)^\| \[`(\w+)`\]", page))
        assert listed == wanted
        assert page.count("[defined here](../") >= len(re.findall(r"(?m)^### ", page))


def test_the_reference_has_methods_of_later_chapters(site):
    "`ChatSession` has its own chapter, and the next one adds `undo_learning`."
    page = site["reference_page"]("6_device")
    assert page.count("#### ChatSession.undo_learning {") == 1 and "#### ChatSession._" not in page


def test_parameters_have_type_default_and_meaning(site):
    import ast

    source = ["def f(", "    a: int,  # of them", "    b=2,  # times", "):", "    pass"]
    node = ast.parse("\n".join(source)).body[0]
    assert site["parameters"](node, source) == [("a", "int", "", "of them"), ("b", "", "2", "times")]


def test_links_to_notebooks_lead_to_pages(site):
    text = "[a](../2_buffer/01_scoring.ipynb#x) [b](https://e.org/c.ipynb) [c](../recipes) [d](../LICENSE)"
    wanted = "[a](../2_buffer/01_scoring.md#x) [b](https://e.org/c.ipynb) [c](../recipes/index.md) [d](/LICENSE)"
    assert site["as_pages"](text) == wanted
