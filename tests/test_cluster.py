"A library built by workers: equal bytes whatever the order, nothing done twice, failures named; Ray where it is there."

import shutil
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
from typed import fails

from personal_llm.base.adapters import WEIGHTS_FILE
from personal_llm.base.core import InputError
from personal_llm.base.files import ASSETS
from personal_llm.runtimes import cluster
from personal_llm.runtimes.cluster import (
    BuildJob,
    BuildContext,
    build_pllms,
    find_results_folder,
    load_result,
    store_result,
)
from personal_llm.selection.library import Library

SHIPPED = Library(ASSETS / "library")
NAMES = SHIPPED.names[:3]
PANELS = SimpleNamespace(coordinates=np.zeros(3), base=np.zeros(3), prompts=["a"], plain_responses=["b"])
TASK = BuildContext(SimpleNamespace(base=SHIPPED.base), SHIPPED.space, PANELS)


def made(job):
    return dict(explanation=SHIPPED[job.name].explanation, files=job.files)


def workers(order, fails=(), dies_after=None, done=None):
    "Workers in this process: the order in which they come, whom they refuse, and when all of it is interrupted."

    def run(task, jobs):
        for count, job in enumerate(order(jobs)):
            if count == dies_after:
                raise KeyboardInterrupt
            (done if done is not None else []).append(job.name)
            yield job, dict(error=["not sound", "make it anew"]) if job.name in fails else made(job)

    return run


def jobs():
    return [BuildJob.of(name, SHIPPED[name].adapter) for name in NAMES]


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def new(place):
    return Library.create(place, SHIPPED.space)


def built(place, **how):
    library = new(place)
    result = build_pllms(library, TASK, jobs(), workers(**dict(order=list) | how), "CC0-1.0", progress=False)
    return library, result


def test_the_order_of_arrival_leaves_no_trace(tmp_path):
    first, result = built(tmp_path / "a")
    second, _ = built(tmp_path / "b", order=lambda given: list(reversed(given)))
    assert result == (NAMES, {}) and second.names == NAMES and second.verify() == []
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_an_interrupted_build_goes_on(tmp_path):
    library, done = new(tmp_path / "lib"), []
    with pytest.raises(KeyboardInterrupt):
        build_pllms(library, TASK, jobs(), workers(list, dies_after=2, done=done), "CC0-1.0", progress=False)
    assert library.names == [] and len(done) == 2
    assert build_pllms(library, TASK, jobs(), workers(list, done=done), "CC0-1.0", progress=False)[0] == NAMES
    assert sorted(done) == sorted(NAMES), "nobody twice"
    assert not find_results_folder(library).exists()
    whole, _ = built(tmp_path / "whole")
    assert files(tmp_path / "lib") == files(tmp_path / "whole")


def test_one_that_fails_is_named_and_the_others_stay(tmp_path):
    library, (added, failed) = built(tmp_path / "lib", fails=NAMES[1:2])
    assert added == [NAMES[0], NAMES[2]] == library.names and str(failed[NAMES[1]]) == "not sound; make it anew"


def test_a_key_is_all_that_the_result_depends_on(tmp_path):
    job, context = jobs()[0], TASK.fingerprint
    other = BuildJob(job.name, job.files | {WEIGHTS_FILE: job.files[WEIGHTS_FILE][:-1] + b"x"})
    keys = {job.key(context), other.key(context), job.key("other"), BuildJob("x", {}, (), 1).key(context)}
    assert len(keys) == 4 and BuildJob("somebody", job.files).key(context) == job.key(context)
    changed = SimpleNamespace(**vars(PANELS) | dict(plain_responses=["c"]))
    for task in (BuildContext(TASK.model, TASK.space, PANELS, seed=1), BuildContext(TASK.model, TASK.space, changed)):
        assert task.fingerprint != TASK.fingerprint


