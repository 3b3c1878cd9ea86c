"""What every request passes: who may ask, how much and how slowly; one line in the log; an end where nobody waits."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
import traceback
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fqgan.base.printing import in_plain, say, say_lines
from fqgan.serve.engine import Engine
from fqgan.serve.requests import MOST_BYTES, Refused

BODY_SECONDS = 60.0
"""That a client has to send its request's body."""
HELD = 256 * 2**20
"""Bytes of bodies that are held for all requests together."""
_OPEN = ("/", "/docs", "/healthz", "/readyz", "/favicon.ico")
"""What needs no token, besides the pages' files and the photographs that come with packages."""
_GONE = 499  # nginx' status for a client that hung up: for the log alone


def refusal(path: str, status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer of one sentence, to OpenAI's clients in their form."""
    text = in_plain(sentence)[:500]
    if path.startswith("/v1/"):
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return JSONResponse({"error": {"message": text, "type": kind, "param": None, "code": None}}, status, headers)
    return JSONResponse({"error": text}, status, headers)


class Gate:
    """Middleware around the application."""

    def __init__(self, app: ASGIApp, engine: Engine):
        self.app, self.engine = app, engine
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["note"] = {}
        exchange, began = _Exchange(self, receive, send), time.monotonic()
        path = scope["path"]
        try:
            self._check(scope, path)
            await self._run(scope, exchange)
        except Refused as error:
            await exchange.answer(scope, refusal(path, error.status, str(error), error.headers))
        except asyncio.CancelledError:
            self.engine.cut += self.engine.draining
            raise
        except Exception:
            say(f"fqgan serve: {scope['method']} {path[:200]} failed", error=True)
            say_lines(traceback.format_exc())
            await exchange.answer(scope, refusal(path, 500, "the server failed on this request"))
        finally:
            self.held -= exchange.size
            self._log(scope, exchange.status or _GONE, time.monotonic() - began)

    async def _run(self, scope: Scope, exchange: _Exchange) -> None:
        """The application, until it is done, the client is gone or time is up."""
        task = asyncio.ensure_future(self.app(scope, exchange.receive, exchange.send))
        watcher = asyncio.ensure_future(exchange.until_gone())
        try:
            deadline = self.engine.settings.deadline
            await asyncio.wait({task, watcher}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if not watcher.done():
                raise Refused(504, f"this took longer than the {deadline:g} s that a request has")
        finally:
            for each in (task, watcher):
                each.cancel()
            with suppress(BaseException):
                await asyncio.wait({task, watcher})
            if task.done() and not task.cancelled():
                task.exception()  # seen

    def _check(self, scope: Scope, path: str) -> None:
        """`Refused` for who may not ask, and for what is too large by its own word."""
        headers, settings = Headers(scope=scope), self.engine.settings
        name = re.sub(r":\d*$", "", headers.get("host", "")).strip("[]").lower()
        if not settings.secret and name not in ("localhost", "127.0.0.1", "::1", settings.host):
            # a page elsewhere may give its own name this machine's address
            raise Refused(421, "this server answers to localhost alone")
        origin = headers.get("origin")
        if origin and origin not in settings.cors and origin.partition("://")[2] != headers.get("host"):
            raise Refused(403, "pages of other origins may not call this server (--cors)")
        is_open = path in _OPEN or path.startswith(("/static/", "/api/pictures/"))
        if settings.secret and not is_open:
            kind, _, token = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(token.strip().encode(), settings.secret.encode())
            if kind.lower() != "bearer" or not right:
                raise Refused(401, "send the server's token: Authorization: Bearer TOKEN", WWW_Authenticate="Bearer")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > MOST_BYTES:
            raise Refused(413, f"the body is larger than {MOST_BYTES >> 20} MB")
        if headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "compressed bodies are not read here")

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.engine.metrics.requests.labels(route, status).inc()
        self.engine.metrics.seconds.labels(route).observe(seconds)
        note = "".join(f" {name}={value}" for name, value in scope["note"].items())
        client = (scope.get("client") or ("-",))[0]
        say(f"{client} {scope['method'][:20]} {scope['path'][:200]} {status} {seconds:.3f} s{note}")


class _Exchange:
    """One request's messages."""

    def __init__(self, gate: Gate, receive: Receive, send: Send):
        self._gate, self._receive, self._send = gate, receive, send
        self.size, self.status, self._events = 0, 0, False
        self._ends = time.monotonic() + BODY_SECONDS
        self._whole, self._gone = asyncio.Event(), asyncio.Event()

    async def receive(self) -> Message:
        """For the application: the body, then the end of the connection."""
        if self._whole.is_set():
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            message = await asyncio.wait_for(self._receive(), self._ends - time.monotonic())
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {BODY_SECONDS:g} s", Connection="close") from None
        if message["type"] == "http.disconnect":
            self._whole.set()
            self._gone.set()
            return message
        count = len(message.get("body", b""))
        self.size += count
        self._gate.held += count
        if self.size > MOST_BYTES:
            raise Refused(413, f"the body is larger than {MOST_BYTES >> 20} MB")
        if self._gate.held > HELD:
            raise Refused(429, "too many large requests at once: try again later", Retry_After="1")
        if not message.get("more_body"):
            self._whole.set()
        return message

    async def until_gone(self) -> None:
        """Until the client hangs up, once its body is there."""
        await self._whole.wait()
        while not self._gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._gone.set()

    async def send(self, message: Message) -> None:
        """For the application."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], *_SAFE]}
            self._events = (b"content-type", _EVENTS) in message["headers"]
        await self._send(message)

    async def answer(self, scope: Scope, response: Any) -> None:
        """The end: whole, or as the last event of a stream; another answer that has begun is cut."""
        if not self.status:
            await response(scope, self.receive, self.send)
        elif self._events:
            event = b"event: error\ndata: " + bytes(response.body) + b"\n\n"
            await self.send({"type": "http.response.body", "body": event, "more_body": False})


_EVENTS = b"text/event-stream; charset=utf-8"
_SAFE = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
