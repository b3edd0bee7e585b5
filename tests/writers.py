"Servers that write: one with faults on request, and llama.cpp's own in another process."

import contextlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler

from servers import serve_http

ERRORS = {
    "wrong key": (401, dict(error=dict(message="Incorrect API key provided"))),
    "no such model": (404, dict(error="model 'theirs' not found")),
    "too long": (400, dict(error=dict(message="the request exceeds\nthe available context size"))),
    "page": (502, "<html>Bad Gateway</html>"),
    "moved": (302, ""),
}

WRONG_ROWS = {
    "broken": dict(error=dict(message="out of memory")),
    "no text": dict(choices=[dict(delta=dict(content=[dict(text="a")]))]),
    "other protocol": dict(choices=["text"]),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    packing = "identity"  # that it tells

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
        server = self.server
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append((wanted, self.headers.get("Authorization")))
            fault = server.faults.pop(0) if server.faults else None
        if fault in ERRORS:
            return self.answer(*ERRORS[fault])
        if fault == "silent":
            server.goes_on.wait(60)
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Encoding", self.packing)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if callable(fault):
            with contextlib.suppress(OSError):
                fault(self)
            server.left.set()
            return
        pieces = [f" {word}" for word in wanted["messages"][-1]["content"].split()]
        with contextlib.suppress(OSError):  # the reader goes away
            self.put(dict(choices=[dict(delta=dict(role="assistant", content="In short:"))]))
            for number, piece in enumerate(pieces):
                if fault == "cut" and number == 1:
                    return
                if fault == "stalled" and number == 1:
                    server.goes_on.wait(60)
                    return
                if fault == "garbage":
                    self.wfile.write(b"data: [1, 2\n\n")
                    return
                if fault in WRONG_ROWS:
                    return self.put(WRONG_ROWS[fault])
                self.put(dict(choices=[dict(delta=dict(content=piece))]))
            self.put(dict(choices=[dict(delta={}, finish_reason="length" if fault == "length" else "stop")]))
            self.put(dict(choices=[], usage=dict(prompt_tokens=7, completion_tokens=len(pieces))))
            self.wfile.write(b"data: [DONE]\n\n")
            if fault == "open":
                server.goes_on.wait(60)

    def say(self, **delta) -> None:
        self.put(dict(choices=[dict(delta=delta)]))

    def end(self, reason: str = "stop", **fields) -> None:
        self.put(dict(choices=[dict(delta={}, finish_reason=reason)]) | fields)
        self.wfile.write(b"data: [DONE]\n\n")

    def put(self, row: dict) -> None:
        self.wfile.write(b": a comment\n\ndata: " + json.dumps(row).encode() + b"\n\n")
        self.wfile.flush()


@contextlib.contextmanager
def writing_server(*models):
    "A server that answers with the words of the prompt; `faults`, names or functions, are those of the next requests."
    fields = dict(models=models or ("theirs",), listed=None, faults=[], seen=[], lock=threading.Lock())
    fields |= dict(goes_on=threading.Event(), left=threading.Event())  # left: a function has come to its end
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
