"The README's Python lines, run as they stand, on a small stream and for few steps."

import re
from pathlib import Path

import pytest

from personal_llm import personalize
from personal_llm.base.core import Dialogue
from personal_llm.data.writing import write_dialogues
from personal_llm.device import personalizer
from personal_llm.start import selection
from personal_llm.start.ranking import Ranking

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
CHATS = [Dialogue(f"What is thing {i}?", f"Thing {i} is a pot.", time=float(i)) for i in range(10)]


@pytest.mark.parametrize("abstains", [False, True], ids=["chosen", "abstained"])
def test_the_lines_run(tmp_path, monkeypatch, capsys, abstains):
    "Fine-tunes of one step, one variant, and a selection that names somebody or nobody."
    tune, made, starts = personalizer.tune, personalizer.synthesize, []

    def short(model, rows, config, start, *rest):
        starts.append(start)
        return tune(model, rows, personalizer.TuningConfig(steps=1, checks=1), start, *rest)

    def choose(library, mine, model, dialogues):
        best, names = None if abstains else library.names[0], tuple(library.names)
        rest = dict(abstained=abstains, reason="planted", method="match", library=library)
        return Ranking(best, names, tuple(range(len(names))), **rest)

    write_dialogues(tmp_path / "chats.jsonl", CHATS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(personalizer, "tune", short)
    monkeypatch.setattr(personalizer, "synthesize", lambda model, rows, count, *rest, **named: made(model, rows, 0))
    monkeypatch.setattr(selection, "select", choose)
    monkeypatch.setitem(vars(__import__("personal_llm")), "select", choose)
    names = dict(ask=lambda dialogue: None, test_dialogues=CHATS[:2])
    assert BLOCKS
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert "response loss" in capsys.readouterr().out and len(names["me"].curve) == 2
    assert starts[0] is None and (starts[1] is None) == abstains
    assert len(str(names["mine"])) > 20


def test_the_one_call_is_there():
    assert 'personalize("chats.jsonl", "mine")' in README and callable(personalize)


def test_links_and_pictures_exist():
    links = re.findall(r"\]\(([^)#\s]+)", README)
    missing = [link for link in links if not re.match(r"https?:", link) and not (ROOT / link).exists()]
    assert links and missing == []


def test_commands_that_are_named_exist():
    from personal_llm.app import cli
    from personal_llm.app.arguments import COMMANDS

    named = re.findall(r"`personal-llm ([a-z][a-z ]*?)(?= -|`| \")", README)
    assert cli and named and [name for name in named if name not in COMMANDS] == []
