"""The phone's program beside PyTorch, step by step: python -m benchmarks.phone (needs the extra `phone`).

Writes nbs/experiments/results/phone.json: losses of every step, processor seconds a step, memory, file sizes."""

import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from personal_llm.base.core import get_peak_memory
from personal_llm.base.files import write_json

DIALOGUES = 24  # of the samples
SETTINGS = dict(batch_size=4, steps=100, max_length=64, learning_rate=1e-3)


def export(folder: Path) -> dict:  # seconds, sizes
    "The offline phase."
    from personal_llm.base.files import ASSETS
    from personal_llm.base.models import load_model
    from personal_llm.data.reading import read_dialogues
    from personal_llm.runtimes.phone import export_bundle
    from personal_llm.tuning.config import TuningConfig

    source = sorted((ASSETS / "samples").glob("*.jsonl"))[0]
    dialogues = [d for d in read_dialogues(source) if len(d.text) < 200][:DIALOGUES]
    begun = time.process_time()
    parcel = export_bundle(load_model("pocket"), dialogues, folder / "parcel", TuningConfig(**SETTINGS))
    sizes = {name: row["bytes"] for name, row in parcel.manifest["files"].items()}
    shape = [parcel.manifest["batch"], parcel.manifest["length"]]
    return dict(seconds=time.process_time() - begun, memory=get_peak_memory(), files=sizes, shape=shape)


def runtime(folder: Path) -> dict:
    "The online phase, every step timed."
    from personal_llm.runtimes.phone import load_runtime, train_bundle
    from personal_llm.runtimes.phone_bundle import PROGRAM_FILE, open_bundle

    parcel, seconds = open_bundle(folder / "parcel"), []
    run, before = load_runtime(parcel.folder / PROGRAM_FILE), get_peak_memory()

    def timed(*inputs):
        begun = time.process_time()
        out = run(*inputs)
        seconds.append(time.process_time() - begun)
        return out

    done = train_bundle(parcel.folder, folder / "adapter", timed)
    return dict(losses=[loss for _, loss, _ in done.history], seconds=seconds, before=before, memory=get_peak_memory())


def pytorch(folder: Path) -> dict:
    "The same batches through peft, autograd, torch's AdamW, torch's clipping, transformers' schedule."
    import torch
    from transformers import get_cosine_schedule_with_warmup

    from personal_llm.base.models import load_model
    from personal_llm.runtimes.phone_bundle import START_FOLDER, open_bundle
    from personal_llm.tuning.config import TuningConfig
    from personal_llm.tuning.finetune import trainable_adapter

    parcel, losses, seconds = open_bundle(folder / "parcel"), [], []
    config = TuningConfig(**parcel.manifest["card"]["config"])
    with trainable_adapter(load_model("pocket"), config, parcel.folder / START_FOLDER) as adapted:
        adapted.eval()
        weights, before = [p for p in adapted.parameters() if p.requires_grad], get_peak_memory()
        optimiser = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
        schedule = get_cosine_schedule_with_warmup(optimiser, round(config.warmup * config.steps), config.steps)
        for ids, targets, _ in parcel.batches:
            labels = torch.from_numpy(np.concatenate([np.full((len(ids), 1), -100), targets[:, :-1]], 1))
            ids, begun = torch.from_numpy(ids), time.process_time()
            loss = adapted(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            seconds.append(time.process_time() - begun)
            losses.append(loss.item())
        adapted.save_pretrained(folder / "theirs")
    return dict(losses=losses, seconds=seconds, before=before, memory=get_peak_memory())


def apart(folder: Path) -> float:
    "The largest difference between the two trained adapters, beside the largest change that training made."
    from personal_llm.base.adapters import WEIGHTS_FILE
    from personal_llm.runtimes.phone_bundle import read_adapter_vector

    ours, theirs, start = (folder / name / WEIGHTS_FILE for name in ("adapter", "theirs", "parcel/adapter"))
    ours, theirs, start = (read_adapter_vector(file).numbers for file in (ours, theirs, start))
    return dict(adapters=float(np.abs(ours - theirs).max()), training=float(np.abs(ours - start).max()))


WAYS = dict(export=export, runtime=runtime, pytorch=pytorch)


def main() -> None:
    "Each part in a process of its own, one thread each."
    from personal_llm.experiments.runner import RESULTS, machine

    with tempfile.TemporaryDirectory(prefix="personal-llm-") as work:
        rows = {}
        for name in WAYS:
            subprocess.run([sys.executable, "-m", "benchmarks.phone", name, work], check=True)
            rows[name] = json.loads((Path(work) / f"{name}.json").read_text())
            print(name, "done", flush=True)
        rows["differences"] = apart(Path(work))
    versions = {name: version(name) for name in ("executorch", "torch", "transformers", "peft")}
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    rows["settings"] = SETTINGS | dict(model="pocket", targets="all-linear", rank=8, dialogues=DIALOGUES)
    write_json(Path(RESULTS) / "phone.json", rows | dict(machine=machine() + ", one thread", libraries=libraries))


if __name__ == "__main__":
    if len(sys.argv) == 3:
        folder = Path(sys.argv[2])
        write_json(folder / f"{sys.argv[1]}.json", WAYS[sys.argv[1]](folder))
    else:
        main()
