"The site is made of the notebooks: pages, formulas, reference."

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
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


def public_methods(site, act: str) -> set:
    "`Class.method` of an act: in the class, or added to a public class by `patch`."
    classes, methods = site["public_classes"](), set()
    for module in (ROOT / "personal_llm" / act).glob("*.py"):
        tree = ast.parse(module.read_text(encoding="utf-8"))
        public = set(site["public_names"](tree))
        for node in tree.body:
            owner = site["method_owner"](node)
            if isinstance(node, ast.ClassDef) and node.name in public:
                methods |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
            elif owner in classes:
                methods.add(f"{owner}.{node.name}")
    return {one for one in methods if not one.partition(".")[2].startswith("_")}


@pytest.mark.parametrize("act", ["2_buffer", "5_selection", "6_device"])
def test_the_reference_has_every_public_method(site, act):
    page = site["reference_page"](act)
    listed = re.findall(r"(?m)^#### (\w+\.\w+) \{", page)
    wanted = public_methods(site, act[2:])
    assert len(wanted) >= 5 and sorted(listed) == sorted(wanted)
    assert act != "6_device" or "ChatSession.undo_learning" in wanted


def test_a_method_of_a_later_chapter_is_in_the_reference(site, tmp_path):
    module = tmp_path / "later.py"
    module.write_text('@patch\ndef more(self: "Chat", times: int = 2):\n    "Do more."\n\n\ndef _rest(): ...\n')
    lines = site["module_entries"](module, {"Chat"})
    assert "#### Chat.more { #Chat.more }" in lines and not any("_rest" in line for line in lines)


def test_parameters_have_type_default_and_meaning(site):
    source = ["def f(", "    a: int,  # of them", "    b=2,  # times", "):", "    pass"]
    node = ast.parse("\n".join(source)).body[0]
    assert site["parameters"](node, source) == [("a", "int", "", "of them"), ("b", "", "2", "times")]


def test_links_to_notebooks_lead_to_pages(site):
    text = "[a](../2_buffer/01_scoring.ipynb#x) [b](https://e.org/c.ipynb) [c](../recipes) [d](../LICENSE)"
    wanted = "[a](../2_buffer/01_scoring.md#x) [b](https://e.org/c.ipynb) [c](../recipes/index.md) [d](/LICENSE)"
    assert site["as_pages"](text) == wanted


def test_the_book_has_one_order(site):
    "The acts of the site stand as in the tables of the contents."
    cells = json.loads((ROOT / "nbs" / "contents.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert re.findall(r"(?m)^\| `(\d_\w+)` \|", text) == site["ACTS"]
    assert site["ACTS"][0] == "2_buffer" and len(site["ACTS"]) == 9


def test_the_course_page_has_the_lessons_in_order_with_minutes(site):
    rows = re.findall(r"(?m)^\| (\d+) · \[[^]]+\]\(lesson_(\d+)_\w+\.md\) \| (.+) \| (\d+) \|$", site["course_page"]())
    assert [row[:2] for row in rows] == [(str(n), str(n)) for n in range(1, 11)]
    assert all(len(promise) > 40 and int(minutes) <= 90 for *_, promise, minutes in rows)


EXPERIMENTS = [
    path
    for path in sorted((ROOT / "nbs" / "experiments").glob("*.ipynb"))
    if "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).startswith("# Experiment: ")
]


def test_the_experiments_page_has_each_question_with_its_answer_in_one_line(site):
    rows = re.findall(r"(?m)^\| \[([^]]+)\]\((\w+)\.md\) \| (.*) \|$", site["experiments_page"]())
    assert len(EXPERIMENTS) >= 10 and [name for _, name, _ in rows] == [path.stem for path in EXPERIMENTS]
    answers = [answer for *_, answer in rows if answer != site["NO_ANSWER"]]
    assert len(answers) >= 10 and not [answer for answer in answers if not 40 <= len(answer) <= 320]
    assert len(set(answers)) == len(answers)
    assert "runner" not in "".join(question for question, *_ in rows).lower()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_numbers_of_a_one_line_answer_stand_in_its_notebook(site, path):
    "A number of the answer is one of the notebook's, or what one of them rounds to."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells] + [json.dumps(cell.get("outputs", "")) for cell in cells]
    rest = " ".join(re.sub(r"(?s)\*\*In one line\.\*\*.+?\n\n", "", "\n".join(texts), count=1).split())
    numbers = {float(number) for number in re.findall(r"(?<![\w.])\d*\.?\d+(?!\d)", rest)}
    asked = re.findall(r"\d*\.?\d+", site["conclusion_of"](path))
    digits = {number: len(number.partition(".")[2]) for number in asked}
    assert [x for x in asked if not any(round(y, digits[x]) == float(x) for y in numbers)] == []


ASKED = {  # typed into the search -> page among the first three results
    "how do I import my chats": "02_your_own_chats",
    "import whatsapp": "02_your_own_chats",
    "did it help": "02_your_own_chats",
    "how to delete my data": "08_forget_me",
    "export to ollama": "11_elsewhere",
    "use my own model": "12_your_own_model",
    "why was this kept": "06_why_kept",
    "start from another user": "03_never_from_scratch",
    "correct a wrong reply": "01_first_steps",
    "build a library": "03_never_from_scratch",
    "what does EOE mean": "01_scoring",
    "what is a buffer": "03_buffer",
}
SEARCH = """
const fs = require('fs'), [script, index, ...queries] = process.argv.slice(2);
let heard, answers = [];
globalThis.self = globalThis; globalThis.importScripts = () => {}; globalThis.location = {href: 'http://x/a/b'};
globalThis.addEventListener = (kind, function_) => { if (kind === 'message') heard = function_; };
globalThis.postMessage = message => answers.push(message);
(0, eval)(fs.readFileSync(script, 'utf8'));
(async () => {
  const data = JSON.parse(fs.readFileSync(index)); data.options = {suggest: false};
  await heard({data: {type: 0, data}});
  for (const query of queries) { await heard({data: {type: 2, data: query}}); }
  const found = answers.filter(one => one.type === 3);
  const places = found.map(one => one.data.items.map(page => page.map(part => part.location)));
  console.log(JSON.stringify(places));
})();
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node"), reason="the theme's own search runs in node")
def test_twelve_questions_find_their_page_among_the_first_three(tmp_path):
    import material

    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    folder = Path(material.__file__).parent / "templates" / "assets" / "javascripts" / "workers"
    (tmp_path / "search.cjs").write_text(SEARCH, encoding="utf-8")
    words = ["node", "search.cjs", str(next(folder.glob("search.*.js"))), "site/search/search_index.json", *ASKED]
    told = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    for (question, wanted), pages in zip(ASKED.items(), json.loads(told), strict=True):
        assert any(wanted in page[0] for page in pages[:3]), (question, [page[0] for page in pages[:3]])
    for page in (tmp_path / "site").rglob("*.html"):
        text = re.sub(r"(?s)<(code|pre|script|math|annotation)\b.*?</\1>", "", page.read_text(encoding="utf-8"))
        assert not re.search(r"\\(?:frac|lVert|sum|cdot|mathrm)\b|\$\$", text), f"{page.name} shows raw TeX"
