"The README: its Python lines run as they stand, and its numbers are those of the results."

import base64
import json
import re
from pathlib import Path

import pytest
import typer

from personal_llm import load_model, personalize
from personal_llm.data.reading import read_dialogues
from personal_llm.device import learning
from personal_llm.experiments.gate import write_readme_answer, write_readme_night, write_readme_table
from personal_llm.experiments.gate import write_readme_threshold
from personal_llm.experiments.month import write_readme_month

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTENTS = json.loads((ROOT / "nbs" / "contents.ipynb").read_text(encoding="utf-8"))["cells"]
CONTENTS = "\n".join("".join(cell["source"]) for cell in CONTENTS)  # every command, every notebook
MOST_WORDS = 880  # of the README, without code and tables
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.later
def test_the_lines_run(monkeypatch, capsys):
    "As they stand, but for a shorter stream, the smallest model and a fine-tune of one step."
    tune = learning.tune

    def tune_briefly(model, rows, config, *rest, **more):
        return tune(model, rows, learning.TuningConfig(steps=1, checks=1), *rest, **more)

    monkeypatch.setattr(learning, "tune", tune_briefly)
    package = vars(__import__("personal_llm"))
    monkeypatch.setitem(package, "read_dialogues", lambda file: read_dialogues(file)[:80])
    monkeypatch.setitem(package, "load_model", lambda name: load_model("pocket"))
    names = {}
    assert BLOCKS
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out.count("response loss") == 1 and len(names["me"].rounds) == 1
    assert len(names["test_dialogues"]) >= 2 and (names["adapter"].path / "adapter_config.json").is_file()


def test_the_examples_name_a_model_that_takes_minutes():
    "Whatever else is on the disk."
    assert re.search(r"personalize --data \S+ --out mine --model smollm2\n", README)
    assert 'load_model("smollm2")' in BLOCKS[0] and "personal-llm get smollm2" in README


def test_continuous_integration_runs_the_commands_that_a_reader_types():
    block = re.search(r"^```sh\n(make install.*?)^```", README, re.MULTILINE | re.DOTALL)[1]
    named = re.findall(r"^make ([\w-]+)", block, re.MULTILINE)
    assert {"demo", "test"} <= {*named}, "the main job, and the tests"
    called = re.findall(r"^make --no-print-directory ([\w-]+)", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert {*named} - {"install"} <= {*called} and "install-dev" in called


def test_the_one_call_is_there():
    assert 'personalize("chats.jsonl", "mine")' in README and callable(personalize)


def test_the_picture_is_the_one_of_the_first_tutorial():
    name = "nbs/images/first_steps.png"
    assert f"]({name})" in README
    cells = json.loads((ROOT / "nbs" / "tutorials" / "01_first_steps.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    figures = ["".join(output["data"]["image/png"]) for output in outputs if "image/png" in output.get("data", {})]
    assert (ROOT / name).read_bytes() in [base64.b64decode(figure) for figure in figures]


def test_every_chapter_is_listed():
    chapters = [*(ROOT / "nbs").glob("[0-9]_*/*.ipynb"), *(ROOT / "nbs" / "tutorials").glob("*.ipynb")]
    assert [p.name for p in chapters if f"({p.relative_to(ROOT / 'nbs').as_posix()})" not in CONTENTS] == []


def as_one_line(text: str) -> str:
    "Without fenced code, on one line."
    return " ".join(re.sub(r"^```.*?^```", " ", text, flags=re.MULTILINE | re.DOTALL).split())


def test_it_is_read_in_five_minutes():
    text = re.sub(r"!\[[^\]]*\]|^\|.*", "", README, flags=re.MULTILINE)  # pictures and tables are looked at
    assert len(as_one_line(text).split()) <= MOST_WORDS


def list_options(command, words=()) -> dict:  # "library build" -> {"--adapter", …}
    "Return the options of a command, or of those below it."
    options = {option for parameter in command.params for option in (*parameter.opts, "--help")}
    commands = getattr(command, "commands", {})
    found = {} if commands else {" ".join(words): options}
    for name, one in commands.items():
        found |= list_options(one, (*words, name))
    return found


def find_wrong_commands(text: str, known: dict) -> list:
    "Return the lines of a text that name a command or an option which does not exist."
    wrong = []
    for found in re.findall(r"(?:`|^ *)personal-llm ([a-z][^`\n#]*)", text, re.MULTILINE):
        words = found.split()
        name = next((" ".join(words[:i]) for i in (2, 1) if " ".join(words[:i]) in known), None)
        if name is None or not {word for word in words if word.startswith("--")} <= known[name]:
            wrong.append(found)
    return wrong


TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))


def test_commands_that_are_named_exist_with_their_options():
    from personal_llm.app.cli import app

    known = list_options(typer.main.get_command(app))
    texts = [README, CONTENTS]
    for path in TUTORIALS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts.append("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"))
    assert [wrong for text in texts for wrong in find_wrong_commands(text, known)] == []
    wrong = ["chat --adapter mine", "library measure ana"]
    assert find_wrong_commands("    personal-llm chat --out me\n`personal-llm library measure ana`", known) == wrong[1:]
    assert find_wrong_commands("personal-llm chat --adapter mine\n", known) == wrong[:1]


