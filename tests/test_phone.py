"The phone's program, its bundle: equal to PyTorch, nothing wrong taken."

import json
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tiny import tiny

from personal_llm.app.cli import main
from personal_llm.base import files
from personal_llm.base.adapters import CONFIG_FILE, WEIGHTS_FILE
from personal_llm.base.core import Dialogue, InputError
from personal_llm.runtimes.phone import export_bundle, train_bundle
from personal_llm.runtimes.phone_bundle import ADAM_BETA1, MANIFEST_FILE, PROGRAM_FILE, RECORDS_FILE, adamw_step
from personal_llm.runtimes.phone_bundle import compute_step_rates, encode_records, open_bundle, write_bundle
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import trainable_adapter

EXECUTORCH_INSTALL = 'pip install "personal_llm[phone]"'
needs_extra = pytest.mark.skipif(find_spec("executorch") is None, reason=f"needs ExecuTorch: {EXECUTORCH_INSTALL}")
CONFIG_OF_A_RUN = TuningConfig(batch_size=2, steps=12, learning_rate=1e-2)


def bundle_in(tmp_path):
    "Three records of two lengths, eight numbers to train, a program of four bytes."
    from safetensors.numpy import save_file

    start = tmp_path / "lora"
    start.mkdir()
    tensors = {f"base_model.model.q.lora_{x}.weight": np.full((2, 2), i, "f4") for i, x in enumerate("AB")}
    save_file(tensors, start / WEIGHTS_FILE)
    (start / CONFIG_FILE).write_text(json.dumps(dict(peft_type="LORA", r=2, lora_alpha=2, target_modules=["q"])))
    samples = [dict(input_ids=[i, 6, 7], labels=[-100, 6, 7]) for i in (1, 2)]
    samples += [dict(input_ids=[3, 6, 7, 8, 9], labels=[-100, 6, 7, 8, 9])]
    card = dict(base="b" * 16, parents=["x"], seed=0)
    return write_bundle(tmp_path / "bundle", b"code", encode_records(samples, 0), start, CONFIG_OF_A_RUN, card)


@pytest.fixture
def bundle(tmp_path):
    return bundle_in(tmp_path)


def pull(ids, targets, parameters, first, second, rates):
    "A stand-in for the program: numbers are drawn towards the mean id of the batch."
    gradient = torch.from_numpy(parameters) - float(ids[:, 0].mean())
    vectors = adamw_step(torch.from_numpy(parameters), gradient, *map(torch.from_numpy, (first, second, rates)))
    return float((gradient**2).mean()), *[vector.numpy() for vector in vectors]


def test_what_was_written_is_read(bundle):
    again = open_bundle(bundle.folder)
    assert again.manifest == bundle.manifest
    assert len(again.batches) == 12
    assert {tuple(sorted(ids[:, 0])) for ids, _, _ in again.batches} <= {(1, 2), (1, 3), (2, 3)}
    for number, (ids, targets, rates) in enumerate(again.batches, 1):
        assert ids.shape == targets.shape == (2, 5) and (ids[:, 1:3] == [6, 7]).all()
        for row, target in zip(ids, targets):
            assert row[3:].tolist() == ([8, 9] if row[0] == 3 else [0, 0])
            assert target.tolist() == ([6, 7, 8, 9, -100] if row[0] == 3 else [6, 7, -100, -100, -100])
        assert np.allclose(rates, compute_step_rates(number, CONFIG_OF_A_RUN))


@pytest.mark.parametrize(
    "name", [PROGRAM_FILE, RECORDS_FILE, f"adapter/{WEIGHTS_FILE}", f"adapter/{CONFIG_FILE}", MANIFEST_FILE]
)
def test_a_changed_missing_or_short_file_is_refused(bundle, name):
    file = bundle.folder / name
    whole = file.read_bytes()
    for content in (whole[:-1], whole + b" ", bytes([whole[0] ^ 1]) + whole[1:], b""):
        if name == MANIFEST_FILE and content.strip() == whole:
            continue  # a space more is the same JSON
        file.write_bytes(content)
        with pytest.raises(InputError, match=name.rpartition("/")[2]):
            open_bundle(bundle.folder)
    file.unlink()
    with pytest.raises(InputError, match=name.rpartition("/")[2]):
        open_bundle(bundle.folder)


