"Settings of a fine-tune: what is refused, what is converted, and the shape of a start."

import json
from dataclasses import asdict

import numpy as np
import pytest

from personal_llm.base.core import InputError
from personal_llm.tuning.config import TuningConfig


@pytest.mark.parametrize(
    "wrong",
    [
        dict(rank=0),
        dict(steps=0),
        dict(batch_size=-1),
        dict(checks=0),
        dict(validation=1.0),
        dict(validation=-0.1),
        dict(steps=2.5),
        dict(steps=2.0),
        dict(rank=4.0),
        dict(batch_size=np.float64(4)),
        dict(rank=np.bool_(True)),
        dict(alpha=np.float32("inf")),
        dict(steps=10**12),
        dict(learning_rate=float("nan")),
        dict(learning_rate=0),
        dict(rank="8"),
        dict(rank=True),
        dict(target_modules=["q_proj"]),
        dict(dropout=1.0),
        dict(weight_decay=-1),
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TuningConfig(**wrong)


def test_numpy_numbers_become_pythons():
    config = TuningConfig(rank=np.int32(4), steps=np.int64(7), alpha=np.float32(8), learning_rate=np.float64(1e-3))
    assert config == TuningConfig(rank=4, steps=7, alpha=8.0, learning_rate=1e-3)
    assert [type(x) for x in (config.rank, config.steps, config.alpha, config.learning_rate)] == [
        int,
        int,
        float,
        float,
    ]
    assert TuningConfig(**json.loads(json.dumps(asdict(config)))) == config


START = dict(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "a.v_proj"])


def test_a_start_gives_its_whole_shape():
    for config in (TuningConfig(), TuningConfig(rank=16, dropout=0.5, target_modules="q_proj")):
        shape = config.match_adapter(START, "mine")
        assert (shape.rank, shape.alpha, shape.dropout, shape.target_modules) == (4, 8, 0.1, "a.v_proj,q_proj")
        assert shape.steps == config.steps and shape.learning_rate == config.learning_rate
    bare = {name: value for name, value in START.items() if name != "lora_dropout"}
    assert TuningConfig(dropout=0.5).match_adapter(bare, "mine").dropout == 0, "peft's default"


@pytest.mark.parametrize("targets", [None, [], [3], 7])
def test_a_start_without_targets_is_refused(targets):
    with pytest.raises(InputError, match="target modules"):
        TuningConfig().match_adapter(START | dict(target_modules=targets), "mine")


def test_the_defaults_are_the_papers():
    config = TuningConfig()
    assert (config.learning_rate, config.rank, config.alpha, config.target_modules) == (3e-4, 8, 16, "all-linear")
