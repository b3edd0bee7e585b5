"Programs that people leave: one talk each in `exports`, in the program's own layout, with what is nobody's words."

from functools import cache
from pathlib import Path

import pytest
from cases import pairs, save

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


TIMES = [f"2026-01-05T10:00:0{i}Z" for i in range(4)]
SETTING = "<environment_context>\n<cwd>/home</cwd>\n</environment_context>"
CONTEXT = "This is the {}. We are setting up the context for our chat.\nToday's date is Monday."

EXPORTS = sorted((Path(__file__).parent / "exports").glob("*/*"))


@pytest.mark.parametrize("file", EXPORTS, ids=lambda file: file.stem)
def test_an_export_is_read_without_what_nobody_said(file):
    found = reading.read_dialogues(file)
    count = dict(one_exchange=1, two_exchanges=2)[file.parent.name]
    assert (found.format, pairs(found)) == (file.stem.partition("-")[0].replace("_", " "), TEA[:count])
    assert not found.unread and {*found.left_out} <= {GAP, SETUP}


def test_a_thread_of_perplexity_and_code_keep_what_is_theirs(tmp_path):
    messages = turns(text="text")
    messages[1]["text"] = "Take `a[1]`[1][2]."
    thread = dict(schema="archive.thread.v1", thread={}, messages=messages)
    assert reading.read_dialogues(save(tmp_path / "a.json", thread))[0].response == "Take `a[1]`."


def test_a_second_speaker_and_times_that_fall_in_blocks_cost_no_pair():
    rows = turns(name=["Kim", "Mira", "Kim", "Mira"])
    rows[2:2] = [dict(role="assistant", content="Never.", name="Otto")]
    same = turns(sent=[TIMES[0], TIMES[0], TIMES[1], TIMES[1]])
    for talk in (rows, same, same[2:] + same[:2], same[::-1]):
        assert pairs(reading.read_dialogues([dict(messages=talk)])) == TEA


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


def test_the_system_text_of_vertex_belongs_to_each_dialogue():
    turns = [dict(role=("user", "model")[i % 2], parts=[dict(text=text)]) for i, text in enumerate(sum(TEA, ()))]
    found = reading.read_dialogues(
        [dict(systemInstruction=dict(role="system", parts=[dict(text="Be kind.")]), contents=turns)]
    )
    assert pairs(found) == TEA and all(d.history[0] == ("system", "Be kind.") for d in found) and not found.notes()


REFUSED = [  # what a file holds, its name, words of the message
    (
        dict(gamestarted=True, prompt="", actions=["\n### Instruction:\nTea?"]),
        "story.json",
        "KoboldAI Lite, which we do not",
    ),
    ("[LINE] Chat history with Mira\n\n2026/01/05(Mon)\n10:00\tKim\tTea?\n", "line.txt", "LINE, which we do not"),
    ("Mira 님과 카카오톡 대화\n\n2026년 1월 5일 오전 10:00, Kim : Tea?\n", "k.txt", "KakaoTalk, which"),
    (
        "KakaoTalk Chats with Mira\nDate Saved : 2026-01-05\n[Kim] [10:00 AM] Tea?\n",
        "k.txt",
        "KakaoTalk, which we do not",
    ),
    ("Date,User,Message\n2026-01-05 10:00,Kim,Tea?\n", "k.csv", "KakaoTalk, which we do not"),
    ("10:00:00 From Kim to Everyone: Tea?\n", "zoom.txt", "Zoom, which we do not"),
    ([dict(sessionId="s", messageId=0, type="user", message="Tea?")], "logs.json", "requests alone"),
    ([dict(version="1", backupTimeMs=1), dict(chatItem={})], "main.jsonl", "Signal, which we do not"),
    (b"\0\0\0\x36\x0a\x34\x0a\x10\xe9\xff\x01\x02\x03\x04", "signal-2026.backup", "an encrypted backup of Signal"),
    (b"\x01\x02\x90\xff" * 9, "msgstore.db.crypt15", "an encrypted backup of WhatsApp"),
    (b"\x01\x02\x90\xff" * 9, "a.json", "a binary file, and no text"),
    (b"bplist00\xd4", "a.json", "a property list of Apple"),
    ([dict(ts=1, type="say", say="text", text="Tea?")], "ui_messages.json", "api_conversation_history.json"),
]


CABLE = "Where is the big cable of the projector stored these days?"
TALKS = {
    "Slack": dict(type="message", user="U01", text=CABLE, ts="1.1"),
    "Discord": dict(guild={}, channel={}, messages=[dict(id="1", content="a kite", author=dict(name="ky"))]),
    "iMessage": dict(text=CABLE, is_from_me=1, date="2024-01-15"),
    "Google Chat": dict(messages=[dict(creator=dict(name="Ky"), text="Hi")]),
    "Teams or Skype": dict(userId="ky", conversations=[dict(MessageList=[])]),
    "Matrix": dict(messages=[dict(event_id="$1", sender="@ky", content=dict(body="Hi"))]),
    "Character.AI": dict(chats=[dict(turns=[])]),
    "Grok": dict(conversations=[dict(conversation={}, responses=[])]),
    "an API": dict(id="x", choices=[dict(message={})]),
}
REFUSED += [([row] * 2, "a.json", f"an export of {name}, which we do not read") for name, row in TALKS.items()]


@pytest.mark.parametrize("content, name, words", REFUSED, ids=[words for _, _, words in REFUSED])
def test_what_we_do_not_read_is_named_with_a_way_out(tmp_path, content, name, words):
    file = save(tmp_path / name, content)
    for skip in (False, True):
        with pytest.raises(InputError, match=words) as caught:
            reading.read_dialogues(file, skip_invalid=skip)
        assert caught.value.remedy and "UTF-8" not in str(caught.value)
        if "an export of" in words:
            assert "rows of prompt and response" in str(caught.value) and "skip_invalid" not in str(caught.value)


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
