"The laws of habits, on arbitrary text."

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.recipes.people import brevity, bullets, emoji, lower_case, numbered_steps, opener
from personal_llm.recipes.people import preferred_words, sign_off

HABITS = [brevity(), sign_off("Best, Ana"), opener("In short:"), lower_case(), bullets(), numbered_steps(), emoji("☕")]
HABITS += [preferred_words(dict(doctor="physician", use="utilise"))]
PARTS = ["The doctor.", "Use it!", "Why?", "- one", "2) two", "e.g. this", "Dr. Ray", "ok", "\n", "\n\n", "  "]
PARTS += ["✈", "İ", "uſe", "Best, Ana"]
prose = st.lists(st.sampled_from(PARTS), max_size=8).map(" ".join)


@pytest.mark.parametrize("habit", HABITS, ids=lambda h: h.name)
@settings(deadline=None, max_examples=150)
@given(text=st.text(max_size=60) | prose)
def test_laws_of_habits(habit, text):
    said = habit.apply(text)
    assert habit.holds(said) and habit.apply(said) == said
