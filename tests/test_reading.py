"Reading: every format in every kind of file, every mistake with its line, long texts in little time and memory."

import gzip
import json
import re
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from cases import pairs, save
from test_formats import CHAT, PAIRS, RECORDS

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import ASSETS
from personal_llm.data.formats import FORMATS, MAX_TURN_CHARACTERS
from personal_llm.data.reading import load_formats, load_samples, read_dialogues
from personal_llm.data.splits import get_dialogue_group, get_row_group
from personal_llm.recipes.data import is_reserved

GOOD_ROW = dict(prompt="Hi", response="Hello")
GOOD = json.dumps(GOOD_ROW).encode() + b"\n"


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("name,record,want", RECORDS)
def test_formats(tmp_path, name, record, want, kind):
    path = save(tmp_path / f"chats.{kind}", [record])
    found = read_dialogues(path)
    assert pairs(found) == want and found.format == name and not found.skipped and found.num_truncated == 0
    assert read_dialogues(path, format=name) == found == read_dialogues([record])


def test_a_conversation_in_a_column_of_a_table(tmp_path):
    talk = json.dumps([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'id,conversation\n1,"{talk}"\n')
    assert pairs(read_dialogues(tmp_path / "a.csv")) == [("Hi", "Hello")]


@pytest.mark.parametrize("name,record,want", [row for row in RECORDS if isinstance(row[1], dict)])
def test_parquet_is_read_as_the_rows_in_it(tmp_path, name, record, want):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    try:
        others = dict(
            when=pandas.NaT, day=date(2024, 5, 31), price=Decimal("3.5"), picture=b"\xff"
        )  # nobody reads them
        pandas.DataFrame([record] * 2).assign(**others).to_parquet(tmp_path / "a.parquet")
    except Exception:
        pytest.skip("a row that Arrow cannot store")
    found = read_dialogues(tmp_path / "a.parquet")
    assert pairs(found) == want * 2 and found.format == name
    with pytest.raises(InputError, match="empty response"):
        read_dialogues(pandas.DataFrame(dict(prompt=["Hi"], response=[pandas.NaT])))
    assert any(note.startswith(f"repeats: {len(want)} of {2 * len(want)}") for note in found.notes())


def test_parquet_without_pandas_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError) as caught:
        read_dialogues(tmp_path / "a.parquet")
    assert "to_json(lines=True)" in caught.value.remedy and "pip install pandas" in caught.value.remedy


RATED = dict(role="assistant", content="Yo", weight=1, masked=True, feedback=dict(note="bad"), tags=[], note="")
UNREAD = {
    "answer (1 ×), chosen (1 ×), label (1 ×)": GOOD_ROW | dict(answer="Yo", chosen=False, label="bad", rating="Good"),
    "feedback (1 ×), masked (1 ×), status (1 ×)": dict(messages=[CHAT[0], RATED], status="error"),
    "a0 (1 ×), a1 (1 ×), a10 (1 ×)": GOOD_ROW | {f"a{i}": 1 for i in range(99)},
    "stars (1 ×)": dict(conversation=[dict(input="Hi", output="Hello", stars=1)]),
}


@pytest.mark.parametrize("names", UNREAD)
def test_fields_that_nobody_reads_are_named(names):
    (note,) = read_dialogues([UNREAD[names]]).notes()
    assert note.startswith(f"fields not read: {names}") and len(note) < 300
    assert not read_dialogues([GOOD_ROW | dict(rating="up", disliked=False)]).notes()
    stars, *_ = read_dialogues([GOOD_ROW | dict(rating=1)]).notes()
    assert stars.startswith("fields not read: rating (1 ×)"), "one of five stars is no thumb up"
    assert not read_dialogues([dict(prompt="Hi", chosen="Hello", rejected="Yo")]).notes()


def test_an_empty_turn_is_noted(tmp_path):
    rows = [dict(messages=[*CHAT, dict(role="user", content="A story!"), dict(role="assistant", content="")])]
    found = read_dialogues(save(tmp_path / "a.jsonl", rows))
    assert pairs(found) == PAIRS and found.notes()[0].startswith("left out: 1 × an exchange")
    for skip in (False, True):
        with pytest.raises(InputError, match="empty response"):
            read_dialogues(save(tmp_path / "b.jsonl", [dict(messages=rows[0]["messages"][4:])]), skip_invalid=skip)


