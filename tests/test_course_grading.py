"Grading a class: every trick and every broken file gets the right mark, with a reason that the teacher can read."

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attempts import LINES, read_attempts

from personal_llm.base.core import InputError
from personal_llm.course import grading
from personal_llm.course.grading import Limits, course_tasks, grade_class, report_of, write_reports, write_table
from personal_llm.course.checks import Verdict
from personal_llm.course.submissions import Submission, code_cells, learner_of

COURSE = Path(__file__).parent.parent / "nbs" / "course"
LESSON_2 = code_cells(COURSE / "lesson_2_streams.ipynb")
NEEDS = [LESSON_2[0]]  # imports
RIGHT = {
    "episode": 'check(TASKS["episode"], 1 / (1 - 0.9))',
    "lag 5": 'check(TASKS["lag 5"], 0.9**5)',
    "fifo": 'check(TASKS["fifo"], 1 + 15 * 0.1)',
    "leak": 'check(TASKS["leak"], 0.5)',
    "autocorrelation": """
def autocorrelation(x, lag):
    c = x - x.mean()
    return (c[:-lag] * c[lag:]).mean() / (c**2).mean()


check(TASKS["autocorrelation"], autocorrelation)""",
}
SPLIT = """
def split(groups, seed):
    names = sorted(set(groups))
    drawn = np.random.default_rng(seed).permutation(names)[: len(names) // 5]
    return [name in set(drawn) for name in groups]


check(TASKS["split"], split)"""
ALL = [*NEEDS, *RIGHT.values(), SPLIT]
HANG = "def f(x, lag):\n    while True:\n        pass\n\n\ncheck(TASKS['autocorrelation'], f)"
CLASS = {  # learner -> (cells, or the text of the file), right tasks, a part of the notes or of the report)
    "perfect": (ALL, 6, "not handed in: lesson 1"),
    "without imports": (ALL[1:], 6, ""),
    "empty": (LESSON_2, 0, ""),
    "prints": ([*LESSON_2, 'print("episode: right\\nlag 5: right")'], 0, "**episode**: not answered"),
    "redefines": (["def check(*_):\n    return 'right'", *LESSON_2], 0, "**episode**: not answered"),
    "reads answer": ([*NEEDS, 'check(TASKS["episode"], TASKS["episode"].right)'], 0, "AttributeError"),
    "reads by getattr": ([*NEEDS, 'check(TASKS["lag 5"], getattr(TASKS["lag 5"], "ri" + "ght"))'], 0, "AttributeError"),
    "imports answer": (
        [*NEEDS, "from personal_llm.course.tasks_2 import by_group", 'check(TASKS["split"], by_group)'],
        0,
        "ImportError",
    ),
    "imports module": (
        [*NEEDS, "import personal_llm.course.tasks_1 as t", 'check(TASKS["episode"], 3)'],
        0,
        "this file holds answers",
    ),
    "reads the file": (
        [*NEEDS, "import personal_llm.course as c\ntext = open(c.__path__[0] + '/tasks_2.py').read()"],
        0,
        "this file holds answers",
    ),
    "patches the checks": (
        [*NEEDS, "import personal_llm.course.checks as k\nk.same = lambda *a: True", "check(TASKS['fifo'], 9)"],
        0,
        "**fifo**: not right",
    ),
    "always equal": (
        [*NEEDS, "class E(float):\n    __eq__ = __lt__ = lambda *a: True", 'check(TASKS["lag 5"], E(3))'],
        0,
        "lag 5",
    ),
    "swaps TASKS": (
        [*NEEDS, "TASKS = {n: 1 for n in ('episode',)}", 'check(TASKS["episode"], 1)'],
        0,
        "**episode**: not answered",
    ),
    "network": (
        [*NEEDS, "import urllib.request as u\nu.urlopen('http://example.com')", RIGHT["leak"]],
        1,
        "not allowed",
    ),
    "shell": ([*NEEDS, "import os\nos.system('echo hi')", "!ls", RIGHT["leak"]], 1, "os.system is not allowed"),
    "writes": ([*NEEDS, f"open({str(COURSE / 'x.txt')!r}, 'w')", RIGHT["leak"]], 1, "PermissionError"),
    "syntax": ([*NEEDS, "def f(:\n    check(TASKS['fifo'], 1)", *RIGHT.values()], 5, "SyntaxError"),
    "raises": ([*NEEDS, "check(TASKS['episode'], 1 / 0)", RIGHT["leak"]], 1, "ZeroDivisionError"),
    "exits": ([*NEEDS, "import sys\nsys.exit()", RIGHT["leak"]], 1, "SystemExit"),
    "dies": ([*NEEDS, RIGHT["leak"], "import os\nos._exit(3)", RIGHT["fifo"]], 2, "ended its process"),
    "hangs in a try": (
        [
            *NEEDS,
            RIGHT["leak"],
            "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
        ],
        1,
        "ran longer than",
    ),
    "hangs in a function": ([*NEEDS, HANG, RIGHT["leak"]], 1, "ran longer than"),
    "memory": ([*NEEDS, "x = bytearray(50 * 2**30)", RIGHT["leak"]], 1, "MemoryError"),
    "cut off": ('{"cells": [{"cell_type": "code", "sou', 0, "broken JSON"),
    "no notebook": ("hello", 0, "broken JSON"),
    "no bytes": ("", 0, "could not be read: the file is empty"),
    "no cells": ('{"cells": []}', 0, "could not be read: the file is empty"),
    "no task": (["print('my diary')"], 0, "no task of the course"),
    "wrong mistake": ([*NEEDS, 'check(TASKS["episode"], 9)'], 0, "the dialogue that begins the episode counts as well"),
    "two tries": ([*NEEDS, 'check(TASKS["leak"], 0.1)', RIGHT["leak"]], 1, ""),
    "the solution": (code_cells(COURSE / "solution_2.ipynb"), 0, "nearly all of its code is that of our solution"),
    "magics": ([*NEEDS, "%matplotlib inline\n%time x = 1", RIGHT["leak"]], 1, ""),
}


