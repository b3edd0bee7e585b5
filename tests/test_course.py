"The course: right answers are accepted, every named mistake is recognised with its own reason, lessons have all parts."

import importlib
import re
import runpy
from pathlib import Path

import pytest
from cases import case, read_cells, source_of

from personal_llm.course import check
from personal_llm.course.checks import Task

LESSONS = range(1, 11)
COURSE = Path(__file__).parent.parent / "nbs" / "course"
TASKS = {n: importlib.import_module(f"personal_llm.course.tasks_{n}").TASKS for n in LESSONS}
EACH = [task for n in LESSONS for task in TASKS[n].values()]
WRONG = [(task, wrong) for task in EACH for wrong in task.wrongs]
PARTS = [r"fterwards you can|fter this lesson you can", r"\*\*What it takes", "## By hand|, by hand", "## From scratch"]
PARTS += ["## With the library", "## Break it", "## Summary", "## Words", "## Questions without code"]  # of each lesson


def notebook(pattern: str) -> list:
    "The cells of the one notebook of that name."
    (file,) = COURSE.glob(pattern)
    return read_cells(file)


def text_of(cells: list, kind: str) -> str:
    return "\n\n".join(source_of(cell) for cell in cells if cell["cell_type"] == kind)


def section(text: str, heading: str) -> str:
    "From a heading to the next one."
    return re.search(rf"## {heading}\n(.*?)(?=\n## |\Z)", text, re.S)[1]


def shown(cell) -> str:
    "The text that a cell shows as it is saved."
    parts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.get("outputs", [])]
    return "\n".join("".join(part) for part in parts)


def test_right_answers_are_accepted():
    for task in EACH:
        with case(task.lesson, task.name):
            verdict = check(task, task.value(task.right))
            assert verdict and verdict.state == "right", verdict


def test_named_mistakes_are_rejected_with_their_own_reason():
    for task, wrong in WRONG:
        with case(task.lesson, task.name, wrong.name):
            verdict = check(task, Task.value(wrong.answer))
            assert not verdict and verdict.state == "wrong"
            assert (verdict.wrong, verdict.reason) == (wrong.name, wrong.says)


def test_no_strange_answer_raises_or_is_right():
    for task in EACH:
        for answer in [None, object(), float("nan"), [[1, [2]]], "?", {}, b"x"]:
            with case(task.lesson, task.name, repr(answer)[:60]):
                verdict = check(task, answer)
                assert verdict.state == "wrong" and verdict.reason and "\n" not in str(verdict)


def test_an_open_answer_is_open():
    for task in EACH:
        with case(task.lesson, task.name):
            assert check(task, ...).state == "open"


def test_reasons_are_told_apart_and_do_not_give_the_answer_away():
    for task in EACH:
        with case(task.lesson, task.name):
            said = [wrong.says for wrong in task.wrongs]
            assert len(set(said)) == len(said) and all(0 < len(text) <= 120 and "\n" not in text for text in said)
            right = task.value(task.right)
            if task.kind == "choice":
                assert not any(re.search(rf"\b{re.escape(right)}\b", text) for text in said)
            if task.kind == "number":
                spelled = {f"{right:.{digits}f}" for digits in range(5)} | {
                    f"{right:.{digits}g}" for digits in range(2, 5)
                }
                numbers = {x for text in said for x in re.findall(r"\d+(?:\.\d+)?", text)}
                assert not numbers & spelled


@pytest.mark.parametrize("n", LESSONS)
def test_a_lesson_has_its_parts(n):
    cells = notebook(f"lesson_{n}_*.ipynb")
    text = text_of(cells, "markdown")
    for part in PARTS:
        assert re.search(part, text), f"lesson {n} lacks {part!r}"
    for heading in ("Summary", "Questions without code"):
        assert re.findall(r"(?m)^(\d)\. ", section(text, heading)) == ["1", "2", "3"], heading
    assert len(re.findall(r"(?m)^\| ", section(text, "Words"))) >= 5
    assert any("image/png" in o.get("data", {}) for cell in cells for o in cell.get("outputs", [])), "no picture saved"


