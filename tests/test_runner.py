"The runner of the experiments under kills, torn lines, several workers; and what may be said of its rows."

import json
import os
import platform
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest

import grids
from grids import JOBS, SHARED, loss_of
from personal_llm.base.core import Cost, InputError
from personal_llm.experiments import all as experiments
from personal_llm.experiments import runner
from personal_llm.experiments.headroom import ratio_to_best
from personal_llm.experiments.runner import (
    Grid,
    check_budgets,
    user_means,
    job_key,
    read_result_lines,
    group_rows,
    provenance,
    read_results,
    revision,
    run_grid,
    summarise_rows,
)
from personal_llm.experiments.methods.significance import holm_correction, mean_over_users, sign_flip_test

HERE = Path(__file__).resolve().parent


def run(out, measure=grids.losses, jobs=JOBS, **options):
    options = dict(shared=SHARED, model=None, progress=False) | options
    return run_grid("toy", jobs, measure, out, **options)


def rows_by_job(out) -> dict:
    "Results without what differs from run to run."
    lines = read_result_lines("toy", out)
    found = {job_key(line["job"]): {n: x for n, x in line["results"].items() if n != "process"} for line in lines}
    assert len(found) == len(lines), "no job twice"
    return found


EXPECTED = {job_key(job): dict(loss=loss_of(job)) for job in JOBS}


def counted(calls):
    "A measure that writes down which jobs it was asked for."

    def measure(jobs):
        calls.extend(jobs)
        yield from grids.losses(jobs)

    return measure


def test_a_second_call_measures_nothing(tmp_path):
    calls = []
    assert run(tmp_path, jobs=JOBS[:7]) == [] and run(tmp_path, counted(calls)) == []
    assert calls == JOBS[7:] and rows_by_job(tmp_path) == EXPECTED
    assert run(tmp_path, counted(calls)) == [] and len(calls) == len(JOBS) - 7


def test_a_stream_is_read_once_for_all_its_jobs(tmp_path):
    read = []

    def measure(jobs):
        read.append([job["policy"] for job in jobs])
        yield from grids.losses(jobs)

    by_policy = sorted(JOBS, key=lambda job: job["policy"])
    run(tmp_path, measure, by_policy)
    assert read == [["fifo", "random", "sdss"]] * 6
    read.clear()
    run(tmp_path / "alone", measure, by_policy, shared=())
    assert len(read) == len(JOBS) and rows_by_job(tmp_path) == rows_by_job(tmp_path / "alone") == EXPECTED


def test_the_order_of_a_jobs_names_does_not_matter(tmp_path):
    calls = []
    run(tmp_path)
    run(tmp_path, counted(calls), [dict(reversed(job.items())) for job in JOBS])
    assert calls == []
    changed = [job | dict(bins=32) for job in JOBS[:2]]
    run(tmp_path, counted(calls), changed)
    assert calls == changed, "another value is another job"


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat")  # one that ended and whom nobody asked is a zombie
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_in_the_middle_goes_on(tmp_path, workers):
    program = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import grids
from personal_llm.experiments.runner import run_grid
if __name__ == "__main__":
    run_grid("toy", grids.JOBS, grids.slow, {str(tmp_path)!r}, grids.SHARED, {workers}, None, False)
