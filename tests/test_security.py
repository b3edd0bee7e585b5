"SECURITY.md: every test that it names exists, and the promises that no other test holds."

import ast
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from personal_llm.base import ledger
from personal_llm.base.adapters import WEIGHTS_FILE
from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.database import open_database
from personal_llm.base.files import compute_sha256
from personal_llm.base.models import load_model
from personal_llm.buffer.buffer import Buffer
from personal_llm.device.conversation import ChatSession
from personal_llm.device.memory import remove_adapter
from personal_llm.tuning.training_loop import load_checkpoint
from tiny import shared, tiny

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


# ---- the document


def find_missing_tests(text: str) -> list:
    "Return the tests that a text names and that are not in their files."
    missing = []
    for file, name in re.findall(r"`(tests/\w+\.py)::(\w+)`", text):
        path = ROOT / file
        if not path.is_file() or not re.search(rf"^def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            missing.append(f"{file}::{name}")
    return missing


def find_promises(text: str) -> list:
    "Return the rows of the tables in the section of the promises."
    section = text.partition("\n## What the package promises\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| promise")]


def test_every_test_that_is_named_exists():
    assert TEXT.count("::test_") == len(re.findall(r"`tests/\w+\.py::\w+`", TEXT)) > 50
    assert find_missing_tests(TEXT) == []


def test_every_promise_names_a_test():
    promises = find_promises(TEXT)
    assert len(promises) > 20 and [row for row in promises if ".py::test_" not in row] == []


def test_a_test_that_does_not_exist_is_found():
    wrong = (
        "`tests/test_security.py::test_nothing` `tests/test_none.py::test_x` `tests/test_links.py::test_what_a_link_is`"
    )
    assert find_missing_tests(wrong) == ["tests/test_security.py::test_nothing", "tests/test_none.py::test_x"]
    assert find_promises("\n## What the package promises\n\n| promise | x |\n| a | b |\n\n## Limits\n| c | d |") == [
        "| a | b |"
    ]


# ---- one day of a user, in a process that may use the network


