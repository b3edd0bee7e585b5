"Fitting a style space: each step by hand, planted styles, and the unit of pLLMs."

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import InputError
from personal_llm.explanation import space_fitting
from personal_llm.explanation.explanation import (
    style_coordinates,
    explain,
    likelihood_gains,
    load_probe_texts,
    prepare_probes,
    gain_direction,
)
from personal_llm.explanation.space_fitting import (
    SpaceTexts,
    estimate_space_cost,
    load_space_texts,
    make_space,
    TEXTS_PER_DRAW,
    COVARIANCE_SHRINKAGE,
    fit_axes,
    measure_nats_per_unit,
    panel_means,
    plain_threshold,
    compute_shifts,
    build_word_vectors,
)
from personal_llm.explanation.space import concatenate_blocks, normalise_rows
from personal_llm.explanation.style import STYLOMETRIC_FEATURES, style_features
from ways import BRIEF, LOUD, Letters, letters, space_of, spoken, tuned  # noqa: F401
from tiny import shared


# ---- steps


def scale_of(plain, blocks):
    "The number by which each feature is divided."
    return fit_axes(plain[:1], plain, plain, blocks, 1)["scale"]


def axes_of(between, within, components):
    "The axes where every feature has a spread of one in plain text, so that nothing is scaled."
    width = between.shape[1]
    even = np.stack([np.ones(width), -np.ones(width)]) / 1.001
    found = fit_axes(between, within, even, (1,) * width, components)
    assert np.allclose(found["scale"], 1)
    return found["matrix"]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_block_weighs_the_same(seed, sizes):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(200, sum(sizes))) * rng.uniform(0.5, 5, sum(sizes))
    rows -= rows.mean(0)
    scaled = rows / scale_of(rows, tuple(sizes))
    weights = [(block**2).sum(1).mean() for block in np.split(scaled, np.cumsum(sizes)[:-1], axis=1)]
    assert np.allclose(weights, 1, atol=0.03)


def test_a_feature_that_never_varies_is_not_divided_by_zero():
    rows = np.array([[1.0, 0, 5], [-1, 0, 5]])
    assert np.isfinite(rows / scale_of(rows, (3,))).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(1, 12))
def test_axes_have_noise_of_one_under_the_shrunk_covariance(seed, width):
    within = np.random.default_rng(seed).normal(size=(30, width))
    S = within.T @ within / 30
    shrunk = (1 - COVARIANCE_SHRINKAGE) * S + COVARIANCE_SHRINKAGE * np.diag(np.diag(S))
    between = np.random.default_rng(seed + 1).normal(size=(width, width))
    axes = axes_of(between, within, width)
    assert np.allclose(axes.T @ shrunk @ axes, np.eye(width), atol=1e-3), "the noise along each axis is 1"
    gaps = ((between @ axes) ** 2).sum(0)
    assert (np.diff(gaps) <= 1e-6 * gaps.max()).all(), "the leading axis comes first"
    assert np.isfinite(axes_of(between, within[:2], 1)).all(), "fewer texts than features"


def test_axes_find_the_planted_direction_and_are_at_right_angles_where_noise_is_even():
    rng = np.random.default_rng(0)
    planted = np.linalg.qr(rng.normal(size=(10, 2)))[0].T
    between = np.array([[3, 0], [0, 2], [-3, -2]]) @ planted
    axes = axes_of(between, 10**0.5 * np.eye(10), 2)
    assert np.allclose(axes.T @ axes, np.eye(2), atol=1e-5)
    assert np.allclose(planted @ axes @ axes.T, planted, atol=1e-5), "the same plane"


def test_a_panel_is_compared_with_its_own_reference():
    rows = spoken(str, 6)
    shift = {d.id: np.array([i, i * i], float) for i, d in enumerate(rows)}
    means, inside = panel_means({"a": (rows[4:], None), "b": (rows[4:], rows[2:4])}, rows[:2], shift)
    assert means.tolist() == [[4.5 - 0.5, 20.5 - 0.5], [4.5 - 2.5, 20.5 - 6.5]]
    assert len(inside) == 6 and np.allclose(inside.sum(0), 0)


