"""A hub on this machine: the few addresses that downloads and uploads of small files ask for, with files in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """One repository of any name; a commit replaces all of its files."""

    files: dict[str, bytes] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/whoami"):
            return self._json({"name": "org", "type": "user", "orgs": []})
        if path.startswith("/api/models/"):
            if not self.files:
                return self._refuse(404, "RepoNotFound")
            if "/tree/" in path:
                tree = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in self.files.items()]
                return self._json(tree)
            siblings = [{"rfilename": name} for name in self.files]
            return self._json({"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings})
        content = self.files.get(path.partition("/resolve/")[2].partition("/")[2])
        if content is None:
            return self._refuse(404, "EntryNotFound")
        return self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            answer = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            return self._json({"files": answer})
        if "/commit/" in self.path:
            lines = [json.loads(line) for line in body.decode().splitlines()]
            values = [line["value"] for line in lines if line["key"] == "file"]
            type(self).files = {value["path"]: base64.b64decode(value["content"]) for value in values}
            return self._json({"commitUrl": f"{self._home}/commit/{COMMIT}", "commitOid": COMMIT})
        return self._json({"url": self._home})

    @property
    def _home(self) -> str:
        return f"http://{self.headers['Host']}/org/name"

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        if "-v" in sys.argv:
            super().log_message(format, *args)


def start() -> ThreadingHTTPServer:
    """A hub of its own, empty; `server_port` tells its address, `shutdown` ends it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHub", (Hub,), {"files": {}}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
