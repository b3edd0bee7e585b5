"The adapter's scale: the same numbers as a larger alpha, the same bits at 1, and its choice."

from dataclasses import replace

import numpy as np
import pytest

from personal_llm.base.adapters import Adapter, read_factors
from personal_llm.base.core import Dialogue
from personal_llm.base.files import read_json, write_json
from personal_llm.runtimes.export import merge_weights
from personal_llm.runtimes.plugins import export_adapter
from personal_llm.experiments.methods import adapter_scale as module
from personal_llm.experiments.methods.adapter_scale import choose_adapter_scale, find_habitual_runs, measure_kept_runs
from personal_llm.experiments.methods.adapter_scale import set_adapter_scale
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import finetune
from tiny import shared

WORDS = "red two cat sea sun ice oak jam".split()
TALK = [Dialogue(f"question {i}", f"Well: {word}. Bye", origin="annotated") for i, word in enumerate(WORDS)]
BRIEF = TuningConfig(rank=2, steps=3, batch_size=4, max_length=64, checks=3, learning_rate=1e-2)


@pytest.fixture
def adapter(tmp_path):
    return finetune(shared("llama"), TALK, BRIEF, out=tmp_path / "adapter", progress=False)


def nats(adapter) -> np.ndarray:
    model = shared("llama")
    with model.use_adapter(adapter):
        return model.nll(TALK)[:, 0]


def with_alpha(adapter, factor: float, folder):
    "A copy of the adapter without a card, with its alpha times a factor."
    folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_bytes((adapter.path / name).read_bytes())
    settings = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", settings | dict(lora_alpha=settings["lora_alpha"] * factor))
    return folder


def test_a_scale_equals_a_larger_alpha(adapter, tmp_path):
    plain, doubled = nats(adapter), nats(with_alpha(adapter, 1.5, tmp_path / "larger"))
    set_adapter_scale(adapter, 1)
    assert np.array_equal(nats(adapter), plain), "scale 1 changes no bit"
    set_adapter_scale(adapter, 1.5)
    assert np.allclose(nats(adapter), doubled, rtol=1e-6) and not np.allclose(plain, doubled, rtol=1e-6)
    set_adapter_scale(adapter, 1)
    assert np.array_equal(nats(adapter), plain), "the adapter at hand is that of another scale"


def test_every_export_holds_the_scale(adapter, tmp_path):
    model = shared("llama")
    plain, before = read_factors(adapter.path), merge_weights(model, adapter.path)
    set_adapter_scale(adapter, 2)
    scaled, after = read_factors(adapter.path), merge_weights(model, adapter.path)
    for name, (A, B) in plain.items():
        assert (scaled[name][0] == A).all() and (scaled[name][1] == 2 * B).all()
        weight = f"{name.removeprefix('base_model.model.')}.weight"
        bare = model.model.state_dict()[weight]
        assert np.allclose(after[weight] - bare, 2 * (before[weight] - bare), atol=1e-6)
    assert read_json(adapter.path / "adapter_config.json")["lora_alpha"] == 2 * BRIEF.alpha
    export_adapter(model, adapter, tmp_path / "vllm", "vllm")
    assert read_json(tmp_path / "vllm" / "adapter_config.json")["lora_alpha"] == 2 * BRIEF.alpha


class Replies:
    "A model whose replies keep the frame from a scale on, and whose loss on other talk may rise."

    def __init__(self, enough: float, dear: float):
        self.model, self.enough, self.dear, self.scales = shared("llama"), enough, dear, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def reply(self, answers, limit):
        self.scales.append(Adapter.load(self.folder).notes["adapter_scale"])
        return ["Well: x. Bye" if self.scales[-1] >= self.enough else "x"] * len(answers)


@pytest.mark.parametrize(
    "enough, dear, scale, tried",
    [
        (1.0, 9.0, 1.0, [1.0]),  # the first check is the last
        (1.5, 9.0, 1.5, [1.0, 1.25, 1.5]),
        (1.5, 1.25, 1.0, [1.0]),  # other talk is too dear from 1.25 on
        (9.0, 9.0, 1.0, [1.0, 1.25, 1.5, 2.0]),  # none helps: the smallest
    ],
)
def test_the_smallest_scale_that_keeps_the_frame_wins(adapter, monkeypatch, enough, dear, scale, tried):
    model = Replies(enough, dear)
    model.folder = adapter.path
    prices = lambda model, *rest: (0.0, 1.0 * (model.active_adapter != model.base and scale_now() >= dear))
    scale_now = lambda: Adapter.load(adapter.path).notes["adapter_scale"]
    monkeypatch.setattr(module, "measure_prices", prices)
    chosen = choose_adapter_scale(model, adapter, TALK, TALK[:2])
    assert (
        chosen.notes["adapter_scale"] == Adapter.load(adapter.path).notes["adapter_scale"] == scale
        and model.scales == tried
    )
    assert replace(chosen, notes=adapter.notes, cost=adapter.cost) == adapter


def test_without_a_common_frame_nothing_is_tried(adapter):
    rows = [Dialogue(f"q {i}", f"{word} is it") for i, word in enumerate(("red", "two", "cat", "sea"))]
    assert find_habitual_runs([d.response.split()[0] for d in rows]) == ((), ())
    plain = [d.derive(response=d.response.split()[0], origin="annotated") for d in rows]
    assert choose_adapter_scale(None, adapter, plain) is adapter
    assert choose_adapter_scale(None, adapter, TALK, max_scale=1.0) is adapter, "no choice was asked for"
    assert measure_kept_runs([], (("a",), ())) == 1
