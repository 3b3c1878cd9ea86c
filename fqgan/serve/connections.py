"""uvicorn's connections, but those that never finish asking are closed."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

ASK_SECONDS = 20.0
"""From a connection's, or a request's, first byte to the end of its headers; and for the rest of a body after the
answer."""


class Connection(H11Protocol):
    """uvicorn waits for the headers of a request as long as a client pleases. Not so here."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock where it is the client's turn and nobody else watches it, and stop it elsewhere."""
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked or self.timeout_keep_alive_task is not None:
            self._unwatch()
        elif self._limit is None:
            self._limit = self.loop.call_later(ASK_SECONDS, self._close)

    def _unwatch(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _close(self) -> None:
        if not self.transport.is_closing() and self.conn.our_state is not h11.ERROR:
            self.transport.abort()
