"Formats: the records of every data set, turns into dialogues, a format of your own."

import json

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

# format, record, the (prompt, response) pairs that it holds
# `test_reading` reads them from every kind of file
SIDES = [dict(human="Hi", assistant="Hello"), dict(human="Bye", assistant="See you")]
SYSTEM = dict(role="system", content="Be kind.")
QUESTION = dict(role="user", content="Hi")
RECORDS = [
    ("messages", dict(messages=CHAT), PAIRS),
    ("messages", CHAT, PAIRS),
    ("messages", dict(messages=[SYSTEM, *CHAT[:2]]), PAIRS[:1]),
    ("messages", dict(messages=[bot("Welcome!"), user("a"), user("b"), bot("c")]), [("a\nb", "c")]),
    ("messages", dict(messages=[user([dict(type="text", text="a"), dict(type="image_url")]), bot("c")]), [("a", "c")]),
    ("messages", dict(messages=[user("a"), dict(role="assistant", content=None), bot("c")]), [("a", "c")]),
    ("messages", dict(id="1", conversations=[turn("human", "Hi"), turn("gpt", "Hello")]), PAIRS[:1]),
    ("messages", dict(conversations=[turn("system", "x"), turn("user", "Hi"), turn("chatgpt", "Hello")]), PAIRS[:1]),
    ("messages", dict(contents=[dict(role="model", parts=[dict(text="x")])] + CHAT), PAIRS),
    ("messages", dict(conversation=SIDES), PAIRS),
    ("messages", dict(messages=[turn | dict(parent=i or None) for i, turn in enumerate(CHAT)]), PAIRS),
    ("messages", dict(messages=[turn | dict(parent=None) for turn in CHAT]), PAIRS),
    ("messages", dict(conversation=[dict(system="Be kind.", input="Hi", output="Hello")]), PAIRS[:1]),
    ("messages", dict(conversation=[dict(speaker="user", text="Hi"), dict(speaker="bot", text="Hello")]), PAIRS[:1]),
    ("messages", dict(prompt="x", response="y", conversation=CHAT), PAIRS),
    ("messages", dict(messages=[turn | dict(created_at=5) for turn in CHAT]), PAIRS),
    ("pairs", dict(prompt="Hi", completion="Hello"), PAIRS[:1]),
    ("pairs", dict(prompt="Hi", response="Hello", extra=1), PAIRS[:1]),
    ("pairs", {"Prompt": "Hi", " Response ": "Hello"}, PAIRS[:1]),
    ("pairs", dict(input="Hi", output="Hello"), PAIRS[:1]),
    ("pairs", dict(instruction="Add.", input="1 2", output="3"), [("Add.\n\n1 2", "3")]),
    ("pairs", dict(instruction="Add.", input="", output="3", text="x"), [("Add.", "3")]),
    ("pairs", dict(instruction="Add.", input="1 2", output="3", prompt="Below is…"), [("Add.\n\n1 2", "3")]),
    ("pairs", dict(Instruction="Add.", Input=None, Output="3", messages=None), [("Add.", "3")]),
    ("pairs", dict(prompt="Add.", input="", context="1 2", completion="3"), [("Add.\n\n1 2", "3")]),
    ("messages", dict(system=[dict(text="Be kind.")], messages=CHAT[:2]), PAIRS[:1]),
    ("pairs", dict(prompt=[SYSTEM, QUESTION], completion=[bot("Hello")]), PAIRS[:1]),
    ("pairs", dict(instruction="Bye", output="See you", history=[["Hi", "Hello"]]), PAIRS),
    ("pairs", dict(prompt="Bye", response="See you", history=CHAT[:2]), PAIRS),
    ("preference", dict(prompt="Hi", chosen=CHAT[:2], rejected=[QUESTION, bot("Yo")], messages=CHAT), PAIRS[:1]),
]


def pairs(conversations):
    return [(d.prompt, d.response) for talk in conversations for d in split_into_dialogues(talk)[0]]


