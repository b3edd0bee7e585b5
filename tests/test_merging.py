"Merging: hand-worked mixtures, brute-force and full-matrix twins, every architecture, what is refused."

import itertools
import json
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file, save_file
from scipy.optimize import nnls

from personal_llm.experiments.methods import merge_weights
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.adapters import read_lora_config
from personal_llm.experiments.methods.merge_weights import fit_merge_weights
from personal_llm.selection.merging import merge
from personal_llm.base.adapters import Adapter
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune
from personal_llm.tuning.validation import RULE_FROM_NEW_START, validation_split
from libraries import adapter
from tiny import ARCHITECTURES, shared, tiny

TALK = [
    Dialogue(f"Question number {i}: what is {w}?", f"It is {w}, of course.")
    for i, w in enumerate("tea rain bread snow music salt wool glass".split())
]
BRIEF = TuningConfig(steps=2, batch_size=4, max_length=64, checks=1, learning_rate=1e-2)

# ---- weights


@pytest.mark.parametrize(
    "Z, t, wanted",
    [
        ([[1, 0], [0, 1]], [0.5, 0.25], [0.5, 0.25]),  # inside: the rest is the base
        ([[1, 0], [0, 1]], [3, 1], [0.75, 0.25]),  # too strong: the shares
        ([[2, 0], [0, 1]], [1, 0.5], [0.5, 0.5]),  # members of different lengths
        ([[2, 0], [0, 1]], [4, 2], [0.5, 0.5]),
        ([[1, 0], [0, 1]], [1, -1], [1, 0]),  # nothing is subtracted
        ([[-1, 0], [0, -1]], [1, 1], [0, 0]),
        ([[0, 0], [0, 2]], [0, 1], [0, 0.5]),  # a member without a style
        ([[1, 0], [1, 0], [0, 1]], [0.5, 0], [0.5, 0, 0]),  # twins: one of them
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0.4, 0.2, 0.1], [0.4, 0.2, 0.1]),
    ],
)
def test_weights_by_hand(Z, t, wanted):
    assert np.allclose(fit_merge_weights(Z, t), wanted)


def test_the_limit_on_members():
    Z = np.eye(4)
    assert np.allclose(fit_merge_weights(Z, [0.4, 0.3, 0.2, 0.1]), [0.4, 0.3, 0.2, 0])
    assert np.allclose(fit_merge_weights(Z, [0.4, 0.3, 0.2, 0.1], max_members=1), [0.4, 0, 0, 0])
    assert np.allclose(fit_merge_weights(Z, [0.5, 0.04, 0, 0]), [0.5, 0, 0, 0]), (
        "a member that explains less than a hundredth is noise"
    )
    assert np.allclose(fit_merge_weights(Z, [0.5, 0.06, 0, 0]), [0.5, 0.06, 0, 0])


def test_no_candidates():
    assert fit_merge_weights(np.zeros((0, 3)), [1, 0, 0]).shape == (0,)


def test_exchange_mends_a_greedy_mistake():
    "The first taken is the best alone, and no part of the best pair."
    Z, t = np.array([[1, 0, 0], [0, 1, 0], [0.8, 0.6, 0.4]]), np.array([0.5, 0.5, 0])
    assert np.allclose(fit_merge_weights(Z, t, max_members=2), [0.5, 0.5, 0])


def brute(Z, t, most):
    "The lowest squared error over all sets of members."
    return min(nnls(Z[list(s)].T, t)[1] ** 2 for s in itertools.combinations(range(len(Z)), most))


def test_as_good_as_trying_all_sets():
    "Within the worth of one member of the brute-force twin: always nearly, mostly exactly."
    random, exact = np.random.default_rng(0), []
    for trial in range(30):
        Z = random.normal(size=(12, 8)) + 0.5
        t = np.abs(random.normal(size=4)) @ Z[:4]
        t *= 0.3 / np.linalg.norm(t)
        alpha = fit_merge_weights(Z, t)
        error = np.sum((t - alpha @ Z) ** 2) / (t @ t)
        best = brute(Z, t, 3) / (t @ t)
        assert best - 1e-9 <= error
        exact.append(error < best + merge_weights.MIN_ERROR_REDUCTION)
    assert np.mean(exact) >= 0.8, np.mean(exact)


