"A GGUF file by the hub's name of it: a hub of our own at HF_ENDPOINT, and what can go wrong with it."

import hashlib
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from servers import serve_http

ROOT = Path(__file__).parent.parent
NAME = "some-body/Tiny-GGUF:sub/tiny.gguf"
CODE = "import sys; from personal_llm.base.loading import find_gguf; print(find_gguf(sys.argv[1]).read_bytes())"
LOAD = """
import sys
from personal_llm.base.core import InputError
from personal_llm.base.loading import load_causal_lm
try:
    load_causal_lm(sys.argv[1])
except InputError as error:
    print(error, file=sys.stderr)
"""
LOAD_ENCODER = LOAD.replace("loading", "encoder").replace("load_causal_lm", "load_encoder")


class Hub(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_HEAD(self):
        parts = self.path.split("/")
        revision = self.server.revision if parts[4] == "main" else parts[4]
        content = self.server.files.get(revision)
        if self.path.split("?")[0] != f"/some-body/Tiny-GGUF/resolve/{parts[4]}/sub/tiny.gguf" or content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", revision)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD


def run_hub(**files):
    files = {name * 40: content for name, content in files.items()}
    return serve_http(Hub, files=files, revision=next(iter(files)))


@pytest.fixture
def find(tmp_path):
    "Find a file in another process -> (exit code, what it printed, the error)."

    def run(port: int, name: str = NAME, code: str = CODE) -> tuple:
        settings = dict(HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0")
        settings |= dict(XDG_CACHE_HOME=str(tmp_path / "cache"), PYTHONPATH=str(ROOT), HF_HUB_DISABLE_XET="1")
        words = [sys.executable, "-c", code, name]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | settings, timeout=120)
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    return run


def test_a_file_of_the_hub_stays_that_of_the_first_time(find, tmp_path):
    "Also after the repository has moved on, and without a network."
    with run_hub(a=b"GGUF first", b=b"GGUF second") as hub:
        assert find(hub.server_port)[:2] == (0, "b'GGUF first'")
        hub.revision = "b" * 40
        assert find(hub.server_port)[:2] == (0, "b'GGUF first'")
        port = hub.server_port
    assert find(port)[:2] == (0, "b'GGUF first'")
    (blob,) = [file for file in (tmp_path / "hf").rglob("blobs/*") if file.is_file()]
    blob.write_bytes(b"GGUF evil!")
    code, out, error = find(port)
    assert code and not out and f"model {NAME}: not the file of the first time; delete " in error.splitlines()[-1]


@pytest.mark.later
@pytest.mark.parametrize("code", [CODE, LOAD, LOAD_ENCODER], ids=("a GGUF file", "a model", "an encoder"))
def test_a_hub_that_is_not_there_is_asked_once(code, find):
    "The hub's library would ask six times within 23 seconds, and print two lines each time."
    with run_hub(a=b"GGUF first") as hub:
        port = hub.server_port
    name = NAME if code == CODE else "some-body/Tiny"
    _, out, error = find(port, name, code)
    line = error.splitlines()[-1]
    assert name in line and "Connection refused" in line and "Retrying" not in error


@pytest.mark.later
def test_what_the_hub_lacks_is_one_line(find):
    with run_hub(a=b"GGUF first") as hub:
        code, out, error = find(hub.server_port, "some-body/Tiny-GGUF:other.gguf")
    line = error.splitlines()[-1]
    assert code and "InputError: model some-body/Tiny-GGUF:other.gguf: not to be had from the hub (" in line
    assert line.endswith("check name and network")
