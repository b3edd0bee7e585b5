"The phone's bundle holds all that an app needs, and its program computes PyTorch's steps."

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from tiny import tiny

from personal_llm.app.cli import main
from personal_llm.base.core import Dialogue
from personal_llm.extras.phone import export_bundle, read_adapter_vector
from personal_llm.tuning.config import TuningConfig
from personal_llm.tuning.finetune import trainable_adapter

INSTALL = 'pip install "personal_llm[phone]"'
needs_extra = pytest.mark.skipif(find_spec("executorch") is None, reason=f"needs ExecuTorch: {INSTALL}")
CONFIG = TuningConfig(batch_size=2, steps=12, learning_rate=1e-2, rank=2, max_length=64)
TALK = [Dialogue(f"What is {i} and {i}?", f"It is {2 * i}, dear.") for i in range(6)]


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