PARENTS = "parent_id parentId parent parent_message_id parentMessageId parent_message_uuid".split()
TREES = [[user("Is 7 prime?"), bot("No.") | {name: "1"}, bot("Yes.") | {name: "1"}] for name in PARENTS]
TREES += [[user("Hi") | dict(ancestors=[]), *(bot(word) | dict(ancestors=["1"]) for word in ("No.", "Yes."))]]
TREES += [[*(user(word) | dict(parent=None) for word in ("Hy", "Hi")), bot("Hello") | dict(parent="2")]]
BAD = [
    ("messages", dict(messages="Hi"), "are str, not a list"),
    ("messages", dict(conversation="[{'role': 'user'}]"), "broken JSON"),
    ("messages", dict(conversation=[[["Hi"]]]), "no known field names the sender; fields: none"),
    ("messages", dict(messages=[dict(role=["user"], content="x")]), "unknown role"),
    ("messages", dict(messages=[user(3)]), "int, not text"),
    ("messages", dict(conversations=dict(a=1)), "wrong kind of value"),
    ("messages", dict(messages=[user("Hi"), dict(role="bing", content="x")]), "unknown role 'bing'"),
    ("pairs", dict(prompt=3, response="x"), "prompt is int, not text"),
    ("pairs", dict(prompt="x", response=float("nan")), "response is float, not text"),
    ("pairs", dict(instruction="Hi", output=["Hello", "Yo"]), "output is list, not text"),
    ("pairs", dict(prompt=["Hi", "Bye"], response=["Hello", "See you"]), "response is list, not text"),
    ("pairs", dict(prompt="Bye", response="See you", history="Hi, Hello"), "no known field"),
    *(("messages", dict(messages=tree), "one parent") for tree in TREES),
    ("messages", dict(messages=[turn | dict(sent=f"2026-01-0{d}") for d, turn in zip("1323", CHAT)]), "their times"),
    ("messages", dict(messages=[dict(nick="Ana", body="Hi")]), "no known field names the sender; fields: nick, body"),
]


@pytest.mark.parametrize("name,record,words", BAD)
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


PICTURE = [dict(type="image_url", image_url=dict(url="data:image/png;base64,iVBO"))]
NORWAY, PERU = [user("Norway?"), bot("Oslo.")], [user("Peru?"), bot("Lima.")]
GAPS = {  # what stands between two exchanges, and its gaps
    "a picture": ([user(PICTURE), bot("A red bicycle.")], 1),
    "a picture of Gemini": ([dict(role="user", parts=[dict(inlineData=dict(data="iVBO"))]), bot("A bicycle.")], 1),
    "a painted picture": ([user("Draw a cat."), bot(PICTURE)], 1),
    "a stopped reply": ([user("A story!"), bot("")], 1),
    "a reply that was cut": ([user("A story!"), bot("Once") | dict(finish_reason="length")], 1),
    "an error": ([user("A story!"), bot("Network error") | dict(isError=True)], 1),
    "a stopped thought": ([user("A story!"), bot("<think>Let me see")], 1),
    "a picture without an answer": ([user(PICTURE)], 0),
    "a prompt of Open WebUI": ([user("### Task:\nGenerate a title.\n### Chat History:"), bot('{"title": "x"}')], 1),
    "a call of a tool": ([user("How warm?"), dict(role="assistant", content=None, tool_calls=[dict(id="1")])], 1),
    "a call in its own form": ([user("How warm?"), dict(type="function_call", name="w")], 1),
}


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


@pytest.mark.parametrize(
    "call",
    [
        [dict(role="assistant", content=None, tool_calls=[dict(id="c")]), dict(role="tool", content="21")],
        [dict(role="assistant", content="", function_call=dict(name="w")), dict(role="function", content="21")],
        [bot([dict(type="tool_use", name="w")]), user([dict(type="tool_result", content="21")])],
        [dict(role="assistant", content=[dict(type="thinking", thinking="hm")])],
        [dict(role="assistant", channel="analysis", content="hm")],
        [turn("function_call", "{}"), turn("observation", "21")],
        [dict(role="model", parts=[dict(functionCall={})]), dict(role="user", parts=[dict(functionResponse={})])],
        [dict(type="function_call", name="w"), dict(type="function_call_output", output="21")],
        [dict(role="ipython", content="21")],
    ],
)
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