def test_marks_are_noted_and_the_other_rows_are_read():
    rows = [GOOD_ROW, dict(prompt="Is 7 prime?", response="Sure. <think>Hm.</think> Yes.")]
    found = read_dialogues(rows)
    assert pairs(found) == PAIRS[:1]
    assert found.notes() == ["left out: 1 × an exchange with a mark of a turn or a thought outside of code (<think>)"]
    with pytest.raises(InputError, match=r"no dialogue in it, left out: 1 × an exchange with a mark .*<think>"):
        read_dialogues(rows[1:])


REFUSED = json.loads(Path(__file__).with_name("refused.json").read_text("utf-8"))
REFUSED += [
    ["a.jsonl", GOOD.decode() + "[" * 100_000 + "\n", "line 2", "nested too deeply"],
    ["a.jsonl", GOOD.decode() + "[" * 300 + "]" * 300 + "\n", "line 2", "levels deep"],
    ["a.jsonl", GOOD.decode() + "9" * 10_000 + "\n", "line 2", ""],
]
WITH_GOOD_LINES = [row for row in REFUSED if str(row[1]).startswith(GOOD.decode())]


@pytest.mark.parametrize("name,content,place,words", REFUSED, ids=[f"{row[0]}: {row[3]}" for row in REFUSED])
def test_what_cannot_be_read_for_sure_is_refused_with_its_place_and_a_way_out(tmp_path, name, content, place, words):
    is_binary = isinstance(content, dict) and "latin-1" in content
    path = save(tmp_path / name, content["latin-1"].encode("latin-1") if is_binary else content)
    with pytest.raises(InputError) as caught:
        read_dialogues(path)
    error = caught.value
    assert words in error.problem + error.remedy and error.remedy and "\n" not in str(error) and len(str(error)) < 500
    assert place is None or f"{path} {place}:" in error.problem
    assert "UTF-8" not in str(error) or "UTF-8" in words, "a backup is no text in a wrong encoding"
    has_good_row = place is not None and str(content).lstrip("[").startswith(GOOD[:9].decode())
    assert ("(personalize --skip-invalid)" in error.remedy) == has_good_row
    assert "an export of" not in words or "rows of prompt and response" in str(error)
    if not has_good_row:
        with pytest.raises(InputError, match=re.escape(words)):
            read_dialogues(path, skip_invalid=True)


@pytest.mark.parametrize("name,content,place,words", WITH_GOOD_LINES, ids=[row[3] for row in WITH_GOOD_LINES])
def test_good_lines_stay_usable(tmp_path, name, content, place, words):
    save(tmp_path / name, content + GOOD.decode())
    found = read_dialogues(tmp_path / name, skip_invalid=True)
    assert pairs(found) == PAIRS[:1] * 2 and [f"line {k}" for k, _ in found.skipped] == [place]


def test_the_first_mistake_of_the_file_is_raised(tmp_path):
    empty, broken = b'{"prompt": " ", "response": "x"}\n', b"{broken\n"
    for lines, words in ((empty + broken, "line 2: empty prompt"), (broken + empty, "line 2: broken JSON")):
        (tmp_path / "a.jsonl").write_bytes(GOOD + lines)
        with pytest.raises(InputError, match=words):
            read_dialogues(tmp_path / "a.jsonl")


def test_unknown_format_and_nothing_good(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    with pytest.raises(InputError, match="format is 'chatml'; use one of"):
        read_dialogues(tmp_path / "a.jsonl", "chatml")
    (tmp_path / "b.jsonl").write_bytes(b"{1\n{2\n")
    with pytest.raises(InputError, match="no dialogue in it, bad rows skipped: 2, the first is number 1: broken JSON"):
        read_dialogues(tmp_path / "b.jsonl", skip_invalid=True)


ODD = ["x" * MAX_TURN_CHARACTERS, "a\x01\x02\x1b[31m\x7f", "مرحبا بالعالم \u202eabc\u202c", "👩‍🚀🏳️‍🌈 ok"]
ODD += ["`<|end|><s>[INST]</s>`{% raw %}", "a\u2028b\u0085c\x0bd", "line\r\nline", "\ufeffinner"]


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text)[:16])
def test_odd_text_is_kept(tmp_path, text):
    path = tmp_path / "a.jsonl"
    row = json.dumps(dict(prompt=text, response="\0!" + text), ensure_ascii=False).encode()
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n" + GOOD)
    found = read_dialogues(path)
    text = text.replace("\r\n", "\n")
    assert pairs(found) == [(text, ("!" + text)[:MAX_TURN_CHARACTERS]), ("Hi", "Hello")]