def test_rows_travel_to_the_last_bit_and_damaged_parts_do_not_count(tmp_path):
    mine = SHIPPED[NAMES[0]].explanation
    mine.row[:] = np.random.default_rng(0).normal(size=mine.row.shape)
    store_result(tmp_path / "k", made(jobs()[0]) | dict(explanation=mine))
    assert load_result(tmp_path / "k").row.tobytes() == mine.row.tobytes()
    (tmp_path / "k" / WEIGHTS_FILE).unlink()
    assert load_result(tmp_path / "k") is None


def test_a_worker_writes_only_the_files_of_an_adapter(tmp_path):
    "A result may come from another machine: a name that leads elsewhere is not followed."
    strange = {"../../../X": b"x", str(tmp_path / "Y"): b"y", "sub/Z": b"z"}
    library = new(tmp_path / "lib")
    foul = lambda task, jobs: [(job, made(job) | dict(files=job.files | strange)) for job in jobs]
    assert build_pllms(library, TASK, jobs(), foul, "CC0-1.0", progress=False)[0] == NAMES
    assert not [p for p in tmp_path.rglob("*") if p.name in "XYZ"] and not (tmp_path.parent / "X").exists()


def test_a_folder_of_yours_with_the_name_of_the_results_stays(tmp_path):
    note = tmp_path / "lib.parts" / "note.txt"
    note.parent.mkdir()
    note.write_text("mine")
    built(tmp_path / "lib")
    assert files(note.parent) == {"note.txt": b"mine"}


def test_a_model_that_was_used_travels():
    "Pickled as it is, it would carry hooks, and give no hidden states in another process."
    import pickle
    from personal_llm.base.core import Dialogue
    from personal_llm.base.models import load_model

    model, said = load_model("pocket"), [Dialogue("My knee hurts.", "Cool it.")]
    before = model.run_forward(said)[0]
    there = pickle.loads(pickle.dumps(BuildContext(model, None, PANELS))).model
    after = there.run_forward(said)[0]
    assert (there.base, there.name, there.max_length) == (model.base, model.name, model.max_length)
    assert after.hidden.tobytes() == before.hidden.tobytes() and after.nll == before.nll


@pytest.mark.parametrize("address", ["nowhere", "host:0", "ray://:7", "127.0.0.1:9"])
def test_an_address_that_does_not_answer(address):
    with pytest.raises(InputError, match="no address|no Ray cluster answers"):
        cluster.check_ray_address(address)


def test_a_host_that_is_silent_is_given_up(monkeypatch):
    def silent(*given, timeout):
        time.sleep(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.05)
    monkeypatch.setattr(socket, "create_connection", silent)
    with pytest.raises(InputError, match="timed out"):
        cluster.check_ray_address("10.0.0.5:6379")


def test_without_ray_there_is_the_install_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    shutil.copytree(SHIPPED[NAMES[0]].adapter, tmp_path / "ana")
    given = (
        "library",
        "build",
        "--out",
        tmp_path / "lib",
        "--adapter",
        tmp_path / "ana",
        "--licence",
        "CC0-1.0",
        "--ray-address",
        "local",
    )
    assert 'pip install "personal_llm[ray]"' in fails(capsys, *given) and not (tmp_path / "lib").exists()


@pytest.mark.slow
def test_ray_builds_the_same_bytes(tmp_path):
    pytest.importorskip("ray", reason="pip install personal_llm[ray]")
    import torch
    from personal_llm.base.models import load_model
    from personal_llm.explanation.explanation import load_probe_texts, prepare_probes

    torch.set_num_threads(1)
    model, (texts, prompts) = load_model("pocket"), load_probe_texts()
    panels = prepare_probes(model, SHIPPED.space, texts[:12], prompts[:2])
    task, here = BuildContext(model, SHIPPED.space, panels), lambda task, jobs: ((job, task.run(job)) for job in jobs)
    build_pllms(new(tmp_path / "here"), task, jobs(), here, "CC0-1.0", progress=False)
    folders = {name: SHIPPED[name].adapter for name in NAMES}
    cluster.add_with_ray(new(tmp_path / "ray"), NAMES, folders, panels, model, "CC0-1.0", progress=False, cores=2)
    assert files(tmp_path / "ray") == files(tmp_path / "here")