MARKED = {
    "◁think▷Hm.◁/think▷Yes.": "Yes.",
    "<think>a</think>Yes.\n<think>b</think>\nIt is.": "Yes.\n\nIt is.",
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>": "Yes.",
    '<details type="tool_calls" done="true" name="w">\n<summary>Tool</summary>\n</details>\nYes.': "Yes.",
    '<details type="reasoning" done="false">\n<summary>Thinking…</summary>\n> Hm': "",
    "<details>\n<summary>Thought for 2 seconds</summary>\nHm\n</details>\n\nYes.": "Yes.",
    "Yes.\ue200cite\ue202turn0search1\ue202turn0search4\ue201 No.\ue200filecite\ue202turn0file0\ue201": "Yes. No.",
    "See \ue200url\ue202the museum\ue202turn0search2\ue201.": "See the museum.",
    "\ue203Ten metres\ue204\ue200cite\ue202turn0search2\ue201.": "Ten metres.",
    "Yes 【4:0†notes.pdf】【4:1†L2-L3】.": "Yes.",
    "Yes:contentReference[oaicite:0]{index=0}.": "Yes.",
    "Viewing artifacts created via the Analysis Tool web feature preview isn’t yet supported on mobile.\nYes.": "Yes.",
    "Yes.<|im_end|>\n": "Yes.",
    "<antThinking>Hm.</antThinking>\n<|begin_of_thought|>Hm.<|end_of_thought|><|begin_of_solution|>Yes.": "Yes.",
    "```thinking\nHm.\n```\nYes.\n```tool_code\nlook()\n```": "Yes.",
    "Yes.\n<tool_call>\n{}\n</tool_call>\n<function_calls><a/></function_calls>\n<function=w>{}</function>": "Yes.",
    "Yes.\n[TOOL_CALLS]w[ARGS]{}": "Yes.",
    "<functioncall> {}": "",
    "<tool-call>{}</tool-call>\nYes.": "Yes.",
    ':::writing{variant="email"}\nDear Ana\n:::\nYes?': "Dear Ana\nYes?",
    "Yes.</s>": "Yes.",
    '{"name": "look", "arguments": {"q": "tea"}}': "",
}
UNMARKED = [
    "Write <think> before your thoughts and </think> after them.",
    "<details><summary>More</summary>Words.</details>",
    "【Note】 Words in brackets, and a dagger† alone.",
    "Yes </s> is an end token.",
    "```xml\n<think>\nHm.\n</think>\n<tool_call>{}</tool_call>\n```\nOr end it with `</think>`.",
    "```reason\nlet a = {}\n```",
    '[Tools](a.md)\n[tool.poetry]\na = {}\n<Tooltip a="b">{c}</Tooltip>\n<function-plot>x</function-plot>',
    "[tools]\na = 1\n:::note\nHi\n:::",
    " kept as it is \n",
]


@pytest.mark.parametrize("text", [*MARKED, *UNMARKED])
def test_marks_of_programs_are_nobodys_words(text):
    assert remove_marks(text) == MARKED.get(text, text)
    if MARKED.get(text):
        (d,), *_ = split_into_dialogues(ParsedConversation([("user", "Hi"), ("assistant", text)]))
        assert d.response == MARKED[text]


