"A merge is the weighted sum of its members' changes, and plain peft reads it."

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personal_llm.base.adapters import Adapter, read_factors, read_lora_config
from personal_llm.base.core import InputError
from personal_llm.selection.merging import fit_merge_weights, merge
from tiny import ARCHITECTURES, random_adapter, shared


def dense(folder):
    return {module: (B @ A).numpy() for module, (A, B) in read_factors(folder).items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merge_is_the_exact_sum(architecture, tmp_path):
    model = shared(architecture)
    pool = {
        "a.1": random_adapter(model, tmp_path / "a", 2, 0, lora_alpha=8),
        "b": random_adapter(model, tmp_path / "b", 3, 1, lora_alpha=4),
        "c": random_adapter(model, tmp_path / "c", 1, 2, lora_alpha=1),
    }
    merged = merge(model, pool, {"a.1": 0.5, "b": 0.25, "c": 0.0}, tmp_path / "out")
    want = {module: 0.5 * change for module, change in dense(pool["a.1"]).items()}
    for module, change in dense(pool["b"]).items():
        want[module] = want[module] + 0.25 * change
    got = dense(merged.path)
    assert got.keys() == want.keys() and all(np.allclose(got[m], want[m], atol=1e-5) for m in want)
    assert merged.parents == ("a.1", "b") and read_lora_config(merged.path)["r"] == 5
    assert Adapter.load(tmp_path / "out").base == model.base
    alone = merge(model, pool, {"b": 1.0})
    assert all(np.allclose(dense(alone.path)[m], change, atol=1e-5) for m, change in dense(pool["b"]).items())


def test_the_model_stays_bare(tmp_path):
    model = shared("llama")
    before = [name for name, _ in model.model.named_modules()]
    pool = dict(a=random_adapter(model, tmp_path / "a"))
    adapter = merge(model, pool, dict(a=0.5))
    assert before == [name for name, _ in model.model.named_modules()]
    with model.use_adapter(adapter), pytest.raises(InputError, match="leave its `with` block"):
        merge(model, pool, dict(a=0.5))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 8))
def test_planted_shares_are_found(seed, n):
    rng = np.random.default_rng(seed)
    Z, shares = rng.normal(size=(n, 18)), rng.dirichlet(np.ones(n)) * rng.uniform(0.2, 1)
    found = fit_merge_weights(Z, range(n), shares @ Z)
    assert np.allclose([found.get(i, 0) for i in range(n)], shares, atol=1e-6)
    assert sum(fit_merge_weights(Z, range(n), 9 * shares @ Z).values()) <= 1 + 1e-9


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    "A plain adapter, and others that cannot be merged with it."
    folder = tmp_path_factory.mktemp("pool")

    def change(name, file, **fields):
        place = random_adapter(shared("llama"), folder / name) / file
        place.write_text(json.dumps(json.loads(place.read_text()) | fields))
        return place.parent

    pool = dict(a=random_adapter(shared("llama"), folder / "a"), none=folder)
    pool["stabilised"] = change("stabilised", "adapter_config.json", use_rslora=True)
    pool["patterned"] = change("patterned", "adapter_config.json", rank_pattern=dict(q_proj=2))
    return pool | dict(foreign=change("foreign", "adapter.json", base="0123456789abcdef"))


@pytest.mark.parametrize(
    "weights, problem",
    [
        ({}, "the weights sum to 0"),
        (dict(a=0.8, foreign=0.4), "the weights sum to 1.2"),
        (dict(a=-0.1), "weight -0.1 of 'a'"),
        (dict(a=float("nan")), "weight nan of 'a'"),
        (dict(a="1"), "weight '1' of 'a'"),
        (dict(stabilised=1), "use_rslora is set"),
        (dict(patterned=1), "rank_pattern is set"),
        (dict(eve=1), "no pLLM 'eve' here; use one of a"),
        (dict(a=0.5, foreign=0.5), "made for base 0123456789abcdef"),
        (dict(none=1), "no adapter here"),
    ],
    ids=str,
)
def test_what_cannot_be_merged_is_refused(weights, problem, pool):
    with pytest.raises(InputError, match=problem):
        merge(shared("llama"), pool, weights)
