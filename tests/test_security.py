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

PROMISES = {  # promise of SECURITY.md -> tests that hold it
    "Network": [
        "test_security.py::test_a_day_opens_no_socket",
        "test_weights.py",
        "test_loading.py",
        "test_writer.py::test_only_this_computer_unless_the_user_says_so",
        "test_writer.py::test_the_key_comes_from_the_environment_and_no_file_holds_it",
        "test_replies.py::test_a_system_without_affinity_and_unix_sockets_replies_too",
    ],
    "Downloads": ["test_weights.py"],
    "Files of others": [
        "test_security.py::test_the_code_of_a_template_does_not_run",
        "test_security.py::test_the_code_of_a_checkpoint_does_not_run",
        "test_loading.py::test_pickles_are_refused",
        "test_package.py::test_no_pickles",
        "test_reading.py",
    ],
    "What is stored": [
        "test_archive.py::test_the_file_belongs_to_its_owner_alone",
        "test_security.py::test_a_chat_without_a_folder_leaves_nothing_also_after_a_hang_up",
        "test_personalizer.py",
    ],
    "What is kept": [
        "test_archive.py::test_a_process_that_dies_inside_a_transaction_leaves_the_state_before",
        "test_archive.py::test_a_full_disk_is_one_line_and_like_any_error_changes_nothing",
        "test_security.py::test_a_killed_program_loses_no_acknowledged_turn",
    ],
    "Forgetting": [
        "test_forgetting.py::test_no_text_of_a_reply_that_read_it_is_left",
        "test_forgetting.py::test_the_dog_goes_and_the_allergy_stays",
        "test_forgetting.py::test_a_reply_that_read_words_of_the_model_goes_also_if_they_were_corrected_later",
        "test_forgetting.py::test_copies_in_other_histories_go_by_id_with_the_replies_to_them",
        "test_forgetting.py::test_a_forgotten_turn_that_a_program_sends_again_is_dropped_and_no_text_stays",
        "test_forgetting.py::test_a_kill_leaves_the_state_before_or_after_and_the_next_opening_finishes",
        "test_archive.py::test_deleting_takes_events_vectors_and_bytes_along",
    ],
    "Adapters": [
        "test_personalizer.py::test_an_adapter_that_was_changed_is_not_loaded",
        "test_adapters.py::test_names_of_layers_are_no_regular_expressions",
        "test_models.py",
    ],
    "The server": [
        "test_server.py::test_without_the_token_no_host_opens_a_path",
        "test_server.py::test_the_owner_is_kept_over_a_restart",
        "test_server.py::test_half_requests_of_strangers_make_room_for_the_owner",
    ],
}


def test_each_promise_has_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    section = text.partition("## Promises")[2].partition("## Limits")[0]
    assert re.findall(r"^\*\*([^*.]+)\.\*\*", section, re.MULTILINE) == list(PROMISES)
    for tests in PROMISES.values():
        for test in tests:
            file, _, name = test.partition("::")
            content = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(" if name else r"^def test_", content, re.MULTILINE), test


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


TURNS = """
import sys
from personal_llm.base.core import Dialogue
from personal_llm.buffer.buffer import Buffer
from personal_llm.device.archive import Archive
from personal_llm.device.state import State, open_state
archive = Archive(sys.argv[1])
if archive.events:
    state = open_state(archive)
else:
    state = State(archive, Buffer(4, "fifo"))
    state.record("configured", base="b", model="m", settings={}, buffer=state.buffer.header())
number = len(archive.dialogues)
while True:
    said = Dialogue(f"Turn {number}", "A reply.", time=float(number), origin="model")
    with archive.transaction():
        archive.add(said, "monday")
        state.record("said", said.id, reads=[], statements=[])
    print(number, flush=True)
    number += 1
"""


def test_a_killed_program_loses_no_acknowledged_turn(tmp_path):
    from personal_llm.device.archive import Archive

    acknowledged = -1
    for round in range(4):
        running = subprocess.Popen([sys.executable, "-c", TURNS, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
        for _ in range(5 + 7 * round):
            acknowledged = int(running.stdout.readline())
        running.kill()
        rest = running.communicate()[0].split()
        acknowledged = int(rest[-1]) if rest else acknowledged
        archive = Archive(tmp_path)
        prompts = [d.prompt for d in archive.dialogues.values()]
        assert prompts[: acknowledged + 1] == [f"Turn {n}" for n in range(acknowledged + 1)]
        assert len(prompts) <= acknowledged + 2 and len(archive.events) == len(prompts) + 1
        archive.close()
