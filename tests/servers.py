"A web server on this machine, in a thread."

import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


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
