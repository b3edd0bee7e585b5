"The harness of the experiments: grids that go on, and rows that each have a grid and a reader."

import json
import os
import re
from pathlib import Path

import pytest

from personal_llm.experiments.harness import RESULTS, check_grid, job_key, list_grids, read_result_lines, run_grid

LOSS = dict(random=3.0, fifo=3.2, sdss=2.5)
JOBS = [dict(user=user, seed=seed, policy=policy) for user in ("Ana", "Bo", "Cy") for seed in (0, 1) for policy in LOSS]
SHARED = ("user", "seed")


def loss_of(job) -> float:
    return LOSS[job["policy"]] + 0.2 * len(job["user"]) + 0.1 * job["seed"]


def losses(jobs):
    "A loss that the job's values determine; processes look for it by its name."
    assert len({(job["user"], job["seed"]) for job in jobs}) == 1, "one stream a group"
    for job in jobs:
        yield dict(loss=loss_of(job), requests=32)


def run(out, measure=losses, jobs=JOBS, **options):
    options = dict(shared=SHARED, model=None, progress=False) | options
    return run_grid("toy", jobs, measure, out, **options)


def read_losses(out) -> dict:
    lines = read_result_lines("toy", out)
    found = {job_key(line["job"]): line["results"]["loss"] for line in lines}
    assert len(found) == len(lines), "no job twice"
    return found


EXPECTED = {job_key(job): loss_of(job) for job in JOBS}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_call_measures_what_is_missing(tmp_path, workers):
    assert run(tmp_path, jobs=JOBS[:7]) == [] and run(tmp_path, workers=workers) == []
    assert read_losses(tmp_path) == EXPECTED
    assert run(tmp_path, lambda jobs: 1 / 0) == [], "nothing is left"


def test_every_grid_has_a_name_of_its_own_and_plain_jobs():
    for grid in list_grids().values():
        assert grid.jobs
        check_grid(grid.name, grid.jobs, grid.shared)


FILES = sorted(path.stem for path in RESULTS.glob("*.json*"))


def list_closed_rows() -> set:
    "Return the names of files that the table of rows without a grid lists."
    cells = json.loads((RESULTS.parent / "closed_questions.ipynb").read_text(encoding="utf-8"))["cells"]
    (table,) = ["".join(c["source"]) for c in cells if "## Rows without a grid" in "".join(c["source"])]
    lines = table.split("## Rows without a grid")[1].splitlines()
    return {name for line in lines if line.startswith("| `") for name in re.findall(r"`([^`/]+)`", line.split("|")[1])}


def test_every_file_of_rows_has_a_grid_or_a_line_among_the_closed_ones():
    closed, grids = list_closed_rows(), set(list_grids())
    assert not closed & grids, "a grid makes rows that the table calls closed"
    assert closed <= set(FILES), "a line for rows that are gone"
    assert set(FILES) <= grids | closed, "rows that nobody can make again, and no table says so"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_rows_hold_no_place_of_a_machine(path):
    text = Path(path).read_text(encoding="utf-8")
    assert "/home/" not in text and "/tmp/" not in text and os.sep + "root" not in text
    assert all(isinstance(json.loads(line), dict) for line in text.splitlines())
