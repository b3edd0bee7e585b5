"Exports of chat services: folders, files beside files, and logs of phones; single talks are in `talks.json`."

import json
import os

import pytest
from cases import case, pairs, save

from personal_llm.base.core import InputError
from personal_llm.data.reading import load_formats, read_dialogues
from personal_llm.extras.marks import UNLEARNED
from personal_llm.extras.people import parse_stamp
from personal_llm.extras.people import parse_timestamps, parse_whatsapp_log
from personal_llm.extras.talks import order_messages, parse_time
from pathlib import Path

load_formats()


CHATGPT = json.loads(Path(__file__).with_name("conversations.json").read_text(encoding="utf-8"))


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


def make_conversation(prompt, response):
    "ChatGPT's, of one exchange."
    write = lambda role, text: dict(author=dict(role=role), content=dict(content_type="text", parts=[text]))
    question = dict(id="q", parent=None, message=write("user", prompt))
    answer = dict(id="a", parent="q", message=write("assistant", response))
    return dict(mapping=dict(q=question, a=answer), current_node="a")


def test_a_folder_of_chatgpts_files_is_one_history(tmp_path):
    expected = [(f"Name a {name}.", f"{name} {i}") for i, name in enumerate(("herb", "tree", "animal"))]
    for i, (prompt, response) in enumerate(expected):
        save(tmp_path / f"conversations-{i:03}.json", [make_conversation(prompt, response)])
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


def test_a_branch_may_be_long():
    nodes = [dict(id=str(i), parent=str(i - 1)) for i in range(50_000)]
    assert order_messages(nodes[::-1], "49999", True) == nodes


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


def test_a_file_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save(tmp_path / "a.jsonl", '{"prompt": "Tea?", "response": "Yes."}')
    assert pairs(read_dialogues("~/a.jsonl")) == [("Tea?", "Yes.")]


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
