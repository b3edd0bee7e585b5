"Formats: the records of every data set, turns into dialogues, a format of your own."

import json
from pathlib import Path

import pytest

from personal_llm.base.core import InputError
from personal_llm.data import reading
from personal_llm.data.formats import FORMATS, MAX_TURN_CHARACTERS, ParsedConversation, RecordFormat, detect_format
from personal_llm.data.formats import normalise_record, parse_record, split_turns
from personal_llm.extras.marks import GAP, SETUP, UNLEARNED, find_mark, remove_marks, split_into_dialogues

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
GAPS = ROWS["gaps"]  # what stands between two exchanges, and its gaps
SYSTEM = dict(role="system", content="Be kind.")


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


@pytest.mark.parametrize("kind", GAPS)
def test_a_turn_without_text_costs_its_own_exchange(kind):
    "The answers around it must not grow together."
    middle, num_gaps = GAPS[kind]
    (conversation,) = parse_record(dict(messages=[*NORWAY, *middle, *PERU]), "messages")
    found, _, left_out = split_into_dialogues(conversation)
    assert (found[0].prompt, found[0].response) == ("Norway?", "Oslo.")
    assert (found[-1].prompt, found[-1].response) == ("Peru?", "Lima.")
    assert len(found) == 2 and sum(left_out.values()) == num_gaps
    assert {*left_out} <= {SETUP if kind == "a prompt of Open WebUI" else GAP}
    roles = [role for d in found for role, _ in d.history]
    assert all(role == ("user", "assistant")[i % 2] for d in found for i, (role, _) in enumerate(d.history)), roles


@pytest.mark.parametrize("call", ROWS["calls of tools"])
def test_calls_of_tools_are_no_turns(call):
    (conversation,) = parse_record(dict(messages=[user("How warm?"), *call, bot("21 degrees.")]), "messages")
    (d,), _, left_out = split_into_dialogues(conversation)
    assert (d.prompt, d.response, left_out) == ("How warm?", "21 degrees.", {})


def test_system_turns_stay_and_divide():
    rows = [SYSTEM, *CHAT[:2], dict(role="developer", content="Be a pirate."), *CHAT]
    found, *_ = split_into_dialogues(parse_record(dict(messages=rows), "messages")[0])
    system, pirate = ("system", "Be kind."), ("system", "Be a pirate.")
    assert [list(d.history) for d in found] == [[system], [pirate], [pirate, ("user", "Hi"), ("assistant", "Hello")]]
    for row in (dict(system="Be kind.", prompt="Hi", response="x"), dict(System_Prompt="Be kind.", user="Hi", gpt="x")):
        (d,), *_ = split_into_dialogues(parse_record(normalise_record(row), "pairs")[0])
        assert list(d.history) == [system]


@pytest.mark.parametrize("mark", [dict(weight=0), dict(weight="0"), dict(train=False), dict(loss="False")])
def test_an_answer_that_is_not_to_be_learned_stays_in_the_history(mark):
    rows = [user("Is tin a metal?"), bot("No.") | mark, user("Sure?"), bot("Yes, it is.") | dict(weight=1)]
    (d,), *_ = split_into_dialogues(parse_record(dict(messages=rows), "messages")[0])
    assert split_into_dialogues(parse_record(dict(prompt="Hi", response="Yo") | mark, "pairs")[0]) == (
        [],
        0,
        {UNLEARNED: 1},
    )
    assert d.prompt == "Sure?" and list(d.history) == [("user", "Is tin a metal?"), ("assistant", "No.")]


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


def test_a_row_that_is_labelled_false_is_not_learned():
    labels = [True, 1, "1", False, 0, "False", "0", "negative", "-1", 2]  # those of KTO, and classes of other data sets
    for label in labels:
        for name, row in (("pairs", dict(prompt="Hi", completion="Yo")), ("messages", dict(messages=CHAT[:2]))):
            dialogues, *_ = split_into_dialogues(parse_record(row | dict(rating=1, label=label), name)[0])
            assert len(dialogues) == (label not in labels[3:7])


def test_marks_in_long_texts_are_quick():
    texts = ["<" * 300_000, "\n" * 300_000, "<think>" * 50_000, "【" * 300_000, "```" * 100_000, " " * 300_000]
    for text in (*texts, "<details " * 30_000, "\ue200a" * 50_000, ":::a{}\n" * 9_999):
        remove_marks(text + "x")


def test_a_preference_of_whole_dialogues_names_their_mark():
    sides = [f"\n\nHuman: Hi\n\nAssistant: {word}" for word in ("Hello", "Yo")]
    with pytest.raises(InputError, match="left out: 1 × .*mark of a turn.*(Human:)"):
        reading.read_dialogues([dict(chosen=sides[0], rejected=sides[1])])


