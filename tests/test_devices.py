"On a GPU, which is pretended: what is loaded, tuned, evaluated and selected there, in which numbers and batches."

import numpy as np
import pytest
import torch
from fake_gpu import GPU, pretend_gpu

from personal_llm.base.adapters import read_tensors
from personal_llm.base.core import Dialogue
from personal_llm.base.models import load_model, mean_response_nll
from personal_llm.buffer.scoring import score
from personal_llm.explanation.decomposition import summary_states
from personal_llm.explanation.explanation import explain
from personal_llm.selection.library import Library
from personal_llm.selection.selection import select
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.evaluation import evaluate
from personal_llm.tuning.finetune import finetune
from servers import pocket

TOYS = [Dialogue(f"What is thing number {i}, of colour {i * 7}?", f"Ahoy! Thing {i} is a toy.") for i in range(24)]
BRIEF = dict(batch_size=4, max_length=48, validation=0.0, checks=1)


pytestmark = pytest.mark.later


@pytest.fixture
def gpu():
    with pretend_gpu():
        yield load_model("pocket", device="cuda", dtype="bfloat16")


def test_the_pretended_gpu_refuses_what_a_real_one_does():
    with pretend_gpu():
        there = torch.ones(2, 3, device="cuda")
        assert there.device == GPU and (there @ torch.ones(3, 1).to("cuda")).sum().item() == 6
        with pytest.raises(RuntimeError, match="on the GPU and on the CPU"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError):
            there.numpy()
        assert there.cpu().numpy().tolist() == [[1, 1, 1]] * 2


def test_a_gpu_is_found_and_computes_in_sixteen_bits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pretend_gpu():
        found, asked = load_model("pocket"), load_model("pocket", device="cpu", dtype="float32")
        assert (found.device, found.model.dtype) == (GPU, torch.bfloat16)
        assert (asked.device.type, asked.model.dtype) == ("cpu", torch.float32)
        near = mean_response_nll(found, TOYS[:4])
    assert np.allclose(near, mean_response_nll(asked, TOYS[:4]), rtol=0.05), "the same model, in fewer digits"


@pytest.mark.parametrize("layers", [None, 1], ids=["all layers", "the upper layer, over states that are kept"])
def test_a_fine_tune_learns_there_and_its_adapter_works_anywhere(gpu, layers, tmp_path):
    before = mean_response_nll(gpu, TOYS[:4]).mean()
    config = TuningConfig(steps=6, learning_rate=5e-3, layers=layers, **BRIEF)
    adapter = finetune(gpu, TOYS, config, out=tmp_path / "a", progress=False)
    assert adapter.cost.backward == 6 * 4, "six batches of four"
    with gpu.use_adapter(adapter):
        after = mean_response_nll(gpu, TOYS[:4]).mean()
    assert after < before - 0.3
    continued = finetune(gpu, TOYS, config, start=adapter, out=tmp_path / "b", progress=False)
    assert all(np.isfinite(np.asarray(tensor, np.float32)).all() for tensor in read_tensors(continued.path).values())
    assert next(gpu.model.parameters()).dtype == torch.bfloat16, "the base stays as it was"
    here = load_model("pocket", device="cpu", dtype="bfloat16")  # the same numbers, so the same base
    with here.use_adapter(adapter):
        assert abs(mean_response_nll(here, TOYS[:4]).mean() - after) < 0.05 * after


def test_everything_that_asks_the_model_works_there(gpu):
    here = pocket()
    there, own = (score(model, TOYS[:3]) for model in (gpu, here))
    assert np.allclose([one.scores.loss for one in there], [one.scores.loss for one in own], rtol=0.05)
    assert there[0].scores.embedding.dtype == np.float32
    assert "evaluation: 4 dialogues" in str(evaluate(gpu, TOYS[:4], max_tokens=4))
    states = summary_states(gpu, [("Why?", "So!", "Therefore.")])
    assert states.dtype == np.float32 and np.isfinite(states).all()
    assert explain(gpu, TOYS[:8]).cost.tokens > 0


def test_a_start_is_selected_there():
    with pretend_gpu():
        gpu = load_model("pocket", device="cuda", dtype="float32")
        found = select(Library("pocket"), model=gpu, dialogues=TOYS[:8])
    assert {*found.names} == {*Library("pocket")} - {"plain"} and np.isfinite(found.distances).all()
    assert found.cost.backward == 8
