"Files under a process that dies."

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from personal_llm.base.core import InputError
from personal_llm.base.files import is_full_disk, write_json


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
