"LoRA by hand against peft's, on tiny models."

import pytest
import torch
from peft import LoraConfig, get_peft_model

from personal_llm.tuning.lora import LoRALinear, add_lora
from tiny import shared, tiny


@pytest.mark.parametrize("alpha", [2.0, 7.0])
def test_the_change_is_the_product(alpha):
    torch.manual_seed(0)
    plain = torch.nn.Linear(6, 4)
    layer, x = LoRALinear(plain, r=2, alpha=alpha), torch.randn(3, 6)
    assert torch.equal(layer(x), plain(x)) and not layer.layer.weight.requires_grad, "it begins as nothing"
    torch.nn.init.normal_(layer.B)
    assert torch.allclose(layer(x), x @ (plain.weight + layer.delta_weight).T + plain.bias, atol=1e-5)
    assert (
        torch.allclose(layer.delta_weight, alpha / 2 * layer.B @ layer.A)
        and torch.linalg.matrix_rank(layer.delta_weight) == 2
    )


def test_the_layers_and_the_loss_are_those_of_peft():
    one, other = tiny("llama").model, tiny("llama").model
    added = add_lora(one, r=2, alpha=4)
    config = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = get_peft_model(other, config)
    layers = [m for m in theirs.modules() if hasattr(m, "lora_A")]
    assert len(added) == len(layers)
    for mine, layer in zip(added, layers):
        mine.A.data, mine.B.data = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
    ids = torch.arange(12)[None]
    with torch.no_grad():
        got, wanted, bare = (m(ids).logits for m in (one.eval(), theirs.eval(), shared("llama").model))
    assert torch.allclose(got, wanted, atol=1e-4) and not torch.allclose(got, bare, atol=1e-2)
    counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (one, theirs)]
    assert counts[0] == counts[1]
