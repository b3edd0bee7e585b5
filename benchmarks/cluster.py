"""A library built here, by one Ray worker, by two, and by two of which one is killed: python -m benchmarks.cluster.

Needs the extra `ray`. Writes nbs/experiments/results/cluster.json: seconds, how busy the machine was before, whether
the files are those that this process alone makes, and how many results were kept when a worker was killed."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # as a worker computes

import tempfile  # noqa: E402
import threading  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import psutil  # noqa: E402
import torch  # noqa: E402

from personal_llm.app.library_commands import add_explained, explain_here  # noqa: E402
from personal_llm.base.files import ASSETS, write_json  # noqa: E402
from personal_llm.base.models import load_model  # noqa: E402
from personal_llm.runtimes.cluster import explain_with_ray, ray_cluster  # noqa: E402
from personal_llm.selection.library import Library  # noqa: E402
from personal_llm.explanation.explanation import load_probe_texts, prepare_probes  # noqa: E402

PLLMS, TEXTS, PROMPTS = 4, 80, 8  # of the shipped library, and what they are measured on
LICENCE = "CC0-1.0"
WAYS = (("one worker", 1, False), ("two workers", 2, False), ("two workers, one killed", 2, True))


def files(folder: Path) -> dict:
    "Every file's content."
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def workers() -> list:  # processes that are in a task now
    "Ray's own processes, of this machine."
    found = []
    for process in psutil.process_iter():
        try:
            found += [process] * ("ray::explain_job" in " ".join(process.cmdline()))
        except psutil.Error:
            pass
    return found


def kill_one(folder: Path, found: list) -> None:
    "Kill a worker in its task, once a result is kept; tells how many were."
    until = time.monotonic() + 600
    while time.monotonic() < until:
        kept, there = len(list(folder.glob("*/card.json"))), workers()
        if kept and there:
            there[0].kill()
            found.append(kept)
            return
        time.sleep(0.05)


def measure() -> dict:
    "The local build first, then the others beside it."
    torch.set_num_threads(1)
    shipped, model, (texts, prompts) = Library(ASSETS / "library"), load_model("pocket"), load_probe_texts()
    names, place = shipped.names[:PLLMS], Path(tempfile.mkdtemp())
    panels, rows = prepare_probes(model, shipped.space, texts[:TEXTS], prompts[:PROMPTS]), []
    folders = {name: shipped[name].adapter for name in names}
    new = lambda way: Library.create(place / way, shipped.space)

    def timed(way, work, killed=()):
        begun, load = time.monotonic(), os.getloadavg()[0]
        work()
        same = files(place / way) == files(place / "this process")
        rows.append(dict(way=way, seconds=round(time.monotonic() - begun, 1), load=round(load, 1), same_bytes=same))
        rows[-1] |= dict(kept_before_the_kill=killed[0]) if killed else {}
        print(rows[-1], flush=True)

    work = model, shipped.space, panels, 0, folders
    add = lambda way, results: add_explained(new(way), folders, results, LICENCE)
    timed("this process", lambda: add("this process", explain_here(*work, {})))

    def build(way, cores):
        with ray_cluster(cores=cores) as ray:
            add(way, explain_with_ray(ray, *work))

    for way, cores, kill in WAYS:
        killed = []
        threading.Thread(target=kill_one, args=(place / way, killed), daemon=True).start() if kill else None
        timed(way, lambda: build(way, cores), killed)
    return dict(pllms=PLLMS, texts=TEXTS, prompts=PROMPTS, cores=os.cpu_count(), rows=rows)


if __name__ == "__main__":
    out = Path(__file__).parent.parent / "nbs" / "experiments" / "results" / "cluster.json"
    write_json(out, measure())
    print(out)
