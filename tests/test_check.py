"Four architectures under five templates pass; each probe can fail."

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, TEMPLATES, same, shared, tiny, weights

from personal_llm.base.adapters import attach_adapter
from personal_llm.extras.check import MODEL_CHECKS, check_model


def found(model):
    return {what: holds for what, holds, _ in check_model(model).rows}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("template", TEMPLATES)
def test_check_is_ok(architecture, template):
    model = shared(architecture, template)
    before = weights(model)
    report = check_model(model)
    assert report.ok and len(report.rows) == len(MODEL_CHECKS) == 7, f"\n{report}"
    assert same(model, before)


def test_a_wrong_padding():
    "A model that looks at the padding: its attention mask is thrown away and padding stands on the left."
    model = tiny("llama")
    real = model.model.forward

    def blind(input_ids, attention_mask, **settings):
        width = input_ids.shape[1]
        rows = [torch.cat([row[mask == 0], row[mask == 1]]) for row, mask in zip(input_ids, attention_mask)]
        got = real(input_ids=torch.stack(rows), **settings)
        turned = [torch.roll(row, int(mask.sum()) - width, 0) for row, mask in zip(got.logits, attention_mask)]
        got.logits = torch.stack(turned)
        return got

    model.model.forward = blind
    assert not found(model)["padding"] and found(model)["loss mask"]


def test_control_tokens_typed_by_a_user(monkeypatch):
    monkeypatch.setattr("personal_llm.base.tokens.get_special_strings", lambda tokenizer: [])
    assert not found(shared("llama"))["user text stays text"]


def test_an_adapter_that_does_nothing(monkeypatch):
    def attach_nothing(bare, folder, trainable=False):
        adapted = attach_adapter(bare, folder, trainable)
        with torch.no_grad():
            for name, p in adapted.named_parameters():
                p.mul_(0 if "lora_B" in name else 1)
        return adapted

    model = tiny("llama")
    losses = model.nll([])
    monkeypatch.setattr("personal_llm.base.models.attach_adapter", attach_nothing)
    assert not found(model)["adapter round trip"] and np.array_equal(model.nll([]), losses)
