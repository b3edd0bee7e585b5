"The library: what it takes, what it refuses, and what a damaged or interrupted part leaves."

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from personal_llm.base.core import InputError
from personal_llm.base.files import ASSETS
from personal_llm.base.models import load_model
from personal_llm.base.weights import WEIGHTS
from personal_llm.extras.space import read_rows
from personal_llm.selection import library as module
from personal_llm.selection.library import SHIPPED_LIBRARIES, Library, check_library_base, find_shipped_library

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
    rows = read_rows(library)
    assert len(library) == 9 and "plain" in library and rows.shape == (9, library.space.width)
    assert all(library[name].explanation.habits is not None for name in library)
    assert np.isfinite(rows).all()


def test_each_shipped_library_belongs_to_the_model_of_its_name():
    ((_, sha256),) = WEIGHTS["smollm2"].files.values()
    assert Library("smollm2").base == sha256[:16]
    assert Library("pocket").base == load_model("pocket").base
    size = sum(path.stat().st_size for path in (ASSETS / "library-smollm2").rglob("*") if path.is_file())
    assert size < 9e6, f"{size / 1e6:.1f} MB"


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


def test_an_interrupted_addition_leaves_nothing(library, monkeypatch):
    before = read_files(library.path)

    def stop(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        library.add("late", SHIPPED["plain"].adapter, SHIPPED["plain"].explanation, **FACTS)
    assert read_files(library.path) == before and "late" not in library


def test_a_space_needs_its_plug_in(library, monkeypatch):
    "An install that is older than the code lacks the entry point; everything but the space works."
    monkeypatch.setattr(module, "load_plugins", lambda group, table, is_valid: {})
    module.find_space_class.cache_clear()
    again = Library(library.path)
    assert again["plain"].explanation.habits == ()
    with pytest.raises(InputError, match="the plug-in that reads style spaces is missing; your install is older"):
        again.space
    module.find_space_class.cache_clear()


# ---- what is refused, with a remedy


@pytest.mark.parametrize(
    "file, change, line",
    [
        ("card.json", dict(name="calm-clinic"), "is the card of 'calm-clinic'"),
        ("card.json", dict(base="another"), "made for base another"),
        ("card.json", dict(licence=None), "licence is missing"),
        ("card.json", None, "card.json: damaged"),
        ("adapter.json", dict(base="another"), "made for base another"),
        ("adapter_config.json", dict(use_dora=True), "use_dora is set; only plain LoRA"),
    ],
)
def test_a_part_that_was_changed_or_damaged_is_refused(library, file, change, line):
    place = library.path / "ward-round" / file
    text = place.read_text()
    missing = [name for name, value in (change or {}).items() if value is None]
    row = {name: value for name, value in (json.loads(text) | (change or {})).items() if name not in missing}
    place.write_text(json.dumps(row) if change else text[:-9])
    with pytest.raises(InputError, match=line):
        library["ward-round"]


def test_control_characters_of_a_card_are_shown_escaped(library):
    file = library.path / "ward-round" / "card.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(style="\x1b[1m loud")))
    assert library.card("ward-round")["style"] == r"\x1b[1m loud"


NAMES = ["", "..", "../a", "a/b", "a\\b", ".hidden", "a b", "naïve", "x" * 81, None, "PLAIN"]
MINE = SHIPPED["plain"].explanation


@pytest.mark.parametrize(
    "change, line",
    [
        *((dict(name=name), "isn't a name|exists already") for name in NAMES),
        (dict(explanation=replace(MINE, space="another")), "explained in space another"),
        (dict(explanation=replace(MINE, row=np.full(2, np.nan))), "not finite"),
        (dict(adapter=ASSETS), "no adapter here"),
        (dict(licence=""), "licence is missing"),
    ],
)
def test_a_name_or_a_pllm_that_does_not_fit_is_refused_and_changes_no_file(library, change, line):
    before = read_files(library.path)
    with pytest.raises(InputError, match=line):
        library.add(**dict(name="new", adapter=SHIPPED["plain"].adapter, explanation=MINE) | FACTS | change)
    assert read_files(library.path) == before


def test_what_a_library_does_not_have_is_named(library, tmp_path):
    assert Library.create(tmp_path / "spaceless", base=SHIPPED.base).space is None
    for act, line in (
        (lambda: Library(tmp_path / "nowhere"), "no library here"),
        (lambda: library["wardround"], "such as ward-round"),
        (lambda: Library.create(library.path, SHIPPED.space), "exists already"),
        (lambda: Library.create(tmp_path / "baseless"), "neither a space nor a base model"),
        (lambda: check_library_base(SHIPPED, SimpleNamespace(base="another")), "library build"),
        (lambda: check_library_base(SimpleNamespace(base="another"), SHIPPED), "use the library pocket"),
    ):
        with pytest.raises(InputError, match=line):
            act()


def test_a_repository_that_is_not_there_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise OSError("404 Client Error: repository not found")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match="hf://ana/unknown: cannot be downloaded .404"):
        Library("hf://ana/unknown")
