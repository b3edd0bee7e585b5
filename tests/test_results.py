"Output folders: what is somebody else's stays, what is ours is replaced in one step, whenever the process dies."

import builtins
import json
import os
from pathlib import Path

import pytest

from kills import OPERATIONS, at_operation, every_kill
from personal_llm.base import files as results
from personal_llm.base.files import (
    COMMITTED_RESULTS,
    STAGED_RESULTS,
    publish_results,
    open_results_folder,
    recover_results,
)
from personal_llm.base.core import InputError
from personal_llm.base.files import LOCK_FILE, OWNERSHIP_FILE, OwnedFolder


def make(place, number):
    "An adapter of two files that say its number."
    place.mkdir(parents=True, exist_ok=True)
    for name in ("config", "weights"):
        (place / name).write_text(str(number))
    return place


def write_pair(out, source, number):
    "A run: an adapter and the report that speaks of it."
    with open_results_folder(out, "adapter", "report.json") as owned:
        publish_results(owned, {"adapter": make(source, number), "report.json": json.dumps(number)})


def pair(out):
    "What stands in a folder: numbers in the adapter's files, and the report's."
    inside = out / "adapter"
    files = {file.read_text() for file in inside.iterdir()} if inside.is_dir() else set()
    report = out / "report.json"
    return files, report.read_text() if report.is_file() else None


def visible(out):
    return sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and p.name != LOCK_FILE)


WHOLE = sorted([OWNERSHIP_FILE, "adapter/config", "adapter/weights", "report.json"])


def check_kill(folder, step) -> int:
    "After a kill: a report never speaks of another adapter, and the next run leaves no debris."
    out, source = folder / "out", folder / "source"
    files, report = pair(out)
    assert report is None or files == {report}, step
    if (out / COMMITTED_RESULTS).is_dir():
        recover_results(out)
        assert pair(out) == ({"2"}, "2"), step
    assert pair(out) in [({"1"}, "1"), ({"2"}, "2")], step
    now = int(pair(out)[1])
    write_pair(out, source, 3)
    assert pair(out) == ({"3"}, "3") and visible(out) == WHOLE, step
    return now


def test_a_kill_leaves_a_pair(tmp_path):
    def new_folder(step):
        write_pair(tmp_path / str(step) / "out", tmp_path / str(step) / "source", 1)
        return tmp_path / str(step)

    found = every_kill(new_folder, lambda folder: write_pair(folder / "out", folder / "source", 2), check_kill)
    assert len(found) > 40 and found == sorted(found) and {1, 2} == set(found), "old pairs first, then new ones"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_what_fails_leaves_a_pair(tmp_path, monkeypatch, error):
    def act():
        raise error

    for step in range(0, 60, 7):
        out, source = tmp_path / str(step) / "out", tmp_path / str(step) / "source"
        write_pair(out, source, 1)
        with monkeypatch.context() as patch, pytest.raises((InputError, OSError, KeyboardInterrupt)):
            for owner, name in [*OPERATIONS, (builtins, "open")]:
                patch.setattr(owner, name, getattr(owner, name))
            at_operation(step, act)
            write_pair(out, source, 2)
            raise KeyboardInterrupt  # it ended before
        recover_results(out)
        assert pair(out) in [({"1"}, "1"), ({"2"}, "2")], step
        write_pair(out, source, 3)
        assert visible(out) == WHOLE, step


def test_folders_of_others_are_refused_untouched(tmp_path):
    "The thesis of promise 1: neither a folder that looks like a run nor a note beside our adapter is deleted."
    thesis = tmp_path / "out"
    (thesis / "run-2024-thesis").mkdir(parents=True)
    (thesis / "run-2024-thesis" / "chapter.tex").write_text("years")
    make(thesis / "adapter", 0)
    (thesis / "adapter" / "notes.txt").write_text("mine")
    before = visible(thesis)
    with pytest.raises(InputError, match="not results of an earlier run"):
        write_pair(thesis, tmp_path / "source", 1)
    assert visible(thesis) == before and not (thesis / LOCK_FILE).exists()
    write_pair(tmp_path / "ours", tmp_path / "source", 1)
    (tmp_path / "ours" / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt: not made by this package"):
        write_pair(tmp_path / "ours", tmp_path / "source", 2)
    assert pair(tmp_path / "ours")[1] == "1" and (tmp_path / "ours" / "adapter" / "notes.txt").read_text() == "mine"


def test_what_lies_beside_stays(tmp_path):
    write_pair(tmp_path / "out", tmp_path / "source", 1)
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    write_pair(tmp_path / "out", tmp_path / "source", 2)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine" and pair(tmp_path / "out") == ({"2"}, "2")


def test_a_file_added_between_a_kill_and_the_next_run_is_not_deleted(tmp_path):
    "The new results are committed, and somebody puts a note beside the old adapter."
    out = tmp_path / "out"
    write_pair(out, tmp_path / "source", 1)
    owned = OwnedFolder(out)
    results.write_entry(make(tmp_path / "source", 2), owned.claim(COMMITTED_RESULTS) / "adapter")
    (out / "adapter" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):
        write_pair(out, tmp_path / "source", 3)
    recover_results(out)
    assert (out / "adapter" / "notes.txt").read_text() == "mine"


def test_a_second_run_is_refused(tmp_path):
    with open_results_folder(tmp_path / "out", "report.json") as owned:
        with pytest.raises(InputError, match="another run is at work"):
            write_pair(tmp_path / "out", tmp_path / "source", 1)
        owned.claim(STAGED_RESULTS).mkdir()
        recover_results(tmp_path / "out")
        assert (tmp_path / "out" / STAGED_RESULTS).is_dir(), "who reads waits for nobody and removes nothing"
    write_pair(tmp_path / "out", tmp_path / "source", 1)


def test_files_are_for_their_owner_only(tmp_path):
    write_pair(tmp_path / "deep" / "out", tmp_path / "source", 1)
    for place in [tmp_path / "deep", *(tmp_path / "deep").rglob("*")]:
        assert place.stat().st_mode & 0o777 == (0o700 if place.is_dir() else 0o600), place


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path(os.devnull) / "x"):
        with pytest.raises((InputError, OSError)) as caught:
            write_pair(place, tmp_path / "source", 1)
        assert isinstance(caught.value, InputError) or caught.value.filename


@pytest.mark.parametrize("made", [5, None, [], dict(a=5), dict(a=[5]), dict(a=[["b"]]), {"../a": []}])
def test_a_list_of_entries_that_is_none_is_refused(made, tmp_path):
    results.write_sealed(tmp_path / OWNERSHIP_FILE, dict(made=made))
    with pytest.raises(InputError, match="damaged"):
        OwnedFolder(tmp_path).check_entries("a")
