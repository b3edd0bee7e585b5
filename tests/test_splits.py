"Splits: groups, the leak audit, held-out sets."

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.text import normalise_text
from personal_llm.data.splits import get_dialogue_group, get_row_group
from personal_llm.recipes.data import audit_leaks, count_leaks

THIRTEEN = " ".join(map(str, range(13)))


def row(prompt, response, **more):
    return dict(prompt=prompt, response=response) | more


def test_groups_of_each_source():
    assert get_row_group(row("Hi!", "Yes.", source="synthetic_persona_chat", persona="p1")) == "p1"
    assert get_row_group(row("Hi!", "Yes.", source="synthetic_persona_chat")) == "hi"
    assert get_row_group(row("Hi!", "Yes.", source="medquad", topic="Cough")) == "Cough"
    labels = dict(source="medquad", topic="Cough")
    assert get_dialogue_group(Dialogue("Hi!", "Yes.", labels=labels)) == "Cough"


def naive_runs(text, size):
    words = normalise_text(text).split()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("ab"), min_size=13, max_size=30), st.lists(st.sampled_from("ab"), max_size=30))
def test_audit_counts_against_sets_of_words(reserved, train):
    known = naive_runs(" ".join(reserved), 13) & naive_runs(" ".join(train), 13)
    counts, _ = count_leaks([], [row("q", " ".join(reserved))], [" ".join(train)])
    assert counts["shingles_shared"] == len(known)
    assert counts["shingles_reserved"] == len(naive_runs(" ".join(reserved), 13))


def test_a_leak_fails():
    with pytest.raises(InputError, match="1 pairs are in both") as caught:
        audit_leaks([row("hi", "YES")], [row("Hi?", "yes!")])
    assert caught.value.remedy == "split by group"
    with pytest.raises(InputError, match="100.00% of the reserved 13-word runs") as caught:
        audit_leaks([], [row("q", THIRTEEN)], [f"and {THIRTEEN}"])
    assert "0.50%" in caught.value.remedy
    assert audit_leaks([], [row("q", THIRTEEN)], [f"and {THIRTEEN}"], limit=1.0)["share"] == 1
