"The loss of responses: the plain model's value and gradient, for every architecture."

from dataclasses import replace

import pytest
import torch
from test_tuning import BRIEF, TALK
from tiny import ARCHITECTURES, shared, tiny

from personal_llm.base.tokens import collate_samples
from personal_llm.tuning.finetune import trainable_adapter
from personal_llm.tuning.training_loop import response_nll

CALM = replace(BRIEF, dropout=0.0)


def make_batch(model, count=5):
    return collate_samples([model.encode(d, 64) for d in TALK[:count]], model.tokenizer.pad_token_id)


def calm(adapted):
    "Turn the model's own dropout off, and give the adapter factors that matter."
    for module in adapted.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    return adapted


def compute_gradient(adapted, loss):
    adapted.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("modules", ["all-linear", "some"])
def test_loss_and_gradient_are_the_plain_models(architecture, modules):
    "Grouped keys, tied outputs, biases and rows of unlike length; layers without LoRA among them."
    some = "c_proj" if architecture == "gpt2" else "q_proj,down_proj"
    model = tiny(architecture)
    config = replace(CALM, target_modules=some if modules == "some" else modules)
    with trainable_adapter(model, config) as adapted:
        batch = make_batch(model)
        whole = calm(adapted)(**batch, use_cache=False).loss * int((batch["labels"][:, 1:] != -100).sum())
        ours = response_nll(adapted, batch)
        assert ours.sum().item() == pytest.approx(whole.item(), rel=1e-5)
        one, two = compute_gradient(adapted, whole), compute_gradient(adapted, ours.sum())
        assert torch.allclose(one, two, atol=1e-4 * one.abs().max())


def test_a_model_that_changes_its_logits_has_the_loss_of_these(monkeypatch):
    model = tiny("smollm")
    plain = type(model.model).forward

    def doubled(self, *given, **named):
        out = plain(self, *given, **named)
        out.logits = 2 * out.logits
        return out

    monkeypatch.setattr(type(model.model), "forward", doubled)
    with trainable_adapter(model, CALM) as adapted:
        batch = make_batch(model)
        logits = calm(adapted)(**batch, use_cache=False).logits[:, :-1].float()
        labels = batch["labels"][:, 1:]
        wanted = torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="sum")
        assert response_nll(adapted, batch).sum().item() == pytest.approx(wanted.item(), rel=1e-5)


def test_dropout_takes_its_share_in_training_only():
    "With factors that matter the loss differs from draw to draw in training, and not in a check."
    model = shared("llama")
    with trainable_adapter(model, replace(CALM, dropout=0.5)) as adapted:
        batch = make_batch(model)
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
        adapted.train()
        drawn = {round(response_nll(adapted, batch).sum().item(), 3) for _ in range(3)}
        adapted.eval()
        assert len(drawn) == 3 and len({response_nll(adapted, batch).sum().item() for _ in range(3)}) == 1
