"Plug-ins come through entry points: ours, somebody else's, and broken ones, which harm nobody."

import json
import os
from types import SimpleNamespace

import pytest
import typer
from cases import ROOT, run_python

from personal_llm.app.cli import app
from personal_llm.app.plugins import find_targets
from personal_llm.selection.selection import SELECTORS, load_selectors

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
POLICIES = """
import json
from personal_llm.buffer.policies import POLICIES, load_policies
load_policies()
print(json.dumps({name: [one.__module__, one.name] for name, one in POLICIES.items()}))
"""


def run_beside_a_plugin(program: str, *words):
    "What a program prints, as JSON, where somebody else's package, which lies in `plugin`, is installed."
    return json.loads(run_python(program, *words, PYTHONPATH=os.pathsep.join([str(ROOT / "tests/plugin"), str(ROOT)])))


def command(*commands) -> list:
    "The results of commands, all in one such process."
    rows = run_beside_a_plugin(RUN, json.dumps([[*map(str, words)] for words in commands]))
    return [SimpleNamespace(**row) for row in rows]


@pytest.mark.later
def test_somebody_else_can_write_one(tmp_path):
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


def test_a_plugin_that_cannot_be_used_is_named_and_costs_nothing_else(tmp_path):
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


def test_somebody_else_can_add_a_format_and_a_policy_and_what_fails_is_named(tmp_path):
    (tmp_path / "quiz.cards").write_text("Tea? = Yes.\nCake? = No.\n")
    data = ("--data", tmp_path / "quiz.cards", "--out", tmp_path / "me")
    (done,) = command(("personalize", "--model", "pocket", *data, "--policy", "newest"))
    assert done.code == 2 and "2 distinct dialogues, too few to learn from" in done.err, "they are read"
    assert "plug-in unfound skipped: nowhere:CARDS: ModuleNotFoundError" in done.err
    for name in ("whatsapp", "nothing", "sdss", "cards", "needy", "alias", "leaver", "silent"):
        assert f"plug-in {name} skipped" in done.err
    assert "plug-in registered" not in done.err
    classes = run_beside_a_plugin(POLICIES)
    assert classes["random"] == ["personal_llm.buffer.policies", "random"], "a module that is imported takes no name"
    assert all(name == own for name, (_, own) in classes.items()) and "registered" in classes


def test_ours_are_found():
    targets, skipped = find_targets()
    assert {"merged", "gguf", "ollama", "vllm"} <= targets.keys() and not skipped, "install the package again"
    assert {"serve", "library", "phone"} <= set(typer.main.get_group(app).commands), "install the package again"
    assert not load_selectors() and {"xpert", "style"} <= SELECTORS.keys(), "install the package again"
