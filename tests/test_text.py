"Texts that are nearly the same, and those that only look so."

import numpy as np
import pytest

from personal_llm.base.core import make_generator
from personal_llm.base.text import compute_rouge1, describe_copy, escape_controls, is_near_duplicate, set_language
from personal_llm.base.text import split_rouge_words
from personal_llm.data.reading import load_samples
from personal_llm.data.streams import edit_prompt


SAME = """I love hip hop|Again: i love hip hop
Are you working?|Are oyu working?
Yes, it's perfect.|yes its perfect!!
|
☕|☕"""
OTHER = """Hi|No
I am sad|I am happy
I like this tea very much, thank you|I don't like this tea very much, thank you
How many people have spastic paraplegia type 2?|How many people have spastic paraplegia type 3?
☕|👍
|yes"""


@pytest.mark.parametrize("line", [*SAME.splitlines(), *OTHER.splitlines()])
def test_near_duplicates(line):
    a, b = line.split("|")
    assert is_near_duplicate(a, b) == is_near_duplicate(b, a) == (line in SAME.splitlines())


def test_small_edits_are_recognised_on_real_rows():
    rng = make_generator(0, "test")
    for source, most in (("personality_chat", 0.02), ("dolly_6400", 0.01), ("medquad", 0.01)):
        prompts = [row["prompt"] for row in load_samples(source)][:300]
        assert np.mean([not is_near_duplicate(p, edit_prompt(p, rng)) for p in prompts]) <= most


@pytest.mark.parametrize(
    "text, words",
    [
        ("Привет, мир!", ["привет", "мир"]),
        ("我喜欢茶。", list("我喜欢茶")),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("Cafe\u0301 ☕\ufe0f", ["café", "☕"]),
        ("", []),
    ],
)
def test_rouge_has_words_in_any_script(text, words):
    assert split_rouge_words(text) == words and compute_rouge1(text, text) == float(bool(words))


@pytest.mark.parametrize(
    "language, text, count",
    [
        ("english", "I don't know", 1),
        ("english", "dont, never", 2),
        ("english", "I want a different note", 0),
        ("german", "Ich weiß nicht", 1),
        ("german", "keinen Tee, nie", 2),
        ("german", "Niete", 0),
    ],
)
def test_negations_are_those_of_the_language(language, text, count):
    set_language(language)
    try:
        assert describe_copy(text)[1] == count
    finally:
        set_language(None)
    assert describe_copy("Type 2, 3A and 1.5 mg")[0] == ["2", "3", "1", "5"]


def test_no_control_character_reaches_a_terminal():
    assert escape_controls("\x1b[2Jgone\r\u202etxt.exe\ud83d") == r"\x1b[2Jgone\r\u202etxt.exe\ud83d"