SOURCE = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))
MEASURED = (write_readme_table, write_readme_threshold, write_readme_month, write_readme_night, write_readme_answer)
ELSEWHERE = {  # numbers of the README that nothing measures -> what they are
    "3.10": "the oldest Python",
    "2.0": "Apache's licence",
    "95": "per cent of an interval",
    "5": "gigabytes on the disk: the environment, the default model, and its copy for a fine-tune",
    "6": "gigabytes of RAM for a chat and a fine-tune of the default model, the estimate of the contents page",
    "1.5": "billion weights of our summariser",
    "8": "billion weights of the paper's summariser",
    "32": "dialogues of a buffer, in the diagram",
    "300": "dialogues of the shipped file of chats",
}


def numbers_of(text: str) -> set:
    "Numbers in prose: not in code, nor in what a link points to, nor in a link to a paper, nor in a name."
    for hidden in (r"^```.*?^```", r"`[^`\n]*`", r"\]\([^)]*\)", r"\[arXiv [\d.]+", r"<!--.*?-->"):
        text = re.sub(hidden, " ", text, flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"(?<![\w.-])\d+(?:[.,]\d+)*(?![\w])", text))


def unexplained(text: str, paragraphs: list, known) -> set:
    "Numbers of a text that stand neither in a paragraph that the results made nor among the known ones."
    text = as_one_line(text)
    for paragraph in paragraphs:
        assert as_one_line(paragraph) in text, f"not in the README: {as_one_line(paragraph)[:120]}"
        text = text.replace(as_one_line(paragraph), "")
    return numbers_of(text) - set(known)


def test_the_verdicts_are_those_of_the_summary():
    summary = (ROOT / "nbs" / "experiments" / "00_summary.ipynb").read_text(encoding="utf-8")
    assert "SDSS: 6 claims: 0 holds, 0 partly, 0 level, 0 refuted, 5 underpowered, 1 not measured" in summary
    assert "XPerT: 9 claims: 1 holds, 0 partly, 0 level, 5 refuted, 1 underpowered, 2 not measured" in summary
    verdicts = "of SDSS's six none is decided (our runs are too small); "
    verdicts += "of XPerT's nine, one holds, five are refuted, three are open"
    assert verdicts in as_one_line(README)


def test_measured_numbers_are_those_of_the_results():
    "The paragraphs are written anew from results/ and must be what stands there; there are no other numbers."
    made = [words().replace("](", "](nbs/") for words in MEASURED]
    assert unexplained(README, made, ELSEWHERE) == set()


def test_a_number_that_nothing_measured_is_found():
    paragraph = "The loss went\nfrom 3.80 to 2.05."
    assert unexplained("# House\n\nThe loss went from 3.80 to 2.05.\n", [paragraph], ()) == set()
    assert unexplained("The loss went from 3.80 to 2.05. It is 1.4 times better.", [paragraph], ()) == {"1.4"}
    with pytest.raises(AssertionError, match="not in the README"):
        unexplained("The loss went from 3.80 to 2.04.", [paragraph], ())
    assert numbers_of("`x = 3.5` and [a 4](b_7.ipynb), [arXiv 2311.12275](c), ROUGE-1, 48 questions") == {"4", "48"}


def test_the_notebook_asks_the_results():
    code = "".join("".join(cell["source"]) for cell in SOURCE["cells"] if cell["cell_type"] == "code")
    assert all(f"{write.__name__}()" in code for write in MEASURED)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_numbers_of_a_tutorial_are_those_of_its_run(path):
    "A measured number in a tutorial's prose, one with a point or a per cent, stands in the notebook's code or outputs."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    run = json.dumps([[cell["source"], cell["outputs"]] for cell in cells if cell["cell_type"] == "code"])
    measured = {n for n in numbers_of(prose) if "." in n} | set(re.findall(r"\b(\d+) ?%", prose))
    assert {n for n in measured if n not in run} == set()


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


def test_numbers_of_the_law_are_those_of_its_run():
    "Each share in the prose after the plan is one of the outputs, rounded; the first run's rows are gone."
    cells = json.loads((ROOT / "nbs" / "experiments" / "83_law.ipynb").read_text(encoding="utf-8"))["cells"]
    place = next(i for i, cell in enumerate(cells) if "## First" in "".join(cell["source"]))
    printed = "".join("".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", ()))
    numbers = {abs(float(number)) for number in re.findall(r"\d*\.\d+", printed)}
    prose = "\n".join("".join(cell["source"]) for cell in cells[place:] if cell["cell_type"] == "markdown")
    said = set(re.findall(r"(?<![\w.])\.\d+", prose)) - {".20", ".52"}
    assert said and [x for x in said if not any(abs(y - float(x)) < 0.5001 * 10 ** (1 - len(x)) for y in numbers)] == []
