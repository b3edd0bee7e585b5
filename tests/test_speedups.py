"LoRA in the top layers: what frozen layers make is kept, and changes nothing; resumed, gone on from, refused."

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_tuning import BRIEF, TALK, TEST, bits, result, stop_at
from tiny import ARCHITECTURES, same, shared, tiny, weights

from personal_llm.base.core import InputError
from personal_llm.base.tokens import collate_samples
from personal_llm.selection.merging import combine_adapters
from personal_llm.tuning import speedups
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune, trainable_adapter
from personal_llm.tuning.speedups import (
    FastForward,
    FrozenLayerCache,
    count_frozen_layers,
    get_layer_stack,
    make_frozen_layer_cache,
)
from personal_llm.tuning.training_loop import response_nll

TOP = replace(BRIEF, layers=1, steps=6, dropout=0.1, bfloat16=False)
EXACT = [name for name in ARCHITECTURES if name != "gpt2"]  # GPT-2 drops numbers in all its layers


def factors(adapter) -> dict:
    return load_file(Path(adapter.path) / "adapter_model.safetensors")


@pytest.mark.parametrize("architecture", EXACT)
@pytest.mark.parametrize("validation", [0.0, 0.3])
def test_cached_equals_uncached_over_a_run(architecture, validation, monkeypatch):
    "Same factors, same losses, dropout on; the judge's dialogues are kept too, and nobody is computed twice."
    model, config = shared(architecture), replace(TOP, validation=validation)
    before, computed, real = weights(model), [], FrozenLayerCache.compute_row

    def counting(cache, row):
        computed.append(len(row["input_ids"]))
        return real(cache, row)

    monkeypatch.setattr(FrozenLayerCache, "compute_row", counting)
    cached = finetune(model, TALK, config, seed=3, progress=False)
    monkeypatch.setattr(speedups, "make_frozen_layer_cache", lambda adapted: None)
    plain = finetune(model, TALK, config, seed=3, progress=False)
    one, two = factors(cached), factors(plain)
    assert one.keys() == two.keys() and all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert np.allclose(np.array(cached.history, float), np.array(plain.history, float), atol=1e-5)
    assert any(value.abs().max() > 1e-3 for name, value in one.items() if "lora_B" in name), "something was learned"
    assert len(TALK) <= sum(computed) <= len(TALK) + 4, "each dialogue once, and the rows that were tried"
    assert same(model, before)


def test_only_the_top_layers_learn(tmp_path):
    "The adapter has no factors below; plain peft loads it and agrees; a merge with one of all layers is their sum."
    from peft import PeftModel

    model = tiny("llama")
    top = finetune(model, TALK, TOP, out=tmp_path / "top", progress=False)
    assert {name.split(".layers.")[1][0] for name in factors(top)} == {"1"} and top.config["layers"] == 1
    with model.use_adapter(top):
        adapted = model.nll(TEST)
    assert not np.allclose(adapted, model.nll(TEST))
    plain = tiny("llama")
    plain.model = PeftModel.from_pretrained(plain.model, str(top.path)).eval()
    assert np.allclose(plain.nll(TEST), adapted, rtol=1e-5)
    whole = finetune(model, TALK, BRIEF, progress=False)
    merged = combine_adapters(dict(top=top.path, whole=whole.path), dict(top=1.0, whole=1e-9), tmp_path / "merged")
    with model.use_adapter(merged):
        assert np.allclose(model.nll(TEST), adapted, rtol=1e-4)


def test_going_on_keeps_the_layers(monkeypatch, tmp_path):
    model = shared("llama")
    start = finetune(model, TALK, TOP, out=tmp_path / "a", progress=False)
    depths, real = [], speedups.make_frozen_layer_cache
    monkeypatch.setattr(
        speedups,
        "make_frozen_layer_cache",
        lambda adapted: depths.append(count_frozen_layers(adapted)) or real(adapted),
    )
    further = finetune(model, TALK, BRIEF, start=start, progress=False)
    assert further.config["layers"] == 1 and depths == [1] and further.start_loss == pytest.approx(start.best_loss)
    with pytest.raises(InputError, match="has layers 1, and TuningConfig asks for 2"):
        finetune(model, TALK, replace(BRIEF, layers=2), start=start)


@pytest.mark.parametrize("step", [1, 4])
def test_resumed_is_bit_equal(step, tmp_path):
    "What was kept is computed again after an interrupt."
    model, config = shared("qwen2"), replace(TOP, checks=3, validation=0.3)
    straight = finetune(model, TALK, config, seed=2, progress=False)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, TALK, config, out=tmp_path, seed=2, progress=False, on_step=stop_at(step))
    again = finetune(model, TALK, config, out=tmp_path, seed=2, progress=False)
    assert result(again) == result(straight)


def adapted_model(architecture="llama", **changes):
    "A tiny model inside its trainable block."
    return trainable_adapter(shared(architecture), replace(TOP, dropout=0.0, **changes))


def nll(adapted, batch, cache=None) -> float:
    "The loss of a batch with a cache of frozen layers."
    forward = FastForward(adapted)
    forward.frozen_layers = cache
    return forward(batch).sum().item()


def batch_of(model, count=6):
    return collate_samples([model.encode(d, 64) for d in TALK[:count]], model.tokenizer.pad_token_id)


