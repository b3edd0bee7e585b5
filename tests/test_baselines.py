"Baseline selectors: planted truth, honest bills, naive twins, the gradient against finite differences."

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.experiments.methods import searches
from personal_llm.experiments.methods.searches import SEARCHES, TableLosses, select_with_losses
from personal_llm.selection.gradient_match import compute_gradients, learn_sketch_directions, load_sketch
from personal_llm.base.adapters import factor_inner_product
from personal_llm.selection.ranking import (
    BASE_NAME,
    MAX_RANKED_PLLMS,
    SelectionRequest,
    get_download_bytes,
    compute_mean_loss,
)
from personal_llm.selection.selection import SELECTORS, Selector, select as package_select
from planted import me, permuted, planted, replay, save_adapter, table
from tiny import shared

METHODS = SELECTORS | SEARCHES


def select(library, explanation=None, method=None, *given, losses=None, **options):
    "Select by a method of the package, or by the name of a search; by losses from a table, if they are given."
    if losses is not None:
        method = method if isinstance(method, Selector) else METHODS[method]
        return select_with_losses(library, method, losses, **options)
    return package_select(library, explanation, SEARCHES.get(method, method), *given, **options)


def compute_slope(gradients: dict, factors: dict) -> float:
    "Return the change of the loss, in first order, when we attach an adapter's factors: the sum of (Bᵀ G) ⊙ A."
    shared = factors.keys() & gradients.keys()
    return float(sum((factors[m][1].numpy().T @ gradients[m] * factors[m][0].numpy()).sum() for m in shared))


TALK = [
    Dialogue(f"What is {w}?", f"It is {w}, of course{', dear' * i}.")
    for i, w in enumerate("tea rain bread snow music salt".split())
]
ROWS = np.random.default_rng(0).normal(size=(28, 6))
LOSSES = np.random.default_rng(1).permutation(28) / 10 + 1  # the lowest is 1.0


@pytest.fixture
def library(tmp_path):
    return planted(tmp_path, ROWS, sizes=range(1000, 1028))


def everything(library):
    return sum(get_download_bytes(library, n) for n in library.names)


# --- chance, all, everything ---


def test_random(library):
    best = [select(library, method="random", seed=s).best for s in range(400)]
    assert (
        select(library, method="random", seed=3).best == best[3]
        and len(set(best)) == 28
        and max(map(best.count, set(best))) < 40
    )
    got = select(library, method="random")
    assert (
        sorted(got.names) == library.names
        and got.cost.bytes_moved == get_download_bytes(library, got.best)
        and got.cost.forward == 0
        and got.weights == {got.best: 1.0}
    )
    assert select(permuted(library, np.arange(28)[::-1]), method="random").names == got.names


def test_mean(library, tmp_path):
    got = select(library, method="mean")
    assert (
        got.best is None
        and not got.abstained
        and got.weights == pytest.approx(dict.fromkeys(library.names, 1 / 28))
        and got.cost.bytes_moved == everything(library)
    )
    many = select(planted(tmp_path, np.ones((MAX_RANKED_PLLMS + 9, 2))), method="mean")
    assert (
        len(many.names) == len(many.distances) == MAX_RANKED_PLLMS
        and len(many.weights) == MAX_RANKED_PLLMS + 9
        and sum(many.weights.values()) == pytest.approx(1)
    )


def test_exhaustive(library):
    got = select(library, method="exhaustive", losses=replay(library, LOSSES))
    assert (
        got.names == tuple(library.names[i] for i in LOSSES.argsort())
        and got.distances == pytest.approx(np.sort(LOSSES))
        and got.losses == pytest.approx(dict(zip(library.names, LOSSES)))
    )
    assert (got.cost.forward, got.cost.tokens, got.cost.backward) == (
        28 * 12,
        28 * 240,
        0,
    ) and got.cost.bytes_moved == everything(library), "no index is read, the chosen one is there already"


# --- searches ---


