"A layer of LoRA by hand."

import pytest
import torch

from personal_llm.tuning.lora import LoRALinear


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