CANARY = "zanzibarquux"
DAY = """
import json, logging, sys
from pathlib import Path

events = []
sys.addaudithook(lambda name, values: events.append(name) if name.startswith("socket.") else None)
logging.basicConfig(level=logging.DEBUG)

from personal_llm import folder_status, forget_folder, personalize

chats, model, out = sys.argv[1:]
report = personalize(chats, out, model=model, capacity=12, synthetic=0, steps=1, progress=True)
status = folder_status(out)
dry_run = forget_folder(out, ids=["nobody"], dry_run=True)
modes = {str(path): oct(path.stat().st_mode & 0o777) for path in Path(out).rglob("*")}
modes = {path: mode for path, mode in modes.items() if mode != ("0o700" if Path(path).is_dir() else "0o600")}
print(json.dumps(dict(events=events, modes=modes, num_files=len(list(Path(out).rglob("*"))))))
"""


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    "What a process prints and opens that fine-tunes on a file of chats; Hugging Face's offline mode is not set."
    place = tmp_path_factory.mktemp("day")
    model = tiny("llama", "plain")
    model.model.save_pretrained(place / "model")
    model.tokenizer.save_pretrained(place / "model")
    rows = [dict(prompt=f"What is {CANARY} {i}?", response=f"{CANARY} {i} is a pot.") for i in range(10)]
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "day.py").write_text(DAY)
    settings = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    command = [sys.executable, "day.py", "chats.jsonl", "model", "out"]
    settings["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=place, env=settings, capture_output=True, text=True, umask=0)
    assert done.returncode == 0, done.stderr[-500:]
    lines = done.stdout.splitlines()
    return SimpleNamespace(printed="\n".join(lines[:-1]) + done.stderr, **json.loads(lines[-1]))


def test_a_fine_tune_opens_no_socket(day):
    assert [name for name in day.events if name not in ("socket.__new__", "socket.gethostname")] == []


def test_a_fine_tune_prints_and_logs_no_word_of_the_user(day):
    assert "fine-tuning" in day.printed and CANARY not in day.printed


def test_every_file_of_a_run_is_for_its_owner_only(day):
    "Also where the process would give new files to everybody (umask 0)."
    assert day.num_files > 10 and day.modes == {}


# ---- code in files of others


def test_the_code_of_a_template_does_not_run(tmp_path):
    model, trace = tiny("llama", "plain"), tmp_path / "trace"
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    for code in ("cycler.__init__.__globals__.os.mkdir(path)", "''.__class__.__mro__[1].__subclasses__()"):
        template = "{% set path = PATH %}{{ CODE }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
        template = template.replace("PATH", repr(str(trace))).replace("CODE", code)
        (tmp_path / "model" / "chat_template.jinja").write_text(template)
        with pytest.raises(InputError, match="unsafe|cannot be loaded"):
            load_model(tmp_path / "model", device="cpu").nll([Dialogue("Tea?", "Yes.")])
    assert not trace.exists()


class Payload:
    "An object whose pickle makes a folder when it is read."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_code_of_a_checkpoint_does_not_run(tmp_path):
    weights = dict(a=torch.zeros(1))
    torch.save(dict(step=1, weights=Payload(tmp_path / "trace")), content := io.BytesIO())
    checksum = compute_sha256(content.getvalue()).encode()
    (tmp_path / "checkpoint-1").write_bytes(checksum + content.getvalue())
    with pytest.raises(Exception, match="[Ww]eights.only"):
        load_checkpoint(tmp_path, weights, torch.optim.SGD(weights.values()), SimpleNamespace())
    assert not (tmp_path / "trace").exists()


# ---- damage


@pytest.mark.parametrize("row", [5, None, {}, [], dict(kind="export", place=5, adapter="", time=1.0, bytes=None)])
def test_a_row_of_the_ledger_that_is_none_is_one_line(row, tmp_path, monkeypatch):
    "Also where its checksum is right."
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with ledger.record_egress("export", tmp_path):
        pass
    with open_database(ledger.get_ledger_file(), ledger.LEDGER_ID, ledger.LEDGER_TABLE, writes=True) as store:
        content = json.dumps(row)
        store.execute("UPDATE ledger SET content = ?, checksum = ?", (content, ledger.hash_entry(1, content)))
    with pytest.raises(InputError, match="ledger.db: damaged"):
        ledger.read_ledger()


def test_a_link_in_place_of_an_adapter_or_of_its_folder_is_not_followed(tmp_path):
    theirs = tmp_path / "theirs" / "000" / WEIGHTS_FILE
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"not ours")
    (tmp_path / "adapter").symlink_to(theirs.parent)
    (tmp_path / "adapters").symlink_to(tmp_path / "theirs")
    for place in (tmp_path / "adapter", tmp_path / "adapters" / "000"):
        assert remove_adapter(place) == [] and theirs.read_bytes() == b"not ours"
    assert remove_adapter(theirs.parent) and not theirs.exists()


READ_ONLY = """
import os, sys
from personal_llm import folder_status
os.setuid(65534)
print(folder_status(sys.argv[1])["seen"])
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another account")
def test_a_folder_that_nobody_can_write_is_read():
    "Such as a backup on a disk that is read-only."
    with tempfile.TemporaryDirectory() as place:
        with ChatSession(shared("llama"), Path(place, "me"), buffer=Buffer(4, "fifo"), synthetic=0) as session:
            list(session.say("My knee hurts."))
        for path in (Path(place), *Path(place).rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        names = sorted(Path(place).rglob("*"))
        command = [sys.executable, "-c", READ_ONLY, str(Path(place, "me"))]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(ROOT)))
        assert done.stdout == "1\n" and sorted(Path(place).rglob("*")) == names, done.stderr[-500:]


# ---- the clock


def list_clock_readers(words: set) -> set:  # files of the package
    "Find the modules that use an attribute of one of some names, such as `time.time`; the course and recipes aside."
    found = set()
    for file in (ROOT / "personal_llm").rglob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if any(isinstance(node, ast.Attribute) and ast.unparse(node) in words for node in nodes):
            found.add(file.relative_to(ROOT / "personal_llm").as_posix())
    return {name for name in found if name.partition("/")[0] not in ("course", "recipes", "experiments")}


def test_the_clock_of_the_wall_only_dates_what_happened():
    "It may jump. So nothing waits, expires or is put in order by it; whoever waits uses `time.monotonic`."
    dated = {"base/ledger.py", "device/conversation.py", "app/server.py"}
    assert list_clock_readers({"time.time", "time.time_ns", "datetime.now", "datetime.today", "date.today"}) == dated
