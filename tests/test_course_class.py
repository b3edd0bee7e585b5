"The assignments, and a class of three through nbgrader: release, autograde, feedback."

import csv
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from cases import read_cells, source_of
from test_course import COURSE, LESSONS, TASKS

from personal_llm.buffer.scoring import in_domain_dissimilarity
from personal_llm.course.checks import SEED, check, mark
from personal_llm.course.tasks_4 import BestOf

ASSIGNMENTS = COURSE / "assignments"
PARTS = ("CourseDirectory", "ClearSolutions", "ExecutePreprocessor", "FileNameCollectorPlugin")
MARKED = [(n, name) for n in LESSONS for name, task in TASKS[n].items() if task.is_marked]


def assignment(n: int) -> list:  # code cells as (source, nbgrader's fields)
    path = ASSIGNMENTS / "source" / f"assignment_{n}" / f"assignment_{n}.ipynb"
    cells = read_cells(path)
    return [(source_of(cell), cell["metadata"]["nbgrader"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("n", LESSONS)
def test_an_assignment_has_each_function_of_its_lesson_with_a_check_and_a_hidden_mark(n):
    _, *cells = assignment(n)
    names = [name for lesson, name in MARKED if lesson == n]
    assert len(cells) == 2 * len(names) and sum(fields.get("points", 0) for _, fields in cells) == len(names)
    for name, (answer, one), (test, other) in zip(names, cells[::2], cells[1::2]):
        assert one["solution"] and not one["grade"] and other["grade"] and other["locked"]
        assert answer.count("### BEGIN SOLUTION") == answer.count("### END SOLUTION") >= 1
        shown, hidden = test.split("### BEGIN HIDDEN TESTS")
        assert f'check(TASKS["{name}"], ' in shown and f'mark({n}, "{name}", ' in hidden and "mark" not in shown


def test_a_mark_tries_other_cases_than_the_check(monkeypatch):
    task = TASKS[3]["idd function"]
    seen = {repr(case): task.right(*case) for case in cases(task, 0)}
    learned_by_heart = lambda *case: seen.get(repr(case), 0.0)
    assert check(task, learned_by_heart)
    for seed in ("1", "777"):
        monkeypatch.setenv(SEED, seed)
        with pytest.raises(AssertionError, match="right in "):
            mark(3, "idd function", learned_by_heart)


def cases(task, seed):
    from personal_llm.course.checks import cases_of

    return cases_of(task, seed)


def test_the_librarys_own_answer_gets_no_mark():
    for answer in (
        in_domain_dissimilarity,
        lambda *case: in_domain_dissimilarity(*case),
        TASKS[3]["idd function"].right,
    ):
        with pytest.raises(AssertionError, match="write it yourself"):
            mark(3, "idd function", answer)
    with pytest.raises(AssertionError, match="write it yourself"):
        mark(4, "design", BestOf)
    with pytest.raises(AssertionError, match="not answered yet"):
        mark(3, "idd function", ...)


RIGHT = {
    "eoe_function": "def eoe(h):\n    e = ((h - h.mean(0)) ** 2).sum(1)\n    p = e[e > 0] / e.sum()\n"
    "    return -sum(p * np.log(p)) / np.log(len(h))",
    "dss_function": "def dss(words, lists):\n    return sum(w in x for x in lists.values() for w in words)"
    " / len(words) / len(lists)",
    "idd_function": "def idd(e, kept):\n    return np.mean([1 - e @ k / np.sqrt(e @ e * (k @ k)) for k in kept])",
}
CLASS = {  # learner -> (answers, points)
    "anna": (RIGHT, 3),
    "bo": (RIGHT | {"idd_function": "def idd(e, kept):\n    return 1 - np.mean(kept @ e)"}, 2),
    "cy": ({}, 0),
    "di": (RIGHT | {"test_idd_function": None}, 2),  # deleted a test cell, which nbgrader doesn't restore
}


@pytest.mark.skipif(not importlib.util.find_spec("nbgrader"), reason="needs nbgrader: pip install -e '.[course]'")
def test_a_class_of_three_goes_through_nbgrader(tmp_path):
    room = tmp_path / "class"
    shutil.copytree(ASSIGNMENTS, room, ignore=lambda _, names: [n for n in names if re.search(r"_(?!3$)\d+$", n)])
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]  # nbgrader calls alembic
    environment = os.environ | {"PATH": os.pathsep.join(places), "PYTHONPATH": str(COURSE.parent.parent)}

    def nbgrader(*words):
        command = [sys.executable, "-m", "nbgrader", *words]
        done = subprocess.run(command, cwd=room, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    nbgrader("generate_assignment", "assignment_3")
    released = (room / "release/assignment_3/assignment_3.ipynb").read_text(encoding="utf-8")
    assert "check(" in released and not re.search(r"SOLUTION|HIDDEN|mark\(|np\.log|linalg", released)
    counts = {}
    for learner, (answers, _) in CLASS.items():
        file = room / "submitted" / learner / "assignment_3" / "assignment_3.ipynb"
        hand_in(file, released, answers)
        counts[learner] = file.read_text(encoding="utf-8").count("grade_id")
    assert counts["di"] < counts["anna"] == released.count("grade_id"), "the notes let a teacher count them"
    nbgrader("autograde", "assignment_3")
    nbgrader("generate_feedback", "assignment_3")
    nbgrader("export", "--to", "marks.csv")
    rows = csv.DictReader((room / "marks.csv").read_text(encoding="utf-8").splitlines())
    assert {row["student_id"]: float(row["score"]) for row in rows} == {
        name: points for name, (_, points) in CLASS.items()
    }
    pages = {name: (room / f"feedback/{name}/assignment_3/assignment_3.html").read_text("utf-8") for name in CLASS}
    assert "vectors were not scaled to length one first" in pages["bo"] and "not answered yet" in pages["cy"]
    assert "AssertionError" not in pages["anna"]


def hand_in(file: Path, released: str, answers: dict) -> None:
    "Write a released notebook with answers in place of the stubs, without the cells whose answer is None."
    notebook = json.loads(released)
    for cell in notebook["cells"]:
        cell["source"] = answers.get(cell["metadata"].get("nbgrader", {}).get("grade_id"), cell["source"])
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["source"] is not None]
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(notebook), encoding="utf-8")


COLLECTED = {  # a file of a platform -> the learner's folder
    "anna_assignment_1.ipynb": "anna",
    "week1_bo_assignment_10.ipynb": "bo",
    "Ana María Pérez_41237_assignsubmission_file_assignment_1.ipynb": "41237",  # Moodle
    "Ana María Pérez_41238_assignsubmission_file_/assignment_1.ipynb": "41238",  # another person of that name
    "O'Neil, Sam_7_assignsubmission_file/assignment_2.ipynb": "7",
    "examplesam_10211_556677_assignment_1.ipynb": "10211",  # Canvas
    "examplesam_LATE_10212_556678_assignment_1-1.ipynb": "10212",  # late, handed in for the second time
}


def test_files_of_learning_platforms_are_sorted_by_learner(monkeypatch):
    config = types.SimpleNamespace(**{name: types.SimpleNamespace() for name in PARTS})
    monkeypatch.setattr("builtins.get_config", lambda: config, raising=False)
    monkeypatch.setattr(os, "environ", {})
    runpy.run_path(str(ASSIGNMENTS / "nbgrader_config.py"))
    pattern = config.FileNameCollectorPlugin.named_regexp
    found = {name: re.match(pattern, f"/class/downloaded/assignment_1/extracted/{name}") for name in COLLECTED}
    assert {name: match and match["student_id"] for name, match in found.items()} == COLLECTED
    assert all(match["file_id"] in name for name, match in found.items())
    assert not re.match(pattern, "/class/downloaded/assignment_1/extracted/notes.ipynb")
