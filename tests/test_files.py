"Files under a process that dies."

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from personal_llm.base.core import InputError
from personal_llm.base.files import check_new_folder, get_cache_folder, is_full_disk, read_json, remember
from personal_llm.base.files import write_atomically, write_json


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="names an open file by /proc")
def test_a_file_is_on_the_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    done, flush, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: done.append(os.readlink(f"/proc/self/fd/{number}")) or flush(number)
    )
    monkeypatch.setattr(os, "replace", lambda old, new: done.append((str(old), str(new))) or replace(old, new))
    write_json(tmp_path / "report.json", dict(loss=1.0))
    (flushed, (old, new)) = done
    assert flushed == old and new == str(tmp_path / "report.json")
    assert (tmp_path / "report.json").stat().st_mode & 0o077 == 0, "for its owner only"
    monkeypatch.setattr(os, "fsync", lambda number: os.close(-1))
    with pytest.raises(InputError, match="cannot be written"):
        write_json(tmp_path / "report.json", dict(loss=2.0))
    assert "1.0" in (tmp_path / "report.json").read_text() and len([*tmp_path.iterdir()]) == 1


def test_a_temporary_folder_goes_with_its_process():
    "Such as an adapter of `finetune` without `out`; a child of `fork` leaves it to its parent."
    program = """
import os, pathlib, sys
from personal_llm.base.files import make_temporary_folder
place = make_temporary_folder("adapter-")
(place / "weights").write_text("mine")
if os.fork() == 0:
    sys.exit()
os.wait()
assert (place / "weights").exists()
print(place)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "adapter-" in done.stdout and not Path(done.stdout.strip()).exists()


def test_a_circle_of_causes_ends():
    "An error that is raised again while another handles it: each is the reason of the other."
    first, second = OSError(errno.EIO, "broken"), ValueError("also broken")
    first.__context__, second.__cause__ = second, first
    assert not is_full_disk(first) and not is_full_disk(second)
    second.__context__ = None
    assert is_full_disk(OSError(errno.ENOSPC, "full"))


def test_a_full_disk_and_a_wrong_place_have_different_remedies(tmp_path, monkeypatch):
    assert is_full_disk(RuntimeError("[enforce fail] PytorchStreamWriter failed writing file"))
    assert not is_full_disk(OSError(errno.EACCES, "no"))
    file = tmp_path / "state.json"
    write_atomically(file, "old")
    with pytest.raises(InputError, match="state.json/below: cannot be written .*; make its place writable"):
        write_atomically(file / "below", "x")

    def fill(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(InputError, match="No space left on device.*; free some space"):
        write_atomically(file, "x")
    assert file.read_text() == "old" and len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize(
    "content, line",
    [('{"a":', "damaged .Expecting value"), ("[" * 10**5, "damaged"), (None, "cannot be read .no such file")],
    ids=("cut", "deep", "missing"),
)
def test_json_that_cannot_be_read_is_one_line(content, line, tmp_path):
    file = tmp_path / "state.json"
    if content:
        file.write_text(content)
    with pytest.raises(InputError, match=f"state.json: {line}"):
        read_json(file)


def test_a_new_folder_has_no_files(tmp_path):
    check_new_folder(tmp_path / "new")
    (tmp_path / "file").write_text("x")
    for folder, line in ((tmp_path, "exists already"), (tmp_path / "file", "a file, not a folder")):
        with pytest.raises(InputError, match=line):
            check_new_folder(folder)


def test_a_damaged_cache_is_computed_anew_and_a_user_without_a_home_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert remember("squares", "3", lambda: 9) == remember("squares", "3", lambda: 0) == 9
    (get_cache_folder() / "squares.json").write_text("{")
    assert remember("squares", "3", lambda: 10) == 10

    def fail():
        raise RuntimeError("no home")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(InputError, match="this user has no home folder; set XDG_CACHE_HOME"):
        get_cache_folder()
