"Several conversations in one folder: each has its own turns, a title, a search, and can be forgotten whole."

import itertools

import pytest
from tiny import shared

from personal_llm.base.core import InputError
from personal_llm.buffer.buffer import Buffer
from personal_llm.device.conversation import ChatSession
from personal_llm.device.forgetting import forget_folder
from personal_llm.device.replay import MAX_STORED_TURNS, read_state
from personal_llm.tuning.config import TuningConfig


def fresh(folder):
    settings = dict(synthetic=0, replay=0, config=TuningConfig(steps=2), buffer=Buffer(4, "fifo"))
    return ChatSession(shared("llama"), folder, itertools.count(1.0).__next__, **settings)


def prompts(session):
    return [turn["prompt"] for turn in session.turns]


def bytes_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_model_reads_only_the_turns_of_its_conversation(tmp_path):
    with fresh(tmp_path / "me") as session:
        list(session.say("My knee hurts."))
        session.open_conversation()
        assert session.turns == [] and len(session.history()) == 0
        list(session.say("What shall I cook?"))
        key = session.me.state.conversation
        assert prompts(session) == ["What shall I cook?"] and len(session.history()) == 2
        session.open_conversation("")
        assert prompts(session) == ["My knee hurts."]
        list(session.say("Still."))
        assert [text for _, text in session.history()][::2] == ["My knee hurts.", "Still."]
    with fresh(tmp_path / "me") as session:
        assert prompts(session) == ["My knee hurts.", "Still."], "the newest one goes on"
        session.open_conversation(key)
        assert prompts(session) == ["What shall I cook?"]
        with pytest.raises(InputError, match="not stored"):
            session.open_conversation("another")


def test_all_turns_are_stored_and_the_last_are_shown(tmp_path):
    with fresh(tmp_path / "me") as session:
        for number in range(MAX_STORED_TURNS + 5):
            list(session.say(f"Message {number}."))
        assert len(session.turns) == MAX_STORED_TURNS
        assert len(read_state(tmp_path / "me").conversations[""]) == MAX_STORED_TURNS + 5


def test_a_long_message_keeps_its_beginning(tmp_path):
    with fresh(tmp_path / "me") as session:
        text = "It began in Lima. " + "And then? " * 2000 + "What about my knee?"
        assert session.max_characters < len(text)
        list(session.say(text))
        assert prompts(session) == [text] and "stored" in session.pop_messages()[0]


def test_a_title_is_stored_with_its_dialogues_and_forgotten(tmp_path):
    folder = tmp_path / "me"
    with fresh(folder) as session:
        list(session.say("My knee hurts."))
        session.rename_conversation("", "  Zanzibar:\n a trip ")
        list(session.say("And now?"))
        assert session.me.state.get_title("") == "Zanzibar: a trip"
        session.rename_conversation("", "Zanzibar: two weeks")
        with pytest.raises(InputError, match="not stored"):
            session.rename_conversation("another", "x")
    assert read_state(folder).get_title("") == "Zanzibar: two weeks" and b"a trip" not in bytes_below(folder)
    report = forget_folder(folder, text="zanzibar")
    assert report.titles == 1 and report.dialogues == report.turns == 0 and "1 title" in str(report)
    assert b"Zanzibar" not in bytes_below(folder) and len(read_state(folder).conversations[""]) == 2


def test_a_conversation_is_forgotten_whole(tmp_path):
    endpoints = pytest.importorskip("personal_llm.app.personal_endpoints")
    folder = tmp_path / "me"
    with fresh(folder) as session:
        list(session.say("My knee hurts."))
        for text in ("Zanzibar is far.", "How far?"):
            list(endpoints.say_line(session, text, None if "How" in text else endpoints.NEW_CONVERSATION))
        key = session.me.state.conversation
        session.rename_conversation(key, "Zanzibar")
        report = endpoints.forget_dialogues(session, conversation=key)
        assert report["turns"] == 2 and session.turns == [] and [*session.me.state.conversations] == [""]
        with pytest.raises(InputError):
            endpoints.forget_dialogues(session, conversation=key)
    assert b"Zanzibar" not in bytes_below(folder) and b"knee" in bytes_below(folder)


def test_earlier_turns_come_page_by_page_and_a_search_leads_to_one(tmp_path):
    endpoints = pytest.importorskip("personal_llm.app.personal_endpoints")
    with fresh(tmp_path / "me") as session:
        for number in range(30):
            list(session.say(f"Message {number}."))
        session.correct(session.turns[-1]["id"], "Ask in **Zanzibar**.")
        shown, seen = endpoints.get_conversation(session), []
        assert shown["turns"][-1]["tree"] == [["p", ["Ask in ", ["strong", ["Zanzibar"]], "."]]]
        while shown["turns"]:
            seen = [turn["prompt"] for turn in shown["turns"]] + seen
            shown = endpoints.get_conversation(session, before=shown["turns"][0]["id"])
        assert seen == [f"Message {number}." for number in range(30)] and shown["num_earlier"] == 0
        list(endpoints.say_line(session, "Another one.", endpoints.NEW_CONVERSATION))
        (row,) = endpoints.list_conversations(session, "MESSAGE 7.")["conversations"]
        assert row["title"] == "Message 0." and row["text"] == "Message 7."
        shown = endpoints.get_conversation(session, key=row["key"], since=row["found"])
        assert shown["turns"][0]["prompt"] == "Message 7." and len(shown["turns"]) == 23
        assert [one["key"] for one in endpoints.list_conversations(session, "zanzibar")["conversations"]] == [""]
        assert endpoints.list_conversations(session, "nowhere")["conversations"] == []


def test_a_changed_message_takes_the_place_of_the_last_one(tmp_path):
    endpoints = pytest.importorskip("personal_llm.app.personal_endpoints")
    with fresh(tmp_path / "me") as session:
        first, second = ([*endpoints.say_line(session, text)][-1]["id"] for text in ("One.", "Two."))
        with pytest.raises(InputError, match="only the last message"):
            list(endpoints.say_line(session, "Three.", replaces=first))
        list(endpoints.say_line(session, "Three.", replaces=second))
        assert prompts(session) == ["One.", "Three."] and second not in session.me.memory.dialogues


HOSTILE = """<script>alert(1)</script> <img src=x onerror=alert(1)> [x](javascript:alert(1)) [x](JaVaScRiPt:alert(1))
[x](data:text/html,<script>alert(1)</script>) [x](vbscript:x) [x](file:///etc/passwd) <javascript:alert(1)>
![x](https://e.example/beacon.png) ![x](data:image/svg+xml,<svg/onload=alert(1)>) <svg onload=alert(1)> <a href="x">
[x]: javascript:alert(1)
""".splitlines()


def list_nodes(tree):
    for node in tree:
        if not isinstance(node, str):
            yield node
            yield from list_nodes(node[1])


@pytest.mark.parametrize("line", [*HOSTILE, "\n".join(HOSTILE), ">" * 9000 + "x", "[" * 9000, "*a **b " * 3000])
def test_no_markdown_makes_an_element_or_an_address_that_acts(line):
    endpoints = pytest.importorskip("personal_llm.app.personal_endpoints")
    known = set("p h3 span em strong s code pre hr br ul ol li blockquote table thead tbody tr th td a".split())
    for node in list_nodes(endpoints.make_tree(endpoints.MARKDOWN.parse(line))):
        assert node[0] in known and all(address.startswith("http") for address in node[2:])