def test_coordinates_of_panels_have_a_root_mean_square_of_one():
    rng = np.random.default_rng(0)
    means, inside, plain = rng.normal(size=(6, 9)), rng.normal(size=(60, 9)), rng.normal(size=(40, 9))
    axes = fit_axes(means, inside, plain, (4, 3, 2), 3)
    places = means / axes["scale"] @ axes["matrix"] / axes["coordinate_scale"]
    assert np.allclose((places**2).mean(0), 1) and axes["matrix"].shape == (9, 3)


# ---- words


def test_marks_and_blends():
    matrix = np.zeros((len(STYLOMETRIC_FEATURES), 2))
    matrix[STYLOMETRIC_FEATURES.index("commas")] = 3, 4
    counted = build_word_vectors({}, {"listed": {"@commas": 1}}, matrix, np.array([3, 4]))
    assert np.allclose(counted["listed"], [0.5**0.5, 0.5**0.5])
    found = build_word_vectors(
        {"up": np.array([0, 9.0])}, {"dry": {"up": -1}, "mix": {"dry": 1, "@commas": 2}}, matrix, 1
    )
    assert list(found) == ["up", "dry", "mix"] and found["dry"].tolist() == [0, -1]
    assert np.allclose(found["mix"], normalise_rows(np.array([0, -1]) + 2 * np.array([0.6, 0.8])))
    for parts in ({"down": 1}, {"@smell": 1}):
        with pytest.raises(InputError, match="names"):
            build_word_vectors({"up": np.ones(2)}, {"new": parts}, matrix, 1)


# ---- the threshold


def test_threshold_is_what_nineteen_of_twenty_draws_stay_below():
    z = np.random.default_rng(0).normal(size=(5000, 6))
    found = plain_threshold([z], 6**0.5)
    again = [np.random.default_rng(i).choice(z, TEXTS_PER_DRAW) for i in range(1000)]
    strengths = [np.linalg.norm(draw.mean(0)) * TEXTS_PER_DRAW**0.5 / 6**0.5 for draw in again]
    assert 0.9 < np.mean(np.array(strengths) < found) < 0.99
    assert plain_threshold([z[:2500] + 1, z[2500:] - 1], 6**0.5) > 1.5 * found, "subjects of their own raise it"
    assert found == plain_threshold([z], 6**0.5) != plain_threshold([z], 6**0.5, seed=1)


# ---- the fit


def test_each_text_is_read_once():
    model, rows = shared("llama"), spoken(LOUD, 5)
    with model.track_cost() as cost:
        shift, blocks = compute_shifts(model, [*rows, *rows[:3]], progress=False)
    assert set(shift) == {d.id for d in rows} and cost.forward == 15 and sum(blocks) == len(shift[rows[0].id])
    assert blocks == (39, 3, model.width)


def test_a_fitted_space_knows_its_words_on_other_texts():
    model = shared("llama")
    space = space_of(model)
    assert space.words == ("loud", "brief", "long") and space.base == model.base and space.encoder == "letters"
    assert (
        np.allclose(np.linalg.norm(space.vectors, axis=1), 1, atol=1e-5)
        and space.plain_noise > 0
        and space.threshold > 0
    )
    for word, way in (("loud", LOUD), ("brief", BRIEF)):
        e = explain(model, spoken(way, 12, first=700), space)
        assert e.sparse_words[0] == word and e.strength > space.threshold, (word, str(e))
        z = style_coordinates(space, e.row)
        assert 0.3 < np.linalg.norm(z) / np.sqrt(len(z)) < 3, "a pure style is about as long as the panels are"


# ---- the unit


