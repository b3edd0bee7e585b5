"Rows without padding and layers in one product: the plain model's loss and gradients, or not taken at all."

from dataclasses import replace

import pytest
import torch
from test_tuning import BRIEF, TALK
from tiny import ARCHITECTURES, shared, tiny

from personal_llm.base.tokens import collate
from personal_llm.tuning import fused, losses
from personal_llm.tuning.finetune import trainable
from personal_llm.tuning.fused import plain_lora, quick_layers
from personal_llm.tuning.losses import Way, nats_of, packed_states, packs

CALM = replace(BRIEF, dropout=0.0, bfloat16=False)


def batch_of(model, count=5):
    return collate([model.encode(d, 64) for d in TALK[:count]], model.tokenizer.pad_token_id)


def calm(adapted):
    "Without the model's own dropout, and with a detour that counts."
    for module in adapted.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    return adapted


def gradient(adapted, loss):
    adapted.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("targets", ["all-linear", "some"])
def test_loss_and_gradient_are_the_plain_models(architecture, targets):
    "Grouped keys, tied outputs, biases and rows of unlike length; layers without LoRA among them."
    some = "c_proj" if architecture == "gpt2" else "q_proj,down_proj"
    model = tiny(architecture)
    with trainable(model, replace(CALM, targets=some if targets == "some" else targets), None) as adapted:
        batch = batch_of(model)
        whole = calm(adapted)(**batch, use_cache=False).loss * int((batch["labels"][:, 1:] != -100).sum())
        ours = nats_of(adapted, batch)
        assert ours.item() == pytest.approx(whole.item(), rel=1e-5)
        one, two = gradient(adapted, whole), gradient(adapted, ours)
        assert torch.allclose(one, two, atol=1e-4 * one.abs().max())
        assert packs(adapted) and any(plain_lora(m) for m in adapted.modules()) == (architecture != "gpt2")


def test_a_model_in_bfloat16_is_packed_too():
    "Its own rounding is not taken for a difference."
    model = tiny("smollm")
    model.model.bfloat16()
    with trainable(model, CALM, None) as adapted:
        batch, way = batch_of(model), Way(calm(adapted))
        whole = adapted(**batch, use_cache=False).loss * int((batch["labels"][:, 1:] != -100).sum())
        assert way.packed and nats_of(adapted, batch, way=way).item() == pytest.approx(whole.item(), rel=0.02)


def test_a_run_is_the_same_run():
    "Ten optimiser steps with and without all of it, dropout off: factors apart by rounding only."
    found = []
    for quick in (True, False):
        model = tiny("qwen2")
        torch.manual_seed(1)
        with trainable(model, CALM, None) as adapted:
            calm(adapted).train()
            learning = [p for p in adapted.parameters() if p.requires_grad]
            optimiser, way, batch = torch.optim.SGD(learning, lr=0.1), Way(adapted), batch_of(model)
            count = int((batch["labels"][:, 1:] != -100).sum())
            assert way.packed and way.short
            for _ in range(10):
                optimiser.zero_grad()
                plain = adapted(**batch, use_cache=False).loss
                (nats_of(adapted, batch, way=way) / count if quick else plain).backward()
                optimiser.step()
            found.append(torch.cat([p.detach().flatten() for p in learning]))
    assert torch.allclose(*found, atol=1e-5)


def test_dropout_takes_its_share_in_training_only():
    "With factors that matter the loss differs from draw to draw in training; judged, it does not."
    model = shared("llama")
    with trainable(model, replace(CALM, dropout=0.5), None) as adapted:
        batch = batch_of(model)
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
        way = Way(adapted)
        drawn = {round(nats_of(adapted.train(), batch, way=way).item(), 3) for _ in range(3)}
        judged = {nats_of(adapted.eval(), batch, way=way).item() for _ in range(3)}
        assert len(drawn) == 3 and len(judged) == 1


def test_what_cannot_be_packed_is_not(monkeypatch):
    "A window, a cap, dropout in attention: refused; the loss is the model's own either way, and nothing stays behind."
    model = shared("smollm")
    with trainable(model, CALM, None) as adapted:
        config, batch = adapted.get_base_model().config, batch_of(model)
        before = config._attn_implementation
        expected = nats_of(adapted, batch).item()
        real = losses.packed_attention
        for more in (dict(sliding_window=2), dict(softcap=5.0), dict(dropout=0.1)):
            monkeypatch.setattr(losses, "packed_attention", lambda *a, m=more, **k: real(*a, **k | m))
            assert not packs(adapted) and config._attn_implementation == before
            assert nats_of(adapted, batch).item() == pytest.approx(expected, rel=1e-5)
        monkeypatch.setattr(losses, "packed_attention", lambda *a, **k: (a[1].transpose(1, 2), None))
        assert not packs(adapted), "an attention that looks at nothing else is not the model's"
        monkeypatch.undo()
        assert packs(adapted) and Way(adapted).packed
        with monkeypatch.context() as patch:
            patch.setattr(losses, "short_way", lambda adapted: False)
            assert not Way(adapted).packed, "who needs the whole model takes it as it is"
        with pytest.raises(TypeError), monkeypatch.context() as patch:
            patch.setattr(losses, "packed_attention", lambda *a, **k: real(*a, **k | dict(ends=None)))
            packed_states(adapted, batch)
        assert config._attn_implementation == before


def kept_bytes(loss_of) -> int:
    "What a loss keeps for its gradient, each storage once."
    kept = {}

    def count(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        loss_of()
    return sum(size for size, _ in kept.values())


def test_less_is_kept_for_the_gradient(monkeypatch):
    "Norms and gates keep their inputs; a norm that is not plain, or learns, stays as it is."
    model = tiny("llama")
    model.model.bfloat16()
    with trainable(model, CALM, None) as adapted:
        batch, found = batch_of(model), []
        norm = adapted.get_base_model().model.norm
        assert norm in quick_layers(adapted)
        found.append(kept_bytes(lambda: nats_of(adapted, batch)))
        for name in ("quick_norm", "quick_gate"):
            monkeypatch.setattr(fused, name, lambda module: None)
            found.append(kept_bytes(lambda: nats_of(adapted, batch)))
        assert found[0] < 0.95 * found[1] < 0.9 * found[2]
        monkeypatch.undo()
        norm.weight.requires_grad_(True)
        assert norm not in quick_layers(adapted)
        norm.weight.requires_grad_(False)
        plain = type(norm).forward
        monkeypatch.setattr(type(norm), "forward", lambda self, x: plain(self, x) * 1.01)
        assert norm not in quick_layers(adapted)


@pytest.mark.filterwarnings("ignore:.*lora_bias")
def test_special_layers_stay_as_they_are():
    "DoRA, a bias that learns, a matrix that learns, a merged layer."
    from peft import LoraConfig, get_peft_model

    for more in (dict(use_dora=True), dict(lora_bias=True)):
        model = tiny("llama")
        adapted = get_peft_model(model.model, LoraConfig(r=2, target_modules=["q_proj"], **more))
        assert not any(plain_lora(m) for m in adapted.modules())
        quick = quick_layers(adapted)
        assert not any(hasattr(m, "base_layer") for m in quick), "the others are still done quicker"
        assert any(type(m) is torch.nn.Linear for m in quick)
    model = tiny("llama")
    adapted = get_peft_model(model.model, LoraConfig(r=2, target_modules=["q_proj"]))
    layers = [m for m in adapted.modules() if plain_lora(m)]
    assert len(layers) == 2
    layers[0].base_layer.weight.requires_grad_(True)
    layers[1].merge()
    assert not any(plain_lora(m) for m in adapted.modules())
