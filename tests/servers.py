"The package's server on this machine, in a thread."

import contextlib
import http.client
import json
import threading
import types
from functools import lru_cache
from http.server import ThreadingHTTPServer


@contextlib.contextmanager
def serve_http(handler, **fields):
    "A server of the standard library in a thread; the fields are set on it."
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(fields)
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.05), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@lru_cache
def pocket():
    from personal_llm.base.models import load_model

    return load_model("pocket")


def ask(port: int, token: str, method: str, path: str, body=None, **headers) -> tuple:  # (status, JSON or text)
    "Ask with the token, unless a header of None leaves it out."
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {token}"} | {k.replace("_", "-"): v for k, v in headers.items()}
    connection.request(method, path, content, {name: value for name, value in given.items() if value is not None})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, json.loads(text) if text.startswith("{") else text


class ChatServer:
    "The package's server around a session."

    def __init__(self, session, token: str = "token-of-this-test", code: str = "", host: str = "127.0.0.1", port=0):
        from personal_llm.extras.server import make_app, make_server, open_socket

        self.session = session
        self.token = token
        bound = open_socket("127.0.0.1", port)
        self.port = bound.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.server = make_server(make_app(session, token, host, code))
        self.thread = threading.Thread(target=self.server.run, args=([bound],), daemon=True)
        self.thread.start()
        while not self.server.started:
            self.thread.join(0.02)

    def ask(self, method: str, path: str, body=None, **headers) -> tuple:
        return ask(self.port, self.token, method, path, body, **headers)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


def chat_server(folder, code: str = "", host: str = "127.0.0.1", port: int = 0, **settings):
    "A server around a session of the pocket model in a folder, for a `with` block."
    from personal_llm.device.chat import ChatSession

    return contextlib.closing(ChatServer(ChatSession(pocket(), folder, **settings), code=code, host=host, port=port))


def write_without_end(monkeypatch):  # its fields: count, stop, left
    "Let every reply go on until `stop` is set; `left` tells that a reply has ended or that nobody reads it."
    from personal_llm.base.replies import ReplyStream

    pieces = types.SimpleNamespace(count=0, stop=threading.Event(), left=threading.Event())

    def write(self):
        try:
            while not pieces.stop.wait(0.02):
                self.text += f"{pieces.count} "
                yield f"{pieces.count} "
                pieces.count += 1
        finally:
            pieces.left.set()

    monkeypatch.setattr(ReplyStream, "__iter__", write)
    return pieces
