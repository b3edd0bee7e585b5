"Exports of chat services: short hand-written files that look like the real ones."

import json
import os

import pytest
from cases import case, pairs, save

from personal_llm.base.core import InputError
from personal_llm.data.formats import parse_record
from personal_llm.data.reading import load_formats, read_dialogues
from personal_llm.extras.marks import GAP, UNLEARNED, split_into_dialogues
from personal_llm.extras.people import parse_stamp
from personal_llm.extras.people import parse_timestamps, parse_whatsapp_log
from personal_llm.extras.talks import order_messages, parse_time
from pathlib import Path

load_formats()


# ChatGPT: conversations.json


def node(name, parent, role=None, text="", children=(), time=None, kind="text", **more):
    message = None
    if role:
        content = dict(content_type=kind, parts=[text] if isinstance(text, str) else text)
        message = dict(id=name, author=dict(role=role, name=None, metadata={}), create_time=time, update_time=None)
        message |= dict(content=content, status="finished_successfully", end_turn=True, weight=1.0, metadata={})
        message |= dict(recipient="all") | more
    return {name: dict(id=name, message=message, parent=parent, children=list(children))}


def conversation(*nodes):
    mapping = {name: value for one in nodes for name, value in one.items()}
    row = dict(
        title="Anatomy", create_time=1705314645.5, update_time=1705314700.0, mapping=mapping, moderation_results=[]
    )
    return row | dict(current_node=list(mapping)[-1], conversation_id="c-1", id="c-1")


def chain(*rows):
    "A conversation without branches, of (role, text) or (role, text, more fields of the node)."
    nodes, parent = [ROOT], "root"
    for i, (role, text, *more) in enumerate(rows):
        nodes.append(node(f"n{i}", parent, role, text, **dict(*more)))
        parent = f"n{i}"
    return conversation(*nodes)


ROOT = node("root", None, children=["q0", "q1"])


CHATGPT = json.loads(Path(__file__).with_name("conversations.json").read_text(encoding="utf-8"))


def test_chatgpt(tmp_path):
    found = read_dialogues(save(tmp_path / "conversations.json", CHATGPT))
    want = [("What is a tendon?", "It ties muscle to bone."), ("And this?", "A ligament."), ("Hi", "Hello")]
    assert pairs(found) == want and found.format == "chatgpt" and not found.skipped
    assert list(found[1].history) == [("user", want[0][0]), ("assistant", want[0][1])]
    assert [d.time for d in found] == [1705314645.5, 1705314660.0, 0.0]
    assert [d.labels.get("group") for d in found] == ["conversations.json:1"] * 2 + [None]
    assert len(read_dialogues(save(tmp_path / "one.json", CHATGPT[0]))) == 2


def test_parents_in_a_circle_are_refused(tmp_path):
    row = conversation(node("a", "b", "user", "Hi"), node("b", "a", "assistant", "Hello"))
    canvas = dict(MAKE, content=dict(CANVAS, text='{"content": [1]}'))
    wrong = {"the parents of message b form a cycle": row, "content is int": chain(("assistant", "", canvas))}
    for words, each in wrong.items():
        with pytest.raises(InputError, match=f"item 1: {words}"):
            read_dialogues(save(tmp_path / "conversations.json", [each]))
    found = read_dialogues(save(tmp_path / "conversations.json", [row, CHATGPT[2]]), skip_invalid=True)
    assert pairs(found) == [("Hi", "Hello")] and [place for place, _ in found.skipped] == [1]
    nodes = [dict(id=str(i), parent=str(i - 1)) for i in range(50_000)]
    assert order_messages(nodes[::-1], "49999", True) == nodes, "a long branch"


def test_chatgpts_thumbs_lie_in_a_second_file(tmp_path):
    file = save(tmp_path / "conversations.json", CHATGPT)
    assert len(read_dialogues(file)) == 3
    rows = [dict(id="a1", rating="thumbs_down"), dict(id="gone", rating="thumbs_down"), dict(id="a2", rating=None)]
    rows += [dict(message_id="a2", conversation_id="another", rating="thumbs_down")]
    save(tmp_path / "message_feedback.json", rows)
    found = read_dialogues(file)
    assert [d.response for d in found] == ["A ligament.", "Hello"] and found.left_out == {UNLEARNED: 1}
    assert found[0].history[1] == ("assistant", "It ties muscle to bone."), "it stays in the history"
    for damaged in ("{", "[3]", '{"a": 1}', "[" * 100_000):
        save(tmp_path / "message_feedback.json", damaged)
        with pytest.raises(InputError, match="message_feedback.json: no ratings"):
            read_dialogues(file)


