"LoRA in the top layers: resumed, gone on from, refused; and the dropout that layers share."

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_tuning import BRIEF, TALK, TEST, bits, result, stop_at
from tiny import shared, tiny

from personal_llm.base.core import InputError
from personal_llm.base.tokens import collate_samples
from personal_llm.selection.merging import combine_adapters
from personal_llm.tuning import speedups
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune, trainable_adapter
from personal_llm.tuning.speedups import FastForward

TOP = replace(BRIEF, layers=1, steps=6, dropout=0.1, bfloat16=False)


def factors(adapter) -> dict:
    return load_file(Path(adapter.path) / "adapter_model.safetensors")


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


def test_going_on_keeps_the_layers(tmp_path):
    model = shared("llama")
    start = finetune(model, TALK, TOP, out=tmp_path / "a", progress=False)
    further = finetune(model, TALK, BRIEF, start=start, progress=False)
    assert further.config["layers"] == 1 and further.start_loss == pytest.approx(start.best_loss)
    with pytest.raises(InputError, match="has layers 1, and TuningConfig asks for 2"):
        finetune(model, TALK, replace(BRIEF, layers=2), start=start)


@pytest.mark.parametrize("step", [1, 4])
def test_resumed_is_bit_equal(step, tmp_path):
    model, config = shared("qwen2"), replace(TOP, checks=3, validation=0.3)
    straight = finetune(model, TALK, config, seed=2, progress=False)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, TALK, config, out=tmp_path, seed=2, progress=False, on_step=stop_at(step))
    again = finetune(model, TALK, config, out=tmp_path, seed=2, progress=False)
    assert result(again) == result(straight)


def batch_of(model, count=6):
    return collate_samples([model.encode(d, 64) for d in TALK[:count]], model.tokenizer.pad_token_id)


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
