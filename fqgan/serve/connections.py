"""uvicorn's connections, but those that never finish asking, or never read their answer, are closed."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

ASK_SECONDS = 20.0
"""From a connection's, or a request's, first byte to the end of its headers; and for the rest of a body after the
answer."""
READ_SECONDS = 20.0
"""In which a client has to take `_LEAST` bytes of an answer that waits for it."""
_LEAST = 2**14


class Connection(H11Protocol):
    """uvicorn waits for the headers of a request, and for the reader of an answer, as long as a client pleases."""

    _limit: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()
        self._watch_reader(math.inf)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader(math.inf)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        if self._reader is not None:
            self._reader.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": "this is no HTTP request that can be read"}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """Start the clock where it is the client's turn and nobody else watches it, and stop it elsewhere."""
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked or self.timeout_keep_alive_task is not None:
            self._unwatch()
        elif self._limit is None:
            self._limit = self.loop.call_later(ASK_SECONDS, self.transport.abort)

    def _unwatch(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _watch_reader(self, before: float) -> None:
        """Close the connection where the bytes that wait, `before` of them a while ago, do not become fewer."""
        if self._reader is not None:
            self._reader.cancel()
        waiting = self.transport.get_write_buffer_size()
        if waiting > before - _LEAST:
            self.transport.abort()
        elif waiting:
            self._reader = self.loop.call_later(READ_SECONDS, self._watch_reader, waiting)
