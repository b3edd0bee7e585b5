"""What a program in front notices of the service behind it: python -m benchmarks.foreground (some minutes).

A fixed piece of work runs on one core. `learn` trains on the same core, or on another one, and is
stopped and continued every half second, so that both states are measured within a second of each other. Counted are
processor seconds, which other programs do not change: how many more a piece takes (the caches and the memory are
shared), and on the same core how many the slice took for each one of the work. Together they are how much slower the
work is on a machine where nothing else runs. Writes nbs/experiments/results/foreground.json."""

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

from personal_llm.base.files import write_json

HALF = 0.5  # seconds in one state
PAIRS = 12  # of halves, a case
WORK = ("arithmetic", "memory")  # in the core's own cache, and through 64 MB
ON, OFF = "on", "off"


def piece_of(work: str):  # a function
    "Some ten milliseconds of work."
    small, large = np.ones(1000), np.ones(8_000_000)
    return (lambda: [small.sum() for _ in range(4000)]) if work == "arithmetic" else lambda: large.sum()


def in_front(work: str, seconds: float) -> list:  # (begin, end, processor seconds) of each piece
    "The child: work until the time is up."
    piece, rows, until = piece_of(work), [], time.monotonic() + seconds
    while time.monotonic() < until:
        begun, used = time.monotonic(), time.process_time()
        piece()
        rows.append((begun, time.monotonic(), time.process_time() - used))
    return rows


def pair_ratios(
    pieces: list,  # (begin, end, processor seconds)
    halves: list,  # (begin, end, state, processor seconds of the slice), states taking turns
) -> list:  # (how many more seconds a piece takes, seconds of the slice for each of the work), pair by pair
    "Medians of the pieces that lie wholly in a half; a pair that lacks pieces is left out."
    told, found = [], []
    for begin, end, state, behind in halves:
        inside = [used for a, b, used in pieces if begin <= a and b <= end]
        told.append((state, median(inside), behind / sum(inside)) if len(inside) >= 3 else None)
    for two in zip(told[::2], told[1::2]):
        if None not in two:
            by = {state: rest for state, *rest in two}
            found.append((by[ON][0] / by[OFF][0], by[ON][1]))
    return found


def used_by(process) -> float:  # seconds
    "What all threads of a process have used of the processor."
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def behind(folder: Path, core: int, nice: int):  # a process that trains
    "A fine-tune on one core, once it has begun to train."
    import psutil

    from personal_llm.base.core import Dialogue
    from personal_llm.base.models import load_model
    from personal_llm.device.personalizer import Personalizer
    from personal_llm.buffer.buffer import Buffer
    from personal_llm.tuning.config import TuningConfig

    plan = TuningConfig(steps=100_000, checks=10_000, patience=100_000)
    me = Personalizer(load_model("pocket"), Buffer(8), folder=folder, synthetic=0, config=plan, replay=64)
    for ache in "knee back neck hand".split():
        me.observe(Dialogue(f"My {ache} hurts.", "Dear friend, rest it and call me tonight.", origin="annotated"))
    me.save()
    command = [
        sys.executable,
        "-m",
        "personal_llm.app.cli",
        "learn",
        "--out",
        str(folder),
        "--model",
        "pocket",
        "--quiet",
    ]
    process = subprocess.Popen(command, start_new_session=True)  # a polite one would never begin on a busy machine
    while not [*folder.rglob("checkpoint-*")] and process.poll() is None:
        time.sleep(0.1)
    Path(f"/proc/{process.pid}/autogroup").write_text(str(nice))
    for thread in psutil.Process(process.pid).threads():  # as `lower_priority` does it from inside
        os.sched_setaffinity(thread.id, [core])
        os.setpriority(os.PRIO_PROCESS, thread.id, nice)
        if nice == 19:
            os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))
    return process


def measured(process, work: str, core: int) -> list:  # of `pair_ratios`
    "Work in front while the slice is stopped and continued."
    call = [sys.executable, "-m", "benchmarks.foreground", work, str(2 * PAIRS * HALF + 1), str(core)]
    child = subprocess.Popen(call, stdout=subprocess.PIPE)
    child.stdout.readline()  # it begins
    halves = []
    for state in [OFF, ON] * PAIRS:
        process.send_signal(signal.SIGCONT if state == ON else signal.SIGSTOP)
        begun, used = time.monotonic(), used_by(process)
        time.sleep(HALF)
        halves.append((begun + 0.01, time.monotonic(), state, used_by(process) - used))
    process.send_signal(signal.SIGCONT)
    return pair_ratios(json.loads(child.stdout.readline()), halves)


def case_of(pairs: list, same: bool) -> dict:
    "Medians over pairs, and quartiles of how much slower the work is."
    more, taken = np.array(pairs).T
    slower = more * (1 + taken) if same else more
    low, middle, high = np.quantile(slower, (0.25, 0.5, 0.75)).round(4).tolist()
    found = dict(
        pairs=len(pairs), more=round(float(median(more)), 4), taken=round(float(median(taken)), 4) if same else None
    )
    return found | dict(low=low, slower=middle, high=high)


def measure() -> dict:
    "All cases: both kinds of work, both cores, as the policy has it and without giving way."
    import platform

    cores, rows = sorted(os.sched_getaffinity(0)), []
    for nice in (19, 0):
        for place in ("same", "other"):
            with tempfile.TemporaryDirectory() as folder:
                process = behind(Path(folder), cores[0] if place == "same" else cores[-1], nice)
                for work in WORK:
                    case = dict(work=work, core=place, nice=nice, load=round(os.getloadavg()[0], 1))
                    rows.append(case | case_of(measured(process, work, cores[0]), place == "same"))
                    print(rows[-1], flush=True)
                process.kill()  # its checkpoints are of no use to anybody
                process.communicate()
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
