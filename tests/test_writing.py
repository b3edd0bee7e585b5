"Our own files: written in one step, read back equal, and checked strictly."

import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import ORIGINS, Dialogue, InputError
from personal_llm.data.formats import MAX_TURN_CHARACTERS, ParsedConversation, split_into_dialogues
from personal_llm.data.reading import read_dialogues
from personal_llm.data.reading import find_cyclic_ids, write_dialogues

ROW = dict(id="1", prompt="Hi", response="Hello", origin="user")


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def talk(turns, name="turn"):
    return split_into_dialogues(
        ParsedConversation([(("user", "assistant")[i % 2], f"{name} {i}") for i in range(turns)])
    )[0]


def one(id, *parents):
    return Dialogue("Hi", "Hello", id=id, parents=parents)


texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=40).map(
    lambda s: s + "x"
)
dialogues = st.builds(
    Dialogue,
    texts,
    texts,
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts), max_size=3),
    time=st.floats(0, 1e9),
    origin=st.sampled_from(ORIGINS),
    parents=st.lists(st.text(string.hexdigits, min_size=1), max_size=2),
    labels=st.dictionaries(texts, texts, max_size=2),
)


@settings(deadline=None, max_examples=80)
@given(st.lists(dialogues, min_size=1, max_size=5), st.integers(1, 3))
def test_round_trip(tmp_path_factory, given, turns):
    path = tmp_path_factory.mktemp("round") / "d.jsonl"
    given = given + talk(2 * turns) + given[:1]
    write_dialogues(path, given)
    found = read_dialogues(path)
    assert found == given and found.format == "dialogue"
    assert [d.labels for d in found] == [d.labels for d in given]
    assert [d.id for d in found] == [d.id for d in given]


def test_a_long_conversation_is_written_once(tmp_path):
    given = talk(2000)
    write_dialogues(tmp_path / "a.jsonl", given)
    assert (tmp_path / "a.jsonl").stat().st_size < 500_000
    found = read_dialogues(tmp_path / "a.jsonl")
    assert [d.id for d in found] == [d.id for d in given]
    assert all(d.history.turns is found[0].history.turns for d in found)


def test_conversations_that_mingle_are_kept_apart(tmp_path):
    a, b = talk(6, "a"), talk(6, "b")
    mingled = [d for pair in zip(a, b) for d in pair] + a[1:] + b[:1]
    write_dialogues(tmp_path / "a.jsonl", mingled)
    assert read_dialogues(tmp_path / "a.jsonl") == mingled


def test_the_same_last_exchange_is_not_the_same_history(tmp_path):
    first = Dialogue("c", "d", [("user", "a"), ("assistant", "b")])
    second = Dialogue("e", "f", [("user", "A"), ("assistant", "B"), ("user", "c"), ("assistant", "d")])
    write_dialogues(tmp_path / "a.jsonl", [first, second])
    assert read_dialogues(tmp_path / "a.jsonl") == [first, second]


def test_two_answers_to_the_same_turns(tmp_path):
    first, second = talk(4)
    other = second.derive(response="another answer")
    given = [first, second, first.derive(time=1.0), other]
    write_dialogues(tmp_path / "a.jsonl", given)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row.get("after") for row in rows] == [None, first.id, None, given[2].id]
    assert read_dialogues(tmp_path / "a.jsonl") == given
    branch = [ROW, ROW | dict(id="2", after="1", prompt="b"), ROW | dict(id="3", after="1", prompt="c")]
    branch.append(ROW | dict(id="4", after="3", prompt="d"))
    found = read_dialogues(save(tmp_path / "b.jsonl", branch))
    hello = [("user", "Hi"), ("assistant", "Hello")]
    assert [list(d.history) for d in found] == [[], hello, hello, hello + [("user", "c"), ("assistant", "Hello")]]


def test_private_and_in_one_step(tmp_path):
    write_dialogues(tmp_path / "a.jsonl", talk(2))
    assert (tmp_path / "a.jsonl").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "a.jsonl").read_bytes()
    with pytest.raises(TypeError):
        write_dialogues(tmp_path / "a.jsonl", [*talk(2), Dialogue("Hi", "Hello", labels=dict(x=object()))])
    assert (tmp_path / "a.jsonl").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_half_surrogates_are_written_as_question_marks(tmp_path):
    write_dialogues(tmp_path / "a.jsonl", [Dialogue("a\ud800b", "c")])
    assert read_dialogues(tmp_path / "a.jsonl")[0].prompt == "a?b"