def test_a_column_without_a_name_is_not_in_the_note():
    (conversation,) = parse_record({"": "7", "prompt": "Hi", "response": "Hello", "stars": 1}, "pairs")
    assert conversation.turns[-1].unread == ["stars"]


def test_a_telegram_chat_may_have_no_name():
    assert detect_format(normalise_record(dict(name=None, type="saved_messages", id=1, messages=[]))) == "telegram"


def test_rows_of_other_files_of_an_export_point_to_the_chats():
    for row in (dict(uuid="u", full_name="X"), dict(conversations_memory="Peas."), dict(uuid="p", name="G", docs=[])):
        with pytest.raises(InputError) as caught:
            detect_format(row)
        assert "conversations.json" in caught.value.remedy


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


LEFT_OUT = [GAPS[kind][0] for kind in ("a picture", "a prompt of Open WebUI", "a stopped thought")]


@pytest.mark.parametrize("turns", [*LEFT_OUT, [user("Hi"), dict(role="tool"), bot("Yo") | dict(weight=0)]])
def test_a_row_that_holds_nobodys_words_is_left_out(turns):
    "It is no mistake of the file: the other rows are read, and its gap is counted."
    dialogues, _, left_out = split_into_dialogues(parse_record(dict(messages=turns), "messages")[0])
    reason = SETUP if turns is LEFT_OUT[1] else UNLEARNED if "weight" in turns[-1] else GAP
    assert not dialogues and left_out == {reason: 1}


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


TALK = ("user", "Tea?"), ("assistant", "Yes."), ("user", "Cake?"), ("assistant", "No.")
HIDDEN = [dict(visible=False), dict(isSelected=False), dict(retracted=True), dict(state="deleted")]
HIDDEN += [dict(visibility="hidden"), dict(kind="thinking"), dict(type="tool_use"), dict(channel="commentary")]
HIDDEN += [dict(message_type="reasoning_message")]
HIDDEN += [dict(deleted_at="2026-01-05"), dict(superseded=True), dict(is_active=False), dict(content="<command-x>")]
HIDDEN += [dict(hidden=True), dict(deleted=True), dict(is_system=True)]
STOPPED = [dict(interrupted=True), dict(isPartial=True), dict(is_complete=False), dict(finishReason="MAX_TOKENS")]
STOPPED += [dict(stopReason="userStopped"), dict(status="error"), dict(errorCode=429), dict(status="in_progress")]
AGAINST = [dict(reactions=["👎"]), dict(isLiked=False), dict(thumbs_down=True), dict(verdict="fail")]
AGAINST += [dict(quality="poor"), dict(vote="downvote"), dict(is_good=False), dict(helpful="no")]
AGAINST += [dict(accepted="rejected"), dict(flagged=True)]
AGAINST += [dict(quality="bad"), dict(feedback=dict(rating="thumbs_down")), dict(annotation=dict(rating=-1))]


@pytest.mark.parametrize("field", [*HIDDEN, *STOPPED, *AGAINST], ids=str)
def test_facts_of_a_turn(field):
    "A turn that is not on the screen is none, one that stopped is a gap, one that is rated down is no example."
    question, answer = dict(role="user", content="Tea?"), dict(role="assistant", content="No.") | field
    turns = [question, answer, dict(role="assistant", content="Yes.")] if field in HIDDEN else [question, answer]
    (talk,) = parse_record(dict(messages=turns), "messages")
    dialogues, _, left_out = split_into_dialogues(talk)
    assert [d.response for d in dialogues] == (["Yes."] if field in HIDDEN else [])
    assert left_out == ({} if field in HIDDEN else {GAP: 1} if field in STOPPED else {UNLEARNED: 1})


def test_a_history_is_turns_with_roles_or_requests_with_answers():
    "The name of a role in each pair tells it."
    expected = [("system", "Be brief."), ("user", "Tea?"), ("assistant", "Yes.")]
    row = dict(prompt="Cake?", response="No.", history=expected)
    assert [(d.prompt, d.response) for d in reading.read_dialogues([row])] == [("Tea?", "Yes."), ("Cake?", "No.")]
    assert list(reading.read_dialogues([row])[1].history) == expected
    assert list(reading.read_dialogues([row | dict(history=[["Tea?", "Yes."]])])[1].history) == expected[1:]


def test_plain_turns_are_joined_cut_and_kept_once():
    talk = [("system", "s"), ("assistant", "Welcome!"), ("user", "a"), ("user", "b"), ("assistant", "c" * 99_999)]
    (d,), cut, _ = split_turns(ParsedConversation(talk))
    assert (d.prompt, len(d.response), cut) == ("a\nb", MAX_TURN_CHARACTERS, 1)
    assert d.history == (("system", "s"), ("assistant", "Welcome!"))
    assert split_turns(ParsedConversation([("user", "Hi")], is_row=False)) == ([], 0, {})
