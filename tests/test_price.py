"What a model costs: seconds by hand, and a model that is left as it was."

import itertools
from dataclasses import replace

import pytest
import torch
from tiny import ARCHITECTURES, same, tiny, weights

from personal_llm.base import core
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import SAMPLE_DIALOGUE, estimate_cost


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_seconds_by_hand(architecture, monkeypatch):
    "Seconds come from a stopped clock: each reading is one second later than the one before."
    model, ticks = tiny(architecture), itertools.count()
    monkeypatch.setattr(core.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(core, "read_processor_joules", lambda: 0.0)
    before, cost = weights(model), replace(model.cost)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    config = TuningConfig(rank=2, target_modules="q_proj, v_proj", batch_size=12, layers=1)
    config = replace(config, target_modules="c_proj", layers=0) if architecture == "gpt2" else config
    found = estimate_cost(model, config)
    assert torch.equal(torch.rand(1), expected), "torch's own generator goes on as if nothing had been"
    assert same(model, before) and vars(model.cost) == vars(cost)
    assert found.step_seconds % 12 == 0 and found.step_seconds > 0, "twelve rows a step"
    assert found.tokens == len(model.encode(SAMPLE_DIALOGUE, 256)["input_ids"]) and found.batch_size == 12


def test_a_counter_is_read_where_there_is_one(monkeypatch):
    "Each look at the counter is half a joule later; a bill adds joules up, and a counter that began anew gives none."
    ticks = itertools.count()
    monkeypatch.setattr(core, "read_processor_joules", lambda: next(ticks) / 2)
    model = tiny("llama")
    with model.track_cost() as cost, model.track_cost():
        pass
    assert cost.joules == 1.5 and (cost + cost).joules == 3 and cost.to_dict()["joules"] == 1.5
    readings = iter((7.0, 0.5))
    monkeypatch.setattr(core, "read_processor_joules", lambda: next(readings))
    with core.measure_cost(core.Cost()) as anew:
        pass
    assert anew.joules == 0
