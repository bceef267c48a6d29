"""A Hub on this machine: files of repositories over HTTP, by ranges, with a count of all bytes that it sends."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories with their files: bytes, or (bytes, size) of a file with a hole behind them."""

    def __init__(self, repositories):
        self.repositories, self.sent, self.asked = repositories, 0, []
        self.lock = threading.Lock()
        self.token = None


def handler(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            with hub.lock:
                hub.asked.append(self.path)
                hub.token = self.headers.get("Authorization")
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/?]+))?(?:\?.*)?", self.path):
                self.info(*found.groups())
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
                self.file(*found.groups())
            else:
                self.answer(404, b"")

        def info(self, repository, revision):
            if repository not in hub.repositories:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if revision not in (None, "main", REVISION):
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            names = [{"rfilename": name} for name in hub.repositories[repository]]
            content = {"id": repository, "modelId": repository, "sha": REVISION, "siblings": names, "tags": []}
            return self.answer(200, json.dumps(content).encode())

        def file(self, repository, revision, name):
            content = hub.repositories.get(repository, {}).get(name)
            if content is None or revision != REVISION:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            content, size = content if isinstance(content, tuple) else (content, len(content))
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
            last = min(last, size - 1)
            part = content[first : last + 1]
            part += bytes(last + 1 - first - len(part))
            return self.answer(206, part, {"Content-Range": f"bytes {first}-{last}/{size}"})

        def answer(self, status, content, more=None):
            self.send_response(status)
            for name, value in {"Content-Length": len(content), **(more or {})}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)
            with hub.lock:
                hub.sent += len(content)

    return Handler


@contextmanager
def serving(repositories):
    """A Hub with these repositories, and its address."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(hub))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
