"Readers meet damaged files; the slow suite tries a hundred thousand."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by the kernel")


def run(count: int, seed: int) -> dict:
    "Run cases in a process of their own, since they limit its memory; return what is wrong."
    settings = dict(PYTHONPATH=f"{HERE.parent}:{HERE}", OMP_NUM_THREADS="1")
    if os.access("/dev/shm", os.W_OK):
        settings["TMPDIR"] = "/dev/shm"
    command = [sys.executable, "-W", "ignore", HERE / "fuzz_cases.py", str(count), str(seed)]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert sum(found["cases"].values()) == count
    print(found["cases"])
    return found["wrong"]


def test_two_thousand_damaged_inputs():
    assert run(2000, 1) == {}


@pytest.mark.slow
def test_a_hundred_thousand_damaged_inputs():
    assert run(100_000, 2) == {}
