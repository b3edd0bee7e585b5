"A fine-tune of the upper layers: exact, whatever the family, and an ordinary adapter of peft."

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from test_tuning import RUN, TALK, TEST, bits, per_token, result
from tiny import random_adapter, tiny_tokenizer, weights, same

from personal_llm.base.adapters import read_factors, read_lora_config
from personal_llm.base.core import InputError
from personal_llm.base.models import load_model
from personal_llm.base.tokens import collate_samples
from personal_llm.selection.merging import merge
from personal_llm.tuning import finetune as tuning
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune, trainable_adapter
from personal_llm.tuning.training_loop import keep_lower_states, response_nll, split_layers

SLIDING = dict(sliding_window=16)
STILL = dict(resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0)
FAMILIES = {  # name in transformers: settings beside the shape
    "Llama": dict(tie_word_embeddings=True),
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},  # scales the embeddings
    "Gemma3Text": SLIDING | dict(layer_types=["sliding_attention"] * 3 + ["full_attention"]),
    "Mistral": SLIDING,
    "Phi3": {},
    "GptOss": SLIDING,  # layers of two kinds, and a mixture of experts
    "GPT2": STILL,  # learned positions
    "Bloom": {},  # its layers give more than their states
}
INEXACT = ("Bloom",)
NETWORKS = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
UPPER = TuningConfig(rank=2, layers=2)


@cache
def make_family(name: str):  # a `Model` of four layers
    tokenizer = tiny_tokenizer("plain")
    shape = {token: getattr(tokenizer, token) for token in ("bos_token_id", "eos_token_id", "pad_token_id")}
    shape |= dict(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4)
    shape |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256)
    if name in ("GPT2", "Bloom"):
        shape = {key: value for key, value in shape.items() if key not in ("num_key_value_heads", "head_dim")}
    config = getattr(transformers, f"{name}Config")(**shape, initializer_range=0.1, **FAMILIES[name])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(transformers, NETWORKS.get(name, f"{name}ForCausalLM"))(config)
    return load_model((network, tokenizer), max_length=128)


def compute(adapted, batch) -> tuple:  # (losses, gradients)
    adapted.train()
    adapted.zero_grad()
    losses = response_nll(adapted, batch)
    losses.sum().backward()
    return losses.detach(), torch.cat([p.grad.flatten() for p in adapted.parameters() if p.requires_grad])


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_the_whole_model(name, capsys):
    "In a padded batch; a family whose layers can't be skipped says so, and takes the long way."
    model = make_family(name)
    before = weights(model)
    samples = [model.encode(d, 128) for d in (TALK[0], TALK[9], TEST[1])]
    batch = collate_samples(samples, model.tokenizer.pad_token_id)
    assert len({len(sample["input_ids"]) for sample in samples}) > 1
    with trainable_adapter(model, UPPER) as adapted:
        for part, values in adapted.named_parameters():
            if "lora_B" in part:
                torch.nn.init.normal_(values, std=0.1)
        wanted = compute(adapted, batch)
        with keep_lower_states(adapted, samples[0]):
            assert ("forward" in vars(adapted)) == (name not in INEXACT)
            first, second = compute(adapted, batch), compute(adapted, batch)
        assert not any("forward" in vars(module) for module in adapted.modules())
    assert wanted[1].abs().max() > 0.1
    for found in (first, second):
        assert torch.allclose(found[0], wanted[0], rtol=1e-6, atol=1e-5)
        assert torch.allclose(found[1], wanted[1], rtol=1e-5, atol=1e-4)
    assert same(model, before)
    assert ("computes them anew" in capsys.readouterr().err) == (name in INEXACT)


BRIEF = replace(RUN, layers=2, learning_rate=3e-2)


@pytest.fixture(scope="module")
def upper():
    return finetune(make_family("Qwen2"), TALK, BRIEF, progress=False)


def test_a_run_has_the_losses_of_the_long_way(upper, monkeypatch):
    "Validation and the kept weights included."
    monkeypatch.setattr(tuning, "keep_lower_states", lambda *given: nullcontext())
    long = finetune(make_family("Qwen2"), TALK, BRIEF, progress=False)
    assert upper.num_validation_dialogues == long.num_validation_dialogues == 6
    assert np.allclose(upper.history, long.history, rtol=1e-5) and upper.best_loss < upper.start_loss - 0.1
    assert (upper.cost.tokens, upper.cost.forward) == (long.cost.tokens, long.cost.forward)
    ours, theirs = read_factors(upper.path), read_factors(long.path)
    assert ours.keys() == theirs.keys()
    for module, pair in ours.items():
        assert all(torch.allclose(*two, atol=1e-4) for two in zip(pair, theirs[module]))


def test_a_sample_goes_through_the_lower_layers_once():
    model = make_family("Qwen2")
    calls = []
    products = model.model.model.layers[0].mlp.register_forward_hook(lambda *given: calls.append(given[1][0].shape[0]))
    finetune(model, TALK[:5], replace(BRIEF, steps=9), progress=False)
    products.remove()
    assert calls == [1] * (5 + 1), "and once in the comparison with the whole model"


