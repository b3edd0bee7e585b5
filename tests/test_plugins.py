"Commands and targets come through entry points: ours, somebody else's, and broken ones, which harm nobody."

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from personal_llm.app.cli import app
from personal_llm.app.plugins import find_targets
from personal_llm.selection.selection import SELECTORS, load_selectors

ROOT = Path(__file__).resolve().parent.parent
MODULE = """
import typer

def write_name(model, adapter, folder, dialogues):
    (folder / "name.txt").write_text(model.name)
    return "read name.txt"

def shout(text: str = typer.Option(), times: int = 1):
    "Say a text in capitals."
    print("\\n".join([text.upper()] * times))

app = typer.Typer()

@app.command()
def wave():
    "Say hello."
    print("hello")

greetings = typer.Typer(help="Greetings.")
greetings.command("bow")(wave)
greetings.command("nod")(wave)
app.add_typer(greetings, name="greet")

copycat = typer.Typer()
copycat.command("status")(wave)
copycat.command("wink")(wave)

def guess(what: "Unknown"):
    "Guess."

text = "shout"
"""
RUN = """
import contextlib, io, json, sys

def run(words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        from personal_llm.app.cli import main
        code = main(words)
    return dict(code=code, out=out.getvalue(), err=err.getvalue())

print(json.dumps([run(words) for words in json.loads(sys.argv[1])]))
"""


@pytest.fixture
def command(tmp_path):
    "Run commands in one process, where a package of somebody else is installed, and one that cannot be imported."
    (tmp_path / "shout.py").write_text(MODULE)
    metadata = tmp_path / "shout-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1.0\n")
    commands = dict(shout="shout:shout", waves="shout:app", broken="nowhere:app", status="shout:copycat")
    commands |= dict(guess="shout:guess", text="shout:text")
    targets = dict(name="shout:write_name", gguf="shout:write_name", lost="nowhere:write")
    lines = []
    for group, points in dict(commands=commands, targets=targets).items():
        lines += [f"[personal_llm.{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    path = os.pathsep.join([str(tmp_path), str(ROOT)])

    def run(*commands):
        program = [sys.executable, "-c", RUN, json.dumps([[*map(str, words)] for words in commands])]
        done = subprocess.run(program, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=path))
        assert done.returncode == 0, done.stderr
        return [SimpleNamespace(**row) for row in json.loads(done.stdout)]

    return run


@pytest.mark.later
def test_somebody_else_can_write_one(command, tmp_path):
    "A function, an application with a command and a group, and a target; none of them waits for a broken one."
    adapter = next((ROOT / "personal_llm/assets/library").glob("*/adapter_model.safetensors")).parent
    said, waved, bowed, missing, done = command(
        ("shout", "--text", "hello", "--times", 2),
        ("wave",),
        ("greet", "bow"),
        ("shout",),
        ("export", tmp_path / "out", "--to", "name", "--adapter", adapter, "--model", "pocket"),
    )
    assert (said.code, said.out) == (0, "HELLO\nHELLO\n"), said.err
    assert (waved.code, waved.out, bowed.out) == (0, "hello\n", "hello\n"), waved.err
    assert missing.code == 2 and "--text" in missing.err.splitlines()[-1]
    assert done.code == 0 and (tmp_path / "out" / "name.txt").read_text() == "pocket", done.err


def test_a_plugin_that_cannot_be_used_is_named_and_costs_nothing_else(command, tmp_path):
    "Ours keep their names, and a plug-in with a command of ours brings none of its others either."
    done, learn, wink = command(("status", "--out", tmp_path), ("learn", "--help"), ("wink",))
    assert done.code == 2 and "no memory here" in done.err
    notes = {
        "broken": "nowhere:app: ModuleNotFoundError",
        "lost": "nowhere:write: ModuleNotFoundError",
        "text": "shout:text: TypeError: it is of another kind, or a name of it is taken",
        "gguf": "shout:write_name: TypeError: it is of another kind, or a name of it is taken",
        "guess": "NameError",
        "status": "there is a command status already",
    }
    for name, note in notes.items():
        assert f"plug-in {name} skipped: {note}" in done.err
    assert learn.code == 0 and "No such command 'wink'" in wink.err


def test_ours_are_found():
    targets, skipped = find_targets()
    assert {"merged", "gguf", "ollama", "vllm"} <= targets.keys() and not skipped, "install the package again"
    assert {"serve", "library", "phone"} <= set(typer.main.get_group(app).commands), "install the package again"
    assert not load_selectors() and {"xpert", "style"} <= SELECTORS.keys(), "install the package again"
