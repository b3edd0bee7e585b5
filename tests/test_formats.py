"Formats: the records of every data set, turns into dialogues, a format of your own."

import json

import pytest

from personal_llm.base.core import History, InputError
from personal_llm.data import reading  # registers every format
from personal_llm.data.formats import (
    FORMATS,
    MAX_TURN_CHARACTERS,
    ParsedConversation,
    as_text,
    parse_record,
    split_into_dialogues,
    make_exchange,
    normalise_record,
    call_safely,
    merge_turns,
    register_format,
    split_opening,
    detect_format,
)


def user(text):
    return dict(role="user", content=text)


def bot(text):
    return dict(role="assistant", content=text)


def turn(who, text):
    return {"from": who, "value": text}


CHAT = [user("Hi"), bot("Hello"), user("Bye"), bot("See you")]
PAIRS = [("Hi", "Hello"), ("Bye", "See you")]

# format, record, the (prompt, response) pairs that it holds
RECORDS = [
    ("messages", dict(messages=CHAT), PAIRS),
    ("messages", CHAT, PAIRS),
    ("messages", dict(conversation=CHAT, model="x"), PAIRS),
    ("messages", dict(messages=[dict(role="system", content="Be kind."), *CHAT[:2]]), PAIRS[:1]),
    ("messages", dict(messages=[bot("Welcome!"), user("a"), user("b"), bot("c")]), [("a\nb", "c")]),
    ("messages", dict(messages=[user([dict(type="text", text="a"), dict(type="image_url")]), bot("c")]), [("a", "c")]),
    ("messages", dict(messages=[user("a"), dict(role="assistant", content=None), bot("c")]), [("a", "c")]),
    ("sharegpt", dict(id="1", conversations=[turn("human", "Hi"), turn("gpt", "Hello")]), PAIRS[:1]),
    ("sharegpt", dict(conversations=[turn("system", "x"), turn("user", "Hi"), turn("chatgpt", "Hello")]), PAIRS[:1]),
    ("sharegpt", dict(conversations=CHAT), PAIRS),
    ("messages", [turn("human", "Hi"), turn("gpt", "Hello")], PAIRS[:1]),
    ("prompt-completion", dict(prompt="Hi", completion="Hello"), PAIRS[:1]),
    ("prompt-completion", dict(prompt="Hi", response="Hello", extra=1), PAIRS[:1]),
    ("prompt-completion", {"Prompt": "Hi", " Response ": "Hello"}, PAIRS[:1]),
    ("alpaca", dict(instruction="Add.", input="1 2", output="3"), [("Add.\n\n1 2", "3")]),
    ("alpaca", dict(instruction="Add.", input="", output="3", text="x"), [("Add.", "3")]),
    ("alpaca", dict(Instruction="Add.", Input=None, Output="3"), [("Add.", "3")]),
    ("alpaca", dict(instruction="Add.", input="1 2", completion="3"), [("Add.\n\n1 2", "3")]),
    ("alpaca", dict(prompt="Add.", input="1 2", output="3"), [("Add.\n\n1 2", "3")]),
    ("prompt-completion", dict(prompt="Add.", input="1 2", response="3"), [("Add.\n\n1 2", "3")]),
    ("prompt-completion", dict(prompt="Add.", input="", context="1 2", completion="3"), [("Add.\n\n1 2", "3")]),
    ("dolly", dict(instruction="Add.", input="1 2", response="3"), [("Add.\n\n1 2", "3")]),
    ("messages", dict(conversation=[turn("human", "Hi"), turn("gpt", "Hello")]), PAIRS[:1]),
    (
        "messages",
        dict(conversation=[dict(human="Hi", assistant="Hello"), dict(human="Bye", assistant="See you")]),
        PAIRS,
    ),
    ("messages", dict(conversation=[dict(system="Be kind.", input="Hi", output="Hello")]), PAIRS[:1]),
    ("messages", dict(conversation=[dict(speaker="user", text="Hi"), dict(speaker="bot", text="Hello")]), PAIRS[:1]),
    ("messages", dict(conversation=json.dumps(CHAT)), PAIRS),
    ("messages", dict(prompt="x", response="y", conversation=CHAT), PAIRS),
    ("sharegpt", dict(conversations=[CHAT[:2], CHAT[2:]]), PAIRS),
    ("sharegpt", dict(conversations=[dict(id=1, messages=CHAT[:2]), dict(id=2, messages=CHAT[2:])]), PAIRS),
    ("dolly", dict(instruction="Who?", context="Ada wrote it.", response="Ada"), [("Who?\n\nAda wrote it.", "Ada")]),
    (
        "text",
        dict(text="One two three four five six seven eight nine.", label=3),
        [("One two three four five six", "seven eight nine.")],
    ),
]


def pairs(conversations):
    return [(d.prompt, d.response) for talk in conversations for d in split_into_dialogues(talk)[0]]


@pytest.mark.parametrize("name,record,want", RECORDS)
def test_records(name, record, want):
    fields = normalise_record(record)
    assert detect_format(fields) == name
    assert pairs(parse_record(fields, name)) == want