def test_an_upper_adapter_is_an_ordinary_one(upper):
    from peft import PeftModel

    model = make_family("Qwen2")
    assert {module.split(".layers.")[1][0] for module in read_factors(upper.path)} == {"2", "3"}
    assert read_lora_config(upper.path)["layers_to_transform"] == [2, 3] and upper.config["layers"] == 2
    with model.use_adapter(upper):
        adapted = model.nll(TEST)
    assert not np.allclose(adapted, model.nll(TEST))
    plain = load_model((PeftModel.from_pretrained(model.model, str(upper.path)).eval(), model.tokenizer))
    assert np.allclose(plain.nll(TEST), adapted, rtol=1e-5)
    plain.model.unload()


def test_going_on_keeps_the_layers(upper):
    model = make_family("Qwen2")
    further = finetune(model, TALK, replace(BRIEF, layers=None, steps=2, checks=1), start=upper, progress=False)
    assert further.start_loss == pytest.approx(upper.best_loss, abs=1e-4)
    assert read_factors(further.path).keys() == read_factors(upper.path).keys() and further.config["layers"] == 2
    whole = finetune(model, TALK[:4], replace(BRIEF, layers=None, steps=1), progress=False)
    further = finetune(model, TALK[:4], replace(BRIEF, layers=1, steps=1), start=whole, progress=False)
    assert read_factors(further.path).keys() == read_factors(whole.path).keys() and further.config["layers"] is None
    assert (
        TuningConfig(layers=3).match_adapter(read_lora_config(upper.path) | dict(layers_to_transform=0), "x").layers
        == 1
    )


def test_an_interrupted_run_goes_on_and_leaves_the_model_whole(upper, tmp_path):
    model = make_family("Qwen2")
    losses = model.nll(TEST)

    def stop(step, loss):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:  # whose frames hold the loop
        finetune(model, TALK, BRIEF, out=tmp_path, progress=False, on_step=stop)
    assert np.array_equal(model.nll(TEST), losses) and caught
    assert (tmp_path / "checkpoints").exists()
    again = finetune(model, TALK, BRIEF, out=tmp_path, progress=False)
    assert result(again) == result(upper) and bits(again) == bits(upper)


@pytest.mark.parametrize(("small", "found"), [(0, [2, 3]), (10**9, None)], ids=["a large model", "a small one"])
def test_by_default_a_small_model_learns_in_all_layers(small, found, monkeypatch):
    monkeypatch.setattr(tuning, "SMALL_MODEL", small)
    monkeypatch.setattr(tuning, "UPPER_LAYERS", 2)
    config = replace(BRIEF, layers=TuningConfig().layers, steps=1)
    adapter = finetune(make_family("Qwen2"), TALK[:4], config, progress=False)
    assert read_lora_config(adapter.path)["layers_to_transform"] == found


@pytest.mark.parametrize("layers", [4, 99])
def test_as_many_layers_as_there_are_is_all(layers):
    adapter = finetune(make_family("Qwen2"), TALK[:4], replace(BRIEF, layers=layers, steps=1), progress=False)
    assert read_lora_config(adapter.path)["layers_to_transform"] is None


def test_named_modules_of_the_upper_layers(tmp_path):
    config = replace(BRIEF, target_modules="q_proj,v_proj", steps=1)
    adapter = finetune(make_family("Qwen2"), TALK[:4], config, progress=False)
    names = [f"model.model.layers.{layer}.self_attn.{name}" for layer in (2, 3) for name in ("q_proj", "v_proj")]
    assert sorted(read_factors(adapter.path)) == [f"base_model.{name}" for name in names]
    with pytest.raises(InputError, match="nonsense"):
        finetune(make_family("Qwen2"), TALK[:4], replace(config, target_modules="nonsense"), progress=False)


def test_a_family_without_a_list_of_layers_tunes_all(monkeypatch, capsys):
    model = make_family("Llama")
    monkeypatch.setattr(tuning, "find_layers", lambda network: None)
    adapter = finetune(model, TALK[:4], replace(BRIEF, steps=1), progress=False)
    assert len(read_factors(adapter.path)) == 4 * 7 and "all of them learn" in capsys.readouterr().err


def test_a_table_of_tokens_that_learns_takes_the_long_way():
    with trainable_adapter(make_family("Qwen2"), UPPER) as adapted:
        assert len(split_layers(adapted)[0]) == 2
        table = adapted.get_input_embeddings().weight.requires_grad_()
        assert not split_layers(adapted)[0]
        table.requires_grad_(False)


@pytest.mark.parametrize("order", [("upper", "whole"), ("whole", "upper"), ("upper", "top"), ("upper",)])
def test_a_merge_of_other_layers_is_the_exact_sum(order, upper, tmp_path):
    model = make_family("Qwen2")
    pool = dict(upper=upper.path, whole=random_adapter(model, tmp_path / "whole"))
    names = read_lora_config(upper.path)["target_modules"]
    pool["top"] = random_adapter(model, tmp_path / "top", target_modules=names, layers_to_transform=[3])
    merged = merge(model, pool, dict.fromkeys(order, 0.5))
    wanted = {}
    for name in order:
        for module, (A, B) in read_factors(pool[name]).items():
            wanted[module] = wanted.get(module, 0) + 0.5 * (B @ A)
    found = {module: B @ A for module, (A, B) in read_factors(merged.path).items()}
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[module], wanted[module], atol=1e-5) for module in wanted)
    assert json.loads((merged.path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    with model.use_adapter(merged):
        assert np.isfinite(per_token(model, TEST))