LEFT = {  # an answer that we cannot mend, and the mark that the note names
    "Yes.\n<think>Only 1 and": "<think>",
    "Only 1 and 7.</reasoning> Yes.": "</reasoning>",
    "Let me see.<tool_call>{}</tool_call>": "<tool_call>",
    "<scratchpad>\nHm.\n</scratchpad>\nYes.": "<scratchpad>",
    "<analysis>Hm.</analysis>\nYes.": "<analysis>",
    '<plan id="1">Divide it.</plan>\nYes.': '<plan id="1">',
    "<Plan>Divide.</Plan>": "<Plan>",
    "Yes.<eos>": "<eos>",
    "Yes.\n**User:** And 9?": "**User:",
    "<assistant>Yes.</assistant>": "<assistant>",
    "<<SYS>>Be kind.<</SYS>> Yes.": "<<SYS>>",
    "<inner_monologue>Hm.</inner_monologue>Yes.": "<inner_monologue>",
    "<think>Hm.</think>\n<answer>Yes.</answer>": "<answer>",
    "Write <think> before your thoughts and </think> after them.": "<think>",
    "Use this:\n<think> and </think> frame the thoughts.": "<think>",
    "Yes </s> is an end token.": "</s>",
    "The end token <|im_end|>": "<|im_end|>",
    "Yes.<|end|><|start|>user<|message|>And 9?<|end|><|start|>assistant<|channel|>final<|message|>No.": "<|end|>",
    "<|python_tag|>is_prime(7)<|eom_id|>": "<|python_tag|>",
    "analysisA question.assistantfinalYes.": "assistantfinal",
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes.": "<|start_header_id|>",
    "<｜User｜>Is 7 prime?<｜Assistant｜>Yes.": "<｜User｜>",
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Is 7 prime?": "<|START_OF_TURN_TOKEN|>",
    "Yes.<|end|>\n<|user|>\nAnd 9?": "<|end|>",
    "Yes.\n<human>: And 9?\n<bot>: No.": "<human>",
    "Yes.<end_of_turn>\n<start_of_turn>user\nAnd 9?": "<end_of_turn>",
    "Yes. [INST] And 9? [/INST] No.": "[INST]",
    "Yes.\n\nHuman: And 9?\n\nAssistant: No.": "Human:",
    "Yes. USER: And 9? ASSISTANT: No.": "USER:",
    "Yes.\n\n### Instruction:\nAnd 9?": "### Instruction:",
    "**Thinking**\n\nHm.\n\nYes.": "**Thinking**",
    "> Thinking: Hm.\n\nYes.": "> Thinking:",
    str(CHAT): "[{'role':",
    json.dumps([turn("gpt", "Yes.")]): '[{"from":',
}
LEFT_PROMPTS = ["<｜User｜>Hi<｜Assistant｜>", "\n\nHuman: Hi\n\nAssistant:", "<human>: Hi\n<bot>:"]
LEFT_PROMPTS += ["A.\n\n### Instruction:\nHi"]
ORDINARY = [
    "If a < b and b > c: a<b, x <- 3 in R, 1 <2> 3, $|x|$, f <| g |> h and <3.",
    '<p>Hello <b>you</b></p> <details open>x</details> <Tooltip a="b">c</Tooltip> <planet>',
    "Write to <ana@example.org> or <https://example.org>. List<Tool>, Map<String, Plan>, vector<tool>.",
    "[TODO] Buy tea. [1] A source. [Tools](a.md) [tool.poetry]",
    "Q: Is 7 prime?\nA: Yes. Dear User: the Human: he is late.",
    "Use `<think>`, ``<|im_end|>`` and `[INST]`.",
    "```\n<|im_start|>user\n```\n~~~\n[INST]\n~~~",
    '{"a": [1, 2]}',
    "Close it:\n```\n</think>\n```\nDone.",
]


@pytest.mark.parametrize("text", [*LEFT, *LEFT_PROMPTS, *ORDINARY])
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


@pytest.mark.parametrize("program", TALKS)
def test_messages_between_people_are_refused(program):
    for skip in (False, True):
        with pytest.raises(InputError, match=f"an export of {program}, which we do not read") as caught:
            reading.read_dialogues([TALKS[program]] * 2, skip_invalid=skip)
        assert "rows of prompt and response" in str(caught.value) and "skip_invalid" not in str(caught.value)


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


def test_conversations_without_dialogues():
    for turns, words in (
        ([], "no assistant turn"),
        ([("user", "a")], "no assistant turn"),
        ([("assistant", "a"), ("user", "b")], "no assistant turn"),
        ([("user", " "), ("assistant", "b")], "empty prompt"),
        ([("user", "a"), ("assistant", "")], "empty response"),
        ([("user", "a"), ("assistant", " \u200b\ufeff\u2060")], "empty response"),
        ([("user", "\u200e"), ("assistant", "b")], "empty prompt"),
    ):
        with pytest.raises(InputError, match=words):
            split_into_dialogues(ParsedConversation(turns))


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


@pytest.mark.parametrize(
    "turns, line",
    [
        ([("user", "Hi")], "no assistant turn after a user turn; give conversations with answers"),
        ([("user", "Hi"), ("assistant", " ")], "the response is ' '; give text that is not empty"),
        ([("user", " "), ("assistant", "Hello")], "empty prompt"),
        ([("user", "Hi"), ("assistant", 3)], "the text of the assistant is 3; give text"),
    ],
)
def test_plain_turns_without_an_exchange_are_one_line(turns, line):
    with pytest.raises(InputError, match=line):
        split_turns(ParsedConversation(turns))


def test_plain_turns_are_joined_cut_and_kept_once():
    talk = [("system", "s"), ("assistant", "Welcome!"), ("user", "a"), ("user", "b"), ("assistant", "c" * 99_999)]
    (d,), cut, _ = split_turns(ParsedConversation(talk))
    assert (d.prompt, len(d.response), cut) == ("a\nb", MAX_TURN_CHARACTERS, 1)
    assert d.history == (("system", "s"), ("assistant", "Welcome!"))
    assert split_turns(ParsedConversation([("user", "Hi")], is_row=False)) == ([], 0, {})
