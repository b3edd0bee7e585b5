"""`python -m benchmarks [--model NAME] [--rounds N]`: a fine-tune beside the same work in TRL, by processor seconds.

Both train the same LoRA on the same dialogues for the same number of steps and samples, in turn, each in a process of its
own. A ratio is taken within a round, so that a busy machine spoils little. TRL must be installed: `pip install trl`.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from pathlib import Path

from benchmarks.finetunes import measure_way

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", default="pocket", help="a name, a folder or a GGUF file")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way runs")
    parser.add_argument("--steps", type=int, default=48, help="optimiser steps of a fine-tune")
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    given = parser.parse_args()
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for number in range(given.rounds):
            for way in ("ours", "trl"):
                found = pool.apply(measure_way, (way, given.model, given.steps))
                rows.append(dict(round=number, way=way, model=given.model, steps=given.steps) | found)
                print(rows[-1], flush=True)
    seconds = {(row["way"], row["round"]): row["seconds"] for row in rows}
    ratio = statistics.median(seconds["ours", i] / seconds["trl", i] for i in range(given.rounds))
    if given.out:
        given.out.write_text(json.dumps(dict(rows=rows, ratio=ratio), indent=1))
    print(f"ours takes {ratio:.2f} times the processor seconds of TRL")