@pytest.mark.parametrize("shares", [[1], [0.6, 0.4], [0.45, 0.3, 0.25]])
@pytest.mark.parametrize("length", [0.2, 0.8, 1, 3, 10])
def test_planted_mixtures_of_any_length(shares, length):
    "Noise a tenth of the user's length: the planted members, their shares, and a sum that never passes 1."
    random, hits = np.random.default_rng(len(shares)), []
    for trial in range(40):
        Z = random.normal(size=(28, 16))
        Z /= np.linalg.norm(Z, axis=1, keepdims=True)
        members = random.choice(28, len(shares), replace=False)
        clean = length * np.array(shares) @ Z[members]
        alpha = fit_merge_weights(Z, clean + random.normal(size=16) / 4 * 0.1 * np.linalg.norm(clean))
        assert alpha.sum() <= 1 + 1e-9
        hits.append(set(np.flatnonzero(alpha)) == set(members))
        if hits[-1]:
            assert (
                np.abs(alpha[members] / alpha.sum() - shares).max() < 0.12 and abs(alpha.sum() - min(1, length)) < 0.15
            )
    assert np.mean(hits) >= 0.9


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_users_and_pllms_share_one_unit(unit):
    "A user's weight on the pLLM of the same style is the ratio of their strengths, up to 1, in whatever unit."
    random = np.random.default_rng(0)
    styles = np.linalg.qr(random.normal(size=(16, 16)))[0][:6]
    strengths = np.linspace(0.3, 0.9, 6)
    for strength in (0.1, 0.5, 1, 2):
        for i in range(6):
            noise = random.normal(size=16) * 0.05 * strength / 4
            alpha = fit_merge_weights(unit * strengths[:, None] * styles, unit * (strength * styles[i] + noise))
            assert alpha[i] == pytest.approx(min(1, strength / strengths[i]), rel=0.1) == alpha.sum()


finite = st.floats(-5, 5, allow_subnormal=False).map(lambda x: round(x, 3))


