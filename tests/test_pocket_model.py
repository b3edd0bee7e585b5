"The pocket model's recipe on a model of a few hundred parameters: budget, schedule, interruption, what is saved."

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from personal_llm.base.models import load_model
from personal_llm.recipes import pocket_model
from personal_llm.recipes.pocket_model import Training, train
from personal_llm.recipes.pocket_text import make_streams

SIZES = dict(
    HIDDEN_SIZE=8, NUM_LAYERS=1, NUM_HEADS=2, INTERMEDIATE_SIZE=8, WINDOW=(8, 12), BATCH_TOKENS=48, SAVE_EVERY=3
)
STEPS = 8


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder, pairs = tmp_path_factory.mktemp("streams"), []
    for i in range(300):
        pairs.append(dict(prompt=f"What is {i}?", response=f"{i} it is.", source="gsm8k"))
    text = dict(pairs=pairs, running=[("tinyshakespeare", "To be or not to be.")] * 300, audit=dict(pairs_shared=0))
    make_streams(text, folder, 0)
    return folder


@pytest.fixture
def small(monkeypatch, streams, tmp_path):
    "A working folder with the streams, and the recipe at a small size."
    for name, value in SIZES.items():
        monkeypatch.setattr(pocket_model, name, value)
    shutil.copytree(streams, tmp_path / "out")
    return tmp_path / "out"


def go(out, steps=STEPS):
    return train("no data needed", out, steps * SIZES["BATCH_TOKENS"], compiled=False)


def weights(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def interrupt_after(monkeypatch, steps):
    "The machine is switched off before this step."
    whole, done = Training.step, []

    def step(self, loss):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(loss.item())
        return whole(self, loss)

    monkeypatch.setattr(Training, "step", step)


def test_a_budget_is_spent_and_the_model_loads(small):
    folder = go(small)
    note = json.loads((folder / "training.json").read_text())
    assert note["tokens"] == STEPS * SIZES["BATCH_TOKENS"] and note["steps"] == [4, 4], "45 % of eight steps is passed"
    model = load_model(str(folder))
    assert model.model.config.max_position_embeddings == SIZES["WINDOW"][1] and note["parameters"] < 10_000
    trained, stored = weights(small), load_file(folder / "model.safetensors")
    assert all(torch.equal(w, trained[name].bfloat16()) for name, w in stored.items()), "in half of the bytes"


def test_an_interrupted_training_ends_where_an_undisturbed_one_does(small, monkeypatch):
    go(small)
    undisturbed = weights(small)
    (small / "checkpoint.pt").unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 5)
        go(small)
    kept = torch.load(small / "checkpoint.pt", weights_only=True)["state"]
    assert kept["steps"] == [3, 0], "two steps of the five are lost"
    go(small)
    assert all(torch.equal(w, weights(small)[name]) for name, w in undisturbed.items()), "to the bit"
