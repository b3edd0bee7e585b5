"One test over many values, chats in files, cells of notebooks, and programs in processes of their own."

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def case(*names):
    "Put the names of a value in front of a failed assertion."
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{', '.join(map(str, names))}: {type(error).__name__}: {error}") from error


def pairs(dialogues) -> list:
    return [(d.prompt, d.response) for d in dialogues]


def save(path, value):
    "Write bytes, a text, or rows as the file's ending has them."
    if not isinstance(value, (bytes, str)):
        is_lines = path.suffix == ".jsonl"
        value = "".join(json.dumps(row) + "\n" for row in value) if is_lines else json.dumps(value)
    path.write_bytes(value if isinstance(value, bytes) else value.encode())
    return path


def read_cells(path) -> list:
    "The cells of a notebook."
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source_of(cell) -> str:
    return "".join(cell["source"])


def run_python(program: str, *words, **variables) -> str:
    "What a program prints; it must succeed. A variable of None is left out."
    given = os.environ | dict(PYTHONPATH=str(ROOT)) | variables
    environment = {name: value for name, value in given.items() if value is not None}
    command = [sys.executable, "-c", program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