@given(
    arrays(float, st.tuples(st.integers(1, 9), st.just(4)), elements=finite),
    arrays(float, 4, elements=finite),
    st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_weights_always(Z, t, max_members):
    alpha = fit_merge_weights(Z, t, max_members)
    assert (
        alpha.shape == (len(Z),)
        and np.isfinite(alpha).all()
        and (alpha >= 0).all()
        and alpha.sum() <= 1 + 1e-9
        and (alpha > 0).sum() <= max_members
    )
    if alpha.any():
        assert (alpha @ Z) @ t > 0, "never away from the user"
    if alpha.sum() < 1 - 1e-9:
        assert np.sum((t - alpha @ Z) ** 2) <= t @ t + 1e-9, "never worse than the base"
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    assert (
        np.sum((t - alpha @ Z) ** 2)
        == pytest.approx(
            np.sum((t @ turned - fit_merge_weights(Z @ turned, t @ turned, max_members) @ Z @ turned) ** 2),
            abs=0.2 + 0.05 * (t @ t),
        )
        or max_members > 1
    ), "the axes do not count"


@pytest.mark.parametrize(
    "Z, t, max_members",
    [
        ([[1, 0]], [1], 3),
        ([1, 0], [1, 0], 3),
        ([[np.nan, 0]], [1, 0], 3),
        ([[1, 0]], [np.inf, 0], 3),
        ([[1, 0]], [1, 0], 0),
    ],
)
def test_wrong_coordinates(Z, t, max_members):
    with pytest.raises(InputError):
        fit_merge_weights(Z, t, max_members)


# ---- adapters


def logits(model):
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        return model.model(input_ids=ids).logits


def weights(model):
    return {n: v.clone() for n, v in model.model.state_dict().items()}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    place, model = tmp_path_factory.mktemp("pool"), shared("llama")
    return dict(
        a=adapter(place / "a", model, 2, 8, 1),
        b=adapter(place / "b", model, 3, 3, 2),
        c=adapter(place / "c", model, 1, 5, 3, ["q_proj", "up_proj"]),
    )


def dense(folder):
    "module -> the change of its weights, by the definition alpha / r * B A."
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    return {
        n[:-14]: config["lora_alpha"] / config["r"] * tensors[n[:-14] + ".lora_B.weight"] @ v
        for n, v in tensors.items()
        if n.endswith("lora_A.weight")
    }


def summed(pool, shares):
    parts = [(dense(pool[n]), w) for n, w in shares.items()]
    return {m: sum(w * d[m] for d, w in parts if m in d) for m in set().union(*(d for d, _ in parts))}


@pytest.mark.parametrize(
    "shares",
    [
        dict(a=1.0),
        dict(b=0.3),
        dict(a=0.6, b=0.4),
        dict(a=0.2, b=0.3, c=0.4),
        dict(c=1),
        dict(a=0, b=0.5, c=np.float32(0.5)),
    ],
)
def test_the_sum_is_exact(shares, pool, tmp_path):
    got, wanted = merge(pool, shares, tmp_path / "m"), summed(pool, {n: w for n, w in shares.items() if w})
    found = dense(got.path)
    assert found.keys() == wanted.keys() and all(
        torch.allclose(found[m], wanted[m], rtol=1e-5, atol=1e-6) for m in wanted
    )
    assert (
        got.parents == tuple(n for n, w in shares.items() if w)
        and got.base == shared("llama").base
        and Adapter.load(tmp_path / "m") == got
    )
    assert read_lora_config(got.path)["r"] == sum(read_lora_config(pool[n])["r"] for n in got.parents)
    assert {p.name for p in got.path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter.json",
    } and [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attached_it_is_the_weighted_sum(architecture, tmp_path):
    "Against a model to whose weights the sum was added by hand; plain peft loads it; GPT-2's turned layers included."
    from peft import PeftModel

    model = tiny(architecture)
    targets = ["c_attn"] if architecture == "gpt2" else ["q_proj", "down_proj"]
    pool = dict(a=adapter(tmp_path / "a", model, 2, 1, 1), b=adapter(tmp_path / "b", model, 3, 0.5, 2, targets))
    before, bare = weights(model), logits(model)
    got = merge(pool, dict(a=0.5, b=0.3))
    with model.use_adapter(got):
        adapted = logits(model)
    assert all(torch.equal(before[n], v) for n, v in model.model.state_dict().items())
    twin = tiny(architecture)
    parameters = dict(twin.model.named_parameters())
    with torch.no_grad():
        for m, delta in summed(pool, dict(a=0.5, b=0.3)).items():
            parameters[m.removeprefix("base_model.model.") + ".weight"] += delta.T if architecture == "gpt2" else delta
    assert torch.allclose(adapted, logits(twin), rtol=1e-4, atol=1e-4) and not torch.allclose(adapted, bare, atol=1e-2)
    plain = tiny(architecture)
    plain.model = PeftModel.from_pretrained(plain.model, str(got.path)).eval()
    assert torch.allclose(logits(plain), adapted, rtol=1e-4, atol=1e-5)


def test_one_at_full_weight_is_itself(pool):
    model = shared("llama")
    for name in pool:
        with model.use_adapter(pool[name]):
            alone = logits(model)
        with model.use_adapter(merge(pool, {name: 1})):
            assert torch.allclose(logits(model), alone, rtol=1e-4, atol=1e-5)


def test_choices_of_layers_do_not_reach_the_merge(pool, tmp_path):
    "One adapter is for the first layer only, one leaves a module out: the merge is adapted wherever one of them is."
    model = shared("llama")
    some = dict(
        first=adapter(tmp_path / "first", model, 2, 1, 4, ["q_proj"], layers_to_transform=[0]),
        less=adapter(tmp_path / "less", model, 1, 1, 5, ["q_proj", "up_proj"], exclude_modules=["up_proj"]),
        c=pool["c"],
    )
    for order in (["first", "less", "c"], ["less", "c", "first"]):
        got = merge(some, {n: 0.3 for n in order})
        before = weights(model)
        with model.use_adapter(got):
            changed = {n for n, p in model.model.state_dict().items() if not torch.equal(before[n], p)}
        assert {f"base_model.model.{n.removesuffix('.weight')}" for n in changed} == set(dense(got.path))
        assert len(changed) == 4


def test_merges_of_merges(pool):
    inner = merge(pool, dict(a=0.5, b=0.5))
    outer = merge(dict(inner=inner.path, c=pool["c"]), dict(inner=0.6, c=0.4))
    wanted = summed(pool, dict(a=0.3, b=0.3, c=0.4))
    assert all(torch.allclose(dense(outer.path)[m], wanted[m], rtol=1e-5, atol=1e-6) for m in wanted)


def test_it_can_be_trained_on(pool, tmp_path):
    "Continuing in a merge starts at the merge."
    model, start = shared("llama"), merge(pool, dict(a=0.05, b=0.05))
    judges = validation_split(TALK, BRIEF.validation, 0, RULE_FROM_NEW_START)[1]
    with model.use_adapter(start):
        nats, tokens = model.nll(judges).sum(0)
    further = finetune(model, TALK, BRIEF, start=start, out=tmp_path / "f", progress=False)
    assert further.start_loss == pytest.approx(nats / tokens, abs=1e-4) and read_lora_config(further.path)["r"] == 5


def test_libraries_are_anything_with_adapters(pool):
    class Entry:
        def __init__(self, folder):
            self.adapter = folder

    got = merge({n: Entry(f) for n, f in pool.items()}, dict(a=0.5, c=0.25))
    assert got.parents == ("a", "c")


@pytest.mark.parametrize(
    "shares, says",
    [
        ({}, "base model alone"),
        (dict(a=0.0), "base model alone"),
        (dict(a=0.7, b=0.31), "sum to 1.01"),
        (dict(a=-0.1, b=0.2), "'a'"),
        (dict(a=float("nan")), "'a'"),
        (dict(a="1"), "'a'"),
        (dict(a=float("inf")), "'a'"),
        (dict(z=0.5), "'z'"),
    ],
)
def test_weights_that_are_refused(shares, says, pool, tmp_path):
    with pytest.raises(InputError, match=says) as error:
        merge(pool, shares, tmp_path / "m")
    assert "\n" not in str(error.value) and not (tmp_path / "m").exists()


def test_rounding_of_weights_is_tolerated(pool):
    assert merge(pool, dict(a=1 / 3, b=1 / 3, c=1 / 3 + 5e-7)).parents == ("a", "b", "c")


def changed(folder, to, **changes):
    shutil.copytree(folder, to)
    file = to / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return to


@pytest.mark.parametrize(
    "changes", [dict(use_rslora=True), dict(use_dora=True), dict(rank_pattern=dict(q_proj=4)), dict(of_tomorrow=3)]
)
def test_what_is_not_plain_lora_is_refused(changes, pool, tmp_path):
    bad = changed(pool["a"], tmp_path / "bad", **changes)
    with pytest.raises(InputError, match="bad") as error:
        merge(pool | dict(bad=bad), dict(b=0.5, bad=0.5), tmp_path / "m")
    assert next(iter(changes)) in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "m").exists()


def damage(folder, how):
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if "lora_B" in n)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-50])
    elif how == "text":
        file.write_text("hello")
    elif how == "config":
        (folder / "adapter_config.json").write_text("{")
    elif how == "no dict":
        (folder / "adapter_config.json").write_text("[1]")
    elif how == "gone":
        file.unlink()
    else:
        if how == "nan":
            tensors[name][0, 0] = float("nan")
        elif how == "half a pair":
            del tensors[name]
        elif how == "more":
            tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
        elif how == "embedding":
            tensors["base_model.model.e.lora_embedding_A"] = torch.zeros(2, 2)
        elif how == "shape":
            tensors[name] = torch.zeros(4, 7)
        save_file(tensors, file)


