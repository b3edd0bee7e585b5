"Texts that are nearly the same, and those that only look so."

import numpy as np
import pytest

from personal_llm.base.core import make_generator
from personal_llm.base.text import is_near_duplicate
from personal_llm.data.reading import load_samples
from personal_llm.data.streams import edit_prompt


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
    assert is_near_duplicate(a, b) and is_near_duplicate(b, a)


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
    assert not is_near_duplicate(a, b) and not is_near_duplicate(b, a)


def test_small_edits_are_recognised_on_real_rows():
    rng = make_generator(0, "test")
    for source, most in (("personality_chat", 0.02), ("dolly_6400", 0.01), ("medquad", 0.01)):
        prompts = [row["prompt"] for row in load_samples(source)][:300]
        assert np.mean([not is_near_duplicate(p, edit_prompt(p, rng)) for p in prompts]) <= most
