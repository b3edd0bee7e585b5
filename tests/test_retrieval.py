"Memories in the prompt: near or not, the newest of near-copies, the budget, the order, statements with dates."

import numpy as np
import pytest

from personal_llm.base.core import Dialogue, InputError
from personal_llm.buffer.retrieval import (
    MemoryConfig,
    VectorStore,
    add_memories,
    collect_memories,
    find_near,
    format_date,
    retrieve,
    retrieve_statements,
)

count_words = lambda text: len(text.split())


class Angles:
    "An encoder whose texts begin with their angle in degrees; it counts what it encodes."

    def __init__(self):
        self.num_encoded = 0

    def encode(self, texts, **options):
        assert options["normalize_embeddings"]
        self.num_encoded += len(texts)
        angles = np.radians([float(text.split()[0]) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@pytest.fixture
def vectors():
    return VectorStore(Angles())


def memory(angle, words="alpha", time=0.0, response="In short: yes.", origin="annotated"):
    return Dialogue(f"{angle} {words}", response, time=time, origin=origin)


def test_only_answered_dialogues_are_memories_oldest_first():
    rows = [
        memory(1, time=2.0),
        memory(2, time=1.0, origin="approved"),
        memory(3, origin="model"),
        memory(4, "", 3.0, " "),
    ]
    assert collect_memories(rows) == [rows[1], rows[0]]


def test_a_text_is_encoded_once_until_the_store_is_cleared(vectors):
    first = vectors.embed(["0 a", "90 b", "0 a"])
    assert first.shape == (3, 2) and vectors.encoder.num_encoded == 2 and np.allclose(first[0], first[2])
    vectors.embed(["90 b"])
    assert vectors.encoder.num_encoded == 2
    vectors.clear()
    vectors.embed(["90 b"])
    assert vectors.encoder.num_encoded == 3


@pytest.mark.parametrize(
    "threshold, expected", [(0.99, []), (0.8, ["20"]), (0.5, ["20", "50"]), (-1, ["20", "50", "180"])]
)
def test_the_nearest_come_first_down_to_the_threshold(vectors, threshold, expected):
    rows = [memory(180, "gamma"), memory(50, "beta"), memory(20, "alpha")]
    assert [d.prompt.split()[0] for d in find_near(rows, "0 prompt", vectors, threshold)] == expected


def test_of_near_copies_the_newest_counts_even_if_an_older_one_is_nearer(vectors):
    words = "please tell me how I should water my fern in winter"
    rows = [memory(1, words, 1.0, "Old"), memory(2, "what about a cactus", 2.0), memory(1, words + "?", 3.0, "New")]
    assert [d.response for d in find_near(rows, "0 prompt", vectors, 0.5)] == ["New", "In short: yes."]


def test_the_nearest_stands_last_and_the_budget_holds(vectors):
    rows = [memory(30, "one two"), memory(10, "three four"), memory(20, "five six " * 9)]
    choose = lambda **options: retrieve(rows, "0 prompt", vectors, MemoryConfig(threshold=0.5, **options), count_words)
    assert choose() == [rows[0], rows[2], rows[1]]
    assert choose(memories=1) == [rows[1]] and choose(memories=0) == []
    assert choose(max_tokens=12) == [rows[0], rows[1]], "the long one is left out, the next one fits"
    assert choose(max_tokens=5) == []
    assert retrieve([], "0 prompt", vectors, MemoryConfig(), count_words) == []


def test_statements_are_near_no_questions_and_the_newest_is_last(vectors):
    rows = [
        memory(a, f"{w} I moved", float(i)) for i, (a, w) in enumerate([(5, "x"), (1, "yy"), (3, "zzz"), (90, "w")])
    ]
    rows.append(memory(0, "did I move? ", 9.0))
    choose = lambda **options: retrieve_statements(rows, "0 where", vectors, MemoryConfig(threshold=0.5, **options))
    assert choose() == rows[:3] and choose(statements=2) == [rows[1], rows[2]] and choose(statements=0) == []


def test_the_prompt_keeps_its_parts_in_order():
    history = [("system", "Be kind."), ("user", "Hello."), ("assistant", "Hi!")]
    asked = Dialogue("And now?", "", history)
    said = [Dialogue("I moved\nto  Bonn.", "", time=86_400.0 * 20_000), Dialogue("I like tea.", "", time=3.0)]
    shown = add_memories(asked, [memory(1), memory(2)], said, MemoryConfig(sentence="As before."), "Be brief.")
    roles = [role for role, _ in shown.history]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant"]
    lines = ["Be kind.", "Be brief.", "As before.", "The user told you before:"]
    lines += ["- 2024-10-04: I moved to Bonn.", "- I like tea."]
    assert shown.history[0][1].split("\n") == lines and shown.history[-1] == ("assistant", "Hi!")
    assert shown.prompt == asked.prompt and asked.history[0] == ("system", "Be kind."), "the dialogue itself stays"


def test_without_memories_nothing_is_added():
    asked = Dialogue("And now?", "")
    assert add_memories(asked, []) is asked
    silent = add_memories(asked, [memory(1)], config=MemoryConfig(sentence=""))
    assert [role for role, _ in silent.history] == ["user", "assistant"]
    assert [role for role, _ in add_memories(asked, [], [memory(1)]).history] == ["system"]
    assert add_memories(asked, [], wish="Be brief.").history == (("system", "Be brief."),)


def test_a_place_in_a_stream_is_no_date():
    assert [format_date(time) for time in (0.0, 799.0, -1e12, 1e300)] == [""] * 4


@pytest.mark.parametrize("values", [dict(memories=-1), dict(threshold=2), dict(max_tokens=1.5), dict(sentence=None)])
def test_wrong_settings_are_one_line(values):
    with pytest.raises(InputError):
        MemoryConfig(**values)
