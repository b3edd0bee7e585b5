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
from personal_llm.course.hand_ins import list_hand_ins
from personal_llm.course.tasks_4 import BestOf

ASSIGNMENTS = COURSE / "assignments"
PARTS = ("CourseDirectory", "ClearSolutions", "ExecutePreprocessor", "ZipCollectApp")
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


def twice(text: str) -> str:
    "A notebook with its last cell there twice."
    notebook = json.loads(text)
    return json.dumps(notebook | dict(cells=[*notebook["cells"], notebook["cells"][-1]]))


LOST = {"ed": twice, "fay": lambda text: "", "gus": lambda text: text[:99]}
LISTED = dict(ed="test_idd_function is there 2 times", fay="empty file", gus="invalid: not a notebook", hal="missing")


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
    file_of = lambda learner: room / "submitted" / learner / "assignment_3" / "assignment_3.ipynb"
    for learner, (answers, _) in CLASS.items():
        hand_in(file_of(learner), released, answers)
    for learner, content in LOST.items():
        hand_in(file_of(learner), released, RIGHT)
        text = file_of(learner).read_text(encoding="utf-8")
        file_of(learner).write_text(content(text), encoding="utf-8")
    listed = list_hand_ins("assignment_3", ["hal"], room)
    assert listed == dict(anna="", bo="", cy="nothing is answered", di="test_idd_function is missing", **LISTED)
    for learner in LOST:
        shutil.rmtree(room / "submitted" / learner)
    nbgrader("autograde", "assignment_3")
    hand_in(file_of("bo"), released, RIGHT)
    again = "handed in again after the mark"
    assert [who for who, what in list_hand_ins("assignment_3", room=room).items() if again in what] == ["bo"]
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
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(notebook), encoding="utf-8")


COLLECTED = {  # a file of a platform, a browser or Jupyter -> the learner's folder
    "anna_assignment_1.ipynb": "anna",
    "meier_anna_Assignment_10 (1).ipynb": "meier_anna",
    "anna-lena_assignment-3-Copy1.ipynb": "anna-lena",
    "j.weiß_assignment_3.ipynb": "j.weiß",
    "mu\u0308ller_assignment_3.ipynb": "m\u00fcller",
    "group 2/bo_assignment_3.ipynb": "bo",
    "bo/assignment_3.ipynb": "bo",
    "Ana María Pérez_41237_assignsubmission_file_assignment_1.ipynb": "41237",  # Moodle
    "Ana María Pérez_41238_assignsubmission_file_/assignment_1.ipynb": "41238",  # another person of that name
    "O'Neil, Sam_7_assignsubmission_file/assignment_2.ipynb": "7",
    "examplesam_10211_556677_assignment_1.ipynb": "10211",  # Canvas
    "examplesam_LATE_10212_556678_assignment_1-1.ipynb": "10212",  # late, handed in for the second time
}


@pytest.fixture
def load_config(monkeypatch):
    pytest.importorskip("nbgrader")

    def load(seed="7"):
        config = types.SimpleNamespace(**{name: types.SimpleNamespace() for name in PARTS})
        monkeypatch.setattr("builtins.get_config", lambda: config, raising=False)
        monkeypatch.setattr(os, "environ", {SEED: seed})
        runpy.run_path(str(ASSIGNMENTS / "nbgrader_config.py"))
        return config

    return load


def test_files_of_platforms_browsers_and_jupyter_are_sorted_by_learner(load_config, caplog):
    collector = load_config().ZipCollectApp.collector_plugin()
    for name, learner in COLLECTED.items():
        found = collector.collect(f"/class/downloaded/assignment_1/extracted/{name}")
        assert found["student_id"] == learner and found["file_id"][11:] in name, name
    assert collector.collect("/class/downloaded/assignment_1/extracted/notes.ipynb") is None
    assert "Two files of bo: group 2/bo_assignment_3.ipynb and bo/assignment_3.ipynb" in caplog.text


@pytest.mark.parametrize("seed", ["WS26", "0", "-3", "1.5", "", "12345678901"])
def test_a_seed_that_cannot_be_used_is_refused_before_marking(load_config, seed):
    with pytest.raises(SystemExit, match="whole number"):
        load_config(seed)


def test_a_thread_that_calls_the_librarys_solution_is_watched():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, pytest.raises(AssertionError, match="write it yourself"):
        mark(3, "idd function", lambda *case: pool.submit(in_domain_dissimilarity, *case).result())
