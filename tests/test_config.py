"Settings of a fine-tune: what is refused, what is converted, and the shape of a start."

import numpy as np
import pytest

from personal_llm.base.core import InputError
from personal_llm.tuning.config import TuningConfig


@pytest.mark.parametrize(
    "wrong",
    [dict(rank=0), dict(batch_size=-1), dict(checks=0), dict(validation=-0.1), dict(dropout=1.0)]
    + [dict(weight_decay=-1), dict(steps=10**12), dict(batch_size=np.float64(4))]
    + [dict(rank=np.bool_(True)), dict(alpha=np.float32("inf"))]
    + [dict(learning_rate=0), dict(target_modules=["q_proj"]), dict(target_modules=" "), dict(rank="8")]
    + [dict(learning_rate=float("nan")), dict(validation=1), dict(steps=2.0)],
)
def test_wrong_settings(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        TuningConfig(**wrong)


START = dict(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "a.v_proj"])


def test_a_start_without_dropout_has_none():
    bare = {name: value for name, value in START.items() if name != "lora_dropout"}
    assert TuningConfig(dropout=0.5).match_adapter(bare, "mine").dropout == 0, "peft's default"


@pytest.mark.parametrize("targets", [None, [], [3], 7])
def test_a_start_without_targets_is_refused(targets):
    with pytest.raises(InputError, match="target modules"):
        TuningConfig().match_adapter(START | dict(target_modules=targets), "mine")


def test_the_defaults_are_the_papers():
    config = TuningConfig()
    assert (config.learning_rate, config.rank, config.alpha, config.target_modules) == (3e-4, 8, 16, "all-linear")
