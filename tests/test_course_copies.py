"Who is accused of handing in our solution: no honest notebook, however short, and every copy of all ten."

import ast
import re

import attempts
import pytest
from attempts import read_attempts
from test_course_grading import COURSE

from personal_llm.base.core import make_generator
from personal_llm.course.submissions import code_cells, is_copy_of, needed_cells, tasks_in

LESSONS = range(1, 11)
LESSON_CELLS = {n: code_cells(next(COURSE.glob(f"lesson_{n}_*.ipynb"))) for n in LESSONS}
SOLUTIONS = {n: code_cells(COURSE / f"solution_{n}.ipynb") for n in LESSONS}
RIGHT = [
    attempt
    for attempt in [*read_attempts(), *read_attempts(attempts.LINES.with_name("course_attempts_unseen.txt"))]
    if attempt.is_right
]
NUM_NOTEBOOKS = 30  # of each lesson


def in_lesson(cell: str, name: str, answer: str) -> str:
    "A cell of the lesson with an answer in the place of `...`."
    variable = re.search(rf'check\(TASKS\["{re.escape(name)}"\], (\w+)\)', cell)[1]
    if answer.startswith(("def ", "class ")):
        return f'{answer}\n\n\ncheck(TASKS["{name}"], {answer.split("(")[0].split()[1]})'
    return f'{variable} = {answer}\ncheck(TASKS["{name}"], {variable})'


def answered(n: int, answers: dict) -> list:  # cells
    "The lesson with answers to some tasks; the other cells stay as they are."
    cells = []
    for cell in LESSON_CELLS[n]:
        names = [name for name in tasks_in(cell) if name in answers]
        cells.append("\n".join(in_lesson(cell, name, answers[name]) for name in names) if names else cell)
    return cells


def honest_notebooks(n: int) -> list:  # lists of cells
    "Notebooks whose right answers were written without our solutions; each task's answer is drawn, some stay open."
    random, notebooks = make_generator(n, "honest notebooks"), []
    by_task = {}
    for attempt in RIGHT:
        if attempt.lesson == n and "cost(" not in attempt.source:
            by_task.setdefault(attempt.task, []).append(attempt.source)
    for place in range(NUM_NOTEBOOKS):
        is_done = lambda: place % 2 or random.random() < 0.6
        notebooks.append(answered(n, {name: random.choice(found) for name, found in by_task.items() if is_done()}))
    return notebooks


def accused(n: int, cells: list) -> bool:
    return is_copy_of(cells, SOLUTIONS[n], set(LESSON_CELLS[n]))


def test_no_honest_notebook_is_accused():
    judged = [accused(n, cells) for n in LESSONS for cells in honest_notebooks(n)]
    assert len(RIGHT) >= 600 and len(judged) == 300
    assert sum(judged) == 0


def without_frame(cells: list) -> list:
    "Answers pasted into cells as the lesson has them: no `verdict`, no `assert`, no `print`."

    class Frame(ast.NodeTransformer):
        def visit_Module(self, node):
            node.body = [one for one in map(self.plain, node.body) if one is not None]
            return node

        def plain(self, node):
            if isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Call)):
                return None
            is_verdict = isinstance(node, ast.Assign) and "check(TASKS" in ast.unparse(node)
            return ast.Expr(node.value) if is_verdict else node

    return [ast.unparse(ast.fix_missing_locations(Frame().visit(ast.parse(cell)))) for cell in cells]


def renamed(cells: list) -> list:
    "Other names for everything that the cells define, and a comment."

    class Names(ast.NodeTransformer):
        def visit_Name(self, node):
            return ast.Name(f"my_{node.id}" if node.id in own else node.id, node.ctx)

        def visit_arg(self, node):
            return ast.arg(f"my_{node.arg}")

    trees = [ast.parse(cell) for cell in cells]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return [ast.unparse(ast.fix_missing_locations(Names().visit(tree))) + "\n# my own idea" for tree in trees]


COPIES = {
    "as it is": lambda cells: cells,
    "with other names and comments": renamed,
    "pasted into cells of the lesson": without_frame,
    "in one cell": lambda cells: ["\n".join(cells)],
    "in another order": lambda cells: cells[:1] + cells[:0:-1],
    "beside the lesson's own cells": lambda cells: [*LESSON_CELLS[1], *cells],
    "with a long function that nobody calls": lambda cells: [
        *cells,
        f"def more(x):\n    return [{', '.join('x' * 400)}]",
    ],
}


def test_a_cell_too_deep_to_parse_stops_no_marking():
    for deep in ("x = " + " + ".join("x" * 100_000), "TASKS" + ".right" * 5_000, "x = '\0'"):
        assert accused(2, [*SOLUTIONS[2], deep])
        assert needed_cells([deep], set()) == [True]


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_of_each_solution_is_found(kind):
    told = [
        n for n in LESSONS if n != 6
    ]  # the answers of lesson 6 are numbers and one short class, which all write alike
    assert [n for n in told if not accused(n, COPIES[kind](SOLUTIONS[n]))] == []
