"""`personal-llm check` at true size with random weights: seconds, processor seconds and peak memory of the command.

The weights are written to a temporary folder, as a download would lie on the disk, and the command reads them from there.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.sizes import random_model
from benchmarks.tuning import machine

THREADS = 2


def write_model(source: Path, out: Path) -> None:
    "Write a random model of the size that a configuration names, with its tokenizer."
    torch.manual_seed(0)
    random_model(source).save_pretrained(out)
    for file in source.iterdir():
        if file.name != "config.json":
            shutil.copy(file, out)


def run(folder: Path, dtype: str, **environment) -> dict:
    "Run the command once, in a process of its own."
    command = [sys.executable, "-m", "personal_llm.app.cli", "check", "--model", str(folder), "--dtype", dtype]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(THREADS))
    began, load = time.monotonic(), os.getloadavg()[0]
    process = subprocess.Popen(command, env=os.environ | threads | environment, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    found = dict(dtype=dtype, ok=status == 0 and "FAIL" not in output, seconds=time.monotonic() - began, load=load)
    found |= dict(processor_seconds=used.ru_utime + used.ru_stime, gigabytes=used.ru_maxrss / 2**20, **environment)
    return found | dict(output=output.splitlines()[-8:])


def measure(folder: Path, names: list, told=print) -> dict:
    "Every model in both data types; the smallest one also with passive waiting."
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="true-size-") as place:
            write_model(folder / name, Path(place))
            ways = [("float32", {}), ("bfloat16", {})]
            ways += [("float32", dict(OMP_WAIT_POLICY="PASSIVE"))] * (name == names[0])
            for dtype, environment in ways:
                rows.append(dict(model=name) | run(Path(place), dtype, **environment))
                told({key: value for key, value in rows[-1].items() if key != "output"}, flush=True)
    return dict(machine=machine() | dict(threads=THREADS), weights="random", rows=rows)