def test_the_unit_is_the_mean_ratio_of_slopes_and_texts():
    model = shared("llama")
    space = space_of(model)
    panels = prepare_probes(model, space, spoken(LOUD, 9) + spoken(str, 9), ["Why?"])
    known = [(tuned("loud"), spoken(LOUD, 12, first=100)), (tuned("brief"), spoken(BRIEF, 12, first=100))]
    ratios = []
    for adapter, rows in known:
        b, z = (
            gain_direction(panels.coordinates, likelihood_gains(model, adapter, panels)),
            style_coordinates(space, explain(model, rows, space).row),
        )
        ratios.append(np.linalg.norm(b) / np.linalg.norm(z))
    assert np.isclose(measure_nats_per_unit(model, space, panels, known), np.sqrt(np.prod(ratios)), rtol=1e-4)
    for nothing in ([], [(None, spoken(LOUD, 12))]):
        with pytest.raises(InputError, match="differ from the base"):
            measure_nats_per_unit(model, space, panels, nothing)


# ---- the space of any model


def test_texts_of_one_prompt_share_one_answer_of_the_base_model(monkeypatch):
    "Two ways of one answer differ by their own features only, and the base model answers each prompt once."
    model, rows = shared("llama"), spoken(str, 5)
    both = [*rows, *(d.derive(response=LOUD(d.response)) for d in rows)]
    asked, sample = [], space_fitting.sample_responses
    monkeypatch.setattr(space_fitting, "sample_responses", lambda m, a, p, s: asked.extend(p) or sample(m, a, p, s))
    shift, blocks = compute_shifts(model, both, progress=False, share_answers=True)
    assert len(asked) == 5 and len(shift) == 10 and sum(blocks) == len(shift[both[0].id])
    own = concatenate_blocks(style_features(model, both))
    for i in range(5):
        gap = shift[both[5 + i].id] - shift[both[i].id]
        assert np.allclose(gap, own[5 + i] - own[i], atol=1e-4)


def test_a_space_is_made_of_texts_and_names_its_base():
    model, plain = shared("llama"), spoken(str, 24)
    panels = dict(loud=(spoken(LOUD, 12), None), brief=(spoken(BRIEF, 12), None))
    texts = SpaceTexts(panels, {"calm": {"loud": -1.0}}, plain[:12], [plain[:12], plain[12:]], spoken(LOUD, 24, 300))
    cost = estimate_space_cost(model, texts)
    assert cost["written"] == (24 + 12 + 24) * space_fitting.MAX_RESPONSE_TOKENS and cost["read"] > 0 < cost["seconds"]
    space = make_space(model, progress=False, texts=texts)
    assert (space.base, space.words) == (model.base, ("loud", "brief", "calm")) and space.nats_per_unit > 0
    loud = explain(model, spoken(LOUD, 12, first=100), space)
    assert loud.sparse_words[0] == "loud" and loud.strength > space.threshold


def test_the_shipped_texts_of_the_space_are_whole():
    texts = load_space_texts()
    assert len(texts.panels) == 27 and all(len(rows) == 24 for rows, _ in texts.panels.values())
    known = {*texts.panels, *(part for parts in texts.blends.values() for part in parts if part[0] == "@")}
    for word, parts in texts.blends.items():
        assert set(parts) <= known, "every part is a panel, a feature, or a blend above it"
        known.add(word)
    measured = {d.response for d in load_probe_texts()[0]}
    assert not measured & {d.response for d in texts.reference}, (
        "the unit is measured on other texts than it is tuned on"
    )


def test_a_large_model_is_measured_on_less(monkeypatch):
    model, asked = shared("llama"), spoken(str, 12)
    space = space_of(model)
    whole = prepare_probes(model, space, asked, ["Why?", "What is a pot?"])
    monkeypatch.setattr(model, "is_large", True)
    half = prepare_probes(model, space, asked, ["Why?", "What is a pot?"])
    assert (len(whole.dialogues), len(whole.prompts)) == (12, 2) and (len(half.dialogues), len(half.prompts)) == (3, 1)
    assert np.allclose(half.base, whole.base[::4]), "every fourth text, the same loss"