@pytest.mark.parametrize("n", LESSONS)
def test_lessons_ask_and_solutions_answer_every_task_with_saved_outputs(n):
    lesson, solution = notebook(f"lesson_{n}_*.ipynb"), notebook(f"solution_{n}.ipynb")
    asked = {name for name in TASKS[n] if f'TASKS["{name}"]' in text_of(lesson, "code")}
    answered = {name for name in TASKS[n] if f'TASKS["{name}"]' in text_of(solution, "code")}
    assert asked == answered == set(TASKS[n])
    for cell in lesson:
        if cell["cell_type"] == "code" and "check(TASKS[" in source_of(cell):
            assert re.search(r"(?m)(^|\s)\.\.\.", source_of(cell)) and "not answered yet" in shown(cell)
    assert not any("not answered yet" in shown(cell) for cell in solution if cell["cell_type"] == "code")
    for cells in (lesson, solution):
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert outputs and not any(output["output_type"] == "error" for output in outputs)


def test_the_report_template_and_the_glossary_are_whole():
    template, glossary = notebook("report_template.ipynb"), notebook("glossary.ipynb")
    assert "not filled in yet" in "".join(map(shown, template))
    (table,) = [
        "".join(o["data"]["text/markdown"])
        for cell in glossary
        for o in cell.get("outputs", [])
        if "text/markdown" in o.get("data", {})
    ]
    for n in LESSONS:
        words = section(text_of(notebook(f"lesson_{n}_*.ipynb"), "markdown"), "Words")
        for word in re.findall(r"(?m)^\| (.+?) \| .+ \|$", words)[1:]:
            assert f"| {word} | " in table, f"lesson {n}: {word!r} is missing; run the glossary again"


def test_every_question_of_the_exam_has_an_answer_that_runs():
    exam, answers = notebook("exam.ipynb"), notebook("exam_answers.ipynb")
    asked = re.findall(r"(?m)^## Question (\d+) \((\d+) points\)", text_of(exam, "markdown"))
    given = re.findall(r"(?m)^## Answer (\d+)", text_of(answers, "markdown"))
    assert [number for number, _ in asked] == given and sum(int(points) for _, points in asked) == 60
    assert not [cell for cell in exam if cell["cell_type"] == "code"], "the exam holds no answer"
    names = {}
    for cell in answers:
        if cell["cell_type"] == "code":
            exec(source_of(cell), names)
    assert text_of(answers, "code").count("assert") >= 10


def test_the_sample_reports_are_marked_by_the_rubric():
    text = text_of(notebook("sample_reports.ipynb"), "markdown")
    tables = re.findall(r"(?s)\| row \| points .*?\*\*sum\*\* \| \*\*(\d+) of 30\*\*", text)
    points = [int(number) for number in re.findall(r"(?m)^\| \w+ \| (\d) \|", text)]
    assert len(points) == 15 and [sum(points[i : i + 5]) for i in (0, 5, 10)] == [int(total) for total in tables]
    rubric = text_of(notebook("instructor_notes.ipynb"), "markdown")
    assert all(re.search(rf"(?m)^\| {row} \|", rubric) for row in set(re.findall(r"(?m)^\| (\w+) \| \d \|", text)))


def test_answers_stay_off_the_site():
    pytest.importorskip("latex2mathml")
    pytest.importorskip("mkdocs")
    site = runpy.run_path(str(COURSE.parent.parent / "tools" / "site.py"))
    shown = {path.name for path in site["notebooks_of"]("course")}
    assert "exam.ipynb" in shown and "exam_answers.ipynb" not in shown
    assert not [name for name in shown if name.startswith(("solution_", "tasks_"))]
    assert not site["notebooks_of"]("course/assignments/source/assignment_1")
    linked = r"\]\([^)]*(?:solution_\d|exam_answers|tasks_\d)[^)]*\)"
    assert not [name for name in shown if re.search(linked, text_of(notebook(name), "markdown"))]
