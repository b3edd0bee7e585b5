"Runtimes come through entry points: ours, somebody else's, and broken ones or copies of our names, which harm nobody."

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_architecture import act, arrows_of_the_package

from personal_llm.app.plugins import find_runtimes

ROOT = Path(__file__).resolve().parent.parent
MODULE = """
from typing import Annotated
from personal_llm.app.plugins import Runtime

def write_name(model, adapter, folder, dialogues):
    (folder / "name.txt").write_text(model.name)
    return "read name.txt"

def shout(text: Annotated[str, "what to say"], times: Annotated[int, "how often"] = 1, softly: Annotated[bool, ""] = 0):
    "Say a text in capitals."
    text = text if softly else text.upper()
    return dict(text=text), [text] * times

RUNTIME = Runtime(targets={"name": write_name}, commands={"shout": shout})
WRITER = Runtime(targets={"vllm": write_name})
IDLE = Runtime()
STATUS = Runtime(commands={"status": shout})

def wave():
    "Say hello."
    return dict(said="hello"), ["hello"]

def guess(what: "Unknown"):
    "Guess."

NUMBER = Runtime(targets={7: write_name})
TEXT = Runtime(commands={"text": "shout"})
LIST = Runtime(commands=["list"])
OPTIONS = Runtime(commands={"guess": guess, "wave": wave})
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
    points = dict(shout="shout:RUNTIME", broken="nowhere:RUNTIME", nothing="os:path")
    points |= dict(writer="shout:WRITER", idle="shout:IDLE", status="shout:STATUS")
    points |= {name: f"shout:{name.upper()}" for name in ("number", "text", "list", "options")}
    lines = ["[personal_llm.runtimes]", *(f"{name} = {value}" for name, value in points.items())]
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
    adapter = next((ROOT / "personal_llm/assets/library").glob("*/adapter_model.safetensors")).parent
    said, as_json, missing, done = command(
        ("shout", "--text", "hello", "--times", 2),
        ("shout", "--text", "hello", "--softly", "--json"),
        ("shout",),
        ("export", tmp_path / "out", "--to", "name", "--adapter", adapter, "--model", "pocket"),
    )
    assert (said.code, said.out) == (0, "HELLO\nHELLO\n"), said.err
    assert as_json.out == '{"text": "hello"}\n'
    assert "plug-in broken skipped: nowhere:RUNTIME: ModuleNotFoundError" in said.err
    assert "plug-in nothing skipped" in said.err
    assert missing.code == 2 and "--text" in missing.err.splitlines()[-1]
    assert done.code == 0 and (tmp_path / "out" / "name.txt").read_text() == "pocket", done.err


def test_no_plugin_takes_a_name_of_ours(command, tmp_path):
    "A target, an entry point and a command with our names: ours work on, and each of theirs is named."
    done, learn = command(("status", "--out", tmp_path), ("learn", "--help"))
    assert done.code == 2 and "no memory here" in done.err
    for name in ("writer", "idle"):
        assert f"plug-in {name} skipped: shout:{name.upper()}: TypeError: it is of another kind, or a name" in done.err
    assert "plug-in status: command status skipped" in done.err
    assert learn.code == 0


def test_a_runtime_that_cannot_be_used_stops_no_command(command, tmp_path):
    done, waved = command(("status", "--out", tmp_path), ("wave", "--json"))
    assert done.code == 2 and "no memory here" in done.err
    for name in ("number", "text", "list"):
        assert f"plug-in {name} skipped: shout:{name.upper()}: " in done.err
    assert "plug-in options: command guess skipped: NameError" in done.err
    assert (waved.code, waved.out) == (0, '{"said": "hello"}\n'), "a command without options"


def test_ours_are_found_and_every_command_has_help():
    runtimes, skipped = find_runtimes()
    assert {"export", "idle", "phone"} <= runtimes.keys() and not skipped, "install the package again: make install"
    assert {"merged", "gguf", "ollama", "vllm"} <= runtimes["export"].targets.keys()
    assert all(function.__doc__ for runtime in runtimes.values() for function in runtime.commands.values())


def test_no_act_imports_a_runtime_by_name():
    runtimes = {name for name, to in arrows_of_the_package() if act(to) == "runtimes" and not to.endswith(".plugins")}
    outside = {name for name in runtimes if act(name) not in ("runtimes", "recipes", "experiments")}
    inside_a_command = {"personal_llm.extras.library_commands", "personal_llm.app.chat"}  # cluster, llama.cpp
    assert outside <= inside_a_command, outside
