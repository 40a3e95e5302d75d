"""A server on the loopback interface, which answers in every way a server can."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """`answers[path]`: what it answers to the requests for a path, one after the other, the last for ever."""

    def __init__(self):
        self.answers, self.requests, self.lock = {}, Counter(), threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.partition("?")[0]
                with server.lock:
                    k = server.requests[self.command, path]
                    server.requests[self.command, path] += 1
                answers = server.answers.get(path, [status(404)])
                answers[min(k, len(answers) - 1)](self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def gets(self, path):
        return self.requests["GET", path]

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


def body(
    content: bytes, *, sent: int | None = None, pieces: int = 1, pause: float = 0, stall: float = 0, **headers
):
    """A 200 with the first `sent` bytes of `content`, in pieces with pauses; `stall` seconds at the end."""

    def answer(request):
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command == "HEAD":
            return
        part = content[:sent]
        size = -(-len(part) // pieces)
        for k in range(pieces):
            request.wfile.write(part[k * size : (k + 1) * size])
            threading.Event().wait(pause)
        threading.Event().wait(stall)

    return answer


def status(code: int, text: bytes = b"", **headers):
    def answer(request):
        request.send_response(code)
        request.send_header("Content-Length", str(len(text)))
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(text)

    return answer
