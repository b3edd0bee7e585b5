"Distances against naive twins, losses and their bill, the race, and the answer as text and JSON."

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.selection.ranking import (
    BASE_NAME,
    MIN_GAIN_OVER_BASE,
    MIN_GAIN_OVER_PLAIN,
    MAX_RANKED_PLLMS,
    PLLMLosses,
    Ranking,
    get_download_bytes,
    cosine_distance,
    is_gain_certain,
    l1_distance,
    compute_mean_loss,
    find_nearest,
    race_by_loss,
)
from personal_llm.experiments.methods.searches import TableLosses, rank_by_scores
from personal_llm.tuning.statistics import lower_confidence_bound
from planted import planted, save_adapter, table
from tiny import shared

SUBJECTS = "tea rain bread snow music salt".split()
TALK = [Dialogue(f"What is {w}?", f"It is {w}, of course{', dear' * i}.") for i, w in enumerate(SUBJECTS)]


@pytest.fixture
def library(tmp_path):
    return planted(tmp_path, np.eye(3), "abc", sizes=(1000, 1001, 1002))


# Distances


def test_distances_by_hand():
    rows = np.array([[3, 4], [4, -3], [-6, -8], [0, 0]], np.float32)
    assert np.allclose(cosine_distance(rows, [0.3, 0.4]), [0, 1, 2, 1], atol=1e-6)
    assert np.allclose(l1_distance(np.array([[3, 4], [-1, 0]], np.float32), [1, 1]), [5, 3])


NUMBERS = st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=1, max_size=9)


def naive_cosine(a, b):
    lengths = (sum(x * x for x in a) * sum(x * x for x in b)) ** 0.5
    return sum(x * y for x, y in zip(a, b)) / (lengths or 1)


@settings(deadline=None, max_examples=50)
@given(NUMBERS, st.lists(st.integers(-9, 9), min_size=3, max_size=3), st.sampled_from([1e-12, 0.01, 7.0, 1e12]))
def test_distances_have_naive_twins(rows, z, scale):
    R = np.array(rows, np.float32)
    assert np.allclose(cosine_distance(R, np.array(z) * scale), [1 - naive_cosine(r, z) for r in rows], atol=1e-5)
    assert np.allclose(l1_distance(R, z), [sum(abs(x - y) for x, y in zip(r, z)) for r in rows])


def test_a_row_that_is_no_number_stays_one_and_is_named():
    rows = np.array([[1, 0], [np.nan, 0], [1, np.inf]], np.float32)
    assert not np.isfinite(cosine_distance(rows, [1, 0])[1:]).any()
    with pytest.raises(InputError, match="'b' is not a finite number; remove that pLLM"):
        find_nearest(cosine_distance(rows, [1, 0]), list("abc"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 45), st.randoms())
def test_nearest_is_a_sort(values, most, random):
    names = [f"n{i}" for i in range(len(values))]
    random.shuffle(names)
    got = find_nearest(np.array(values, float), names, most)
    assert sorted(values)[:most] == [values[i] for i in got] and len(set(got)) == len(got)
    if most >= len(values):
        assert got == sorted(range(len(values)), key=lambda i: (values[i], names[i])), "equal ones by name"


def test_only_the_nearest_are_named():
    values = np.random.default_rng(0).random(3 * MAX_RANKED_PLLMS)
    assert find_nearest(values, [str(i) for i in range(len(values))]) == np.argsort(values)[:MAX_RANKED_PLLMS].tolist()


# Losses


def test_each_dialogue_weighs_the_same():
    assert compute_mean_loss([(2, 2), (8, 4)]) == 1.5, "not 10 / 6"
    assert np.isnan(compute_mean_loss([(0, 0), (1, 1)]))


def test_what_is_asked_for_is_billed_once(library):
    losses = TableLosses(library, {"a": [(2, 2), (4, 2), (1, 2), (1, 2), (2, 2)], BASE_NAME: [(3, 2)] * 5})
    bill = lambda: (losses.cost.forward, losses.cost.tokens, losses.cost.bytes_moved)
    assert losses.mean_loss("a", 2) == 1.5 and losses.mean_loss("a", 1) == 1.0 and bill() == (2, 4, 1000)
    assert losses.mean_loss("a") == 1.0 and losses.mean_loss("a", 99) == 1.0 and bill() == (5, 10, 1000), (
        "three more, no download"
    )
    assert losses.mean_loss(BASE_NAME, 3) == 1.5 and bill() == (8, 16, 1000), "the base is on the device"
    assert losses.dialogue_losses("a", 3).tolist() == [1.0, 2.0, 0.5] and losses.cost.backward == 0


