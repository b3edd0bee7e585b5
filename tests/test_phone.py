"The phone's bundle holds all that an app needs, and its program computes PyTorch's steps."

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tiny import tiny

from personal_llm.app.cli import main
from personal_llm.base import files
from personal_llm.base.adapters import CONFIG_FILE, WEIGHTS_FILE
from personal_llm.base.core import Dialogue, InputError
from personal_llm.runtimes.phone import compute_step_rates, encode_records, export_bundle, read_adapter_vector
from personal_llm.runtimes.phone import trace_training_graph, write_bundle
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import trainable_adapter

INSTALL = 'pip install "personal_llm[phone]"'
needs_extra = pytest.mark.skipif(find_spec("executorch") is None, reason=f"needs ExecuTorch: {INSTALL}")
CONFIG = TuningConfig(batch_size=2, steps=12, learning_rate=1e-2, rank=2, max_length=64)
TALK = [Dialogue(f"What is {i} and {i}?", f"It is {2 * i}, dear.") for i in range(6)]
SAMPLES = [dict(input_ids=[i, 6, 7], labels=[-100, 6, 7]) for i in (1, 2)]
SAMPLES += [dict(input_ids=[3, 6, 7, 8, 9], labels=[-100, 6, 7, 8, 9])]


@pytest.fixture
def start(tmp_path):
    "An adapter of eight numbers."
    from safetensors.numpy import save_file

    folder = tmp_path / "lora"
    folder.mkdir()
    tensors = {f"base_model.model.q.lora_{x}.weight": np.full((2, 2), i, "f4") for i, x in enumerate("AB")}
    save_file(tensors, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(dict(peft_type="LORA", r=2, lora_alpha=2, target_modules=["q"])))
    return folder


def pack(start, out) -> dict:
    card = dict(base="b" * 16, parents=["x"], seed=0)
    return write_bundle(out, b"code", encode_records(SAMPLES, 0), start, CONFIG, card)


def test_an_app_finds_every_step_and_every_number(start, tmp_path):
    manifest = pack(start, tmp_path / "bundle")
    assert manifest == json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert len(manifest["steps"]) == 12 and manifest["length"] == 5
    records = np.fromfile(tmp_path / "bundle" / "records.bin", "<i8").reshape(-1, 2, 5)
    assert records[0].tolist() == [[1, 6, 7, 0, 0], [6, 7, -100, -100, -100]]
    assert records[2].tolist() == [[3, 6, 7, 8, 9], [6, 7, 8, 9, -100]]
    for number, step in enumerate(manifest["steps"], 1):
        assert step["rates"] == compute_step_rates(number, CONFIG) and len(step["records"]) == 2
    assert {*manifest["steps"][0]["records"], *manifest["steps"][1]["records"]} == {0, 1, 2}, "an epoch"
    place = manifest["parameters"]
    content = (tmp_path / "bundle" / place["file"]).read_bytes()
    assert np.frombuffer(content[place["offset"] :], "<f4").tolist() == [0.0] * 4 + [1.0] * 4
    assert manifest == pack(start, tmp_path / "again"), "two runs are equal"


def test_a_full_disk_leaves_no_manifest(start, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        pack(start, tmp_path / "new")
    assert not (tmp_path / "new" / "manifest.json").exists()


def test_the_traced_program_makes_the_steps_of_pytorch(tmp_path):
    "Twelve steps, beside peft's own parameters with `backward`, torch's AdamW, clipping and the usual mask."
    model = tiny("llama")
    with trainable_adapter(model, CONFIG, None) as adapted:
        adapted.save_pretrained(tmp_path)
    vector = read_adapter_vector(tmp_path / WEIGHTS_FILE)
    records = encode_records([model.encode(d) for d in TALK], 0)
    card = dict(base="b" * 16, parents=[], seed=0)
    manifest = write_bundle(tmp_path / "bundle", b"code", records, tmp_path, CONFIG, card)
    vectors = [torch.from_numpy(vector.numbers), *torch.zeros(2, vector.numbers.size)]
    ours = []
    with trainable_adapter(model, CONFIG, tmp_path) as adapted:
        graph, _ = trace_training_graph(adapted, vector, 2, manifest["length"])
        for step in manifest["steps"]:
            ids, targets = (x.contiguous() for x in torch.from_numpy(records[step["records"]]).unbind(1))
            with torch.no_grad():
                loss, *vectors = graph(ids, targets, *vectors, torch.tensor(step["rates"]))
            ours.append(loss.item())
    with trainable_adapter(model, CONFIG, tmp_path) as adapted:
        adapted.eval()
        weights = [p for p in adapted.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=1.0, weight_decay=0.0)
        for number, step in enumerate(manifest["steps"], 1):
            ids, targets = torch.from_numpy(records[step["records"]]).unbind(1)
            labels = torch.cat([torch.full((2, 1), -100), targets[:, :-1]], 1)
            loss = adapted(input_ids=ids, labels=labels).loss
            assert abs(loss.item() - ours[number - 1]) < 1e-4, number
            optimiser.param_groups[0]["lr"] = step["rates"][1] * (1 - 0.9**number)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
    assert ours[-1] < ours[0]


def test_without_the_extra_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "executorch.exir", None)
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"prompt": "Hello", "response": "Hello, dear."}\n')
    assert main(["phone", "--data", str(chats), "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err.strip()
    assert INSTALL in line and 'in a clone pip install -e ".[phone]"' in line and "\n" not in line
    assert not (tmp_path / "out").exists()


@needs_extra
def test_a_step_in_executorch_is_pytorchs(tmp_path):
    from executorch.runtime import Runtime

    manifest = export_bundle(tiny("llama"), TALK, tmp_path / "bundle", CONFIG)
    vector = read_adapter_vector(tmp_path / "bundle" / manifest["parameters"]["file"])
    method = Runtime.get().load_program(str(tmp_path / "bundle" / "program.pte")).load_method("train")
    records = np.fromfile(tmp_path / "bundle" / "records.bin", "<i8").reshape(-1, 2, manifest["length"])
    rows = torch.from_numpy(records[manifest["steps"][0]["records"]])
    rates = torch.tensor(manifest["steps"][0]["rates"])
    zeros = torch.zeros(vector.numbers.size)
    given = [rows[:, 0], rows[:, 1], torch.from_numpy(vector.numbers), zeros, zeros, rates]
    loss, *_ = method.execute([x.contiguous() for x in given])
    model = tiny("llama")
    with trainable_adapter(model, CONFIG, tmp_path / "bundle" / "adapter") as adapted:
        adapted.eval()
        labels = torch.cat([torch.full((2, 1), -100), rows[:, 1, :-1]], 1)
        assert abs(adapted(input_ids=rows[:, 0], labels=labels).loss.item() - loss.item()) < 1e-4
