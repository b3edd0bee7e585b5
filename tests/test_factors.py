"Arithmetic on factors against plain matrices, and what is no plain LoRA."

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import break_seal

from personal_llm.base.adapters import CONFIG_FILE, WEIGHTS_FILE, write_adapter
from personal_llm.base.core import InputError
from personal_llm.base.adapters import (
    concatenate_factors,
    read_factors,
    factor_inner_product,
    read_lora_config,
    truncate_factors,
)

SETTINGS = dict(peft_type="LORA", task_type="CAUSAL_LM")
SHAPES = dict(first=(5, 3), second=(4, 6))  # module -> (out, in)


def random_pairs(rank, seed, modules=SHAPES):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, width, generator=draw), torch.randn(height, rank, generator=draw))
        for name, (height, width) in modules.items()
    }


def dense(pairs):
    return {name: B @ A for name, (A, B) in pairs.items()}


RANKS, SEEDS = st.integers(1, 4), st.integers(0, 9)


@given(RANKS, RANKS, SEEDS)
@settings(max_examples=30, deadline=None)
def test_inner_product_of_the_changes(rank, other_rank, seed):
    one, other = random_pairs(rank, seed), random_pairs(other_rank, seed + 1, dict(second=(4, 6)))
    expected = (dense(one)["second"] * dense(other)["second"]).sum().item()
    assert factor_inner_product(one, other) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert factor_inner_product(other, one) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert factor_inner_product(one, dict(elsewhere=one["first"])) == 0


@given(st.lists(st.tuples(RANKS, st.floats(-2, 2), st.booleans()), min_size=1, max_size=4), SEEDS)
@settings(max_examples=30, deadline=None)
def test_the_sum_is_exact(parts, seed):
    "Also of adapters of other ranks, with other modules, and with weights below 0."
    parts = [
        (random_pairs(rank, seed + n, SHAPES if both else dict(first=(5, 3))), weight)
        for n, (rank, weight, both) in enumerate(parts)
    ]
    total = concatenate_factors(parts)
    assert total.keys() == set().union(*(pairs for pairs, _ in parts))
    for name, (A, B) in total.items():
        assert A.shape[0] == B.shape[1] == sum(pairs["first"][0].shape[0] for pairs, _ in parts)
        expected = sum(weight * dense(pairs)[name] for pairs, weight in parts if name in pairs)
        assert torch.allclose(B @ A, expected, atol=1e-4)


def test_shapes_of_different_models_are_refused():
    wide = dict(first=(torch.ones(1, 9), torch.ones(5, 1)))
    with pytest.raises(InputError, match="5 x 3 and 5 x 9 weights.*different base models"):
        concatenate_factors([(random_pairs(1, 0), 1.0), (wide, 1.0)])


@given(rank=st.integers(1, 6), seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_the_nearest_of_a_smaller_rank(rank, seed):
    "Against the decomposition of the whole matrix."
    A, B = random_pairs(4, seed)["second"]
    truncated, error = truncate_factors(dict(second=(A, B)), rank)
    small_A, small_B = truncated["second"]
    squares = torch.linalg.svdvals((B @ A).double()) ** 2
    lost = squares[rank:].sum().item()
    assert small_A.shape == (min(rank, 4), 6) and small_B.shape == (4, min(rank, 4))
    assert error == pytest.approx(math.sqrt(lost / squares.sum().item()), abs=1e-4)
    assert (small_B @ small_A - B @ A).square().sum().item() == pytest.approx(lost, abs=1e-3)


def write(folder, pairs, **more):
    return write_adapter(pairs, SETTINGS, folder, base="base-1", parents=("chat-1",), **more)


def test_the_error_is_that_of_all_modules():
    pairs = random_pairs(4, 3)
    small, error = truncate_factors(pairs, 2)
    far = sum((dense(small)[m] - dense(pairs)[m]).square().sum().item() for m in pairs)
    assert error == pytest.approx(math.sqrt(far / factor_inner_product(pairs, pairs)), rel=1e-3) and 0.05 < error < 1
    assert truncate_factors(pairs, 9)[1] == pytest.approx(0, abs=1e-6), "no larger than it was"
    assert truncate_factors({m: (A, 0 * B) for m, (A, B) in pairs.items()}, 1)[1] == 0


def test_alpha_is_in_the_factors(tmp_path):
    made = write(tmp_path / "a", random_pairs(2, 0))
    before = dense(read_factors(made.path))["first"]
    break_seal(made.path)
    config = json.loads((made.path / CONFIG_FILE).read_text())
    (made.path / CONFIG_FILE).write_text(json.dumps(config | dict(lora_alpha=6)))
    assert torch.allclose(dense(read_factors(made.path))["first"], 3 * before, rtol=1e-5)


@pytest.mark.parametrize(
    "odd",
    [
        dict(use_rslora=True),
        dict(use_dora=True),
        dict(lora_bias=True),
        dict(bias="all"),
        dict(modules_to_save=["lm_head"]),
        dict(rank_pattern=dict(first=3)),
        dict(init_lora_weights="pissa"),
        dict(something_new=5),
        dict(peft_type="IA3"),
        dict(r=0),
        dict(r=True),
        dict(r="2"),
        dict(lora_alpha=float("nan")),
        dict(lora_alpha=None),
    ],
    ids=str,
)
def test_what_is_no_plain_lora_is_refused(odd, tmp_path):
    folder = write(tmp_path / "a", random_pairs(2, 0)).path
    break_seal(folder)
    (folder / CONFIG_FILE).write_text(json.dumps(read_lora_config(folder) | odd))
    with pytest.raises(InputError, match="adapter_config.json: .*(only|is not|must be)"):
        read_factors(folder)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "null"], ids=range(4))
def test_settings_that_are_damaged_are_one_line(content, tmp_path):
    folder = write(tmp_path / "a", random_pairs(2, 0)).path
    break_seal(folder)
    (folder / CONFIG_FILE).write_text(content)
    with pytest.raises(InputError, match="adapter_config.json"):
        read_lora_config(folder)


def test_matrices_that_are_damaged_are_one_line(tmp_path):
    folder = write(tmp_path / "a", random_pairs(2, 0)).path
    break_seal(folder)
    good = load_file(folder / WEIGHTS_FILE)
    name = "first.lora_A.weight"
    cases = {
        "more or less": {key: x for key, x in good.items() if key != name},
        "more or less than pairs": good | {"first.bias": torch.ones(1)},
        "more or less than": {},
        "rank should be 2": good | {name: torch.ones(3, 3)},
        "has factors": good | {name: torch.ones(2)},
        "not finite": good | {name: torch.full((2, 3), float("nan"))},
    }
    for says, tensors in cases.items():
        save_file(tensors, folder / WEIGHTS_FILE)
        with pytest.raises(InputError, match=says):
            read_factors(folder)
    (folder / WEIGHTS_FILE).write_bytes(b"garbage")
    with pytest.raises(InputError, match="damaged"):
        read_factors(folder)