def test_half_surrogates_and_nuls_are_marked_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a\\ud800b", "response": "c\\u0000d", "\\udfff": 1}\n')
    found = read_dialogues(tmp_path / "a.jsonl")
    assert pairs(found) == [("a�b", "c�d")] and found.notes()[0] == "damaged characters (�): in 1 of 1 dialogues"
    is_reserved(get_dialogue_group(found[0]))


def test_a_conversation_of_eight_thousand_turns_is_kept_once(tmp_path):
    turns = [dict(role=("user", "assistant")[i % 2], content=f"This is turn number {i}.") for i in range(8000)]
    found = read_dialogues(save(tmp_path / "long.jsonl", [dict(messages=turns)]))
    assert len(found) == 4000 and len(found[-1].history) == 7998
    longest = max((d.history for d in found), key=len)
    assert all(turn is one for d in found for turn, one in zip(d.history, longest)), "each turn is stored once"


LONG = "x" * 10_000_000  # characters


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
def test_a_message_of_ten_megabytes_is_cut_with_a_note(tmp_path, name):
    if name == "a.txt":
        text = "1/1/24, 9:00 - Ana: " + "a line of a long letter\n" * 400_000 + "1/1/24, 9:01 - Bo: Too long.\n"
    elif name.endswith("sv"):
        separator = "," if name == "a.csv" else "\t"
        text = f"prompt{separator}response\n{LONG}{separator}Too long.\n"
    else:
        text = json.dumps(dict(prompt=LONG, response="Too long."))
    (tmp_path / name).write_text(text)
    found = read_dialogues(tmp_path / name)
    assert len(found) == 1 and len(found[0].prompt) == MAX_TURN_CHARACTERS and found.num_truncated == 1
    assert f"texts cut to {MAX_TURN_CHARACTERS:,} characters: 1" in found.notes()


NAMES = "role content message author parts parent children type text from from_id date sender uuid list messages "
NAMES += "history currentId parentId annotation rating id speaker utterance labels parents current_node "
NAMES = (NAMES + "personal_information message_feedback").split()
WORDS = st.text(max_size=5) | st.sampled_from(["user", "human", "message", "text"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | WORDS,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(NAMES), v, max_size=4),
    max_leaves=8,
)
load_formats()
NEEDS = [(format.is_file, fields) for format in FORMATS.values() for fields in format.required_fields]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(NEEDS), st.booleans(), st.none() | st.just("a"), st.data())
def test_no_values_make_anything_but_an_input_error(tmp_path_factory, needs, skip, user, data):
    path = tmp_path_factory.mktemp("fuzz") / "a.json"
    fields = [field.partition(".")[0] for field in needs[1]] + data.draw(st.lists(st.sampled_from(NAMES), max_size=3))
    record = {field: data.draw(VALUES) for field in fields}
    path.write_text(json.dumps([record] if needs[0] else record))
    try:
        assert all(isinstance(d, Dialogue) for d in read_dialogues(path, skip_invalid=skip, user=user))
    except InputError as error:
        assert "\n" not in str(error)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.sampled_from("a.jsonl a.json a.csv a.tsv a.txt".split()), st.booleans())
def test_no_bytes_make_anything_but_an_input_error(tmp_path_factory, content, name, skip):
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(content)
    try:
        assert len(read_dialogues(path, skip_invalid=skip))
    except InputError as error:
        assert "\n" not in str(error)


def test_replay_rows_are_not_reserved():
    "A test may hold reserved rows only, so no model has seen a test row in replay."
    rows = [json.loads(line) for line in gzip.open(ASSETS / "rehearsal.jsonl.gz", "rt", encoding="utf-8")]
    assert len(rows) == 320 and not any(is_reserved(get_row_group(row)) for row in rows)


@pytest.mark.parametrize(
    "data, line",
    [(dict(train=[GOOD_ROW]), "such as data.'train'."), (3, "int holds no dialogues")],
    ids=("dict", "int"),
)
def test_what_holds_no_rows_is_one_line(data, line):
    with pytest.raises(InputError, match=line):
        read_dialogues(data)


def test_an_unknown_sample_is_one_line():
    with pytest.raises(InputError, match="no sample called 'nothing'; use one of dolly_6400"):
        load_samples("nothing")