@pytest.mark.parametrize(
    "how", ["cut", "text", "config", "no dict", "gone", "nan", "half a pair", "more", "embedding", "shape"]
)
def test_damaged_adapters_are_named(how, pool, tmp_path):
    shutil.copytree(pool["a"], tmp_path / "bad")
    damage(tmp_path / "bad", how)
    with pytest.raises(InputError, match="bad") as error:
        merge(pool | dict(bad=tmp_path / "bad"), dict(b=0.5, bad=0.5), tmp_path / "m")
    assert "\n" not in str(error.value) and not (tmp_path / "m").exists()


def test_other_bases_are_refused(pool, tmp_path):
    "By the card, and where there is none by the shapes."
    other = shutil.copytree(pool["b"], tmp_path / "other")
    (other / "adapter.json").write_text('{"base": "another"}')
    with pytest.raises(InputError, match="another"):
        merge(pool | dict(other=other), dict(a=0.5, other=0.5))
    model = tiny("qwen2")
    wide = adapter(tmp_path / "wide", model)
    (wide / "adapter.json").unlink()
    with pytest.raises(InputError, match="different base"):
        merge(pool | dict(wide=wide), dict(a=0.5, wide=0.5))
    assert merge(dict(wide=wide), dict(wide=1)).base is None, "nothing is known of its base"
    with pytest.raises(InputError, match="made for base"):
        with model.use_adapter(merge(pool, dict(a=1))):
            pass


def test_a_full_disk_leaves_the_older_adapter(pool, monkeypatch, tmp_path):
    old = merge(pool, dict(a=1), tmp_path / "m")
    before = {p.name: p.read_bytes() for p in old.path.iterdir()}

    def full(*a, **k):
        raise OSError(28, "No space left on device")

    import safetensors.torch

    for place, name in ((safetensors.torch, "save_file"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            with pytest.raises(InputError, match="No space"):
                merge(pool, dict(b=1), tmp_path / "m")
        assert {p.name: p.read_bytes() for p in old.path.iterdir()} == before and [
            p.name for p in tmp_path.iterdir()
        ] == ["m"]
