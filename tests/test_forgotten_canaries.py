"A planted code that was forgotten: no byte of it on the disk, and no exposure in the rebuilt adapter."

import numpy as np
import pytest

from personal_llm import personalize
from personal_llm.app import personalize as module
from personal_llm.base import models
from personal_llm.tuning.config import TuningConfig
from personal_llm.runtimes.audit import compute_exposure, make_canaries, response_losses
from tiny import tiny
from typed import found, rows

THINGS = ("locker", "safe", "bicycle", "alarm")
CANDIDATES = 60
LARGEST_CHANCE = 2.8  # bits: 95 of 100 means of four exposures without training lie below


def mean_exposure(model, adapter) -> float:  # bits
    values = []
    for thing in THINGS:
        nats = response_losses(model, adapter, make_canaries(thing, CANDIDATES + 1))[:, 0]
        values.append(compute_exposure(nats[0], nats[1:]))
    return float(np.mean(values))


def bytes_below(folder) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture
def model(monkeypatch):
    made = tiny("llama", seed=3)
    monkeypatch.setattr(models, "load_model", lambda name="pocket", **named: made)
    config = lambda model, settings: TuningConfig(learning_rate=1e-2, steps=settings.steps)
    monkeypatch.setattr(module, "make_tuning_config", config)
    monkeypatch.setattr(module, "MAX_MEASURED_REPLY_TOKENS", 4)
    return made


def test_a_forgotten_code_is_neither_on_the_disk_nor_in_the_rebuilt_adapter(model, tmp_path, capsys):
    canaries = [make_canaries(thing, 1)[0] for thing in THINGS]
    texts = [dict(prompt=d.prompt, response=d.response) for d in canaries]
    own, out = rows(8) + texts, tmp_path / "out"
    personalize(own, out, capacity=16, steps=60, progress=False, synthetic=0, replay=0)
    secrets = [d.response.encode() for d in canaries]
    assert mean_exposure(model, out / "adapter") > 4 > LARGEST_CHANCE > mean_exposure(model, None)
    assert any(secret in bytes_below(tmp_path) for secret in secrets)
    done = found(capsys, "forget", "--out", out, "--containing", "The code of your", "--retrain")
    assert done["rebuilt"] and not any(secret in bytes_below(tmp_path) for secret in secrets)
    assert mean_exposure(model, out / "adapter") <= LARGEST_CHANCE