def test_optuna_missing_is_said(library, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    for method in ("bayesian", "hyperband"):
        with pytest.raises(InputError, match=r"pip install \"optuna"):
            select(library, method=method, losses=replay(library, LOSSES))


def test_places_tell_neighbours(library):
    library.rows[:, 3:] *= 1e-3
    P = searches.project_on_main_axes(library)
    unit = library.rows / np.linalg.norm(library.rows, axis=1, keepdims=True)
    gaps = lambda X: np.linalg.norm(X[:, None] - X[None], axis=2)
    assert P.shape == (28, 3) and np.allclose(gaps(P), gaps(unit), atol=1e-2), "three axes hold what varies along three"
    assert searches.project_on_main_axes(planted(library.path, ROWS[:2])).shape[0] == 2


@pytest.mark.parametrize("budget, spends", [(None, 7), (1, 1), (10, 10), (28, 28), (99, 28)])
def test_bayesian_spends_its_budget(library, budget, spends):
    pytest.importorskip("optuna")
    bayesian = Selector(partial(searches.search_bayesian, budget=budget), ("model",))
    got = select(library, method=bayesian, losses=replay(library, LOSSES))
    assert len(got.losses) == len(got.names) == spends and got.cost.forward == 12 * spends, "nobody twice"
    assert got.best == min(got.losses, key=got.losses.get) and got.cost.bytes_moved == 28 * 6 * 4 + sum(
        get_download_bytes(library, n) for n in got.losses
    )
    if spends == 28:
        assert got.best == library.names[LOSSES.argmin()]


def test_bayesian_repeats_and_learns(tmp_path):
    pytest.importorskip("optuna")
    angles = np.linspace(0, np.pi, 60)
    library = planted(tmp_path, np.stack([np.cos(angles), np.sin(angles)], 1))
    smooth = 1 + np.abs(angles - 2)
    bayesian = Selector(partial(searches.search_bayesian, budget=20), ("model",))
    once = lambda seed, l=library, x=smooth: select(l, method=bayesian, losses=replay(l, x), seed=seed)
    assert once(1).losses == once(1).losses != once(2).losses
    order = np.random.default_rng(5).permutation(60)
    assert once(1, permuted(library, order), smooth[order]).losses == once(1).losses
    regret = np.mean([min(once(s).losses.values()) for s in range(8)]) - smooth.min()
    chance = np.mean([np.random.default_rng(s).permutation(smooth)[:20].min() for s in range(400)]) - smooth.min()
    assert regret < chance / 2


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.sampled_from([4, 11, 12, 36, 40]))
def test_hyperband_without_noise_finds_the_lowest(tmp_path_factory, seed, dialogues):
    pytest.importorskip("optuna")
    library = planted(tmp_path_factory.mktemp("l"), ROWS)
    losses = TableLosses(library, table(dict(zip([*library.names, BASE_NAME], [*LOSSES, 9])), dialogues=dialogues))
    got = select(library, method="hyperband", losses=losses, seed=seed)
    assert got.best == library.names[LOSSES.argmin()] and set(got.losses) == set(library.names), (
        "everybody is looked at"
    )
    assert (
        28 * 4 <= got.cost.forward <= 28 * dialogues
        and (got.cost.forward < 28 * dialogues or dialogues < 11)
        and got.cost.bytes_moved == everything(library)
    )
    assert select(library, method="hyperband", losses=losses, seed=seed).cost.forward == got.cost.forward


def test_hyperband_weeds_by_few_dialogues(library):
    pytest.importorskip("optuna")
    sums = table(dict(zip([*library.names, BASE_NAME], [*LOSSES, 9])), dialogues=36)
    truth = library.names[LOSSES.argmin()]
    sums[truth][:4, 0] += 1000  # the right one looks terrible on the first four
    losses = TableLosses(library, sums)
    got = select(library, method="hyperband", losses=losses, seed=2)
    assert got.losses[truth] > 10, "the loss that it was judged by, on four dialogues"
    assert (
        got.best != truth
        and select(
            library,
            method="exhaustive",
            losses=TableLosses(library, table(dict(zip(library.names, LOSSES)))),
        ).best
        == truth
    )
    whole = Selector(partial(searches.search_hyperband, min_dialogues=36), ("model",))
    assert select(library, method=whole, losses=losses).cost.forward == 28 * 36
    assert select(library, method="hyperband", losses=losses, seed=2).cost.forward == got.cost.forward < 28 * 36
    order = np.random.default_rng(5).permutation(28)
    assert select(permuted(library, order), method="hyperband", losses=losses, seed=2).losses == got.losses


