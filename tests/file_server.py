"""Web servers on this machine with files in memory, some of them with the faults that servers have."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class FileServer(ThreadingHTTPServer):
    """Files by path. `ranges` off: always the whole file. `cuts`: how many of the next bodies end halfway, `errors`:
    how many of the next requests for more than a byte get status 503. `asked` counts the requests by range."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or _Handler)
        self.files = files
        self.ranges = True
        self.cuts = self.errors = self.sent = 0
        self.asked: Counter[str] = Counter()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that hang up

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # 40 ms for each answer otherwise
    server: FileServer  # pyright: ignore

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0].lstrip("/")
        asked = self.headers.get("Range", "")
        server.asked[asked] += 1
        content = server.files.get(path)
        if content is None:
            return self._answer({"private": 403}.get(path, 404), b"")
        marks = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if not server.ranges or not asked:
            return self._answer(200, content, **marks)
        start, _, last = asked.removeprefix("bytes=").partition("-")
        if int(start) >= len(content):
            return self._answer(416, b"", **marks, **{"Content-Range": f"bytes */{len(content)}"})
        body = content[int(start) : int(last) + 1]
        if len(body) > 1 and server.errors:
            server.errors -= 1
            return self._answer(503, b"")
        place = f"bytes {start}-{int(start) + len(body) - 1}/{len(content)}"
        return self._answer(206, body, **marks, **{"Content-Range": place})

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        headers["Content-Length"] = str(len(body))
        if len(body) > 1 and self.server.cuts:
            self.server.cuts -= 1
            body, self.close_connection = body[: len(body) // 2], True
        self.server.sent += len(body)  # before the client can look
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class Google(_Handler):
    """The part of Google Cloud Storage that reads: a bucket of any name; one named `private` refuses."""

    def do_GET(self) -> None:
        address, files = urlsplit(self.path), self.server.files
        _, _, place = unquote(address.path).partition("/b/")
        bucket, _, name = place.partition("/o")
        query = parse_qs(address.query)
        if bucket == "private":
            return self._answer(403, b'{"error": {"code": 403, "message": "denied"}}')
        if not name:
            prefix = query.get("prefix", [""])[0]
            items = [self._described(bucket, key) for key in files if key.startswith(prefix)]
            return self._answer(200, json.dumps({"items": items}).encode())
        if name[1:] not in files:
            return self._answer(404, b'{"error": {"code": 404, "message": "not there"}}')
        if query.get("alt") != ["media"]:
            return self._answer(200, json.dumps(self._described(bucket, name[1:])).encode())
        self.path = name
        return super().do_GET()

    def _described(self, bucket: str, name: str) -> dict[str, str]:
        content = self.server.files[name]
        generation = str(int(hashlib.md5(content).hexdigest()[:12], 16))
        times = dict.fromkeys(("updated", "timeCreated"), "2026-01-01T00:00:00.000Z")
        return {"name": name, "bucket": bucket, "size": str(len(content)), "generation": generation, **times}
