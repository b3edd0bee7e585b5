"Formats: the records of every data set, turns into dialogues, a format of your own."

import json
from pathlib import Path

import pytest

from personal_llm.base.core import InputError
from personal_llm.data import reading
from personal_llm.data.formats import FORMATS, MAX_TURN_CHARACTERS, ParsedConversation, RecordFormat, detect_format
from personal_llm.data.formats import normalise_record, parse_record, split_turns
from personal_llm.extras.marks import find_mark, remove_marks, split_into_dialogues

reading.load_formats()


def user(text):
    return dict(role="user", content=text)


def bot(text):
    return dict(role="assistant", content=text)


def turn(who, text):
    return {"from": who, "value": text}


CHAT = [user("Hi"), bot("Hello"), user("Bye"), bot("See you")]
PAIRS = [("Hi", "Hello"), ("Bye", "See you")]

ROWS = json.loads(Path(__file__).with_name("records.json").read_text(encoding="utf-8"))
# format, record, the (prompt, response) pairs that it holds; `test_reading` reads them from every kind of file
RECORDS = [(name, record, list(map(tuple, expected))) for name, record, expected in ROWS["read"]]


def pairs(conversations):
    return [(d.prompt, d.response) for talk in conversations for d in split_into_dialogues(talk)[0]]


@pytest.mark.parametrize("name, record, words", ROWS["refused"])
def test_bad_records_say_why(name, record, words):
    with pytest.raises(InputError, match=words) as caught:
        parse_record(record, name)
    assert "\n" not in str(caught.value)


def test_records_of_no_format():
    with pytest.raises(InputError) as caught:
        detect_format({"\x1b[31m" + "x" * 1_000_000: 1})
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_format_of_your_own_comes_first():
    try:

        def mine(row):
            turns = [("user", row["response"]), ("assistant", row["prompt"])]
            return [ParsedConversation(turns, dict(domain="backwards"))]

        FORMATS["mine"] = RecordFormat((("prompt", "response"),), mine)
        row = dict(prompt="Hi", response="Hello")
        assert detect_format(row) == "mine" and pairs(parse_record(row, "mine")) == [("Hello", "Hi")]
        assert split_into_dialogues(parse_record(row, "mine")[0])[0][0].labels == dict(domain="backwards")
    finally:
        del FORMATS["mine"]
    assert detect_format(row) == "pairs"


NORWAY, PERU = [user("Norway?"), bot("Oslo.")], [user("Peru?"), bot("Lima.")]


MARKS = json.loads(Path(__file__).with_name("marks.json").read_text(encoding="utf-8"))
MARKED = MARKS["mended"]  # an answer -> what is left of it
MARKED |= dict.fromkeys(MARKS["thoughts"], "Yes.")
LEFT = MARKS["answers left out"]  # an answer that we cannot mend -> the mark that the note names
ORDINARY = MARKS["ordinary"]


@pytest.mark.parametrize("text", [*MARKED, *MARKS["kept"]])
def test_marks_of_programs_are_nobodys_words(text):
    assert remove_marks(text) == MARKED.get(text, text)
    if MARKED.get(text):
        (d,), *_ = split_into_dialogues(ParsedConversation([("user", "Hi"), ("assistant", text)]))
        assert d.response == MARKED[text]


@pytest.mark.parametrize("text", [*LEFT, *MARKS["prompts left out"], *ORDINARY])
def test_an_exchange_with_another_mark_is_left_out_by_name(text):
    sides = ("user", "assistant") if text in LEFT else ("assistant", "user")
    marked, other = dict(role=sides[1], content=text), dict(role=sides[0], content="Hm?")
    pair = [other, marked] if text in LEFT else [marked, other]
    if text in ORDINARY:
        pair = [user(text), bot(text)]
    found, _, left_out = split_into_dialogues(parse_record(dict(messages=[*CHAT[:2], *pair]), "messages")[0])
    if text in ORDINARY:
        assert (found[1].prompt, found[1].response, left_out) == (text, text, {})
    else:
        (reason,) = left_out
        assert len(found) == 1 and f"outside of code ({LEFT.get(text, '')}" in reason
    assert find_mark("What does <think> do?", "user") == ""


def test_marks_in_long_texts_are_quick():
    texts = ["<" * 300_000, "\n" * 300_000, "<think>" * 50_000, "【" * 300_000, "```" * 100_000, " " * 300_000]
    for text in (*texts, "<details " * 30_000, "\ue200a" * 50_000, ":::a{}\n" * 9_999):
        remove_marks(text + "x")


def test_a_telegram_chat_may_have_no_name():
    assert detect_format(normalise_record(dict(name=None, type="saved_messages", id=1, messages=[]))) == "telegram"


def test_many_turns_of_one_side_and_long_texts_are_quick():
    talk = ParsedConversation([("user", "x" * 99)] * 100_000 + [("assistant", "y" * 10_000_000)])
    (d,), cut, *_ = split_into_dialogues(talk)
    assert len(d.prompt) == len(d.response) == MAX_TURN_CHARACTERS and cut == 2


@pytest.mark.parametrize(
    "split, turns, words",
    [
        (split_into_dialogues, [], "no assistant turn"),
        (split_into_dialogues, [("user", "a")], "no assistant turn"),
        (split_into_dialogues, [("assistant", "a"), ("user", "b")], "no assistant turn"),
        (split_into_dialogues, [("user", " "), ("assistant", "b")], "empty prompt"),
        (split_into_dialogues, [("user", "a"), ("assistant", "")], "empty response"),
        (split_into_dialogues, [("user", "a"), ("assistant", " \u200b\ufeff\u2060")], "empty response"),
        (split_into_dialogues, [("user", "\u200e"), ("assistant", "b")], "empty prompt"),
        (split_turns, [("user", "a")], "no assistant turn after a user turn; give conversations with answers"),
        (split_turns, [("user", "a"), ("assistant", " ")], "the response is ' '; give text that is not empty"),
        (split_turns, [("user", " "), ("assistant", "b")], "empty prompt"),
        (split_turns, [("user", "a"), ("assistant", 3)], "the text of the assistant is 3; give text"),
    ],
)
def test_turns_without_an_exchange_are_one_line(split, turns, words):
    with pytest.raises(InputError, match=words):
        split(ParsedConversation(turns))


def test_a_value_of_the_wrong_kind_is_the_error_of_its_row():
    wrong = (lambda row: row[0], lambda row: float(10**400), lambda row: row.nothing, lambda row: int("x"))
    try:
        for make in wrong:
            FORMATS["careless"] = RecordFormat((), make)
            with pytest.raises(InputError, match="wrong kind of value"):
                parse_record({}, "careless")
        FORMATS["careless"] = RecordFormat((), lambda row: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # a mistake of ours is not the user's
            parse_record({}, "careless")
    finally:
        del FORMATS["careless"]


def test_plain_turns_are_joined_cut_and_kept_once():
    talk = [("system", "s"), ("assistant", "Welcome!"), ("user", "a"), ("user", "b"), ("assistant", "c" * 99_999)]
    (d,), cut, _ = split_turns(ParsedConversation(talk))
    assert (d.prompt, len(d.response), cut) == ("a\nb", MAX_TURN_CHARACTERS, 1)
    assert d.history == (("system", "s"), ("assistant", "Welcome!"))
    assert split_turns(ParsedConversation([("user", "Hi")], is_row=False)) == ([], 0, {})
