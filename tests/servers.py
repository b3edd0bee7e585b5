"A web server on this machine, in a thread."

import contextlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace


class Static(SimpleHTTPRequestHandler):
    "Files of a folder; what was asked for is written down."

    def log_message(self, *given):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()


def serving(handler):
    "A server that has begun; the caller shuts it down."
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server


@contextlib.contextmanager
def chat_server(session, learn_every=0, limits=None, token="token-of-this-test", port=0):
    "The package's own server around a session, in a thread; gives its address, port, token and worker."
    from personal_llm.app import server as app
    from personal_llm.app.conversation_worker import ConversationWorker

    limits = limits or app.ServerLimits()
    worker = ConversationWorker(session, learn_every, limits.waiting_requests)
    bound = app.open_socket("127.0.0.1", port)
    running = app.make_uvicorn(app.make_app(worker, token, limits=limits))
    thread = threading.Thread(target=running.run, args=([bound],), daemon=True)
    thread.start()
    while not running.started:
        thread.join(0.02)
    port = bound.getsockname()[1]
    try:
        yield SimpleNamespace(
            address=f"http://127.0.0.1:{port}", port=port, token=token, worker=worker, session=session
        )
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
