"SECURITY.md: each of its promises has tests, and those that no other file holds stand here."

import io
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.files import compute_sha256
from personal_llm.base.models import load_model
from personal_llm.tuning.training_loop import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent

PROMISES = {  # promise of SECURITY.md -> files of tests that hold it
    "Network": "test_security test_weights test_loading test_writer test_replies",
    "Downloads": "test_weights",
    "Files of others": "test_security test_loading test_package test_reading",
    "What is stored": "test_archive test_security test_personalizer",
    "What is kept": "test_archive test_server",
    "Forgetting": "test_forgetting test_archive",
    "Adapters": "test_personalizer test_adapters test_models",
    "The server": "test_server",
}


def test_each_promise_has_tests():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    section = text.partition("## Promises")[2].partition("## Limits")[0]
    assert re.findall(r"^\*\*([^*.]+)\.\*\*", section, re.MULTILINE) == list(PROMISES)
    files = {file for files in PROMISES.values() for file in files.split()}
    assert [file for file in files if not (ROOT / "tests" / f"{file}.py").is_file()] == []


DAY = """
import sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto"):
        print("SOCKET", event, arguments[1:])

sys.addaudithook(watch)
from personal_llm import Dialogue, Personalizer, TuningConfig, explain, load_model
model = load_model("pocket")
me = Personalizer(model, folder=sys.argv[1], config=TuningConfig(steps=2, batch_size=2))
for n in range(3):
    said = Dialogue(f"Is {n} a prime number?", "A word of CANARY.", time=float(n), origin="model")
    me.observe(said)
    me.react(said, "better", f"In short: {n} is CANARY.", time=float(n))
me.reply("Is 4 a prime number?", max_tokens=4)
me.finetune()
me.close()
"""


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    "A day in another process, whose sockets are watched and whose new files would be open to everybody."
    folder = tmp_path_factory.mktemp("day") / "me"
    umask = os.umask(0)
    try:
        ended = subprocess.run([sys.executable, "-c", DAY, str(folder)], capture_output=True, text=True, cwd=ROOT)
    finally:
        os.umask(umask)
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout + ended.stderr


def test_a_day_opens_no_socket(day):
    assert "SOCKET" not in day[1]


def test_a_day_prints_no_word_of_the_user(day):
    assert "CANARY" not in day[1]


def test_every_file_of_a_day_is_for_its_owner_only(day):
    files = [file for file in day[0].rglob("*") if file.is_file()]
    assert len(files) >= 4 and [file.name for file in files if file.stat().st_mode & 0o077] == []


def test_the_code_of_a_template_does_not_run(tmp_path):
    model = tiny("llama", "plain")
    trace = tmp_path / "trace"
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
    content = io.BytesIO()
    torch.save(dict(step=1, weights=Payload(tmp_path / "trace")), content)
    sealed = compute_sha256(content.getvalue()).encode() + content.getvalue()
    (tmp_path / "checkpoint").write_bytes(sealed)
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        load_checkpoint(tmp_path, {"a": torch.zeros(1)}, torch.optim.SGD([torch.zeros(1, requires_grad=True)]), None)
    assert not (tmp_path / "trace").exists()


@pytest.mark.later
def test_a_chat_without_a_folder_leaves_nothing_also_after_a_hang_up(tmp_path):
    places = {name: str(tmp_path) for name in ("TMPDIR", "TEMP", "TMP", "HOME", "XDG_CACHE_HOME", "SQLITE_TMPDIR")}
    environment = os.environ | places | dict(PYTHONPATH=str(ROOT), PERSONAL_LLM_MODEL="pocket")
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path)
    chat = subprocess.Popen([sys.executable, "-m", "personal_llm", "chat"], env=environment, **pipes)
    chat.stdin.write(b"I live in CANARY.\n/better CANARY it is.\n")
    chat.stdin.flush()
    lines = []
    while not any(b"Applies to" in line for line in lines):
        lines.append(chat.stdout.readline())
        assert lines[-1], chat.communicate()[1]
    chat.kill()
    chat.communicate()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if b"CANARY" in file.read_bytes() or file.suffix == ".sqlite"]