def test_the_same_losses_with_an_empty_bill(library):
    losses = TableLosses(library, {"a": [(1, 1)] * 5})
    losses.mean_loss("a")
    fresh = losses.copy_without_cost()
    assert fresh.cost == Cost() and fresh.requested_counts == {} and fresh.mean_loss("a", 4) == 1.0
    assert fresh.cost.forward == 4 and losses.cost.forward == 5, "two bills"


@pytest.mark.parametrize("bad", [(np.nan, 2), (np.inf, 2), (0, 0)])
def test_a_loss_that_is_no_number_is_named(library, bad):
    with pytest.raises(InputError, match="the loss of 'c' is not a number.*; remove that pLLM"):
        TableLosses(library, {"c": [bad] * 4}).mean_loss("c")


def test_losses_that_cannot_be_known(library):
    with pytest.raises(InputError, match="dialogues 0 to 4 of 'b' are not in the table; give a model"):
        TableLosses(library, {"a": [(1, 1)] * 5}).mean_loss("b")
    with pytest.raises(InputError, match="3 personal dialogues.*; give 1 more"):
        PLLMLosses(None, library, TALK[:3])
    with pytest.raises(InputError, match="0 personal dialogues.*; give 4 more"):
        PLLMLosses(None, library, [])


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    "A library of one random adapter of the tiny Llama."
    import torch

    folder, model, layer = tmp_path_factory.mktemp("real"), shared("llama"), "model.layers.0.self_attn.q_proj"
    draw = torch.Generator().manual_seed(0)
    out, width = model.model.get_submodule(layer).weight.shape
    save_adapter(folder / "a", {layer: (torch.randn(2, width, generator=draw), torch.randn(out, 2, generator=draw))})
    return planted(folder, np.eye(1), "a", base=model.base)


def test_true_losses_are_the_models_and_so_is_the_bill(real):
    model = shared("llama")
    bare = model.nll(TALK)
    losses = PLLMLosses(model, real, TALK)
    with model.track_cost() as spent:
        parts = [
            losses.mean_loss("a", 4),
            losses.mean_loss("a", 5),
            losses.mean_loss("a"),
            losses.mean_loss(BASE_NAME),
            losses.mean_loss("a"),
        ]
    assert (losses.cost.forward, losses.cost.tokens) == (spent.forward, spent.tokens) == (12, 2 * losses.lengths.sum())
    assert losses.cost.bytes_moved == get_download_bytes(real, "a")
    with model.use_adapter(real["a"].adapter):
        adapted = model.nll(TALK)
    assert parts[0] == pytest.approx(compute_mean_loss(adapted[:4]), rel=1e-5)
    assert (
        parts[2]
        == parts[4]
        == pytest.approx(compute_mean_loss(adapted), rel=1e-5)
        != pytest.approx(compute_mean_loss(bare))
    )
    assert parts[3] == pytest.approx(compute_mean_loss(bare)), "the base is the base"
    assert np.array_equal(model.nll(TALK), bare), "and stays what it was"


def test_a_table_is_continued_where_it_ends(real):
    model = shared("llama")
    with model.use_adapter(real["a"].adapter):
        known = model.nll(TALK[:4])
    losses = TableLosses(real, {"a": known}, model, TALK)
    with model.track_cost() as spent:
        whole = losses.mean_loss("a")
    assert spent.forward == 2 and losses.cost.forward == 6, "two were measured, six are charged"
    assert whole == pytest.approx(PLLMLosses(model, real, TALK).mean_loss("a"), rel=1e-5)


# The race


def lanes(library, gaps):  # losses: each dialogue is as hard as it is, plus a pLLM's own gap
    hard = np.random.default_rng(9).uniform(1, 5, len(next(iter(gaps.values()))))
    sums = {name: np.stack([(hard + gap) * 10, np.full(len(hard), 10)], 1) for name, gap in gaps.items()}
    return TableLosses(library, sums)


def test_what_is_sure_of_a_gap():
    assert lower_confidence_bound(np.array([0.5, 0.7, 0.6, 0.6])) == pytest.approx(0.6 - 2 * 0.0816 / 2, abs=1e-3)
    assert lower_confidence_bound(np.ones(4)) == 1 and lower_confidence_bound(np.array([2, -2, 2, -1.6])) < 0


def test_a_race_drops_whoever_is_clearly_behind(tmp_path):
    library, wave = planted(tmp_path, np.eye(4), "abcd"), np.tile([1.0, -1.0], 12)
    late = np.r_[np.zeros(8), np.full(16, 2.0) + 0.1 * wave[:16]]
    losses = lanes(library, dict(a=np.zeros(24), b=np.full(24, 0.3) + 0.01 * wave, c=0.02 + wave, d=late))
    left = race_by_loss(losses, "abcd")
    assert set(left) == {"a", "c"}
    assert losses.requested_counts == dict(a=24, b=4, c=24, d=16), (
        "far behind at once; never sure; behind from the ninth on"
    )
    assert left["c"] - left["a"] == pytest.approx(0.02) and losses.cost.forward == 24 + 4 + 24 + 16


