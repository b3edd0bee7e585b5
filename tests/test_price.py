"What a model costs: the sizes by hand, and a model that is left as it was."

import itertools
from dataclasses import replace

import pytest
import torch
from tiny import ARCHITECTURES, same, tiny, weights

from personal_llm.sdss.buffer import bin_bytes
from personal_llm.sdss.scoring import score
from personal_llm.tuning import price as room
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.price import TYPICAL, price


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_by_hand(architecture, monkeypatch):
    "Seconds come from a stopped clock: each reading is one second later than the one before."
    model, ticks = tiny(architecture), itertools.count()
    monkeypatch.setattr(room.time, "perf_counter", lambda: next(ticks))
    before, cost = weights(model), replace(model.cost)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    config = TuningConfig(rank=2, targets="q_proj, v_proj", batch_size=4, accumulate=3, layers=1)
    config = replace(config, targets="c_proj", layers=0) if architecture == "gpt2" else config
    found = price(model, config)
    assert torch.equal(torch.rand(1), expected), "torch's own generator goes on as if nothing had been"
    assert same(model, before) and vars(model.cost) == vars(cost)
    assert found.step_seconds % 12 == 0 and found.step_seconds > 0, "twelve rows a step"
    assert found.tokens == len(model.encode(TYPICAL, 256)["input_ids"]) and found.batch_size == 4
    assert found.bin_bytes == bin_bytes(score(model, [TYPICAL])[0])
    sizes = dict(llama=4 * 2 * 2 * 64, gpt2=4 * 2 * 2 * (64 + 160)).get(architecture, 4 * 2 * (64 + 48))
    assert found.adapter_bytes == sizes