BAD = [
    (dict(id=["1"]), "id is .*give text"),
    (dict(id=1), "id is 1; give text"),
    (dict(prompt=3), "prompt is int"),
    (dict(prompt=" "), "empty prompt"),
    (dict(origin="dream"), "origin"),
    (dict(origin=["user"]), "origin"),
    (dict(parents="12"), "parents"),
    (dict(parents=[1]), "parents"),
    (dict(parents=[["1"]]), "parents"),
    (dict(parents=["1"]), "own parent"),
    (dict(time="noon"), "time"),
    (dict(time=True), "time"),
    (dict(time=float("nan")), "time"),
    (dict(time=10**400), "the time is 1000"),
    (dict(labels=["a"]), "labels is .*give names and values"),
    (dict(labels=dict(group=["a"])), "label group is list"),
    (dict(labels=dict(group=3)), "label group is int"),
    (dict(labels=dict(source=dict(a=1))), "label source is dict"),
    (dict(labels=dict(topic=None)), "label topic is NoneType"),
    (dict(history=3), "wrong kind"),
    (dict(history="ab"), "a turn of the history"),
    (dict(history=[["system", "x"]]), "a turn of the history"),
    (dict(history=[[["user"], "x"]]), "a turn of the history"),
    (dict(history=[["user", 3]]), "int, not text"),
    (dict(history=[["user"]]), "a turn of the history"),
    (dict(after="9"), "no line above"),
    (dict(after=["0"]), "no line above"),
    (dict(mood="good"), "unknown dialogue fields"),
]


@pytest.mark.parametrize("wrong,words", BAD, ids=lambda value: str(value)[:30])
def test_saved_fields_are_checked(tmp_path, wrong, words):
    path = save(tmp_path / "a.jsonl", [ROW | dict(id="0"), ROW | wrong])
    with pytest.raises(InputError, match=words) as caught:
        read_dialogues(path)
    assert f"{path} line 2:" in caught.value.problem and "--skip-invalid" in caught.value.remedy
    found = read_dialogues(path, skip_invalid=True)
    assert [d.id for d in found] == ["0"] and [line for line, _ in found.skipped] == [2]


def test_cycles_of_parents_are_refused(tmp_path):
    rows = [
        ROW | dict(id="a", parents=["b"]),
        ROW | dict(id="b", parents=["a"]),
        ROW | dict(id="c", parents=["elsewhere"]),
    ]
    path = save(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match="line 1: its parents form a cycle"):
        read_dialogues(path)
    found = read_dialogues(path, skip_invalid=True)
    assert [d.id for d in found] == ["c"] and [line for line, _ in found.skipped] == [1, 2]


def test_cyclic_ids():
    assert find_cyclic_ids([one("a", "c"), one("b", "a"), one("c", "b"), one("d", "c"), one("e")]) == {
        "a",
        "b",
        "c",
        "d",
    }
    assert find_cyclic_ids([one(str(i), str(i + 1)) for i in range(50_000)]) == set()
    ring = [one(str(i), str((i + 1) % 50_000)) for i in range(50_000)]
    assert len(find_cyclic_ids(ring)) == 50_000
    assert find_cyclic_ids([one("a", "x"), one("a", "y")]) == set(), "the same id twice"


def test_a_row_that_goes_on_after_a_bad_one_is_bad(tmp_path):
    rows = [ROW | dict(id="0"), ROW | dict(origin="dream"), ROW | dict(id="2", after="1")]
    found = read_dialogues(save(tmp_path / "a.jsonl", rows), skip_invalid=True)
    assert [line for line, _ in found.skipped] == [2, 3]


def test_long_texts_are_cut_and_counted(tmp_path):
    long = "x" * (MAX_TURN_CHARACTERS + 1)
    found = read_dialogues(save(tmp_path / "a.jsonl", [ROW | dict(response=long, history=[["user", long]])]))
    assert found.num_truncated == 2 and len(found[0].response) == len(found[0].history[0][1]) == MAX_TURN_CHARACTERS