@pytest.mark.parametrize(
    "method, option",
    [("bayesian", dict(budget=0)), ("hyperband", dict(min_dialogues=0)), ("hyperband", dict(reduction_factor=1))],
)
def test_wrong_options(library, method, option):
    pytest.importorskip("optuna")
    with pytest.raises(InputError, match="give [12] or more"):
        METHODS[method].run(SelectionRequest(library, losses=replay(library, LOSSES)), **option)


@pytest.mark.parametrize(
    "method", [m for m, s in METHODS.items() if {"model"} & set(s.needs) and m not in ("match", "single")]
)
def test_needs_are_said(library, method):
    with pytest.raises(InputError, match="needs the user's explanation"):
        select(library, method="single")
    with pytest.raises(InputError, match="give both model and dialogues"):
        select(library, method=method)
    with pytest.raises(InputError, match="give 1 more"):
        select(
            planted(library.path, ROWS, base=shared("llama").base),
            method=method,
            model=shared("llama"),
            dialogues=TALK[:3],
        )


# --- weights ---

LAYERS = dict(
    llama=["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj"],
    gpt2=["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"],
)


def shape(model, layer):  # (out, in)
    from transformers.pytorch_utils import Conv1D

    layer = model.model.get_submodule(layer)
    return tuple(reversed(layer.weight.shape)) if isinstance(layer, Conv1D) else tuple(layer.weight.shape)


def chance_factors(model, layers, rank, seed):
    g = torch.Generator().manual_seed(seed)
    return {
        m: (
            torch.randn(rank, shape(model, m)[1], generator=g) * 0.1,
            torch.randn(shape(model, m)[0], rank, generator=g) * 0.1,
        )
        for m in layers
    }


def test_inner_is_that_of_the_full_matrices():
    model = shared("llama")
    one, other = chance_factors(model, LAYERS["llama"][:2], 2, 0), chance_factors(model, LAYERS["llama"][1:], 3, 1)
    both = LAYERS["llama"][1]
    full = lambda pair: pair[1] @ pair[0]
    assert (
        factor_inner_product(one, other)
        == pytest.approx(float((full(one[both]) * full(other[both])).sum()), rel=1e-4)
        == pytest.approx(factor_inner_product(other, one), rel=1e-4)
    )
    assert (
        factor_inner_product(one, one)
        == pytest.approx(sum(float((full(p) ** 2).sum()) for p in one.values()), rel=1e-4)
        and factor_inner_product(one, {}) == 0
    )


def test_weights_find_their_twin(tmp_path):
    from personal_llm.base.adapters import read_factors
    from personal_llm.tuning.config import TuningConfig
    from personal_llm.tuning.finetune import finetune

    model = shared("llama")
    config = TuningConfig(rank=2, steps=3, batch_size=4, max_length=64, validation=0.0, checks=1, learning_rate=1e-2)
    own = finetune(model, TALK, config, out=tmp_path / "own", seed=5, progress=False)
    save_adapter(tmp_path / "a", chance_factors(model, LAYERS["llama"], 2, 0))
    save_adapter(tmp_path / "c", chance_factors(model, LAYERS["llama"], 3, 1))
    opposite = {m.removeprefix("base_model.model."): (A, -B) for m, (A, B) in read_factors(own.path).items()}
    save_adapter(tmp_path / "opposite", opposite)
    save_adapter(tmp_path / "nothing", {m: (A, 0 * B) for m, (A, B) in opposite.items()})
    library = planted(tmp_path, np.eye(5), ["a", "nothing", "opposite", "c", "own"], base=model.base)
    weights = Selector(partial(searches.select_by_weight_cosine, config=config), ("model",))
    got = select(library, method=weights, model=model, dialogues=TALK, seed=5)
    assert (
        got.names[0] == got.best == "own"
        and got.names[-1] == "opposite"
        and got.distances[0] == pytest.approx(0, abs=1e-4)
        and got.distances[-1] == pytest.approx(2, abs=1e-4)
    )
    assert dict(zip(got.names, got.distances))["nothing"] == 1 and got.losses == {}
    assert (got.cost.backward, got.cost.forward, got.cost.tokens) == (
        own.cost.backward,
        own.cost.forward,
        own.cost.tokens,
    ) and got.cost.bytes_moved == everything(library)


