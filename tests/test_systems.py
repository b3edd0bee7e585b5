"A day of chat on a system without what macOS and Windows lack, and on a console that is not UTF-8."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import run_python

from tools.portable import PROCESSORS, settings

HERE = Path(__file__).parent
DAY = """
import builtins, os, psutil, socket, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from llama_cpp import write_base
from personal_llm import ChatSession, load_encoder, load_model  # other libraries first: they know the true system
from personal_llm.base.models import Model
from personal_llm.device.idle import lower_priority

load_encoder()
pocket = load_model("pocket", device="cpu", dtype="float32")

del psutil.Process.cpu_affinity
del socket.AF_UNIX
sys.modules["resource"] = None
for name in ("sched_getaffinity", "getsid", "getuid", "nice", "mkfifo"):
    if hasattr(os, name):
        delattr(os, name)
opened = builtins.open

def open_elsewhere(file, *arguments, **options):
    caller = sys._getframe(1).f_globals.get("__name__", "")
    if str(file).startswith("/proc") and not caller.startswith("psutil"):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return opened(file, *arguments, **options)

builtins.open = open_elsewhere
file = Path(sys.argv[2]) / "Pocket.GGUF"
write_base(pocket, file)
model = Model(pocket.model, pocket.tokenizer, "pocket", base=pocket.base, gguf=file)
with ChatSession(model, Path(sys.argv[2]) / "Me", idle_seconds=1000.0) as session:
    for text in ("What is a tendon?", "What is a muscle?"):
        assert "".join(session.say(text))
        session.react("better", f"In short: it moves. {text}")
    session.instruct("Be short.")
    session.work.learn()
    session.work.finish()
    assert len(session.me.rounds) == 1, session.pop_messages()
    assert "".join(session.say("What is a bone?"))
    session.forget("muscle")
    lower_priority()
with ChatSession(model, Path(sys.argv[2]) / "Me") as session:
    assert [d.prompt for d in session.turns][0] == "What is a tendon?"
print(type(model.engine).__name__, model.engine.server.listening_address.split(":")[1])
"""


def run(*words, **environment):
    settings = os.environ | dict(PYTHONPATH=str(HERE.parent)) | environment
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, env=settings, timeout=600)


@pytest.mark.later
def test_a_day_of_chat_without_affinity_proc_autogroup_and_unix_sockets(tmp_path):
    pytest.importorskip("xllamacpp")
    done = run("-c", DAY, HERE, tmp_path)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert done.stdout.decode().split() == ["LlamaCpp", "//127.0.0.1"]


def test_a_console_that_is_not_utf_8_shows_what_it_can(tmp_path):
    "A sign that the console lacks becomes a question mark, and no command fails by it."
    code = "import sys; from personal_llm.app.cli import main; sys.exit(main(sys.argv[1:]))"
    for language, shown in (("C.UTF-8", b"caff? ?"), ("C", b"caff")):  # C: not even the words of the command are read
        console = dict(PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL=language)
        done = run("-c", code, "status", "--out", "caffè ☕", **console)
        assert done.returncode == 2 and done.stderr.startswith(b"personal-llm: " + shown), done.stderr
        assert b": no memory here" in done.stderr and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("name", PROCESSORS)
def test_an_older_processor_can_be_had_on_this_one(name):
    "What NumPy still finds of its newer instructions under the settings of `make test-portable`."
    program = (
        "import numpy, json; print(json.dumps(numpy.show_config(mode='dicts')['SIMD Extensions'].get('found', [])))"
    )
    found = json.loads(run_python(program, **settings(name)))
    assert not [one for one in found if one.startswith(PROCESSORS[name]["without"])]
