"WhatsApp's logs from phones in 61 languages: each word with the person who wrote it."

from pathlib import Path

import pytest

from personal_llm.base.core import InputError
from personal_llm.extras.people import parse_stamp
from personal_llm.data.reading import read_dialogues

ROWS = (Path(__file__).parent / "whatsapp_stamps.txt").read_text(encoding="utf-8").splitlines()
PHONES = [tuple(row.split(" | ")) for row in ROWS]  # language, Android, iPhone: all 31 December 2023, 21:41


UNKNOWN_AFTERNOONS = ("am", "pa")


def make_log(form, stamp, later):
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
        file.write_text(make_log(form, stamp, stamp), encoding="utf-8")
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
