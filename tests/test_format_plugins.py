"Chats and policies from outside: entry points, found in Python and on the command line; a broken one harms nobody."

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE = """
from personal_llm.buffer.policies import Policy, register_policy
from personal_llm.data.formats import ParsedConversation, RecordFormat

def parse(record):
    pairs = [line.split(" = ") for line in record[".cards"].splitlines()]
    return [ParsedConversation([("user", front), ("assistant", back)], is_row=False) for front, back in pairs]

CARDS = RecordFormat(([".cards"],), parse)

class NewestPolicy(Policy):
    def choose(self, view, candidate):
        return 0, "it is the newest"

class Needy(NewestPolicy):
    def __init__(self, number):
        self.number = number

@register_policy("registered")
class Registered(NewestPolicy):
    pass

@register_policy("random")
class Thief(NewestPolicy):
    pass
"""
POINTS = """[personal_llm.formats]
cards = cards:CARDS
broken = nowhere:CARDS
whatsapp = cards:CARDS
nothing = os:path

[personal_llm.policies]
newest = cards:NewestPolicy
sdss = cards:NewestPolicy
cards = cards:CARDS
needy = cards:Needy
registered = cards:Registered
alias = personal_llm.buffer.policies:SDSSPolicy
leaver = leaver:NOTHING
silent = silent:NOTHING
"""
NAMES = "import json; from personal_llm.buffer.policies import POLICIES, load_policies; load_policies()"
NAMES += "; print(json.dumps({name: [one.__module__, one.name] for name, one in POLICIES.items()}))"


def test_somebody_else_can_add_a_format_and_a_policy(tmp_path):
    (tmp_path / "cards.py").write_text(MODULE)
    (tmp_path / "leaver.py").write_text("raise SystemExit(0)")
    (tmp_path / "silent.py").write_text("class E(Exception):\n    def __str__(self): raise ValueError\nraise E")
    metadata = tmp_path / "cards-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cards\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(POINTS)
    (tmp_path / "quiz.cards").write_text("Tea? = Yes.\nCake? = No.\n")
    options = (
        f"personalize --model pocket --data {tmp_path / 'quiz.cards'} --out {tmp_path / 'me'} --policy newest".split()
    )
    run = f"import sys; from personal_llm.app.cli import main; sys.exit(main({options!r}))"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | dict(PYTHONPATH=path)
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "2 distinct dialogues, too few to learn from" in done.stderr, "they are read"
    assert "plug-in broken skipped: nowhere:CARDS: ModuleNotFoundError" in done.stderr
    for name in ("whatsapp", "nothing", "sdss", "cards", "needy", "alias", "leaver", "silent"):
        assert f"plug-in {name} skipped" in done.stderr
    assert "plug-in registered" not in done.stderr
    listed = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, env=environment)
    classes = json.loads(listed.stdout)
    assert classes["random"] == ["personal_llm.buffer.policies", "random"], "a module that is imported takes no name"
    assert all(name == own for name, (_, own) in classes.items()) and "registered" in classes