def hand_in(path: Path, cells) -> None:
    "Write a notebook that was never run, or a broken file."
    cells = (
        cells
        if isinstance(cells, str)
        else json.dumps(
            dict(
                cells=[dict(cell_type="code", source=source, metadata={}, outputs=[]) for source in cells],
                metadata={},
                nbformat=4,
                nbformat_minor=5,
            )
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(cells, encoding="utf-8")


def own_answers(lesson: int) -> list:  # sources of cells
    "The first right answer to each task of a lesson that its author wrote without our solutions."
    first = {}
    for attempt in read_attempts(LINES.with_name("course_attempts_unseen.txt")):
        if attempt.lesson == lesson and attempt.is_right:
            first.setdefault(attempt.task, attempt.source)
    cells = ["import math\nimport numpy as np"]
    for task, source in first.items():
        name = source.split("(")[0].split()[1] if source.startswith(("def ", "class ")) else ""
        cells.append(f'{source}\ncheck(TASKS["{task}"], {name})' if name else f'check(TASKS["{task}"], {source})')
    return cells


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    "The class above, graded once."
    folder = tmp_path_factory.mktemp("class")
    for name, (cells, *_) in CLASS.items():
        hand_in(folder / name / "lesson_2.ipynb", cells)
    own = [*code_cells(next(COURSE.glob("lesson_3_*.ipynb")))[:1], *own_answers(3)]
    hand_in(folder / "perfect" / "lesson_7.ipynb", own)
    marks = grade_class(folder, seed=2024, limits=Limits(cell=15, call=10), course=COURSE)
    write_table(marks, folder / "marks.csv")
    return marks, folder


@pytest.mark.parametrize("name", [name for name in CLASS if name != "perfect"])
def test_a_trick_or_a_fault_gets_its_mark_and_its_reason(graded, name):
    marks, _ = graded
    _, right, sign = CLASS[name]
    one = marks.of(name).get(2)
    assert (one.right if one else 0) == right, report_of(marks, name)
    assert sign in "; ".join(marks.notes(name)) + report_of(marks, name)


def test_one_good_lesson_is_one_of_ten_and_a_wrong_number_is_named(graded):
    marks, _ = graded
    assert marks.of("perfect")[2].right == 6 and marks.of("perfect")[3].right == 10
    total = sum(len(course_tasks(n)) for n in range(1, 11))
    assert marks.points("perfect") == pytest.approx(70 * 16 / total) and total >= 55


def test_the_table_has_a_row_a_learner_and_reports_hold_no_answer(graded, tmp_path):
    marks, folder = graded
    with open(folder / "marks.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["learner"] for row in rows] == sorted(CLASS) and rows[0]["lesson 2"]
    write_reports(marks, tmp_path)
    assert len(list(tmp_path.glob("*.md"))) == len(CLASS)
    report = (tmp_path / "wrong mistake.md").read_text(encoding="utf-8")
    assert "first forgotten" in report and "10" not in report.split("## Lesson 2")[1].splitlines()[2]


def test_other_files_of_the_class_stay_as_they_were(graded):
    assert not (COURSE / "x.txt").exists()


def test_of_two_notebooks_of_a_lesson_the_better_one_counts(tmp_path):
    paths = [tmp_path / "ana" / f"lesson_2{end}.ipynb" for end in ("", " (1)")]
    made = [Submission(path, "ana", 2) for path in paths]
    marked = [
        grading.Marked(made[0], dict(a=Verdict("a", "right"))),
        grading.Marked(made[1], dict(a=Verdict("a", "open"))),
    ]
    for pair in (marked, marked[::-1]):
        assert grading.ClassMarks(pair, [2]).of("ana")[2] is marked[0]


def test_the_note_of_a_syntax_error_names_no_unknown_file(graded):
    notes = "; ".join(graded[0].notes("syntax"))
    assert "SyntaxError: " in notes and "<unknown>" not in notes


def test_names_come_from_folders_or_files(tmp_path):
    for path, name in (("a/b.ipynb", "a"), ("submitted/bo/hw/x.ipynb", "bo"), ("cy_lesson_4.ipynb", "cy")):
        assert learner_of(tmp_path / path, tmp_path) == name


def test_a_folder_without_notebooks_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError):
            grade_class(folder)


def test_the_command_grades_a_folder(tmp_path):
    hand_in(tmp_path / "in" / "eve_lesson_2.ipynb", ALL)
    command = [sys.executable, "-m", "personal_llm.course", str(tmp_path / "in"), "--lessons", "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "marks.csv")],
        capture_output=True,
        text=True,
        env=os.environ | {"MPLBACKEND": "Agg"},
    )
    assert done.returncode == 0, done.stderr
    assert (
        "eve,60.0,6 of 7" in (tmp_path / "marks.csv").read_text() and (tmp_path / "marks_reports" / "eve.md").exists()
    )
    assert subprocess.run([*command[:3], str(tmp_path / "no")], capture_output=True).returncode == 2


def test_the_report_of_a_copy_says_why_it_has_no_points(graded):
    report = report_of(graded[0], "the solution")
    assert "This notebook has no points: nearly all of its code is that of our solution." in report
    assert "**episode**: right" not in report
