"Settings of a fine-tune: what is refused, what is converted, and the shape of a start."

import json
from dataclasses import asdict
from types import SimpleNamespace

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
        dict(patience=0),
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


MODULES = [f"model.layers.{i}.{part}" for i in (0, 1) for part in ("attn.q_proj", "attn.v_proj", "mlp.up_proj")]
ALL_Q = ",".join(name for name in MODULES if name.endswith("q_proj"))
START = dict(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=[name for name in MODULES if "q_proj" in name])


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("q_proj", ALL_Q, True),
        ("attn.q_proj", "q_proj", True),
        ("v_proj, q_proj", "q_proj,v_proj", True),
        ("q_proj", MODULES[0], False),
        ("proj", ALL_Q, False),
        ("q_proj,v_proj", ALL_Q, False),
        ("nothing", "nowhere", False),
    ],
)
def test_targets_are_compared_by_what_they_select(one, other, same):
    def match(ours, theirs, modules):
        settings = START | dict(target_modules=theirs.split(","))
        return TuningConfig(target_modules=ours).match_adapter(settings, "mine", modules)

    for ours, theirs in ((one, other), (other, one)):
        if same:
            assert match(ours, theirs, MODULES).rank == 4
        else:
            with pytest.raises(InputError, match="target_modules"):
                match(ours, theirs, MODULES)
    assert match(one, one, []).rank == 4


def test_a_start_gives_its_whole_shape():
    for config in (
        TuningConfig(),
        TuningConfig(target_modules="q_proj"),
        TuningConfig(target_modules="all-linear", dropout=0.0),
    ):
        shape = config.match_adapter(START, "mine", MODULES)
        assert (shape.rank, shape.alpha, shape.dropout, shape.target_modules) == (4, 8, 0.0, ALL_Q)
    assert TuningConfig().match_adapter({k: v for k, v in START.items() if k != "lora_dropout"}, "mine").dropout == 0, (
        "peft's"
    )


@pytest.mark.parametrize("other", [dict(rank=3), dict(alpha=1.0), dict(dropout=0.2), dict(target_modules="v_proj")])
def test_another_shape_than_the_starts_is_refused(other):
    with pytest.raises(InputError, match="start from the bare model"):
        TuningConfig(**other).match_adapter(START, "mine", MODULES)


@pytest.mark.parametrize("targets", [None, [], [3], 7])
def test_a_start_without_targets_is_refused(targets):
    with pytest.raises(InputError, match="target modules"):
        TuningConfig().match_adapter(START | dict(target_modules=targets), "mine", MODULES)


TOY, LARGE = SimpleNamespace(is_large=False), SimpleNamespace(is_large=True)


def test_each_model_has_its_defaults():
    assert TuningConfig.for_model(TOY) == TuningConfig(), "the pocket model's stay"
    large = TuningConfig.for_model(LARGE)
    assert (large.steps, large.batch_size, large.layers, large.trial) == (48, 4, 0, 0) and large.pass_tokens <= 1024
    assert TuningConfig.for_model(LARGE, steps=5, layers=None).steps == 5
    with pytest.raises(InputError, match="steps"):
        TuningConfig.for_model(TOY, steps=0)


def test_the_defaults_of_a_large_model_give_way_to_a_start():
    large = TuningConfig.for_model(LARGE)
    shape = large.match_adapter(START | dict(lora_dropout=0.1), "mine", MODULES, large)
    assert shape.dropout == 0.1 and shape.steps == large.steps


def test_the_phone_takes_the_model_s_defaults(tmp_path, monkeypatch):
    from personal_llm.runtimes import phone

    class Stop(Exception):
        pass

    def stop(config, **changes):
        raise Stop(config.steps)

    monkeypatch.setattr(phone, "require_executorch", lambda: None)
    monkeypatch.setattr(phone, "replace", stop)
    with pytest.raises(Stop, match=str(TuningConfig.for_model(LARGE).steps)):
        phone.export_bundle(LARGE, [], tmp_path / "bundle")
