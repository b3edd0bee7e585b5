"""Ten ways to points without an answer, written with the grader's code open: none gets a point, and each is named."""

import os

import pytest
from test_course_grading import COURSE, NEEDS, RIGHT, hand_in

from personal_llm.course.grading import Limits, grade_class
from personal_llm.course.submissions import code_cells

cells_of = lambda n: code_cells(next(COURSE.glob(f"lesson_{n}_*.ipynb")))
START = {n: next(source for source in cells_of(n) if "personal_llm.course" in source) for n in (3, 4, 5, 10)}
CONNECTION = """
import gc, multiprocessing.connection as m
lines = [one for one in gc.get_objects() if isinstance(one, m.Connection)]
"""


def renamed(source: str) -> str:
    "Our solution with a comment and other names."
    return source.replace("names", "words_of_it").replace("drawn", "picked") + "\n# I wrote this myself\n"


WAYS = {  # name -> (lesson, cells, a part of the notes or of a verdict)
    "left in memory": (
        10,
        [
            START[10],
            "import gc\nleft = [f for f in gc.get_objects() if callable(f) and getattr(f, '__name__', '') == 'copied' "
            "and 'course' in str(getattr(f, '__module__', ''))]",
            'check(TASKS["copied"], left[0])',
        ],
        "IndexError",
    ),
    "the library's function": (
        3,
        [
            START[3],
            "from personal_llm.buffer.scoring import entropy_of_embedding, in_domain_dissimilarity",
            'check(TASKS["eoe function"], entropy_of_embedding)',
            'check(TASKS["idd function"], lambda e, k: float(in_domain_dissimilarity(e, k)))',
        ],
        "the library's own function",
    ),
    "the library's function by another name": (
        5,
        [
            START[5],
            "import importlib\ntext = importlib.import_module('personal_llm.base' + '.te' + 'xt')",
            "f = getattr(text, 'compute_' + 'rouge1')",
            'check(TASKS["rouge_function"], lambda c, r: f(c, r))',
        ],
        "the library's own function",
    ),
    "our solution renamed": (
        2,
        [renamed(source) for source in code_cells(COURSE / "solution_2.ipynb")],
        "our solution",
    ),
    "the simulated users": (
        4,
        [
            START[4],
            "from personal_llm import Policy\nfrom personal_llm.recipes.people import USERS as U\n"
            "class Mine(Policy):\n    def choose(self, view, candidate):\n"
            "        known = [any(u.is_signal_dialogue(e.dialogue) for u in U.values()) for e in view.entries]\n"
            "        if any(u.is_signal_dialogue(candidate.dialogue) for u in U.values()) and not all(known):\n"
            "            return known.index(False), 'signal'\n        return None, 'none'\n",
            'check(TASKS["design"], Mine)',
        ],
        "the library's own function",
    ),
    "the hidden stream by its seed": (
        5,
        [
            START[5],
            "S = [toy_stream(seed, shift) for seed in range(3000) for shift in (-0.3, -0.2, 0.0, 0.2, 0.3)]\n"
            "def wants(chance, earlier, left, to_come):\n"
            "    for chances, corrects in S:\n"
            "        if abs(chances[len(earlier)] - chance) < 1e-12:\n"
            "            return bool(corrects[len(earlier)])\n"
            "    return False\n",
            'check(TASKS["spend"], wants)',
        ],
        "spend",
    ),
    "a child process by C": (
        2,
        [
            *NEEDS,
            "import ctypes\nctypes.CDLL(None).fork()",
            "import ctypes\nctypes.pythonapi.fork",
        ],
        "ctypes.dlsym is not allowed",
    ),
    "a forged reply": (
        2,
        [
            *NEEDS,
            CONNECTION + 'for line in lines:\n    line.send_bytes(b\'{"error": "", "answers": 3}\')',
        ],
        "forged",
    ),
    "a reply too deep to read": (
        2,
        [*NEEDS, CONNECTION + "for line in lines:\n    line.send_bytes(b'[' * 200000)"],
        "forged",
    ),
    "a link to a classmate's file": (2, "link", "is a link"),
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    hand_in(folder / "honest" / "lesson_2.ipynb", [*NEEDS, *RIGHT.values()])
    for name, (lesson, cells, _) in WAYS.items():
        path = folder / name.replace("'", "") / f"lesson_{lesson}.ipynb"
        if cells == "link":
            path.parent.mkdir()
            os.symlink(folder / "honest" / "lesson_2.ipynb", path)
        else:
            hand_in(path, cells)
    return grade_class(folder, seed=2**40 + 2024, limits=Limits(cell=60, call=60), course=COURSE)


@pytest.mark.parametrize("name", WAYS)
def test_a_hostile_way_has_no_points_and_is_named(graded, name):
    learner, part = name.replace("'", ""), WAYS[name][2]
    marked = [one for one in graded.marked if one.submission.learner == learner]
    lines = [
        *graded.notes(learner),
        *(f"{n}: {v.reason}" for one in marked for n, v in one.verdicts.items() if v.reason),
    ]
    assert graded.points(learner) == 0, lines
    assert any(part in line for line in lines), lines


def test_an_honest_notebook_beside_them_keeps_its_points(graded):
    (honest,) = [one for one in graded.marked if one.submission.learner == "honest"]
    assert honest.right == 5 and not honest.is_copy
