"""What a program in front notices of the service behind it: python -m benchmarks.foreground (some minutes).

A fixed piece of work runs on one core. A slice of the service trains on the same core, or on another one, and is
stopped and continued every half second, so that both states are measured within a second of each other, whatever else
goes on. Writes nbs/experiments/results/foreground.json: for each case the ratio of seconds a piece, pair by pair."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from personal_llm.base.files import make_folder, write_json

HALF = 0.5  # seconds in one state
PAIRS = 30  # of halves, a case
WORK = ("arithmetic", "memory")  # in the core's own cache, and through 64 MB
ON, OFF = "on", "off"


def piece_of(work: str):  # a function
    "Some ten milliseconds of work."
    small, large = np.ones(1000), np.ones(8_000_000)
    return (lambda: [small.sum() for _ in range(4000)]) if work == "arithmetic" else lambda: large.sum()


def in_front(work: str, seconds: float) -> list:  # (begin, end) of each piece, seconds of the monotonic clock
    "The child: work until the time is up."
    piece, rows, until = piece_of(work), [], time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.monotonic()
        piece()
        rows.append((begun, time.monotonic()))
    return rows


def pair_ratios(
    pieces: list,  # (begin, end)
    switches: list,  # (time, state that begins then), states taking turns
) -> list:  # seconds a piece with the service over those without, for each pair of halves
    "Medians of the pieces that lie wholly in a half; a pair that lacks pieces is left out."
    halves = []
    for (begin, state), (end, _) in zip(switches, switches[1:]):
        inside = [b - a for a, b in pieces if begin <= a and b <= end]
        halves.append((state, median(inside) if len(inside) >= 3 else None))
    turns = [dict(two) for two in zip(halves[::2], halves[1::2])]
    return [turn[ON] / turn[OFF] for turn in turns if turn[ON] and turn[OFF]]


def behind(folder: Path, core: int, nice: int):  # a process that trains
    "A slice of the service on one core, once it has begun to train."
    import psutil

    from personal_llm.base.core import Dialogue
    from personal_llm.base.models import load_model
    from personal_llm.device.personalizer import Personalizer
    from personal_llm.runtimes.idle import Policy
    from personal_llm.runtimes.service import HOME, LOADING, begin_slice, progress
    from personal_llm.sdss.buffer import Buffer
    from personal_llm.tuning.config import TuningConfig

    plan = TuningConfig(steps=100_000, checks=10_000, patience=100_000)
    me = Personalizer(load_model("pocket"), Buffer(8), folder=folder, synthetic=0, config=plan, rehearsal=64)
    for ache in "knee back neck hand".split():
        me.observe(Dialogue(f"My {ache} hurts.", "Dear friend, rest it and call me tonight.", origin="annotated"))
    me.save()
    write_json(make_folder(folder / HOME) / LOADING, dict(model="pocket"))
    process = begin_slice(folder, folder / HOME, Policy(nice=nice))
    psutil.Process(process.pid).cpu_affinity([core])
    while progress(folder)[0] == 0 and process.poll() is None:
        time.sleep(0.1)
    for thread in psutil.Process(process.pid).threads():
        os.sched_setaffinity(thread.id, [core])
    return process


def measured(process, work: str, core: int) -> list:  # ratios
    "Work in front while the slice is stopped and continued."
    seconds = 2 * PAIRS * HALF + 1
    call = [sys.executable, "-m", "benchmarks.foreground", work, str(seconds), str(core)]
    child = subprocess.Popen(call, stdout=subprocess.PIPE)
    child.stdout.readline()  # it begins
    switches = []
    for state in [OFF, ON] * PAIRS:
        process.send_signal(signal.SIGCONT if state == ON else signal.SIGSTOP)
        switches.append((time.monotonic() + 0.02, state))
        time.sleep(HALF)
    switches.append((time.monotonic(), OFF))
    process.send_signal(signal.SIGCONT)
    return pair_ratios(json.loads(child.stdout.readline()), switches)


def measure() -> dict:
    "All cases, with quartiles over the pairs."
    import platform

    cores, rows = sorted(os.sched_getaffinity(0)), []
    for nice in (19, 0):
        for place in ("same", "other"):
            core = cores[0] if place == "same" else cores[-1]
            with tempfile.TemporaryDirectory() as folder:
                process = behind(Path(folder), core, nice)
                for work in WORK:
                    load, ratios = os.getloadavg()[0], measured(process, work, cores[0])
                    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).round(4).tolist()
                    case = dict(work=work, core=place, nice=nice, load=round(load, 1), pairs=len(ratios))
                    rows.append(case | dict(low=low, median=middle, high=high))
                    print(rows[-1], flush=True)
                process.stdin.close()
                process.wait(30)
    return dict(machine=dict(processor=platform.processor() or platform.machine(), cores=len(cores)), rows=rows)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        os.sched_setaffinity(0, [int(sys.argv[3])])
        piece_of(sys.argv[1])()
        print("begins", flush=True)
        print(json.dumps(in_front(sys.argv[1], float(sys.argv[2]))))
    else:
        out = Path(__file__).parent.parent / "nbs" / "experiments" / "results" / "foreground.json"
        write_json(out, measure())
        print(out)