def test_twins_stay_together_and_one_runs_alone(library):
    losses = lanes(library, dict(a=np.zeros(24), b=np.zeros(24)))
    assert set(race_by_loss(losses, "ab")) == {"a", "b"} and set(race_by_loss(losses.copy_without_cost(), "b")) == {"b"}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 40), st.integers(1, 8))
def test_a_race_always_has_a_winner_and_never_costs_more(tmp_path_factory, seed, dialogues, runners):
    rng, names = np.random.default_rng(seed), [f"p{i}" for i in range(runners)]
    library = planted(tmp_path_factory.mktemp("l"), np.eye(runners), names)
    losses = lanes(library, {name: rng.normal(rng.normal(), 1, dialogues) for name in names})
    left, reversed_ = race_by_loss(losses, names), race_by_loss(losses.copy_without_cost(), names[::-1])
    assert left and left == reversed_ and losses.cost.forward <= runners * dialogues
    assert all(left[name] == losses.mean_loss(name) and losses.requested_counts[name] == dialogues for name in left)


def test_a_race_keeps_the_best_of_clearly_different(library):
    rng, kept = np.random.default_rng(0), []
    for _ in range(300):
        losses = lanes(library, {name: rng.normal(m, 0.3, 12) for name, m in dict(a=0.0, b=0.3, c=0.6).items()})
        left = race_by_loss(losses, "abc")
        kept.append(min(left, key=left.get) == "a")
    assert np.mean(kept) > 0.9


# The answer


def test_scores_become_an_answer(library):
    losses = TableLosses(library, table(dict(a=2.0, b=1.5, c=9.0)))
    scores = [losses.mean_loss("a", 6), losses.mean_loss("b")]
    got = rank_by_scores(library, ["a", "b"], scores, "by hand", Cost(backward=3), losses)
    assert got.best == "b" and got.names == ("b", "a") and got.distances == pytest.approx((1.5, 2.0))
    assert got.weights == {"b": 1.0} and not got.abstained and got.losses == pytest.approx(dict(a=2.0, b=1.5))
    assert (got.cost.forward, got.cost.tokens, got.cost.backward) == (18, 360, 3)
    assert got.cost.bytes_moved == 1000 + 1001, "those that were measured, the best not twice"


def test_an_answer_as_json_and_text(library):
    losses = {"a": 1.25, BASE_NAME: 2.5}
    cost = Cost(tokens=72, forward=6, bytes_moved=2_000_000)
    got = Ranking("a", tuple("abc"), (0.1, 0.2, 1.0), {"a": 0.75}, False, "why", cost, "match", losses, library)
    row = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert set(row) == set(Ranking.__dataclass_fields__) - {"library"}, "the library is never saved"
    assert row["names"] == list("abc") and row["losses"] == losses and row["cost"]["forward"] == 6
    assert got.library is library, "saving leaves the answer as it was"
    lines = str(got).splitlines()
    assert lines[0] == "match: a (why)" and lines[2].split() == ["a", "0.1000", "1.250", "0.75"]
    assert lines[5].split() == [BASE_NAME, "2.500"] and "72 tokens, 6 forward" in lines[6] and "2.00 MB" in lines[6]


def test_an_abstention_and_a_long_answer_as_text():
    many = Ranking(None, tuple(f"p{i}" for i in range(9)), tuple(range(9)), abstained=True, reason="nobody is near")
    lines = str(many).splitlines()
    assert lines[0] == "ranking: no pLLM (nobody is near)" and len(lines) == 2 + 5 + 1


def test_a_gain_is_sure():
    "Above one and a half standard errors, and above a share of what is to be beaten; one dialogue proves nothing."
    swing = np.tile([1.0, -1.0], 4)  # its standard error is 0.378
    assert is_gain_certain(0.06 + 0.1 * swing, 1.0, has_plain=True) and not is_gain_certain(
        0.055 + 0.1 * swing, 1.0, has_plain=True
    )
    for plain, share in ((True, MIN_GAIN_OVER_PLAIN), (False, MIN_GAIN_OVER_BASE)):
        assert is_gain_certain(np.full(4, 2.1 * share), 2.0, plain) and not is_gain_certain(
            np.full(4, 1.9 * share), 2.0, plain
        )
    for unsure in (np.array([1.0]), np.zeros(0), np.full(4, np.nan), np.array([1.0, np.inf])):
        assert is_gain_certain(unsure, 1.0, has_plain=True) is False
