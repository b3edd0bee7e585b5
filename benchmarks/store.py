"""How long the memory takes in a folder of 10,000 dialogues: open, status, observe, forget; processor time of one thread.
`durable` is a dialogue of a chat, scored by the stand-in, until the disk has it, in seconds of the clock; `durable cpu` in
those of the processor.

    python -m benchmarks.store [--dialogues N] [--out FILE]

The model is a stand-in, so the numbers are those of the memory, of its replay and of the loop around it."""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from personal_llm.base.core import Dialogue
from personal_llm.buffer.scoring import ScoredDialogue
from personal_llm.device.forgetting import forget_folder
from personal_llm.device.memory import hold_store
from personal_llm.device.personalizer import load_personalizer
from personal_llm.device.replay import folder_status, read_state


def make_folder(place: Path, count: int, models) -> None:
    "Write the memory of a device that saw a number of dialogues, of which the buffer discarded the last ones."
    me = models.start(place, capacity=32)
    models.watch(me, models.TALK)
    scores = me.buffer.entries[0].scores
    for n in range(len(models.TALK), count):
        candidate = ScoredDialogue(Dialogue(f"question {n}", f"answer {n}", time=n + 1.0), scores)
        root = me.memory.remember(candidate)
        me.memory.add("offered", root, dict(considered=False))
        me.memory.add("discarded", root, dict(step=n + 1, reason="its loss is low", scores={}))
    me.save()


def seconds(act, rounds: int = 5, clock=time.process_time) -> float:
    "Return the median time of an act."
    times = []
    for _ in range(rounds):
        begin = clock()
        act()
        times.append(clock() - begin)
    return statistics.median(times)


def measure(count: int, models) -> dict:  # act -> seconds
    "Measure each act in a folder of a number of dialogues."
    with tempfile.TemporaryDirectory() as root:
        place = Path(root) / "me"
        make_folder(place, count, models)
        open_it = lambda: load_personalizer(place, models.Fake(), None, models.LEXICONS)
        found = dict(open=seconds(open_it), read=seconds(lambda: read_state(place)))
        found["status"] = seconds(lambda: folder_status(place))
        me, number = open_it(), iter(range(10**6))

        def observe():
            me.observe(Dialogue(f"a new question {next(number)}", "a new answer", time=1e9))
            me.save()

        observe()
        found["observe"] = seconds(observe, 20)

        def observe_in_chat():  # a chat holds the folder, and saves after each turn
            me.observe(Dialogue(f"a new question {next(number)}", "a new answer", time=1e9))
            me.save()

        with hold_store(place):
            observe_in_chat()
            found["durable"] = seconds(observe_in_chat, 50, time.perf_counter)
            found["durable cpu"] = seconds(observe_in_chat, 50)
        copies = [shutil.copytree(place, Path(root) / f"copy{n}") for n in range(3)]
        victim = me.buffer.dialogues[0].id
        found["forget"] = seconds(lambda: forget_folder(copies.pop(), ids=[victim]), 3)
        found["bytes"] = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    return found


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import devices

    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--dialogues", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args()
    large, small = measure(given.dialogues, devices), measure(1_000, devices)
    ratios = {name: round(large[name] / small[name], 2) for name in large}
    result = dict(dialogues=given.dialogues, large=large, small=small, ratio=ratios)
    for name in large:
        unit, scale = (" MB", 1e6) if name == "bytes" else (" ms", 1e-3)
        values = f"{large[name] / scale:10.1f}{unit}, of 1,000 dialogues {small[name] / scale:8.1f}{unit}"
        print(f"{name:12}{values}, ratio {ratios[name]}")
    if given.out:
        given.out.write_text(json.dumps(result, indent=1))