# --- gradient ---


@pytest.mark.parametrize("architecture", LAYERS)
def test_slope_is_the_derivative_of_the_loss(architecture, tmp_path):
    "Against adapters that peft puts on at a small positive and negative scale."
    model = shared(architecture)
    pairs = {m: (3 * A, 3 * B) for m, (A, B) in chance_factors(model, LAYERS[architecture], 2, 4).items()}
    G = compute_gradients(model, TALK, LAYERS[architecture])
    assert {m: g.shape for m, g in G.items()} == {m: shape(model, m) for m in LAYERS[architecture]}
    losses = []
    for sign in (1, -1):
        save_adapter(tmp_path / f"{sign}", pairs, alpha=sign * 0.01 * 2, fan_in_fan_out=architecture == "gpt2")
        with model.use_adapter(tmp_path / f"{sign}"):
            losses.append(compute_mean_loss(model.nll(TALK)))
    difference = (losses[0] - losses[1]) / 0.02
    assert compute_slope(G, pairs) == pytest.approx(difference, rel=0.02) and abs(difference) > 1e-3


def test_gradients_do_not_depend_on_batches_and_leave_no_trace(monkeypatch):
    model = shared("llama")
    needed, weights = (
        [p.requires_grad for p in model.model.parameters()],
        {k: v.clone() for k, v in model.model.state_dict().items()},
    )
    whole = compute_gradients(model, TALK, LAYERS["llama"])
    with monkeypatch.context() as patch:
        patch.setattr(model, "tokens_per_batch", 1)
        single = compute_gradients(model, TALK, LAYERS["llama"])
    for m in LAYERS["llama"]:
        assert np.allclose(whole[m], single[m], atol=1e-6) and np.abs(whole[m]).max() > 1e-4
    prefixed = compute_gradients(model, TALK, ["base_model.model." + LAYERS["llama"][0]], lambda module, G: G.sum())
    assert prefixed["base_model.model." + LAYERS["llama"][0]] == pytest.approx(
        whole[LAYERS["llama"][0]].sum(), abs=1e-5
    )
    for wrong in ("no.such.layer", LAYERS["llama"][0]):

        def use(module, G):
            raise ZeroDivisionError

        with pytest.raises((InputError, ZeroDivisionError)):
            compute_gradients(model, TALK, [LAYERS["llama"][0], wrong], use)
    assert [p.requires_grad for p in model.model.parameters()] == needed and all(
        p.grad is None and not p._post_accumulate_grad_hooks for p in model.model.parameters()
    )
    assert all(torch.equal(v, weights[k]) for k, v in model.model.state_dict().items())


@pytest.fixture
def downhill(tmp_path):
    "pLLMs downhill, uphill and elsewhere of TALK's loss; one downhill is ten times as long, one changes other layers."
    model, layers = shared("llama"), LAYERS["llama"]
    G = compute_gradients(model, TALK, layers)

    def towards(sign, scale=1.0):
        out = {}
        for m, g in G.items():
            U, S, V = np.linalg.svd(g, full_matrices=False)
            out[m] = torch.tensor(V[:2]), torch.tensor(sign * scale * U[:, :2] * S[:2])
        return out

    made = dict(
        chance=chance_factors(model, layers, 2, 0),
        down=towards(-1),
        far=towards(-1, 10.0),
        other=chance_factors(model, ["model.layers.1.self_attn.v_proj"], 2, 1),
        up=towards(1),
    )
    for name, pairs in made.items():
        save_adapter(tmp_path / name, pairs)
    return planted(tmp_path, np.eye(5), made, base=model.base), G, made


