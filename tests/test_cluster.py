"A library built from a stream of explanations: nothing is done twice, failures are named; Ray where it is there."

import os
import pickle
import shutil
import socket
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from typed import fails

from personal_llm.app.library_commands import add_explained, explain_here
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import ASSETS
from personal_llm.base.models import load_model
from personal_llm.explanation.explanation import load_probe_texts, prepare_probes
from personal_llm.runtimes import cluster
from personal_llm.selection.library import Library

SHIPPED = Library(ASSETS / "library")
NAMES = SHIPPED.names[:3]
FOLDERS = {name: SHIPPED[name].adapter for name in NAMES}


def explained(names, fails=(), stop_at=None, done=None):
    "The results of workers: whom they refuse, before whom they are interrupted, and whom they explained."
    for name in names:
        if name == stop_at:
            raise KeyboardInterrupt
        if done is not None:
            done.append(name)
        yield name, InputError("not sound", "make it anew") if name in fails else SHIPPED[name].explanation


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def new(place):
    return Library.create(place, SHIPPED.space)


def add(library, **how):
    missing = {name: folder for name, folder in FOLDERS.items() if name not in library}
    return add_explained(library, missing, explained(missing, **how), "CC0-1.0")


def test_an_interrupted_build_goes_on(tmp_path):
    library, done = new(tmp_path / "lib"), []
    with pytest.raises(KeyboardInterrupt):
        add(library, stop_at=NAMES[2], done=done)
    library = Library(tmp_path / "lib")
    assert library.names == NAMES[:2]
    assert add(library, done=done) == (NAMES[2:], {}) and done == NAMES, "nobody twice"
    assert add(new(tmp_path / "whole")) == (NAMES, {})
    assert library.verify() == [] and files(tmp_path / "lib") == files(tmp_path / "whole")


def test_a_killed_build_loses_no_model_that_was_added(tmp_path):
    "The index is written after each one, not at the end."
    known = []

    def watched():
        for name, result in explained(NAMES):
            known.append(Library(tmp_path / "lib").names)
            yield name, result

    add_explained(new(tmp_path / "lib"), FOLDERS, watched(), "CC0-1.0")
    assert known == [[], NAMES[:1], NAMES[:2]]


def test_one_that_fails_is_named_and_the_others_stay(tmp_path):
    library = new(tmp_path / "lib")
    added, failed = add(library, fails=NAMES[1:2])
    assert added == [NAMES[0], NAMES[2]] == library.names and str(failed[NAMES[1]]) == "not sound; make it anew"


def test_a_worker_sends_an_explanation_or_an_error_and_no_files(monkeypatch):
    "The error names the pLLM, and no folder of the worker; an error travels whole."
    model = load_model("pocket")
    monkeypatch.setattr(cluster, "_load_context", lambda shared: (model, SHIPPED.space, None, 0))
    weights = (FOLDERS[NAMES[0]] / "adapter_model.safetensors").read_bytes()
    result = cluster.explain_job([None], NAMES[0], {"adapter_model.safetensors": weights[:100]})
    assert isinstance(result, InputError) and NAMES[0] in str(result) and "pllm-" not in str(result)
    again = pickle.loads(pickle.dumps(result))
    assert (again.problem, again.remedy, str(again)) == (result.problem, result.remedy, str(result))


def test_only_the_files_of_an_adapter_travel(tmp_path, monkeypatch):
    shutil.copytree(FOLDERS[NAMES[0]], tmp_path / "ana")
    (tmp_path / "ana" / "diary.txt").write_text("mine")
    travelled, hand_back = [], lambda value: value  # of a Ray that runs nothing
    send = SimpleNamespace(remote=lambda shared, name, files: travelled.append({*files}))
    ray = SimpleNamespace(put=hand_back, get=hand_back, cluster_resources=dict, remote=lambda **given: lambda job: send)
    assert len([*cluster.explain_with_ray(ray, load_model("pocket"), None, None, 0, dict(ana=tmp_path / "ana"))]) == 1
    (sent,) = travelled
    assert {"adapter_model.safetensors", "adapter_config.json"} <= sent and "diary.txt" not in sent


def test_a_model_that_was_used_travels():
    "Pickled as it is, it would carry hooks, and give no hidden states in another process."
    model, said = load_model("pocket"), [Dialogue("My knee hurts.", "Cool it.")]
    before = model.run_forward(said)[0]
    unpacked = cluster.unpack_model(*pickle.loads(pickle.dumps(cluster.pack_model(model))))
    after = unpacked.run_forward(said)[0]
    assert (unpacked.base, unpacked.name, unpacked.max_length) == (model.base, model.name, model.max_length)
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


@pytest.mark.parametrize("starts", [True, False])
def test_the_callers_cluster_is_hidden_from_ray_and_named_again_afterwards(monkeypatch, starts):
    seen = []

    def init(**given):
        seen.append(os.environ.get("RAY_ADDRESS"))
        if not starts:
            raise RuntimeError("no memory")

    monkeypatch.setattr(cluster, "import_extra", lambda *names: SimpleNamespace(init=init, shutdown=lambda: None))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    with nullcontext() if starts else pytest.raises(InputError, match="no memory"), cluster.ray_cluster():
        assert starts
    assert {*seen} == {None} and os.environ["RAY_ADDRESS"] == "10.0.0.5:6379"


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

    torch.set_num_threads(1)
    model, (texts, prompts) = load_model("pocket"), load_probe_texts()
    work = model, SHIPPED.space, prepare_probes(model, SHIPPED.space, texts[:12], prompts[:2]), 0, FOLDERS
    add_explained(new(tmp_path / "here"), FOLDERS, explain_here(*work, {}), "CC0-1.0")
    with cluster.ray_cluster(cores=2) as ray:
        add_explained(new(tmp_path / "ray"), FOLDERS, cluster.explain_with_ray(ray, *work), "CC0-1.0")
    assert files(tmp_path / "ray") == files(tmp_path / "here")
