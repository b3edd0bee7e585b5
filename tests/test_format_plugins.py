"Chats and policies from outside: entry points, found in Python and on the command line; a broken one harms nobody."

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULE = """
from personal_llm.buffer.policies import Policy
from personal_llm.data.formats import ParsedConversation, RecordFormat

def parse(record):
    pairs = [line.split(" = ") for line in record[".cards"].splitlines()]
    return [ParsedConversation([("user", front), ("assistant", back)], is_row=False) for front, back in pairs]

CARDS = RecordFormat(([".cards"],), parse)

class NewestPolicy(Policy):
    def choose(self, view, candidate):
        return 0, "it is the newest"
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
"""


def test_somebody_else_can_add_a_format_and_a_policy(tmp_path):
    (tmp_path / "cards.py").write_text(MODULE)
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
    done = subprocess.run(
        [sys.executable, "-c", run], capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=path)
    )
    assert done.returncode == 2 and "2 distinct dialogues, too few to learn from" in done.stderr, "they are read"
    assert "plug-in broken skipped: nowhere:CARDS: ModuleNotFoundError" in done.stderr
    for name in ("whatsapp", "nothing", "sdss", "cards"):
        assert f"plug-in {name} skipped" in done.stderr