def test_a_full_disk_leaves_no_bundle(bundle, tmp_path, monkeypatch):
    records = encode_records([dict(input_ids=[1, 2], labels=[-100, 2])], 0)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        write_bundle(tmp_path / "new", b"code", records, bundle.folder / "adapter", TuningConfig(), dict(seed=0))
    assert not (tmp_path / "new" / MANIFEST_FILE).exists()


def test_a_loss_that_is_no_number_is_named_with_its_step(bundle, tmp_path):
    losses = iter([1.0, 1.0, float("nan")])
    with pytest.raises(InputError, match="step 3"):
        train_bundle(bundle.folder, tmp_path / "out", lambda *inputs: (next(losses), *inputs[2:5]))
    assert not (tmp_path / "out" / WEIGHTS_FILE).exists()
    adapter = train_bundle(bundle.folder, tmp_path / "out", pull)
    assert adapter.history == train_bundle(bundle.folder, tmp_path / "again", pull).history, "two runs are equal"


def test_without_the_extra_there_is_one_line(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "executorch.exir", None)
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "Hello", "response": "Hello, dear."}\n')
    for words in (
        ["phone", "simulate", "--bundle", str(bundle.folder), "--out", str(tmp_path / "out")],
        ["phone", "export", "--data", str(chats), "--out", str(tmp_path / "out")],
    ):
        assert main(words) == 2
        line = capsys.readouterr().err.strip()
        assert EXECUTORCH_INSTALL in line and 'in a clone pip install -e ".[phone]"' in line and "\n" not in line
    assert not (tmp_path / "out").exists()


# with the extra


TALK = [Dialogue(f"What is {i} and {i}?", f"It is {2 * i}, dear.") for i in range(6)]
LEARN = TuningConfig(batch_size=2, steps=100, rank=2, max_length=64)  # a larger rate also enlarges rounding


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    if find_spec("executorch") is None:
        pytest.skip(f"needs ExecuTorch: {EXECUTORCH_INSTALL}")
    return export_bundle(tiny("llama"), TALK, tmp_path_factory.mktemp("phone") / "bundle", LEARN)


@needs_extra
def test_a_hundred_steps_in_executorch_are_pytorchs(made, tmp_path):
    "The adapter is peft's."
    adapter = train_bundle(made.folder, tmp_path / "out")
    model = tiny("llama")
    with trainable_adapter(model, TuningConfig(**made.manifest["card"]["config"]), made.folder / "adapter") as adapted:
        adapted.eval()
        weights = [p for p in adapted.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=1.0, weight_decay=0.0)
        for number, (_, ours, _) in enumerate(adapter.history):
            ids, targets, rates = made.batches[number]
            labels = torch.from_numpy(np.concatenate([np.full((2, 1), -100), targets[:, :-1]], 1))
            loss = adapted(input_ids=torch.from_numpy(ids), labels=labels).loss
            assert abs(loss.item() - ours) < 1e-4, number
            optimiser.param_groups[0]["lr"] = rates[1] * (1 - ADAM_BETA1 ** (number + 1))
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
        theirs = loss.item()
    losses = [loss for _, loss, _ in adapter.history]
    assert len(losses) == 100 and np.mean(losses[-10:]) < np.mean(losses[:10])
    with model.use_adapter(adapter):
        nats, tokens = model.nll(TALK).sum(0)
    assert abs(nats / tokens - theirs) < 1.0


@needs_extra
def test_what_is_no_program_is_refused(bundle, tmp_path):
    with pytest.raises(InputError, match=PROGRAM_FILE):
        train_bundle(bundle.folder, tmp_path / "out")
