"""The style space and explanations: planted styles, invariants, round trips, failing cases."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.xpert.explanation import Explanation, slope
from personal_llm.xpert.space import StyleSpace, sparse_code
from personal_llm.xpert.style import BLOCKS, FEATURES, first_words, stylometry
from personal_llm.data.reading import from_texts

K, SIZES = 4, (3, 2, 2)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def a_space(seed=0, threshold=1.5):
    rng = np.random.default_rng(seed)
    d = sum(SIZES)
    f = lambda x: np.asarray(x, np.float32)
    return StyleSpace(
        "base",
        ("warm", "dry", "brief"),
        f(unit(rng.normal(size=(3, K)))),
        f(rng.uniform(0.5, 2, d)),
        f(rng.normal(size=(2, d))),
        f(rng.normal(size=(d, K))),
        SIZES,
        2.0,
        threshold,
        f(rng.uniform(1, 2, K)),
    )


# ---- sparse code


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), words=st.integers(1, 40), k=st.integers(2, 12), scale=st.floats(0.01, 100))
def test_sparse_code_is_non_negative_sorted_scale_free_and_says_what_is_left(seed, words, k, scale):
    rng = np.random.default_rng(seed)
    vectors, target = unit(rng.normal(size=(words, k))), rng.normal(size=k)
    found, c, left = sparse_code(vectors, target)
    assert len(found) == len(set(found)) == len(c) <= 4 and (c > 0).all() and (np.diff(c) <= 1e-12).all()
    rest = unit(target) - c @ vectors[found] if found else unit(target)
    assert np.isclose(left, rest @ rest) and -1e-9 <= left <= 1 + 1e-9
    again, c2, _ = sparse_code(vectors, scale * target)
    assert again == found and np.allclose(c2, c)


def test_sparse_code_takes_the_word_itself():
    vectors = unit(np.random.default_rng(0).normal(size=(50, 8)))
    for i in (0, 17, 49):
        found, c, left = sparse_code(vectors, 3 * vectors[i])
        assert found == [i] and np.isclose(c[0], 1) and left < 1e-9


def test_sparse_code_does_not_spend_a_word_on_noise():
    vectors = np.eye(10)
    assert sparse_code(vectors, np.array([1.0] + [0.05] * 9))[0] == [0]


# ---- slope


def test_slope_is_ridge_regression_with_an_intercept():
    rng = np.random.default_rng(0)
    z, g = rng.normal(size=(50, 3)), rng.normal(size=50)
    augmented = np.vstack([np.hstack([z - z.mean(0)]), np.sqrt(0.25 * 50) * np.eye(3)])
    twin = np.linalg.lstsq(augmented, np.concatenate([g - g.mean(), np.zeros(3)]), rcond=None)[0]
    assert (
        np.allclose(slope(z, g), twin)
        and np.allclose(slope(z, g + 7), slope(z, g))
        and np.allclose(slope(z, 2 * g), 2 * slope(z, g))
    )


# ---- space


def test_row_is_coordinates_then_scaled_features_and_each_origin_has_its_centre():
    space = a_space()
    x = np.random.default_rng(1).normal(size=(5, sum(SIZES)))
    for model in (False, True):
        row = space.row(x, model)
        by_hand = (x - space.centres[int(model)]) / space.scale
        assert np.allclose(row[:, K:], by_hand, atol=1e-5) and np.allclose(
            row[:, :K], by_hand @ space.matrix / space.spread, atol=1e-4
        )
    assert (
        space.columns == dict(coordinates=(0, 4), stylometry=(4, 7), encoder=(7, 9), activations=(9, 11))
        and space.width == 11
    )
    assert not np.allclose(space.row(x, True), space.row(x, False))


def test_space_comes_back_from_its_folder_and_its_id_follows_the_arrays(tmp_path):
    space = a_space()
    space.save(tmp_path)
    back = StyleSpace.load(tmp_path)
    assert (
        back.id == space.id
        and back.words == space.words
        and np.array_equal(back.matrix, space.matrix)
        and back.threshold == space.threshold
    )
    assert replace(space, vectors=space.vectors * -1).id != space.id != replace(space, words=("a", "b", "c")).id


@pytest.mark.parametrize("damage", ["json", "arrays", "other arrays", "kind", "missing"])
def test_a_damaged_space_is_refused(tmp_path, damage):
    a_space().save(tmp_path)
    card = tmp_path / "space.json"
    if damage == "json":
        card.write_text("{")
    if damage == "arrays":
        (tmp_path / "space.safetensors").write_bytes(b"\x00" * 20)
    if damage == "other arrays":
        a_space(1).save(tmp_path / "other")
        (tmp_path / "space.safetensors").write_bytes((tmp_path / "other" / "space.safetensors").read_bytes())
    if damage == "kind":
        card.write_text(json.dumps(json.loads(card.read_text()) | dict(kind="xpert")))
    if damage == "missing":
        (tmp_path / "space.safetensors").unlink()
    with pytest.raises(InputError, match="space"):
        StyleSpace.load(tmp_path)


# ---- explanation


def an_explanation(**changes):
    return replace(
        Explanation(
            ("concise", "expert"),
            np.array([0.71, 0.34]),
            np.array([0.06, 0.05]),
            0.18,
            4.0,
            np.arange(3, dtype=np.float32),
            24,
            "answers",
            "abc",
        ),
        **changes,
    )


def test_it_prints_as_a_sentence():
    assert str(an_explanation()) == "mostly *concise* (0.71 ± 0.06) and *expert* (0.34 ± 0.05); 18 % unexplained"
    assert (
        str(an_explanation(words=("concise",), coefficients=np.array([1.0]), errors=np.array([0.0]), residual=0.0))
        == "mostly *concise* (1.00 ± 0.00); 0 % unexplained"
    )
    assert str(an_explanation(words=(), coefficients=np.zeros(0), errors=np.zeros(0), residual=1.0)).startswith(
        "no word"
    )


def test_it_comes_back_from_json_and_refuses_what_is_incomplete():
    e = an_explanation()
    back = Explanation.from_dict(json.loads(json.dumps(e.to_dict())))
    assert str(back) == str(e) and np.allclose(back.row, e.row) and back.samples == 24 and back.space == "abc"
    for key in ("words", "row", "residual", "space"):
        with pytest.raises(InputError, match="explanation"):
            Explanation.from_dict({k: v for k, v in e.to_dict().items() if k != key})


# ---- style


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_finite_features(text):
    x = stylometry(text)
    assert x.shape == (len(FEATURES),) and np.isfinite(x).all() and (x >= 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["word", "a", "long-ish", "x!\n", "two  spaces"]), min_size=1, max_size=20),
    st.integers(1, 12),
)
def test_first_words_are_a_prefix_of_that_many_words(parts, most):
    text = " ".join(parts)
    cut = first_words(text, most)
    assert text.startswith(cut) and len(cut.split()) == min(most, len(text.split()))


def test_marks_are_counted_by_the_word_and_not_by_the_text():
    x = dict(zip(FEATURES, stylometry("I can't! " * 10)))
    y = dict(zip(FEATURES, stylometry("I can't! ")))
    assert (
        np.isclose(x["exclamation marks"], y["exclamation marks"])
        and np.isclose(x["contractions"], 0.5)
        and x["log words"] > y["log words"]
    )


def test_texts_keep_their_words_and_short_ones_are_refused():
    text = "one two three four five six seven eight nine"
    (d,) = from_texts([text, "short"])
    assert d.prompt.split() + d.response.split() == text.split() and d.labels["counterpart"] == "continuations"
    with pytest.raises(InputError, match="longer"):
        from_texts(["too few words"])
