"Programs that people leave: one talk each in `exports`, in the program's own layout, with what is nobody's words."

from functools import cache
from pathlib import Path

import pytest
from cases import pairs

from personal_llm.base.core import InputError
from personal_llm.data import formats, reading
from personal_llm.data.formats import RecordFormat, parse_messages, parse_pair
from personal_llm.extras.marks import GAP, SETUP, Turn, clean_turn

TEA = [("Tea?", "Yes."), ("Cake?", "No.")]


def turns(*names, role="role", text="content", **more):
    "The talk as messages, with one more field each: a list of its values."
    words = [word for pair in TEA for word in pair]
    rows = [{role: ("user", "assistant")[i % 2], text: word} for i, word in enumerate(words)]
    return [row | {name: values[i] for name, values in more.items()} for i, row in enumerate(rows)]


SETTING = "<environment_context>\n<cwd>/home</cwd>\n</environment_context>"
CONTEXT = "This is the {}. We are setting up the context for our chat.\nToday's date is Monday."

EXPORTS = sorted((Path(__file__).parent / "exports").glob("*/*"))


@pytest.mark.parametrize("file", EXPORTS, ids=lambda file: file.stem)
def test_an_export_is_read_without_what_nobody_said(file):
    found = reading.read_dialogues(file)
    count = dict(one_exchange=1, two_exchanges=2)[file.parent.name]
    assert (found.format, pairs(found)) == (file.stem.partition("-")[0].replace("_", " "), TEA[:count])
    assert not found.unread and {*found.left_out} <= {GAP, SETUP}


SETUPS = [CONTEXT.format("Qwen Code"), "# AGENTS.md instructions for /home\n\n<INSTRUCTIONS>x</INSTRUCTIONS>", SETTING]
SETUPS += [
    "[Request interrupted by user for tool use]",
    "### Task:\nGenerate a title.",
    "<system-reminder>x</system-reminder>",
]


@pytest.mark.parametrize("text", SETUPS)
def test_a_set_up_text_is_not_the_persons_word(text):
    assert clean_turn(Turn("user", text)).left_out == SETUP
    asked = Turn("user", f"{text}\nTea?") if text.startswith("<") else Turn("user", "Tea?")
    assert clean_turn(asked) == Turn("user", "Tea?")
    assert clean_turn(Turn("user", "Explain <b>bold</b> and # AGENTS.md.")).left_out == ""


def test_an_install_without_our_exports_reads_plain_rows_and_says_what_to_do(monkeypatch):
    monkeypatch.setattr(reading, "load_plugins", lambda *_: {})
    monkeypatch.setattr(reading, "load_formats", cache(reading.load_formats.__wrapped__))
    plain = dict(pairs=RecordFormat((("prompt", "response"),), parse_pair))
    plain |= dict(messages=RecordFormat((("messages",),), parse_messages))
    monkeypatch.setattr(formats, "FORMATS", plain)
    monkeypatch.setattr(reading, "FORMATS", plain)
    for row in (dict(prompt="Tea?", response="Yes.", stars=1), dict(messages=turns()[:2], stars=1)):
        found = reading.read_dialogues([row])
        assert pairs(found) == TEA[:1] and found.unread == dict(stars=1)
        assert "pip install -e ." in found.notes()[-1]
    for row in (dict(mapping={}), dict(messages=[dict(role="bing", content="Hi")]), dict(prompt="Tea?", response=3)):
        with pytest.raises(InputError, match="pip install -e ."):
            reading.read_dialogues([row])