def test_gradient_finds_downhill(downhill):
    library, G, made = downhill
    got = select(library, method="gradient", model=shared("llama"), dialogues=TALK)
    score = dict(zip(got.names, got.distances))
    assert (
        set(got.names[:2]) == {"down", "far"}
        and got.names[-1] == "up"
        and score["down"] == pytest.approx(score["far"], rel=1e-2) == pytest.approx(-score["up"], rel=1e-2)
    ), "length does not count"
    tokens = sum(len(shared("llama").encode(d)["input_ids"]) for d in TALK)
    assert (
        (got.cost.forward, got.cost.backward, got.cost.tokens) == (6, 6, tokens)
        and got.cost.bytes_moved
        == 5 * 4 * 64 * 2
        + sum(8 * 2 * sum(shape(shared("llama"), m)) for m in [*LAYERS["llama"], "model.layers.1.self_attn.v_proj"])
        + get_download_bytes(library, got.best)
        and got.losses == {}
    )
    assert (
        select(permuted(library, [3, 1, 4, 0, 2]), method="gradient", model=shared("llama"), dialogues=TALK).names
        == got.names
    )


def test_sketch_tells_adapters_apart_as_the_exact_score_does(downhill):
    "Scores less their mean: the larger the sketch the nearer, and exact where it holds every direction."
    library, G, made = downhill
    G = {f"base_model.model.{m}": g for m, g in G.items()} | {
        "base_model.model.model.layers.1.self_attn.v_proj": np.zeros((32, 32))
    }
    exact = np.array(
        [compute_slope(G, prefixed(made[n])) / factor_inner_product(made[n], made[n]) ** 0.5 for n in library.names]
    )

    def error(size):
        rows, sides = load_sketch(library, size)
        kept = np.stack([(left @ G[m] @ right.T).ravel() for m, (left, right) in sides.items()])
        found = np.array([float((row.astype(float) * kept).sum()) for row in rows])
        return np.abs((found - found.mean()) - (exact - exact.mean())).max() / np.ptp(exact)

    errors = [error(size) for size in (1, 2, 16)]
    assert errors[0] > errors[1] > 2 * errors[2] and errors[2] < 0.002, errors


def prefixed(pairs):
    return {f"base_model.model.{m}": pair for m, pair in pairs.items()}


def test_directions_are_those_of_the_differences():
    "What all have in common takes no direction, however large it is; the planted differences are found."
    directions_of = lambda changes, size: learn_sketch_directions([dict(q=change) for change in changes], size)["q"]
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, 3)))[0].T for n in (12, 9))  # rows: one shared direction, two that differ
    changes = [
        (np.stack([v[0], v[1], v[2]]), np.stack([50 * u[0], a * u[1], b * u[2]], 1), 1.0)
        for a, b in ((3, 1), (-3, 0), (0, -1))
    ]
    left, right = directions_of(changes, 2)
    assert (
        left.shape == (2, 12)
        and right.shape == (2, 9)
        and np.allclose(np.abs(left @ u.T), [[0, 1, 0], [0, 0, 1]], atol=1e-4)
        and np.allclose(np.abs(right @ v.T), [[0, 1, 0], [0, 0, 1]], atol=1e-4)
    )
    alone = directions_of(changes[:1], 4)
    assert alone[0].shape == (4, 12) and np.isfinite(alone[0]).all(), "one pLLM differs from nobody"
    wide = directions_of(changes, 20)
    assert wide[0].shape == (20, 12) and np.allclose(wide[0] @ wide[0].T, np.diag([1.0] * 12 + [0.0] * 8), atol=1e-8), (
        "no more directions than there are"
    )