def test_what_does_not_fit_is_computed_as_ever(monkeypatch):
    model = shared("llama")
    batch = batch_of(model)
    with adapted_model() as adapted:
        lower, real = make_frozen_layer_cache(adapted), speedups.MAX_CACHE_BYTES
        size = nll(adapted, batch, lower), lower.nbytes
        monkeypatch.setattr(speedups, "MAX_CACHE_BYTES", lower.nbytes - 1)
        less = make_frozen_layer_cache(adapted)
        for _ in range(2):
            assert nll(adapted, batch, less) == pytest.approx(size[0], rel=1e-6)
        assert (
            len(less.states_by_row) == len(lower.states_by_row) - 1 and less.nbytes <= speedups.MAX_CACHE_BYTES < real
        )
        assert lower.nbytes == 4 * 32 * int(batch["attention_mask"].sum())


def test_rounded_and_exact_numbers_are_kept_apart():
    "The judge never sees what was rounded for training."
    model = shared("llama")
    batch = batch_of(model)
    with adapted_model() as adapted:
        lower = make_frozen_layer_cache(adapted)
        with torch.autocast("cpu", torch.bfloat16):
            rough = lower.get_rows(batch)
        exact = lower.get_rows(batch)
        assert len(lower.states_by_row) == 2 * len(exact)
        assert all(not torch.equal(a, b) and torch.allclose(a, b, atol=0.1) for a, b in zip(rough, exact))
        assert all(torch.equal(a, b) for a, b in zip(exact, FrozenLayerCache(adapted, 1).get_rows(batch)))


def test_a_row_is_the_same_in_any_company():
    model = shared("qwen2")
    with adapted_model("qwen2") as adapted:
        together = FrozenLayerCache(adapted, 1).get_rows(batch_of(model))
        for d, kept in zip(TALK, together):
            alone = collate_samples([model.encode(d, 64)], 0)
            (hidden,) = FrozenLayerCache(adapted, 1).get_rows(alone)
            assert torch.equal(hidden, kept)


def test_models_that_drop_in_frozen_layers_are_not_kept():
    "GPT-2 drops in training, so nothing is kept; without its dropout the same model is."
    model = tiny("gpt2")
    with trainable_adapter(model, TOP) as adapted:
        assert count_frozen_layers(adapted) == 1 and make_frozen_layer_cache(adapted) is None
        for module in adapted.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        assert make_frozen_layer_cache(adapted) is not None
        batch = batch_of(model)
        assert nll(adapted, batch, make_frozen_layer_cache(adapted)) == pytest.approx(
            response_nll(adapted, batch).sum().item(), rel=1e-5
        )
    assert finetune(tiny("gpt2"), TALK, TOP, progress=False).best_loss > 0


def test_who_learns_outside_the_layers_keeps_nothing():
    with adapted_model() as adapted:
        assert count_frozen_layers(adapted) == 1
        adapted.get_input_embeddings().weight.requires_grad_(True)
        assert count_frozen_layers(adapted) == 0 and make_frozen_layer_cache(adapted) is None
        adapted.get_input_embeddings().weight.requires_grad_(False)


def test_layers_come_back_whatever_happens():
    with adapted_model() as adapted:
        stack, batch = get_layer_stack(adapted), batch_of(shared("llama"))
        with pytest.raises(ZeroDivisionError), FrozenLayerCache(adapted, 1).supply_rows(batch):
            assert "forward" in vars(stack[0])
            1 / 0
        assert not any("forward" in vars(layer) or layer._forward_pre_hooks for layer in stack)


def test_more_layers_than_there_are(tmp_path):
    with pytest.raises(InputError, match="layers is 3, this model has 2"):
        finetune(shared("llama"), TALK, replace(TOP, layers=3), out=tmp_path / "a", progress=False)
    assert list(tmp_path.iterdir()) == []
    for wrong in (-1, 1.0, True):
        with pytest.raises(InputError, match="layers"):
            TuningConfig(layers=wrong)
    named = finetune(shared("llama"), TALK, replace(TOP, target_modules="q_proj, v_proj", steps=2), progress=False)
    assert len(factors(named)) == 4 and bits(named)


def test_matrices_that_read_one_input_share_its_mask():
    "Seven matrices, four inputs a layer; nothing is remembered after a pass, and peft's settings keep the share."
    model = tiny("llama")
    with trainable_adapter(model, replace(BRIEF, dropout=0.25)) as adapted:
        forward, drawn, real = FastForward(adapted.train()), [], torch.Tensor.random_
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "random_", lambda self, *given: drawn.append(1) or real(self, *given))
            forward(batch_of(model)).sum().backward()
        assert len(drawn) == 4 * 2 and len(forward.dropouts) == 1
        assert forward.dropouts[0].last_input is None and forward.dropouts[0].last_output is None
        assert {m.lora_dropout["default"].p for m in adapted.modules() if hasattr(m, "lora_dropout")} == {0.25}


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.999])
def test_dropout_keeps_the_mean(p):
    torch.manual_seed(0)
    dropout, ones = speedups.make_dropout_class()(p), torch.ones(400, 1001)
    out = dropout(ones)
    assert abs((out == 0).float().mean() - p) < 6e-3 and out.mean().item() == pytest.approx(1, abs=0.05)
    assert out.unique().numel() <= 2