@pytest.mark.parametrize("rating, count", [(1, 1), (-1, 0), ("Bad", 0), (3, 1), (None, 1)])
def test_a_reply_with_a_thumb_down_is_not_learned(rating, count):
    "A rating of the person's own turn is none of a reply."
    turns = [dict(role="user", content="Hi", rating=-1), dict(role="assistant", content="Hello", score=rating)]
    message = lambda role, parent, **more: dict(role=role, content=role, parentId=parent, **more)
    nodes = dict(a=message("user", None), b=message("assistant", "a", annotation=dict(rating=rating)))
    chat = dict(id="1", title="t", chat=dict(history=dict(messages=nodes, currentId="b")))
    for name, row in (("messages", dict(messages=turns)), ("openwebui", chat)):
        dialogues, _, left_out = split_into_dialogues(parse_record(row, name)[0])
        assert (len(dialogues), left_out[UNLEARNED]) == (count, 1 - count)


THOUGHT = dict(channel="analysis")
HIDDEN = dict(metadata=dict(is_visually_hidden_from_conversation=True))
CANVAS = dict(content_type="code", text='{"name": "rain", "type": "document", "content": "Grey threads."}')
MAKE = dict(content=CANVAS, recipient="canmore.create_textdoc")


# what stands between two exchanges of ChatGPT: its messages, and its (prompt, response) pairs
BETWEEN = json.loads(Path(__file__).with_name("chatgpt_gaps.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", BETWEEN)
def test_chatgpts_gaps_cost_their_own_exchange(kind, tmp_path):
    middle, expected = BETWEEN[kind]
    around = [("user", "Norway?"), ("assistant", "Oslo."), ("user", "Peru?"), ("assistant", "Lima.")]
    row = chain(*around[:2], *middle, *around[2:])
    found = read_dialogues(save(tmp_path / "conversations.json", [row]))
    assert pairs(found) == [("Norway?", "Oslo."), *map(tuple, expected), ("Peru?", "Lima.")]
    assert bool(found.left_out) == (not expected)


@pytest.mark.parametrize("role, more", [("user", HIDDEN), ("system", HIDDEN), ("tool", {}), ("assistant", THOUGHT)])
def test_what_follows_a_whole_answer_of_chatgpt_without_a_question_is_a_gap(role, more, tmp_path):
    "A scheduled task asks in secret; the parts of one answer have no end but the last."
    talk = [("user", "Norway?"), ("assistant", "Oslo."), (role, "Joke!", more), ("assistant", "Knock knock.")]
    joined = "Oslo.\nKnock knock."
    for is_whole, response, num_gaps in ((True, "Oslo.", 1), (False, joined, 0), (None, joined, 0)):
        talk[1] = ("assistant", "Oslo.", dict(end_turn=is_whole))
        row = chain(*talk, ("user", "Peru?", dict(time=1.7e9)), ("assistant", "Lima."))
        found = read_dialogues(save(tmp_path / "conversations.json", [row]))
        assert pairs(found) == [("Norway?", response), ("Peru?", "Lima.")] and found.left_out[GAP] == num_gaps
        assert found[1].time == 1.7e9


def test_a_folder_of_chatgpts_files_is_one_history(tmp_path):
    expected = [(f"Name a {name}.", f"{name} {i}") for i, name in enumerate(("herb", "tree", "animal"))]
    for i, (prompt, response) in enumerate(expected):
        save(tmp_path / f"conversations-{i:03}.json", [chain(("user", prompt), ("assistant", response))])
    save(tmp_path / "user.json", dict(id="x"))
    save(tmp_path / "message_feedback.json", [])
    files = sorted(tmp_path.glob("conversations-*.json"))
    for source in (tmp_path, str(tmp_path), files, [tmp_path]):
        assert pairs(read_dialogues(source)) == expected
    feedback = tmp_path / "message_feedback.json"
    endless = [lambda: os.mkfifo(feedback), lambda: feedback.symlink_to("/dev/zero")] if os.name != "nt" else []
    for make in (lambda: feedback.symlink_to("nowhere"), *endless):
        feedback.unlink()
        make()
        with pytest.raises(InputError, match="no ratings that we can read"):
            read_dialogues(tmp_path)
    feedback.unlink()
    save(files[1], "{")
    with pytest.raises(InputError, match="conversations-001.json: broken JSON"):
        read_dialogues(tmp_path)


def test_other_folders(tmp_path):
    save(tmp_path / "train-0.jsonl", '{"prompt": "Hi", "response": "Hello"}')
    save(tmp_path / "train-1.jsonl", '{"prompt": "Bye", "response": "Yo"}')
    (tmp_path / "photos").mkdir()
    (tmp_path / "photo.jpg").write_bytes(b"")
    (tmp_path / "._train-0.jsonl").write_bytes(b"\xff")
    assert pairs(read_dialogues(tmp_path)) == [("Hi", "Hello"), ("Bye", "Yo")]
    with pytest.raises(InputError, match="a folder with no file of chats"):
        read_dialogues(tmp_path / "photos")
    save(tmp_path / "b.txt", "Dear diary")
    with pytest.raises(InputError, match="a folder with b.txt, train-0.jsonl"):
        read_dialogues(tmp_path)


# Claude: conversations.json


def message(sender, text, uuid=None, parent=None, parts=None):
    row = dict(uuid=uuid or text, text=text, sender=sender, created_at="2024-01-15T10:30:45.500000Z", attachments=[])
    row |= dict(content=[dict(type="text", text=text)] if parts is None else parts, files=[])
    return row | (dict(parent_message_uuid=parent) if parent else {})


def read_claude(tmp_path, *messages):
    return read_dialogues(save(tmp_path / "conversations.json", [dict(uuid="c", name="", chat_messages=messages)]))


INPUT = dict(command="create", title="Metals", content="| iron | Fe |")
ARTIFACT = dict(type="tool_use", name="artifacts", input=INPUT)
PATCH = dict(type="tool_use", name="artifacts", input=dict(command="update", old_str="Fe", new_str="fe"))
RESULT = dict(type="tool_result", content=[dict(type="text", text="OK")])
PLACEHOLDER = "```\nThis block is not supported on your current device yet.\n```"


@pytest.mark.parametrize(
    "answer, expected",
    [
        (dict(content=[ARTIFACT, RESULT]), "| iron | Fe |"),
        (dict(content=[ARTIFACT, dict(type="text", text="There.")]), "| iron | Fe |\nThere."),
        (dict(content=[PATCH, dict(type="text", text="I changed it.")]), None),
        (dict(content=[dict(type="thinking", thinking="Hm.")]), None),
        (dict(content=[], text=PLACEHOLDER), None),
        (dict(content=[], text=f"{PLACEHOLDER}\n\nAn alloy."), "An alloy."),
    ],
)
def test_claudes_artifacts_and_placeholders(tmp_path, answer, expected):
    reply = dict(sender="assistant", text=PLACEHOLDER) | answer
    found = read_claude(
        tmp_path, message("human", "A table!"), reply, message("human", "Bye"), message("assistant", "See you")
    )
    assert pairs(found) == [("A table!", expected)] * (expected is not None) + [("Bye", "See you")]


def test_claudes_attachments_are_a_part_of_the_prompt(tmp_path):
    pasted = message("human", "Sum up.") | dict(attachments=[dict(file_name="", extracted_content="A long text.")])
    picture = message("human", "", "p", parts=[]) | dict(files=[dict(file_name="photo.jpg")])
    found = read_claude(tmp_path, pasted, message("assistant", "Short."), picture, message("assistant", "A bicycle."))
    assert pairs(found) == [("Sum up.\nA long text.", "Short.")]


def test_claude_keeps_the_branch_that_stayed():
    messages = [message("human", "Hi", "1", "0"), message("assistant", "Thrown away", "2", "1")]
    messages += [message("assistant", "Hello", "3", "1")]
    messages[1]["chat_feedback"] = dict(type="flag/bug")
    for leaf, answer in ((None, "Hello"), ("2", "Thrown away")):
        (talk,) = parse_record(dict(chat_messages=messages, current_leaf_message_uuid=leaf), "claude")
        assert [(turn.text, turn.is_learned) for turn in talk.turns] == [("Hi", True), (answer, leaf is None)]


def test_open_webuis_files_and_lists(tmp_path):
    rows = [("user", "Norway?", {}), ("assistant", "Oslo.", {}), ("user", "", dict(files=[dict(type="image")]))]
    rows += [("assistant", "A bicycle.", {}), ("user", "Chile?", {}), ("assistant", "Oh", dict(done=False))]
    rows += [("user", "Peru?", {}), ("assistant", "Lima.", {})]
    messages = {}
    for i, (role, text, more) in enumerate(rows):
        messages[str(i)] = dict(parentId=str(i - 1), role=role, content=text) | more
    histories = [dict(history=dict(messages=messages, currentId=last)) for last in ("7", None)]
    for chat in (*histories, dict(messages=list(messages.values()))):
        found = read_dialogues(save(tmp_path / "export.json", [dict(id="1", title="t", chat=chat)]))
        assert pairs(found) == [("Norway?", "Oslo."), ("Peru?", "Lima.")] and found.left_out


# Telegram: result.json


def telegram(who, text, minute, **more):
    row = {"id": minute, "type": "message", "date": f"2024-01-15T10:{minute:02}:00", "from": who}
    row |= dict(date_unixtime=str(1705314600 + 60 * minute), from_id=f"user{len(who)}", text=text, text_entities=[])
    return row | more


LINK = ["Look: ", dict(type="link", text="https://example.org"), "!"]
MESSAGES = [
    dict(id=1, type="service", date="2024-01-15T10:00:00", actor="Ana", action="phone_call", text="a call"),
    telegram("Ana", LINK, 1),
    telegram("Ana", "", 2, photo="(File not included)"),
    telegram("Ana", "A chain letter", 3, forwarded_from="Cleo"),
    telegram("Bo", "Nice.", 4),
    telegram("Bo", "Thanks.", 5),
    telegram("Ana", "Tea?", 6),
    telegram("Bo", "Yes!", 7),
    telegram("Bo", "Good morning!", 7 + 60 * 9),
    telegram("Ana", "Morning.", 8 + 60 * 9),
    telegram("Bo", "Coffee?", 9 + 60 * 9),
]
CHAT = dict(name="Bo", type="personal_chat", id=4711, messages=MESSAGES)


def test_telegram(tmp_path):
    found = read_dialogues(save(tmp_path / "result.json", CHAT))
    assert found.format == "telegram" and found.user == "Ana" and "Ana" in found.notes()[-1]
    assert pairs(found) == [("Tea?", "Yes!"), ("Morning.", "Coffee?")], "Nice is an answer to the chain letter"
    assert [len(d.history) for d in found] == [0, 0], "the night begins a new conversation"
    assert found[0].time == 1705314960 and sum(found.left_out.values()) == 1


PARAGRAPH = dict(type="paragraph", text=dict(type="plain", text="Which cheese?"))
BLOCKS = [dict(text=["Which ", dict(text="cheese")]), dict(type="list", items=[dict(text="old"), dict(text="young")])]


@pytest.mark.parametrize(
    "m, expected",
    [
        (dict(text="", photo="x.jpg"), None),
        (dict(text="", media_type="voice_message", file="x.ogg"), None),
        (dict(text="", poll=dict(question="Tea?")), None),
        *((dict(text="A chain letter", **{name: None}), None) for name in ("forwarded_from", "via_bot", "saved_from")),
        (dict(text="Which cheese?", photo="x.jpg"), "Which cheese?"),
        (dict(text=["Which ", dict(type="bold", text="cheese"), "?"]), "Which cheese?"),
        (dict(text="", rich_message=dict(blocks=[PARAGRAPH])), "Which cheese?"),
        (dict(text="", rich_message=dict(blocks=BLOCKS)), "Which cheese\nold\nyoung"),
    ],
)
def test_telegrams_messages(tmp_path, m, expected):
    rows = [telegram("Ana", "Tea?", 1), telegram("Bo", "Green.", 2), telegram("Ana", "", 3) | m]
    found = read_dialogues(save(tmp_path / "result.json", dict(CHAT, messages=[*rows, telegram("Bo", "Gouda.", 4)])))
    assert pairs(found) == [("Tea?", "Green.")] + [(expected, "Gouda.")] * (expected is not None)


def test_the_user_can_be_named(tmp_path):
    file = save(tmp_path / "result.json", CHAT)
    for name in ("Bo", "bo", "user2"):
        found = read_dialogues(file, user=name)
        assert pairs(found) == [("Nice.\nThanks.", "Tea?"), ("Good morning!", "Morning.")] and found.user == "Bo"
    with pytest.raises(InputError) as caught:
        read_dialogues(file, user="Cleo")
    assert "no sender is called Cleo" in caught.value.problem and "Ana, Bo" in caught.value.remedy


def test_a_group_needs_a_name(tmp_path):
    group = dict(CHAT, messages=[MESSAGES[1], *MESSAGES[4:6], telegram("Cleo", "Me too.", 7)])
    with pytest.raises(InputError, match="3 people write here") as caught:
        read_dialogues(save(tmp_path / "result.json", group))
    assert "--user" in caught.value.remedy
    found = read_dialogues(save(tmp_path / "result.json", group), user="Ana")
    assert pairs(found) == [("Look: https://example.org!", "Nice.\nThanks.\nMe too.")]


def test_a_whole_telegram_account(tmp_path):
    group = dict(CHAT, messages=[*MESSAGES, telegram("Cleo", "Hi", 20)])
    alone = dict(type="saved_messages", id=1, messages=[telegram("Ana", "A note", 1)])
    chats = dict(about="This page lists all chats.", list=[CHAT, group, alone])
    account = dict(about="Here is your data.", personal_information=dict(user_id=2, first_name="Bo"), chats=chats)
    found = read_dialogues(save(tmp_path / "result.json", account))
    assert found.user == "Bo" and pairs(found) == [("Nice.\nThanks.", "Tea?"), ("Good morning!", "Morning.")]
    assert "left out: 1 × a group chat" in found.notes()
    with pytest.raises(InputError, match="does not name its owner"):
        read_dialogues(save(tmp_path / "result.json", dict(chats=chats)))
    assert read_dialogues(save(tmp_path / "result.json", dict(chats=chats)), user="Ana").user == "Ana"


# WhatsApp: a text


def test_the_order_of_dates_is_that_of_the_log():
    def first(*dates):
        rows = parse_whatsapp_log("\n".join(f"{d} - A: x" for d in dates))
        return parse_timestamps([stamp for stamp, _, _ in rows])[0]

    assert first("1/2/24, 9:00", "1/13/24, 9:00") == parse_time("2024-01-02T09:00:00")
    assert first("1/2/24, 9:00", "2/1/24, 9:00") == parse_time("2024-01-02T09:00:00"), "time runs forwards"
    for clock, hour in (("12:05 AM", 0), ("12:05 PM", 12), ("1:05 AM", 1), ("11:05 PM", 23)):
        assert first(f"12/31/23, {clock}") == parse_time(f"2023-12-31T{hour:02d}:05:00"), "midnight is 12 AM"


NOTICES = """Esperanza: ¿Está la sopa?
Bo: {}
Bo: Sí
Esperanza: {}
Esperanza: ¿Y el pan?
Bo: También"""
DELETED = (Path(__file__).parent / "whatsapp_deleted.txt").read_text(encoding="utf-8").splitlines()


def make_log(*lines):
    return "".join(f"03.02.26, 18:4{i} - {line}\n" for i, line in enumerate(lines))


def test_deleted_messages_are_no_words_in_any_language(tmp_path):
    for other, own in (line.split(" | ") for line in DELETED):
        for mark in ("", "\u200e"):
            with case(other, own, mark):
                log = make_log(*NOTICES.format(mark + other, mark + own).split("\n"))
                found = read_dialogues(save(tmp_path / "chat.txt", log))
                assert pairs(found) == [("¿Está la sopa?", "Sí"), ("¿Y el pan?", "También")]


MEDIA = ["<Media omitted>", "<省略多媒体文件>", "\u200eimage omitted", "\u200e<attached: 00000012-PHOTO.jpg>", "null"]
MEDIA += ["IMG-20260203-WA0003.jpg (file attached)", "PTT-20260203-WA0001.opus (archivo adjunto)"]
MEDIA += ["\u200eIMG-1.jpg (ملف مرفق)", "Ana.vcf (fichier joint)", "a.pdf • \u200e3 pages \u200edocument omitted"]
MEDIA += ["image omitted", "Missed voice call", "Waiting for this message. This may take a while."]
MEDIA += ["\u200ePOLL:\nWhat shall we eat tonight?\n\u200eOPTION: Fish (1 vote)"]


@pytest.mark.parametrize("media", MEDIA)
def test_media_are_gaps_in_any_language(tmp_path, media):
    lines = ["Ute: Suppe?", "Jan: Ja", f"Ute: {media}", "Jan: Schön", "Ute: Wann?", f"Jan: {media}", "Jan: Um acht"]
    log = make_log(*lines, "Ute: Wo?", f"Jan: {media}")
    found = read_dialogues(save(tmp_path / "chat.txt", log))
    assert pairs(found) == [("Suppe?", "Ja"), ("Wann?", "Um acht")] and found.left_out[GAP] == 2
    if "jpg" in media:  # a caption stands beside its picture
        caption = f"Schau! {media}" if "attached:" in media else f"{media}\nSchau!"
        found = read_dialogues(save(tmp_path / "chat.txt", log.replace(f"Ute: {media}", f"Ute: {caption}")))
        assert ("Schau!", "Schön") in pairs(found)


def test_words_that_look_like_notices_stay(tmp_path):
    long = "I deleted it. This is a long message about what I delete every day."
    for text in (long, "Look at notes.txt (it is new) please", "a <b> c", "x <3"):
        found = read_dialogues(save(tmp_path / "chat.txt", make_log(f"Ute: {text}", "Jan: Ja")))
        assert pairs(found) == [(text, "Ja")]


# Messages of any program

REPORTS = ["Ana sent an attachment.", "Ana hat einen Anhang gesendet.", "Gefällt eine Nachricht"]
REPORTS += ["Hat mit 😀 auf deine Nachricht reagiert ", "Liked a message"]


@pytest.mark.parametrize("text", REPORTS)
def test_messengers_notices_are_no_words(text):
    talk = [("Ana", "Tea?"), ("Bo", "Yes."), ("Ana", text), ("Ana", "Cake?"), ("Bo", "No.")]
    rows = [dict(sender_name=name, content=text, timestamp_ms=i + 10**12) for i, (name, text) in enumerate(talk)]
    assert pairs(read_dialogues([dict(messages=rows[::-1])])) == [("Tea?", "Yes."), ("Cake?", "No.")]


TALK = [
    dict(role=("user", "bot")[i % 2], content=text) for i, text in enumerate("Tea? Yes. Cake? No. Nut? Oh.".split())
]
ORDERED = [  # any name of a number or of a time
    ("timestamp", (1767600000, 1767600100)),
    ("time", ("10:00", "10:01")),
    ("date", ("05.01.2026 10:00", "05.01.2026 10:01")),
    ("sentAt", ("Jan 5, 2026 10:00 AM", "Jan 5, 2026 10:01 AM")),
    ("createdAt", ({"$date": "2026-01-05T10:00:00Z"}, {"$date": "2026-01-05T10:01:00Z"})),
    ("metadata", (dict(timestamp=1767600000), dict(timestamp=1767600100))),
    ("seq", (1, 2)),
    ("posted", [f"2026-01-05T10:0{i}:00Z" for i in range(6)]),
    ("epoch", range(1767600000, 1767600006)),
    ("n", range(6)),
    ("turn", [str(i) for i in range(1, 7)]),
    ("date", [f"1/5/26, 10:0{i} PM" for i in range(6)]),
    ("day", [f"1/5/26, 10:0{i} PM" for i in range(6)]),
]


@pytest.mark.parametrize("name, values", ORDERED)
def test_a_talk_with_the_newest_message_first_is_turned_round_by_what_its_fields_hold(name, values):
    rows = [message | {name: value} for message, value in zip(TALK, values)]
    expected = [("Tea?", "Yes."), ("Cake?", "No."), ("Nut?", "Oh.")][: len(rows) // 2]
    for talk in (rows, rows[::-1]):
        assert pairs(read_dialogues([dict(messages=talk)])) == expected


def test_a_count_of_tokens_is_no_order():
    rows = [message | dict(num_tokens=1 - i) for i, message in enumerate(TALK[:2])]
    assert pairs(read_dialogues([dict(messages=rows)])) == [("Tea?", "Yes.")]


def test_a_talk_that_begins_with_an_answer_needs_times_that_we_know():
    for form in ("January 5, 2026 at 10:0{} AM", "10:0{} PM 05/01/2026", "Jan 5, 2026, 10:0{} PM PST"):
        rows = [message | dict(sent=form.format(i)) for i, message in enumerate(TALK)]
        assert read_dialogues([dict(messages=rows[::-1])]) == read_dialogues([dict(messages=rows)])
    for form in ("5. tammikuuta 2026 klo 10:0{}", "vor {} Minuten"):
        rows = [message | dict(sent=form.format(i)) for i, message in enumerate(TALK)]
        assert len(read_dialogues([dict(messages=rows)])) == 3
        with pytest.raises(InputError, match="in a form that we do not know") as caught:
            read_dialogues([dict(messages=rows[::-1])])
        assert "oldest message first" in caught.value.remedy


@pytest.mark.parametrize(
    "name", "session thread thread_id threadId convo_id room chat talk_id conversation_uuid chatId Room".split()
)
def test_messages_of_two_talks_do_not_grow_together(name):
    rows = [TALK[i] | {name: talk} for i, talk in ((0, 1), (2, 2), (1, 1), (3, 2))]
    assert pairs(read_dialogues(rows)) == [("Tea?", "Yes."), ("Cake?", "No.")]


def said(role, text):
    return dict(role=role, content=text)


CLOCK = said("system", "It is 5.")
SYSTEM = {  # where a system turn stands -> the messages, and what is before the answer
    "before an answer": ([said("user", "Tea?"), CLOCK, said("bot", "Yes.")], "Tea?", [("system", "It is 5.")]),
    "at the end": ([said("user", "Tea?"), said("bot", "Yes."), said("system", "The end.")], "Tea?", []),
    "between two questions": (
        [said("user", "Tea?"), CLOCK, said("user", "Cake?"), said("bot", "Yes.")],
        "Tea?\nCake?",
        [("system", "It is 5.")],
    ),
}


@pytest.mark.parametrize("place", SYSTEM)
def test_a_system_turn_is_neither_a_question_nor_an_answer(place):
    rows, prompt, history = SYSTEM[place]
    (d,) = read_dialogues([dict(messages=rows)])
    assert (d.prompt, d.response, list(d.history)) == (prompt, "Yes.", history)


def test_a_file_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save(tmp_path / "a.jsonl", '{"prompt": "Tea?", "response": "Yes."}')
    assert pairs(read_dialogues("~/a.jsonl")) == [("Tea?", "Yes.")]


def test_one_instruction_in_all_rows_is_the_system_text():
    rows = [dict(instruction="Be kind.", input=word, output="Yes.") for word in ("Tea?", "Cake?")]
    assert [(d.prompt, list(d.history)) for d in read_dialogues(rows)][1] == ("Cake?", [("system", "Be kind.")])


def test_the_words_of_a_named_writer_are_learned(tmp_path):
    file = save(tmp_path / "chat.txt", make_log("Kim: lol", "Otto: Dear Kim", "Kim: u ok", "Otto:Yes"))
    for sides, expected, words in (
        (dict(user="Kim"), [("lol", "Dear Kim"), ("u ok", "Yes")], "to answer Kim as Otto does: Otto's words"),
        (dict(writer="Kim"), [("Dear Kim", "u ok")], "to answer Otto as Kim does: Kim's words"),
    ):
        found = read_dialogues(file, **sides)
        assert pairs(found) == expected and words in found.notes()[-1]
    for sides in (dict(user="Kim"), dict(writer="Kim")):
        with pytest.raises(InputError, match="no names of people.*--user"):
            read_dialogues([dict(prompt="Hi", response="Hello")], **sides)


# WhatsApp's logs from phones in 61 languages


ROWS = (Path(__file__).parent / "whatsapp_stamps.txt").read_text(encoding="utf-8").splitlines()
PHONES = [tuple(row.split(" | ")) for row in ROWS]  # language, Android, iPhone: all 31 December 2023, 21:41


UNKNOWN_AFTERNOONS = ("am", "pa")


def make_phone_log(form, stamp, later):
    return "\n".join(
        form.format(when) + message
        for when, message in (
            (stamp, "Ana: Tea?"),
            (stamp, "Bo: Yes!\nAnd cake, 1.5. at 19:00 - with Zoe: her own"),
            (later, "Ana: When?"),
            (later, "Bo: Now."),
        )
    )


@pytest.mark.parametrize("language, android, iphone", PHONES, ids=[row[0] for row in PHONES])
def test_each_word_is_its_writers(tmp_path, language, android, iphone):
    for form, stamp in (("{} - ", android), ("[{}] ", iphone), ("\u200e[{}] ", iphone)):
        file = tmp_path / "chat.txt"
        file.write_text(make_phone_log(form, stamp, stamp), encoding="utf-8")
        found = read_dialogues(file)
        assert [(d.prompt, d.response) for d in found] == [
            ("Tea?", "Yes!\nAnd cake, 1.5. at 19:00 - with Zoe: her own"),
            ("When?", "Now."),
        ]
        stamp, _, name, text = parse_stamp(form.format(stamp) + "Ana: x")
        hour = int(stamp[3]) % 12 + 12 * ("p" == stamp[6] or int(stamp[3]) > 11)
        assert (name, text) == ("Ana", "x") and hour == (9 if language in UNKNOWN_AFTERNOONS else 21)


def write(tmp_path, raw):
    file = tmp_path / "chat.txt"
    file.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return file


HEAD = "1/1/24, 9:0{} - {}: {}\n".format


def test_a_picture_first_does_not_swap_the_sides(tmp_path):
    log = HEAD(0, "Bo", "<Media omitted>") + HEAD(1, "Ana", "Tea?") + HEAD(2, "Bo", "Yes!") + HEAD(3, "Ana", "Come.")
    found = read_dialogues(write(tmp_path, log))
    assert found.user == "Bo" and [(d.prompt, d.response) for d in found] == [("Yes!", "Come.")]
    iphone = "[1/1/24, 9:00:00] Bo: \u200eMessages and calls are end-to-end encrypted.\n"
    iphone += "[1/1/24, 9:01:00] Ana: \u200eimage omitted\n[1/1/24, 9:02:00] Bo: Nice!\n[1/1/24, 9:03:00] Ana: Yes.\n"
    iphone += "[1/1/24, 9:04:00] Bo: Bye\n"
    found = read_dialogues(write(tmp_path, iphone))
    assert found.user == "Ana" and [(d.prompt, d.response) for d in found] == [("Yes.", "Bye")]


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    "We cannot know whose message it began, so the words below it would have no sender."
    raw = HEAD(0, "Ana", "Tea?").encode() + HEAD(1, "Bo", "No\xff").encode("latin-1") + b"I hate tea\n"
    for skip in (False, True):
        with pytest.raises(InputError, match="line 2: not UTF-8"):
            read_dialogues(write(tmp_path, raw), skip_invalid=skip)


def test_a_decomposed_name_is_the_same_name(tmp_path):
    log = HEAD(0, "Zoe\u0301", "Tea?") + HEAD(1, "Bo", "Yes!") + HEAD(2, "Zo\u00e9", "Come.")
    found = read_dialogues(write(tmp_path, log), user="zo\u00e9")
    assert found.user == "Zo\u00e9" and len(found) == 1
    assert len(read_dialogues(write(tmp_path, log), user="Zoe\u0301")) == 1
