"A kill, a full or broken disk, a torn write, a jump of the clock at each file operation: the old state or the new one."

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc")
CAREFUL = ["save a new folder", "observe", "feedback", "fine-tune", "forget a text", "forget all", "migrate"]
CAREFUL += ["publish", "ask", "answer", "serve", "learn", "training", "library add", "library remove"]
MIN_CASES = 2000  # of all operations together

pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="faults are put between Python and libc, with a C compiler"
)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    "A function that cuts an operation at a share of its steps, and returns the report."
    library = tmp_path_factory.mktemp("faults") / "faults.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, HERE / "faults.c", "-ldl"], check=True)

    def run(operation: str, share: float, seed: int = 1) -> dict:
        places = dict(LD_PRELOAD=str(library), PYTHONPATH=f"{HERE.parent}:{HERE}", OMP_NUM_THREADS="1")
        if os.access("/dev/shm", os.W_OK):
            places["TMPDIR"] = "/dev/shm"  # a real disk waits at each fsync
        command = [sys.executable, HERE / "fault_cases.py", library, str(share), str(seed), operation]
        done = subprocess.run(command, env=os.environ | places, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("operation", CAREFUL)
def test_a_tenth_of_all_cuts(cut, operation):
    found = cut(operation, 0.1)
    assert found["cases"] > 0 and found["wrong"] == [], found


@pytest.mark.slow
def test_all_cuts(cut):
    found = [cut(operation, 1) for operation in CAREFUL]
    print([(row["operation"], row["steps"], row["cases"]) for row in found])
    assert [row for row in found if row["wrong"]] == [] and sum(row["cases"] for row in found) >= MIN_CASES


def test_a_careless_operation_is_found(cut):
    "Two files that are written one after the other are in a third state between the two; so is a wait by the clock."
    wrong = cut("careless", 1)["wrong"]
    for kind in ("kill", "full", "back", "ahead"):
        assert any("a third state" in text for _, found, text in wrong if found == kind), wrong
