"The library: what it takes, what it refuses, and what a damaged or interrupted part leaves."

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from personal_llm.base.core import InputError
from personal_llm.base.files import ASSETS
from personal_llm.base.models import load_model
from personal_llm.base.weights import WEIGHTS
from personal_llm.selection.library import SHIPPED_LIBRARIES, Library, find_shipped_library

FACTS = dict(licence="CC0-1.0", samples=30)
SHIPPED = Library("pocket")


@pytest.fixture
def library(tmp_path):
    "Three pLLMs of the shipped library in one of their own."
    made = Library.create(tmp_path / "own", SHIPPED.space)
    for name in ("ward-round", "plain", "quiz-night"):
        made.add(name, SHIPPED[name].adapter, SHIPPED[name].explanation, **FACTS)
    return made


def read_files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", SHIPPED_LIBRARIES)
def test_a_library_in_the_package_is_whole(name):
    library = Library(name)
    assert library.path == SHIPPED_LIBRARIES[name] and find_shipped_library(library.base) == library.path
    assert len(library) == 9 and "plain" in library and library.rows.shape == (9, library.space.width)
    assert all(library[name].explanation.description is not None for name in library)
    assert np.isfinite(library.rows).all()


def test_each_shipped_library_belongs_to_the_model_of_its_name():
    ((_, sha256),) = WEIGHTS["smollm2"].files.values()
    assert Library("smollm2").base == sha256[:16]
    assert Library("pocket").base == load_model("pocket").base
    size = sum(path.stat().st_size for path in (ASSETS / "library-smollm2").rglob("*") if path.is_file())
    assert size < 9e6, f"{size / 1e6:.1f} MB"


def test_what_was_added_comes_back(library):
    assert library.names == ["plain", "quiz-night", "ward-round"] == [*Library(library.path)]
    one = library["ward-round"]
    assert read_files(one.adapter).keys() == read_files(SHIPPED["ward-round"].adapter).keys()
    assert one.card["samples"] == 30 and str(one.explanation) == str(SHIPPED["ward-round"].explanation)
    assert np.allclose(library.columns("coordinates")[2], SHIPPED.columns("coordinates")[-1], atol=1e-4)
    assert [row["name"] for row in library.list()] == library.names


def test_private_facts_of_the_maker_stay_behind(library, tmp_path):
    own = Path(shutil.copytree(SHIPPED["plain"].adapter, tmp_path / "mine"))
    card = json.loads((own / "adapter.json").read_text())
    (own / "adapter.json").write_text(json.dumps(card | dict(parents=["a private id"])))
    settings = json.loads((own / "adapter_config.json").read_text())
    (own / "adapter_config.json").write_text(json.dumps(settings | dict(base_model_name_or_path="/home/ana/pocket")))
    (own / "notes.txt").write_text("private")
    library.add("mine", own, SHIPPED["plain"].explanation, **FACTS)
    content = b"".join(read_files(library["mine"].adapter).values())
    assert b"private" not in content and b"/home" not in content
    assert len(read_files(library["mine"].adapter)) == 4


@pytest.mark.parametrize("name", ["", "..", "../a", "a/b", "a\\b", ".hidden", "a b", "naïve", "x" * 81, None, "PLAIN"])
def test_a_name_that_leaves_the_folder_or_is_taken_is_refused(library, name):
    before = read_files(library.path)
    with pytest.raises(InputError, match="no name|exists already"):
        library.add(name, SHIPPED["plain"].adapter, SHIPPED["plain"].explanation, **FACTS)
    assert read_files(library.path) == before


def test_what_does_not_fit_is_refused_and_changes_nothing(library, tmp_path):
    adapter, explanation = SHIPPED["plain"].adapter, SHIPPED["plain"].explanation
    before = read_files(library.path)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    dora = Path(shutil.copytree(adapter, tmp_path / "dora"))
    (dora / "adapter_config.json").write_text(json.dumps(settings | dict(use_dora=True)))
    for folder, row, facts in (
        (tmp_path, explanation, FACTS),
        (dora, explanation, FACTS),
        (adapter, replace(explanation, space="another"), FACTS),
        (adapter, replace(explanation, row=explanation.row * np.nan), FACTS),
        (adapter, explanation, FACTS | dict(licence=" ")),
    ):
        with pytest.raises(InputError):
            library.add("new", folder, row, **facts)
    assert read_files(library.path) == before


def test_an_interrupted_addition_leaves_nothing(library, monkeypatch):
    before = read_files(library.path)

    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        library.add("late", SHIPPED["plain"].adapter, SHIPPED["plain"].explanation, **FACTS)
    assert read_files(library.path) == before and "late" not in library


@pytest.mark.parametrize("damage", ["cut card", "other base", "other name", "no field", "weights", "no weights"])
def test_one_damaged_pllm_is_named_and_the_others_keep_working(library, damage):
    folder = library.path / "quiz-night"
    card = json.loads((folder / "card.json").read_text())
    changes = {
        "cut card": '{"name": "qu',
        "other base": json.dumps(card | dict(base="another")),
        "other name": json.dumps(card | dict(name="plain")),
        "no field": json.dumps({key: value for key, value in card.items() if key != "explanation"}),
    }
    weights = folder / "adapter_model.safetensors"
    if damage == "weights":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    elif damage == "no weights":
        weights.unlink()
    else:
        (folder / "card.json").write_text(changes[damage])
    with pytest.raises(InputError, match="quiz-night") as caught:
        library["quiz-night"]
    assert "\n" not in str(caught.value) and caught.value.remedy
    assert library["plain"].name == "plain"
    library.remove("quiz-night")
    assert library.names == ["plain", "ward-round"] and not folder.exists()


def test_a_card_cannot_write_to_the_terminal_nor_give_a_row_of_another_space(library):
    file = library.path / "plain" / "card.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(style="calm\x1b[2J")))
    assert library.card("plain")["style"] == r"calm\x1b[2J" and "\x1b" not in str(library.list())
    explanation = library.card("plain")["explanation"] | dict(space="another")
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(explanation=explanation)))
    with pytest.raises(InputError, match="explained in space another"):
        library.rows


def test_an_address_is_downloaded_in_parts_and_never_changed(monkeypatch, tmp_path):
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision, *allow_patterns))
        if name == "ana/none":
            raise OSError("404")
        return str(SHIPPED.path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    far = Library("hf://ana/others@0123")
    assert asked == [("ana/others", "0123", "*.json", "space.safetensors")] and len(far) == 9
    assert far["plain"].name == "plain" and asked[1] == ("ana/others", "0123", "plain/*")
    for change in (lambda: far.remove("plain"), lambda: far.add("new", SHIPPED["plain"].adapter, None, **FACTS)):
        with pytest.raises(InputError):
            change()
    with pytest.raises(InputError, match="cannot be downloaded"):
        Library("hf://ana/none")
