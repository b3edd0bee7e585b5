"The style space: rows, files, what it refuses, and the sparse code."

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.explanation.decomposition import normalise_rows
from personal_llm.recipes.space_fitting import build_word_vectors, measure_nats_per_unit
from personal_llm.extras.space import StyleSpace, find_encoder, gain_direction, sparse_code, sparse_explanation
from personal_llm.explanation.explanation import sample_responses
from personal_llm.extras.style import FEATURE_BLOCKS, STYLOMETRIC_FEATURES, sample_base_features, style_features
from personal_llm.extras.style import style_shifts, stylometry, truncate_words
from tiny import shared
from ways import letters  # noqa: F401

K, SIZES = 4, (3, 2, 2)


def a_space(seed=0, **changes):
    rng, features = np.random.default_rng(seed), sum(SIZES)
    fields = dict(base="base", words=("warm", "dry", "brief"), vectors=normalise_rows(rng.normal(size=(3, K))))
    fields |= dict(scale=rng.uniform(0.5, 2, features), centres=rng.normal(size=(2, features)), blocks=SIZES)
    fields |= dict(matrix=rng.normal(size=(features, K)), coordinate_scale=rng.uniform(1, 2, K), encoder="an encoder")
    return StyleSpace(**fields | dict(plain_noise=2.0, threshold=1.5, nats_per_unit=0.05) | changes)


# ---- files


def without(name):  # a damage: the card without a field
    return lambda card, arrays: card.write_text(
        json.dumps({k: v for k, v in json.loads(card.read_text()).items() if k != name})
    )


DAMAGES = {
    "json": lambda card, arrays: card.write_text("{"),
    "list": lambda card, arrays: card.write_text("[]"),
    "kind": lambda card, arrays: card.write_text(json.dumps(json.loads(card.read_text()) | dict(kind="xpert"))),
    "no card": lambda card, arrays: card.unlink(),
    "no words": without("words"),
    "no id": without("id"),
    "arrays": lambda card, arrays: arrays.write_bytes(b"\x00" * 20),
    "cut": lambda card, arrays: arrays.write_bytes(arrays.read_bytes()[:-5]),
    "flipped": lambda card, arrays: arrays.write_bytes(arrays.read_bytes()[:-1] + b"\x01"),
    "no arrays": lambda card, arrays: arrays.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_space_is_refused_in_one_line(tmp_path, damage):
    a_space().save(tmp_path)
    DAMAGES[damage](tmp_path / "space.json", tmp_path / "space.safetensors")
    with pytest.raises(InputError, match="space") as caught:
        StyleSpace.load(tmp_path)
    assert "\n" not in str(caught.value) and caught.value.remedy and str(tmp_path) in str(caught.value)


# ---- sparse code


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), words=st.integers(1, 40), k=st.integers(2, 12), scale=st.floats(0.01, 100))
def test_sparse_code_is_non_negative_sorted_scale_free_and_says_what_is_left(seed, words, k, scale):
    rng = np.random.default_rng(seed)
    vectors, target = normalise_rows(rng.normal(size=(words, k))), rng.normal(size=k)
    found, c, left = sparse_code(vectors, target)
    assert len(found) == len(set(found)) == len(c) <= 4 and (c > 0).all() and (np.diff(c) <= 1e-12).all()
    rest = normalise_rows(target) - c @ vectors[found] if found else normalise_rows(target)
    assert np.isclose(left, rest @ rest) and -1e-9 <= left <= 1 + 1e-9
    again, c2, _ = sparse_code(vectors, scale * target)
    assert again == found and np.allclose(c2, c)


def test_sparse_code_does_not_spend_a_word_on_noise():
    assert sparse_code(np.eye(10), np.array([1.0] + [0.05] * 9))[0] == [0]


def test_a_direction_without_words_has_no_errors():
    axes = SimpleNamespace(vectors=np.eye(2), words=("right", "up"))
    found = sparse_explanation(axes, -np.ones(2), -np.ones((3, 2)))
    assert found["sparse_words"] == () and len(found["errors"]) == len(found["coefficients"]) == 0


def test_equal_gains_have_no_direction():
    assert not gain_direction(np.random.default_rng(0).normal(size=(20, 3)), np.ones(20)).any()


@pytest.mark.parametrize(
    "act, line",
    [
        (lambda: build_word_vectors({}, {"new": {"@smell": 1}}, np.eye(39)[:, :2], np.ones(2)), "names '@smell'; give"),
        (lambda: build_word_vectors({}, {"new": {"south": 1}}, np.eye(39)[:, :2], np.ones(2)), "names 'south'; give"),
        (lambda: measure_nats_per_unit(None, None, None, []), "nothing to measure the unit on"),
        (lambda: find_encoder("another"), "made with encoder another"),
    ],
)
def test_what_a_space_lacks_is_named(act, line):
    with pytest.raises(InputError, match=line):
        act()


# style


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
