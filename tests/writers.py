"Servers that write: one with faults on request, and llama.cpp's own in another process."

import contextlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler

from servers import serve_http


def echo(handler, end: str = "stop") -> None:
    "The words of the prompt."
    words = handler.wanted["messages"][-1]["content"].split()
    handler.say(role="assistant", content="In short:")
    for word in words:
        handler.say(content=f" {word}")
    handler.end(end, usage=dict(prompt_tokens=7, completion_tokens=len(words)))


class Handler(BaseHTTPRequestHandler):
    "Answers a request with the next of the server's scripts; where there is none, with `echo`."

    protocol_version = "HTTP/1.1"
    packing = "identity"  # that it tells
    has_begun = False

    def log_message(self, *words):
        pass

    def answer(self, status: int, body) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        listed = dict(data=[dict(id=name) for name in self.server.models])
        self.answer(200, listed if self.server.listed is None else self.server.listed)

    def do_POST(self):
        self.close_connection = True
        self.wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append((self.wanted, self.headers.get("Authorization")))
            script = self.server.scripts.pop(0) if self.server.scripts else echo
        with contextlib.suppress(OSError):  # the reader goes away
            script(self)
        self.server.left.set()

    def send(self, content: bytes = b"") -> None:
        if not self.has_begun:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Content-Encoding", self.packing)
            self.send_header("Connection", "close")
            self.end_headers()
        self.has_begun = True
        self.wfile.write(content)
        self.wfile.flush()

    def put(self, row) -> None:
        self.send(b": a comment\n\ndata: " + json.dumps(row).encode() + b"\n\n")

    def say(self, **delta) -> None:
        self.put(dict(choices=[dict(delta=delta)]))

    def end(self, reason: str = "stop", **fields) -> None:
        self.put(dict(choices=[dict(delta={}, finish_reason=reason)]))
        self.put(dict(choices=[]) | fields)
        self.send(b"data: [DONE]\n\n")

    def wait(self) -> None:
        "Until the test is over."
        self.server.goes_on.wait(60)


@contextlib.contextmanager
def writing_server(*models):
    "A server that answers by `scripts`, functions of the handler; `left` is set when one has come to its end."
    fields = dict(models=models or ("theirs",), listed=None, scripts=[], seen=[], lock=threading.Lock())
    fields |= dict(goes_on=threading.Event(), left=threading.Event())
    with serve_http(Handler, **fields) as server:
        server.address = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield server
        finally:
            server.goes_on.set()


LLAMA = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx, parameters.n_parallel, parameters.warmup, parameters.verbosity = 4096, 1, False, -1
for threads in (parameters.cpuparams, parameters.cpuparams_batch):
    threads.n_threads, threads.poll = 1, 0
parameters.hostnames = ["127.0.0.1"]
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def llama_server(file):
    "llama.cpp's own server in another process, with a GGUF file -> the address of its protocol."
    words = [sys.executable, "-c", LLAMA, str(file)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        yield process.stdout.readline().decode().strip() + "/v1"
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()