"""
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen([sys.executable, tmp_path / "program.py"])
    file, start = tmp_path / "toy.jsonl", time.time()
    while not (file.exists() and len(file.read_text().splitlines()) >= 4):
        assert process.poll() is None and time.time() - start < 600
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for worker in {line["results"]["process"] for line in read_result_lines("toy", tmp_path)}:
        while alive(worker):
            assert time.time() - start < 600, "a worker outlives its run"
            time.sleep(0.01)
    there = [line["job"] for line in read_result_lines("toy", tmp_path)]
    assert 4 <= len(there) < len(JOBS)
    calls = []
    assert run(tmp_path, counted(calls)) == []
    assert calls == [job for job in JOBS if job not in there] and rows_by_job(tmp_path) == EXPECTED


def test_a_torn_line_is_measured_again(tmp_path):
    run(tmp_path)
    file = tmp_path / "toy.jsonl"
    whole = file.read_bytes()
    last = json.loads(whole.splitlines()[-1])["job"]
    for cut in (2, 30, len(whole.splitlines()[-1]) - 5):
        calls = []
        file.write_bytes(whole[:-cut])
        assert run(tmp_path, counted(calls)) == [] and calls == [last]
        assert rows_by_job(tmp_path) == EXPECTED


def test_two_workers_give_the_rows_of_one(tmp_path):
    for workers in (1, 2):
        out = tmp_path / str(workers)
        assert run(out, workers=workers) == []
        assert rows_by_job(out) == EXPECTED
        assert run(out, grids.threads, [dict(seed=seed) for seed in range(4)], shared=(), workers=workers) == []
    one, two = (rows_by_job(tmp_path / str(workers)) for workers in (1, 2))
    assert one == two and [row["threads"] for row in two.values() if "threads" in row] == [1] * 4


def test_a_failing_job_is_told_and_tried_again(tmp_path, capsys):
    broken = [JOBS[4]]

    def measure(jobs):
        for job in jobs:
            if job in broken:
                raise ZeroDivisionError("planted")
            yield dict(loss=loss_of(job))

    assert run(tmp_path, measure) == broken
    said = "".join(capsys.readouterr())
    assert job_key(broken[0]) in said and "ZeroDivisionError: planted" in said
    assert rows_by_job(tmp_path) == {key: row for key, row in EXPECTED.items() if key != job_key(broken[0])}
    again = broken.copy()
    broken.clear()
    calls = []
    assert run(tmp_path, counted(calls)) == [] and calls == again and rows_by_job(tmp_path) == EXPECTED


def test_a_measure_that_ends_early_has_failed(tmp_path):
    assert run(tmp_path, lambda jobs: iter([dict(loss=1.0)] if jobs[0]["policy"] == "random" else [])) == [
        job for job in JOBS if job["policy"] != "random"
    ]


def test_results_that_are_no_numbers_are_not_written(tmp_path):
    for loss in (float("nan"), float("inf"), np.float32(1), {1, 2}):
        assert run(tmp_path, lambda jobs: iter([dict(loss=loss)] * len(jobs)), JOBS[:3]) == JOBS[:3]
    assert not (tmp_path / "toy.jsonl").exists()


@pytest.mark.parametrize("name", ["user", "seconds", "made"])
def test_results_do_not_take_the_names_of_others(tmp_path, name):
    assert run(tmp_path, lambda jobs: iter([{name: 1.0}] * len(jobs)), JOBS[:3]) == JOBS[:3]


def test_a_dying_worker_costs_one_job(tmp_path, capsys):
    failed = run(tmp_path, grids.fatal, workers=2)
    assert sorted(map(job_key, failed)) == sorted(
        job_key(job) for job in JOBS if job["user"] == "Bo" and job["policy"] == "fifo"
    )
    assert len(rows_by_job(tmp_path)) == len(JOBS) - 2, "what comes after it goes to another worker"
    assert "its process ended with code -9" in "".join(capsys.readouterr())
    assert run(tmp_path) == [] and rows_by_job(tmp_path) == EXPECTED


@pytest.mark.parametrize("progress", [False, True])
def test_workers_end_when_the_disk_is_full(tmp_path, monkeypatch, progress):
    def full(file, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "append_json_line", full)
    with pytest.raises(OSError) as error:
        run(tmp_path, grids.slow, workers=2, progress=progress)
    assert active_children() == [] and error  # while somebody still holds the error


def test_what_workers_cannot_find_is_refused(tmp_path):
    with pytest.raises(InputError, match="put it into a module"):
        run(tmp_path, lambda jobs: iter(()), workers=2)


def test_a_second_run_of_a_grid_is_refused(tmp_path):
    def measure(jobs):
        with pytest.raises(InputError, match="another run"):
            run(tmp_path)
        assert run_grid("other", JOBS[:1], grids.losses, tmp_path, model=None, progress=False) == []
        yield from grids.losses(jobs)

    assert run(tmp_path, measure, JOBS[:1]) == [] and len(rows_by_job(tmp_path)) == 1


def test_threads_are_given_back(tmp_path):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(tmp_path, grids.threads, [dict(seed=0)], shared=())
        assert torch.get_num_threads() == 2 and list(rows_by_job(tmp_path).values())[0]["threads"] == 1
    finally:
        torch.set_num_threads(before)


def test_a_line_says_who_made_it(tmp_path):
    job = dict(user="Ana", seed=0)
    run(tmp_path, lambda jobs: iter([dict(loss=1.5, cost=Cost(tokens=70, requests=3))]), [job], model="pocket")
    (line,) = read_result_lines("toy", tmp_path)
    assert list(line) == ["job", "results", "seconds", "cost", "made"] and line["job"] == job
    assert line["results"] == dict(loss=1.5) and line["cost"]["tokens"] == 70 and line["seconds"] >= 0
    made = line["made"]
    assert made == provenance("pocket") and len(made["model"]) == 16 and "cores" in made["machine"]
    assert all(made[name][0].isdigit() for name in ("personal_llm", "torch", "transformers", "peft"))
    names = (platform.node(), str(Path.home()), str(HERE.parent), str(tmp_path))
    told = [name for name in names if len(name) > 1 and name in (tmp_path / "toy.jsonl").read_text()]
    assert not told, "no paths, no host names"


def test_the_revision_says_when_the_package_was_changed(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # as inside a hook
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # who runs this may sign commits, or have hooks
    package = tmp_path / "house" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    git = lambda *words: subprocess.run(["git", "-C", str(package), *words], check=True, capture_output=True)
    assert revision(package) == ""
    git("init")
    assert revision(package) == "", "not yet in it"
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-m", "first")
    clean = revision(package)
    assert len(clean) == 10
    (package.parent / "results.jsonl").write_text("{}")
    assert revision(package) == clean, "results are not the package"
    (package / "new.py").write_text("")
    assert revision(package) == clean + "+"


def test_lines_of_two_models_do_not_mix(tmp_path, monkeypatch):
    calls = []
    run(tmp_path)
    made = provenance(None) | dict(model="b2")
    monkeypatch.setattr(runner, "provenance", lambda model: made)
    run(tmp_path, counted(calls), JOBS[:6])
    assert calls == JOBS[:6], "another model measures anew"
    with pytest.raises(InputError, match="2 models"):
        read_results("toy", tmp_path)
    run(tmp_path, counted(calls))
    assert calls == JOBS and {row["made"]["model"] for row in read_results("toy", tmp_path)} == {"b2"}
    assert len(read_results("toy", tmp_path)) == len(JOBS)


def test_foreign_lines_are_refused(tmp_path):
    (tmp_path / "toy.jsonl").write_text('{"user": "Ana", "loss": 2.5}\n')
    with pytest.raises(InputError, match="did not write"):
        run(tmp_path)


def rows(policies, seeds=(0, 1), **budgets):
    "Planted rows: policy -> loss of each user."
    return [
        dict(user=f"u{i}", seed=seed, policy=policy, loss=loss + seed, **budgets)
        for policy, losses in policies.items()
        for i, loss in enumerate(losses)
        for seed in seeds
    ]


def test_seeds_first_then_users():
    "Bo has three seeds and Ana one: Bo counts no more for it."
    uneven = [dict(user="Ana", seed=0, policy="p", loss=1.0)]
    uneven += [dict(user="Bo", seed=seed, policy="p", loss=loss) for seed, loss in enumerate((2.0, 3.0, 4.0))]
    assert user_means(uneven, "policy", "loss")["p"].tolist() == [1.0, 3.0]
    (found,) = summarise_rows(uneven, "policy", ("loss",))
    assert found["loss"] == mean_over_users([1.0, 3.0]) and found["loss"].value == 2.0
    assert (found["users"], found["runs"], found["loss"].n) == (2, 4, 2)


def test_columns_belong_to_the_same_users():
    planted = rows(dict(sdss=[1, 2, 3], random=[2, 4, 7]))
    for order in (planted, planted[::-1], planted[:6] + planted[:5:-1]):
        found = user_means(order, "policy", "loss")
        assert (found["random"] - found["sdss"]).tolist() == [1, 2, 4]
    for wrong, words in ((planted[:-1], "lacks"), (planted + planted[:1], "2 rows")):
        with pytest.raises(InputError, match=words):
            user_means(wrong, "policy", "loss")
    varied = [row | dict(bins=bins) for row in planted for bins in (8, 32)]
    with pytest.raises(InputError, match="name in `by` what else differs"):
        group_rows(varied, "policy")
    assert len(group_rows(varied, ("policy", "bins"))) == 4


def test_unequal_budgets_are_an_error():
    fair = rows(dict(sdss=[1, 2], random=[2, 3]), requests=32, steps=40, synthesis=1)
    check_budgets(fair)
    for budget in ("requests", "steps", "synthesis"):
        unfair = fair[:-1] + [fair[-1] | {budget: 33}]
        with pytest.raises(InputError, match=f"{budget} are not equal: .*33 .policy random, user u1, seed 1"):
            check_budgets(unfair)
        with pytest.raises(InputError, match=budget):
            check_budgets([{n: x for n, x in row.items() if n != budget} for row in fair])
    varied = fair + [row | dict(requests=8, asked=8) for row in fair]
    varied = [dict(asked=32) | row for row in varied]
    check_budgets(varied, within=("asked",))
    with pytest.raises(InputError, match="asked 8: steps"):
        check_budgets(varied[:-1] + [varied[-1] | dict(steps=1)], within=("asked",))


def test_the_ratio_is_to_one_rival_for_all_users():
    found = ratio_to_best([0.3, 0.5, 0.4], dict(a=[0.1, 0.3, 0.2], b=[0.3, 0.1, 0.1]))
    assert found.best == "a" and found.ratio == pytest.approx(2.0) and found.n == 3
    assert ratio_to_best([0.3, 0.5, 0.4], dict(a=[0.1, 0.3, 0.2])).high > found.high, "another rival can only lower it"


@pytest.mark.parametrize("truth", [0.8, 1.0, 1.5])
def test_the_ratios_interval_holds_the_truth(truth):
    rng, held = np.random.default_rng(int(10 * truth)), 0
    for _ in range(200):
        level = 0.2 * np.exp(0.4 * rng.normal(size=12))
        noisy = lambda share: share * level * np.exp(0.2 * rng.normal(size=12))
        rivals = dict(a=noisy(1.0), b=noisy(0.8), c=noisy(0.6))
        found = ratio_to_best(noisy(truth), rivals, resamples=400)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 200 <= 0.995


def test_the_best_rival_is_chosen_in_each_draw():
    "By hand over the four draws of two users: 1.5, 2, 2, 5/3. With `a` fixed they would be 3, 2, 2, 5/3."
    ours, rivals = [0.3, 0.5], dict(a=[0.1, 0.3], b=[0.2, 0.1])
    widening = 12.7062 / 1.959964 * 2**0.5
    assert ratio_to_best(ours, rivals).low == pytest.approx(2 - widening * 0.5, abs=1e-3)
    assert ratio_to_best(ours, rivals).high == pytest.approx(2, abs=1e-9)
    assert ratio_to_best(ours, dict(a=rivals["a"])).high == pytest.approx(2 + widening, abs=1e-3)


def test_signs_by_hand_and_in_law():
    assert sign_flip_test([1, 2, 4]) == 2 / 8 and sign_flip_test([3, -1]) == 1.0 and sign_flip_test([3, 1]) == 0.5
    assert sign_flip_test(np.ones(30)) == 1 / 20000, "the signs that were seen are among those that are drawn"
    x = np.random.default_rng(0).normal(0.4, 1, 16)
    assert sign_flip_test(x) == sign_flip_test(-x) == sign_flip_test(3 * x)
    longer = np.random.default_rng(1).normal(0.5, 1, 20)
    every = 1 - 2 * (np.arange(2**20)[:, None] >> np.arange(20) & 1)
    exact = (np.abs(every @ longer) >= abs(longer.sum()) - 1e-12).mean()
    assert sign_flip_test(longer) == pytest.approx(exact, abs=4 * (exact / 20000) ** 0.5)


def test_signs_err_as_often_as_they_say():
    rng = np.random.default_rng(3)
    found = [sign_flip_test(rng.normal(size=8)) for _ in range(1000)]
    assert 0.03 <= np.mean([p <= 0.05 for p in found]) <= 0.065


def test_holm_by_hand():
    "From Holm's steps: .005·4, .01·3, .03·2, .04·1, none below the one before."
    found = holm_correction(dict(a=0.01, b=0.04, c=0.03, d=0.005))
    assert list(found) == list("abcd")
    assert found == pytest.approx(dict(a=0.03, b=0.06, c=0.06, d=0.02))
    assert (
        holm_correction({}) == {}
        and holm_correction(dict(a=0.2)) == dict(a=0.2)
        and holm_correction(dict(a=0.6, b=0.9)) == dict(a=1.0, b=1.0)
    )
    assert holm_correction(dict(a=0.02, b=0.02)) == dict(a=0.04, b=0.04)


def test_the_command_lists_runs_and_resumes(tmp_path, monkeypatch, capsys):
    toys = [Grid("toy", JOBS, grids.losses, SHARED, None), Grid("other", JOBS[:2], grids.fatal, SHARED, None)]
    monkeypatch.setattr(experiments, "all_grids", lambda: toys)
    command = ["--out", str(tmp_path), "--workers", "1"]
    assert experiments.main([*command, "--only", "other"]) == 0 and not (tmp_path / "toy.jsonl").exists()
    capsys.readouterr()
    assert experiments.main([*command, "--list"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["toy", "0", "of", "18", "jobs,", "18", "missing"],
        ["other", "2", "of", "2", "jobs,", "0", "missing"],
    ]
    assert experiments.main(command) == 0 and rows_by_job(tmp_path) == EXPECTED
    assert experiments.main([*command, "--only", "none"]) == 1 and "no experiment 'none'" in capsys.readouterr().err


def test_the_command_says_when_jobs_failed(tmp_path, monkeypatch, capsys):
    toy = Grid("toy", JOBS[:2], lambda jobs: iter(()), SHARED, None)
    monkeypatch.setattr(experiments, "all_grids", lambda: [toy])
    assert experiments.main(["--out", str(tmp_path), "--workers", "1"]) == 1
    assert "2 jobs failed" in capsys.readouterr().err


def test_every_grid_of_the_package_can_be_run():
    "Names, jobs and functions as the workers need them."
    for grid in experiments.all_grids():
        assert grid.measure.__module__.startswith("personal_llm.experiments.") and grid.jobs


@pytest.mark.parametrize("grid", experiments.all_grids(), ids=lambda grid: grid.name)
def test_saved_rows_answer_jobs_of_the_plan(grid):
    "A renamed field of a job would leave its rows unread and measure the whole grid again."
    fields = {frozenset(job) for job in grid.jobs}
    lines = read_result_lines(grid.name)
    assert lines, "no row was saved"
    assert [line["job"] for line in lines if frozenset(line["job"]) not in fields] == []


# Rows of 2026 that name no commit of the history: 1021 were saved before the runner refused them (15 commits were
# rewritten, and a package had changed), 43 of real-library-starts and habit-defaults-few on a branch that was lost.
MOST_LOST, MOST_CHANGED = 1064, 1372


def test_saved_rows_name_a_commit_of_the_history():
    "The number of older rows that name no commit may only fall."
    git = lambda *words: subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True)
    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("no whole history here")
    known = set(git("rev-list", "--abbrev-commit", "--abbrev=10", "HEAD").stdout.split())
    revisions = [
        json.loads(line)["made"]["revision"]
        for file in runner.RESULTS.glob("*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
        if '"made"' in line
    ]
    assert len(revisions) > 7000
    assert sum(made.rstrip("+") not in known for made in revisions) <= MOST_LOST
    assert sum(made.endswith("+") for made in revisions) <= MOST_CHANGED


def test_a_row_of_a_changed_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    monkeypatch.setattr(runner, "revision", lambda: "0123456789+")
    with pytest.raises(InputError, match="commit first"):
        run(tmp_path)
    assert not (tmp_path / "toy.jsonl").exists()
    monkeypatch.setattr(runner, "revision", lambda: "0123456789")
    assert run(tmp_path) == []
