"""Small mistakes that we put into a module on purpose: does a test of it fail? Run by hand.

    python tests/mutants.py 12 1 buffer store        12 mistakes in each, drawn with seed 1

Each line of the output is a JSON object. A mistake is one of these changes in one place of a function: a comparison
(`<` becomes `<=`), an operation (`+` becomes `-`), a number (n becomes n + 1), `and` becomes `or`, a condition is
negated, or a statement without a value is left out. We import the package once. Each mutant is a child process, in
which we replace the code of the changed function, and run the tests of the module until the first one fails.
"""

import ast
import contextlib
import gc
import importlib
import inspect
import io
import json
import os
import random
import signal
import sys
import time
import types
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = 300  # of a mutant; what takes longer counts as killed
MODULES = {  # name -> (module, its tests)
    "buffer": ("personal_llm.buffer.buffer", "test_buffer.py"),
    "active": ("personal_llm.buffer.active", "test_active.py test_policies.py"),
    "losses": ("personal_llm.tuning.training_loop", "test_losses.py test_tuning.py"),
    "finetune": ("personal_llm.tuning.finetune", "test_tuning.py test_validation.py"),
    "mixture": ("personal_llm.selection.mixture", "test_mixture.py"),
    "memory": ("personal_llm.device.memory", "test_store.py"),
    "forgetting": ("personal_llm.device.forgetting", "test_forgetting.py"),
    "exports": ("personal_llm.data.exports", "test_exports.py"),
}
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARISONS |= {ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
OPERATIONS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
OPERATIONS |= {ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr}


def list_places(tree) -> list:  # (node, kind of change)
    "Return the changeable places of all functions, without annotations, defaults, docstrings and texts of errors."
    places = []
    for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
        for node in [node for part in function.body for node in ast.walk(part) if not is_message(part)]:
            if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
                places.append((node, "comparison"))
            elif isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
                places.append((node, "operation"))
            elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                places.append((node, "number"))
            elif isinstance(node, ast.BoolOp):
                places.append((node, "and, or"))
            elif isinstance(node, (ast.If, ast.IfExp)):
                places.append((node, "condition"))
            elif isinstance(node, (ast.AugAssign, ast.Delete)) or is_call(node):
                places.append((node, "statement"))
    return sorted(dict.fromkeys(places), key=lambda place: (place[0].lineno, place[0].col_offset, place[1]))


def is_call(node) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def is_message(node) -> bool:
    return isinstance(node, ast.Raise)


def change(node, kind: str) -> None:
    "Change a node of a tree in place."
    if kind == "comparison":
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif kind == "operation":
        node.op = OPERATIONS[type(node.op)]()
    elif kind == "number":
        node.value += 1
    elif kind == "and, or":
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif kind == "condition":
        node.test = ast.copy_location(ast.UnaryOp(ast.Not(), node.test), node.test)
    else:
        clear(node)


def clear(node) -> None:
    "Make a statement one that does nothing."
    empty = ast.copy_location(ast.Expr(ast.copy_location(ast.Constant(None), node)), node)
    node.__class__ = ast.Expr
    node.__dict__.clear()
    node.__dict__.update(empty.__dict__)


def list_code(code) -> dict:  # (qualified name, first line) -> code, of functions that are not inside of another one
    found = {}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            is_class = not const.co_flags & inspect.CO_OPTIMIZED
            found |= list_code(const) if is_class else {(const.co_qualname, const.co_firstlineno): const}
    return found


def install(module, tree) -> None:
    "Replace the code of the module's functions, whoever has imported them."
    new = list_code(compile(ast.fix_missing_locations(tree), module.__file__, "exec"))
    for function in [thing for thing in gc.get_objects() if isinstance(thing, types.FunctionType)]:
        code = function.__code__
        changed = new.get((code.co_qualname, code.co_firstlineno)) if code.co_filename == module.__file__ else None
        if changed is not None and changed != code and changed.co_freevars == code.co_freevars:
            function.__code__ = changed


def run_mutant(module, source: str, number: int, tests: list) -> tuple:  # (killed, line, kind, text, seconds)
    "Change one place in a child process, and run the tests there."
    tree = ast.parse(source)
    node, kind = list_places(tree)[number]
    text, line, begin = ast.unparse(node).splitlines()[0][:70], node.lineno, time.perf_counter()
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        os.setpgid(0, 0)
        change(node, kind)
        install(module, tree)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
            os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))
    _, status = os.waitpid(child, 0)
    return status != 0, line, kind, text, round(time.perf_counter() - begin, 1)


def run_module(name: str, count: int, seed: int) -> None:
    "Draw mistakes for a module, and print a line for each."
    place, files = MODULES[name]
    module, tests = importlib.import_module(place), [str(HERE / file) for file in files.split()]
    source = Path(module.__file__).read_text(encoding="utf-8")
    places = list_places(ast.parse(source))
    draw = random.Random(f"{seed} {name}")
    for number in sorted(draw.sample(range(len(places)), min(count, len(places)))):
        killed, line, kind, text, seconds = run_mutant(module, source, number, tests)
        row = dict(module=name, places=len(places), line=line, kind=kind, text=text, killed=killed, seconds=seconds)
        print(json.dumps(row), flush=True)


def main(count: int, seed: int, names: list) -> None:
    sys.path.insert(0, str(HERE))
    with contextlib.redirect_stdout(io.StringIO()):
        for file in dict.fromkeys(file for name in names for file in MODULES[name][1].split()):
            importlib.import_module(Path(file).stem)  # so that no child imports torch again
    for file in [name for name in sys.modules if name.startswith("test_")]:
        del sys.modules[file]  # pytest imports them again, with its assertions
    os.chdir(HERE.parent)
    for name in names:
        run_module(name, count, seed)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or [*MODULES])