def test_a_sketch_is_kept_and_renewed(downhill):
    library, _, made = downhill
    rows, sides = load_sketch(library)
    file = Path(library.path, "sketch-8.npy")
    beside = file.with_suffix(".safetensors")
    assert (
        isinstance(rows, np.memmap)
        and rows.dtype == np.float16
        and rows.shape == (5, 4, 64)
        and not rows.flags.writeable
        and len(sides) == 4
        and [*sides] == sorted(sides)
    )
    assert all(
        X.dtype == np.float16 and X.shape == (8, n)
        for m, pair in sides.items()
        for X, n in zip(pair, shape(shared("llama"), m.removeprefix("base_model.model.")))
    )
    assert np.count_nonzero(rows[3].any(1)) == 1 and np.count_nonzero(rows[0].any(1)) == 3, (
        "a layer that an adapter leaves alone is zero"
    )
    before, old = file.stat().st_mtime_ns, np.array(rows)
    again = load_sketch(library)[0]
    assert file.stat().st_mtime_ns == before and np.array_equal(again, old)
    load_sketch(library, 4)
    assert file.stat().st_mtime_ns == before and load_sketch(library, 4)[0].shape == (5, 4, 16)
    save_adapter(library.path / "far", made["down"])  # the same direction: the others' rows stay
    library.rows[0] *= 2
    assert np.allclose(load_sketch(library)[0], old, atol=2e-3) and file.stat().st_mtime_ns != before
    library.names, library.rows = library.names[:2], library.rows[:2]
    assert load_sketch(library)[0].shape == (2, 3, 64)
    with pytest.raises(InputError, match="size is 0"):
        load_sketch(library, 0)
    for damage in (
        lambda: file.write_bytes(b"x"),
        file.unlink,
        lambda: np.save(file, np.zeros((2, 3, 63), np.float16)),
        lambda: np.save(file, np.zeros((2, 3, 64))),
        lambda: beside.write_text("{"),
        beside.unlink,
        lambda: beside.write_bytes(b""),
        lambda: file.write_bytes(b""),
    ):
        whole = np.array(load_sketch(library)[0])
        damage()
        assert np.array_equal(load_sketch(library)[0], whole) and whole.any(), "a damaged sketch is made anew"


def test_a_real_library_and_a_device_without_its_adapters(downhill, tmp_path):
    from types import SimpleNamespace
    from personal_llm.selection.library import Library

    planted_one, _, made = downhill
    space = SimpleNamespace(
        id="planted",
        base=planted_one.base,
        width=5,
        columns=dict(coordinates=(0, 5)),
        threshold=1.0,
        save=lambda folder: None,
    )
    library = Library.create(tmp_path / "library", space)
    for row, name in zip(np.eye(5), made):
        library.add(
            name,
            planted_one[name].adapter,
            SimpleNamespace(space="planted", row=row, to_dict=dict),
            licence="CC0-1.0",
            samples=6,
        )
    asked = dict(model=shared("llama"), dialogues=TALK)
    for method in (
        ("random", "mean", "exhaustive", "bayesian", "hyperband", "weights", "gradient")
        if optuna_is_there()
        else ("random", "mean", "exhaustive", "weights", "gradient")
    ):
        got = select(library, me(np.eye(5)[1]), method, **asked)
        assert (
            got.method == "your own"
            and (got.best in made) == (method != "mean")
            and json.loads(json.dumps(got.to_dict()))["method"] == "your own"
        )
    ranking = select(library, me(np.eye(5)[1]), "match", **asked)
    assert ranking.weights == {ranking.best: 1} and ranking.best in made
    assert ranking.losses.keys() >= {BASE_NAME, "down", ranking.best}
    first = select(library, method="gradient", **asked)
    for name in set(made) - {first.best}:
        (library.path / name / "adapter_model.safetensors").unlink()
    assert select(library, method="gradient", **asked).names == first.names, "index and sketch are enough"
    with pytest.raises(InputError, match="adapter_model.safetensors is missing"):
        select(library, method="exhaustive", **asked)


def optuna_is_there():
    return find_spec("optuna") is not None


def test_a_model_without_the_layers(downhill):
    library, _, _ = downhill
    library.base = shared("gpt2").base
    with pytest.raises(InputError, match="no layer"):
        select(library, method="gradient", model=shared("gpt2"), dialogues=TALK)
    with pytest.raises(InputError, match="no linear layer"):
        compute_gradients(shared("llama"), TALK, ["model.norm"])
    with pytest.raises(InputError, match="no layer"):
        compute_gradients(shared("llama"), TALK, ["model.layers.0.mlp"])
