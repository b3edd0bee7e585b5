"WhatsApp's logs from phones in 62 languages: each word with the person who wrote it."

from pathlib import Path

import pytest

from personal_llm.base.core import InputError
from personal_llm.data.exports import make_date, parse_stamp, parse_timestamps, parse_whatsapp_log
from personal_llm.data.reading import read_dialogues

ROWS = (Path(__file__).parent / "whatsapp_stamps.txt").read_text(encoding="utf-8").splitlines()
PHONES = [tuple(row.split(" | ")) for row in ROWS]  # language, Android, iPhone: all 31 December 2023, 21:41


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
        stamp, _, rest = parse_stamp(form.format(stamp).lstrip("\u200e") + "Ana: x")
        assert rest == "Ana: x" and (int(stamp[3]) % 12 + 12 * ("p" == stamp[6] or int(stamp[3]) > 11)) == 21


def test_there_are_62():
    assert len(PHONES) == len({row[0] for row in PHONES}) == 62


@pytest.mark.parametrize(
    "stamp", ["31/12/2566 21:41", "۱۴۰۲/۱۰/۱۰، ۲۱:۴۱", "23. 12. 31. 오후 9:41", "٣١/١٢/٢٠٢٣، ٩:٤١ م"]
)
def test_years_and_digits_of_other_calendars(stamp):
    rows = parse_whatsapp_log(f"{stamp} - Ana: x")
    if "오후" in stamp:
        rows += parse_whatsapp_log("24. 1. 1. 오전 9:41 - Ana: x")
    assert parse_timestamps([row[0] for row in rows])[0] == 1704058860
    assert make_date(1403, 12, 30).date().isoformat() == "2025-03-20"
    with pytest.raises(ValueError):
        make_date(1402, 7, 31)


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


def test_words_below_a_lost_line_are_nobodys(tmp_path):
    lost = HEAD(1, "Bo", "No\xff").encode("latin-1")
    raw = HEAD(0, "Ana", "Tea?").encode() + lost + b"I hate tea\n" + HEAD(2, "Bo", "Sorry").encode()
    raw += HEAD(3, "Ana", "Why?").encode() + HEAD(4, "Bo", "Late.").encode()
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_dialogues(write(tmp_path, raw))
    found = read_dialogues(write(tmp_path, raw), skip_invalid=True)
    assert [(d.prompt, d.response) for d in found] == [("Why?", "Late.")]
    assert found.user == "Ana" and len(found.skipped) == 1
    assert any("bad rows skipped: 1, the first is number 2: not UTF-8" in note for note in found.notes())


def test_a_decomposed_name_is_the_same_name(tmp_path):
    log = HEAD(0, "Zoe\u0301", "Tea?") + HEAD(1, "Bo", "Yes!") + HEAD(2, "Zo\u00e9", "Come.")
    found = read_dialogues(write(tmp_path, log), user="zo\u00e9")
    assert found.user == "Zo\u00e9" and len(found) == 1
    assert len(read_dialogues(write(tmp_path, log), user="Zoe\u0301")) == 1
