"""`python -m benchmarks [--rounds N] [--steps N] [--out FILE]`: how fast tuning is, beside its peers; some minutes."""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from benchmarks import checks, finetunes, learning, observing, sizes, tuning, whole  # noqa: E402
from personal_llm.base.files import write_json  # noqa: E402
from personal_llm.base.models import load_model  # noqa: E402

RESULTS = Path(__file__).parent.parent / "nbs" / "experiments" / "results"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="how often every way is run")
    parser.add_argument("--steps", type=int, default=12, help="steps of a run; the first four see new dialogues")
    parser.add_argument("--sizes", metavar="FOLDER", help="instead: true sizes, from a folder of configurations")
    parser.add_argument("--whole", metavar="FOLDER", help="instead: a whole personalisation at true size")
    parser.add_argument("--checks", metavar="FOLDER", help="instead: the command check at true size")
    parser.add_argument("--layers", type=int, default=0, help="for --whole: layers from the top that learn; 0: all")
    parser.add_argument("--learning", action="store_true", help="instead: seconds to equal held-out loss")
    parser.add_argument(
        "--finetunes", action="store_true", help="instead: whole fine-tunes, and what each speed-up buys"
    )
    parser.add_argument("--observing", action="store_true", help="instead: what an adapter adds to reading a dialogue")
    parser.add_argument("--threads", type=int, default=1, help="for --finetunes: processor threads")
    parser.add_argument("--only", default="smollm2", help="which of them, joined by commas")
    parser.add_argument("--out", type=Path, help="a JSON file; nbs/experiments/results by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.sizes:
        out = given.out or RESULTS / "sizes.json"
        found = sizes.measure(Path(given.sizes), given.only.split(","))
    elif given.checks:
        out = given.out or RESULTS / "check.json"
        found = checks.measure(Path(given.checks), given.only.split(","))
    elif given.whole:
        out = given.out or RESULTS / "whole.json"
        found = whole.measure(Path(given.whole), given.only.split(","), given.layers)
    elif given.finetunes:
        out = given.out or RESULTS / f"finetunes-{given.threads}.json"
        found = finetunes.measure(load_model("pocket", device="cpu"), given.rounds, given.steps, given.threads)
    elif given.observing:
        out = given.out or RESULTS / "observing.json"
        found = observing.measure(load_model("pocket", device="cpu"))
    elif given.learning:
        out = given.out or RESULTS / "speed-to-loss.json"
        found = learning.measure(load_model("pocket", device="cpu"), given.rounds, given.steps)
    else:
        out = given.out or RESULTS / "speed.json"
        found = tuning.measure(load_model("pocket", device="cpu"), given.rounds, given.steps)
    write_json(out, found)
    print(out)