def test_every_format_is_tested():
    exports = {name for name, one in FORMATS.items() if one.parse.__module__ == "personal_llm.data.exports"}
    assert exports >= {"chatgpt", "claude", "telegram", "whatsapp"}
    assert {name for name, *_ in RECORDS} | exports == set(FORMATS)
    assert reading.FORMATS is FORMATS


BAD = [
    ("messages", dict(messages="Hi"), "list of objects"),
    ("messages", dict(messages=[3]), "list of objects"),
    ("messages", dict(conversation="[{'role': 'user'}]"), "broken JSON"),
    ("messages", dict(conversation=[[["Hi"]]]), "list of objects"),
    ("messages", dict(messages=[dict(role=["user"], content="x")]), "list of objects"),
    ("messages", dict(messages=[user(3)]), "int, not text"),
    ("sharegpt", dict(conversations=dict(a=1)), "list of objects"),
    ("prompt-completion", dict(prompt=3, response="x"), "int, not text"),
    ("prompt-completion", dict(prompt=["Hi", 3], response="x"), "list, not text"),
]


@pytest.mark.parametrize("name,record,words", BAD)
def test_bad_records_say_why(name, record, words):
    with pytest.raises(InputError, match=words) as caught:
        parse_record(record, name)
    assert "\n" not in str(caught.value)


def test_records_of_no_format():
    with pytest.raises(InputError, match="found int"):
        normalise_record(17)
    with pytest.raises(InputError, match="question, reply"):
        detect_format(dict(question="Hi", reply="Hello"))
    with pytest.raises(InputError) as caught:
        detect_format({"\x1b[31m" + "x" * 1_000_000: 1})
    assert "\x1b" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_format_of_your_own_comes_first():
    try:

        @register_format("mine", ("prompt", "response"))
        def mine(row):
            return make_exchange(row["response"], row["prompt"], domain="backwards")

        row = dict(prompt="Hi", response="Hello")
        assert detect_format(row) == "mine" and pairs(parse_record(row, "mine")) == [("Hello", "Hi")]
        assert split_into_dialogues(parse_record(row, "mine")[0])[0][0].labels == dict(domain="backwards")
    finally:
        del FORMATS["mine"]
    assert detect_format(row) == "prompt-completion"


def test_turns_of_one_side_are_joined():
    turns = [("user", "a", 3), ("user", " ", 4), ("user", "b", 5), ("assistant", "c", 6), ("assistant", "d", 7)]
    assert merge_turns(turns) == [("user", "a\nb", 3.0, []), ("assistant", "c\nd", 6.0, [])]
    assert merge_turns([]) == [] and merge_turns([("user", "a")]) == [("user", "a", 0.0, [])]


def test_time_is_when_the_user_spoke():
    (d,), _ = split_into_dialogues(ParsedConversation([("user", "a", 3.5), ("assistant", "b", 9.5)]))
    assert d.time == 3.5


def test_history_is_one_tuple_for_a_conversation():
    turns = [(("user", "assistant")[i % 2], f"turn {i}") for i in range(40)]
    found, cut = split_into_dialogues(ParsedConversation(turns))
    assert cut == 0 and len(found) == 20
    assert all(isinstance(d.history, History) and d.history.turns is found[0].history.turns for d in found)
    assert [list(d.history) for d in found] == [turns[: 2 * k] for k in range(20)]


def test_many_turns_of_one_side_and_long_texts_are_quick():
    talk = ParsedConversation([("user", "x" * 99)] * 100_000 + [("assistant", "y" * 10_000_000)])
    (d,), cut = split_into_dialogues(talk)
    assert len(d.prompt) == len(d.response) == MAX_TURN_CHARACTERS and cut == 2


@pytest.mark.parametrize(
    "turns,words",
    [
        ([], "no assistant turn"),
        ([("user", "a")], "no assistant turn"),
        ([("assistant", "a")], "no assistant turn"),
        ([("assistant", "a"), ("user", "b")], "no assistant turn"),
        ([("user", " "), ("assistant", "b")], "empty prompt"),
        ([("user", "a"), ("assistant", "")], "empty response"),
    ],
)
def test_conversations_without_dialogues(turns, words):
    with pytest.raises(InputError, match=words):
        split_into_dialogues(ParsedConversation(turns))


def test_names_and_texts():
    assert as_text([], "x") == "" and as_text(["a", dict(text="b"), dict(text=3)], "x") == "a\nb"


def test_a_value_of_the_wrong_kind_is_the_error_of_its_row():
    def index(row):
        return row[0]

    def huge(row):
        return float(10**400)

    for make in (index, huge, lambda row: row.nothing, lambda row: row["no"], lambda row: int("x")):
        with pytest.raises(InputError, match="wrong kind of value"):
            call_safely(make, {})
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is not the user's
        call_safely(lambda row: 1 / 0, {})


def test_openings():
    text = "One two three,\nfour five six seven eight\n\nnine."
    assert split_opening(text) == ("One two three, four five six", "seven eight\n\nnine.")
    with pytest.raises(InputError, match="more than 8 words"):
        split_opening("one two three four five six seven eight")
