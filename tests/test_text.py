"Texts that are nearly the same, and those that only look so."

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import generator
from personal_llm.base.text import RecentTexts, mark_of, most_unlike, names_of, near_duplicate, negations_of, trigrams
from personal_llm.data.reading import load_samples
from personal_llm.data.streams import small_edit

TEXTS = st.text(max_size=30)


@pytest.mark.parametrize(
    "a,b",
    [
        ("I love hip hop", "Again: i love hip hop"),
        ("How are you?", "Hey, how are you?"),
        ("Are you working?", "Are oyu working?"),
        ("Yes, it's perfect.", "yes its perfect!!"),
        ("", ""),
        ("☕", "☕"),
    ],
)
def test_nearly_the_same(a, b):
    assert near_duplicate(a, b) and near_duplicate(b, a)


@pytest.mark.parametrize(
    "a,b",
    [
        ("Hi", "No"),
        ("I am sad", "I am happy"),
        ("I like this tea very much, thank you", "I don't like this tea very much, thank you"),
        ("How many people have spastic paraplegia type 2?", "How many people have spastic paraplegia type 3?"),
        ("What are the treatments for Troyer Syndrome?", "What causes Kabuki syndrome?"),
        ("☕", "👍"),
        ("", "yes"),
    ],
)
def test_not_the_same(a, b):
    assert not near_duplicate(a, b) and not near_duplicate(b, a)


def test_small_edits_are_recognised_on_real_rows():
    rng = generator(0, "test")
    for source, most in (("personality_chat", 0.02), ("dolly_6400", 0.01), ("medquad", 0.01)):
        prompts = [row["prompt"] for row in load_samples(source)][:300]
        assert np.mean([not near_duplicate(p, small_edit(p, rng)) for p in prompts]) <= most


@given(TEXTS, TEXTS)
@settings(max_examples=300, deadline=None)
def test_the_mark_overlooks_nothing(a, b):
    one, two = trigrams(a), trigrams(b)
    assert (mark_of(one) ^ mark_of(two)).bit_count() <= len(one ^ two)
    recent = RecentTexts()
    recent.add(a)
    assert (b in recent) == near_duplicate(a, b)
    if near_duplicate(a, b):
        assert len(one ^ two) <= most_unlike(len(one), len(two))


def test_the_memory_is_bounded_saved_and_forgets():
    recent = RecentTexts(size=3)
    for text in ("one thing", "another matter", "a third question", "the last of them"):
        recent.add(text)
    assert len(recent) == 3 and "one thing" not in recent and recent.near("Hey, the last of them") == [2]
    again = RecentTexts(size=3)
    again.restore(json.loads(json.dumps(recent.to_list())))
    assert list(again.rows) == list(recent.rows)
    again.forget("another matter...")
    assert len(again) == 2 and "another matter" not in again and "a third question" in again
    assert "third" not in json.dumps(again.to_list())


def test_negations():
    assert [negations_of(t) for t in ("do not", "don't, won’t", "cannot", "I want a note", "dont")] == [1, 2, 1, 0, 1]


def test_names():
    assert names_of("I think I'm in Paris, I’d say. Ana is there.") == ["Paris"]
    assert names_of("WHAT IS THIS") == names_of("Yes") == names_of("") == []
    assert names_of("Is it Marfan syndrome?") == ["Marfan"]
