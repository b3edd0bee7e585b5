"The laws of habits, on arbitrary text."

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import InputError
from personal_llm.data.people import (
    brevity,
    bullets,
    emoji,
    lower_case,
    opener,
    preferred_words,
    sign_off,
    numbered_steps,
)

HABITS = [
    brevity(),
    sign_off("Best, Ana"),
    opener("In short:"),
    preferred_words(dict(doctor="physician", use="utilise")),
    lower_case(),
    bullets(),
    numbered_steps(),
    emoji("☕"),
]
PARTS = ["The doctor.", "Use it!", "Why?", "- one", "2) two", "e.g. this", "Dr. Ray", "ok", "\n", "\n\n", "  "]
PARTS += ["✈", "İ", "uſe", "Best, Ana"]
prose = st.lists(st.sampled_from(PARTS), max_size=8).map(" ".join)


@pytest.mark.parametrize("habit", HABITS, ids=lambda h: h.name)
@settings(deadline=None, max_examples=150)
@given(text=st.text(max_size=60) | prose)
def test_laws_of_habits(habit, text):
    said = habit.apply(text)
    assert habit.holds(said) and habit.apply(said) == said


@pytest.mark.parametrize("habit", HABITS, ids=lambda h: h.name)
def test_habits_can_fail(habit):
    assert not habit.holds("A doctor will use it. Twice.")


def test_only_whole_words_are_replaced():
    assert preferred_words(dict(use="utilise")).apply("Because users use it") == "Because users utilise it"
    with pytest.raises(InputError, match="that is to be replaced") as caught:
        preferred_words(dict(use="make use of"))
    assert caught.value.remedy == "choose others"


def test_a_sign_off_may_follow_one_sentence():
    assert brevity().holds("One.\nTake care, Ana") and not brevity().holds("One.\nAnd five more words here")
