"Style: countable marks of any text, paired shifts."

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Dialogue
from personal_llm.explanation.explanation import sample_responses
from personal_llm.extras.style import FEATURE_BLOCKS, STYLOMETRIC_FEATURES, sample_base_features, style_features
from personal_llm.extras.style import style_shifts, stylometry, truncate_words
from tiny import shared
from ways import letters  # noqa: F401


def marks(text):
    return dict(zip(STYLOMETRIC_FEATURES, stylometry(text)))


# ---- countable marks


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_finite_features(text):
    x = stylometry(text)
    assert x.shape == (len(STYLOMETRIC_FEATURES),) and x.dtype == np.float32 and np.isfinite(x).all() and (x >= 0).all()


@pytest.mark.parametrize(
    "text, feature, count, words",
    [
        ("a well-known thing - so", "dashes", 1, 5),
        ('He said “no” and "yes"', "quotation marks", 4, 5),
        ("Café au lait", "capitalised words", 1, 3),
    ],
)
def test_counts_by_hand(text, feature, count, words):
    assert np.isclose(marks(text)[feature] * words, count)


# ---- cutting and pairing


def test_a_shift_is_the_answer_less_the_base_s_answer_to_the_same_prompt():
    model = shared("llama")
    rows = [Dialogue(f"What is {i}?", f"An apple, {i}! " * (i + 1)) for i in range(3)]
    base = [d.derive(response=truncate_words(d.response)) for d in sample_responses(model, None, rows, 5)]
    mine, other = style_features(model, rows), style_features(model, base)
    got = style_shifts(model, rows, sample_base_features(model, rows, 5))
    for block in FEATURE_BLOCKS:
        assert np.allclose(got[block], mine[block] - other[block], atol=1e-5)
