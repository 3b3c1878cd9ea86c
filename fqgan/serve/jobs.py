"""A request's pictures between the event loop, which waits for them, and a device's thread, which draws them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config import SamplingConfig
from fqgan.generator.draw import check_drawn


@dataclass(frozen=True)
class Wish:
    """What a generator shall draw: image i in class labels[i] from the random stream (seed, first + i).

    Attributes:
        given, mask: codes (k, h, w) and which of them each image takes as they stand; None: none of them.
        follow: whether codes are wanted while they grow.
    """

    labels: tuple[int, ...]
    seed: int
    first: int
    config: SamplingConfig
    given: Tensor | None = None
    mask: Tensor | None = None
    follow: bool = False


class News(NamedTuple):
    """Codes of one of the pictures: (k, h, w) of a finished one, or (k, t) of the t positions that it has so far."""

    image: int
    codes: Tensor
    done: bool


class JobError(Exception):
    """The device failed. What happened is in the server's output, not in the answer."""


class Job:
    """A wish under way. Made on the event loop; `left`, `grow`, `finish` and `fail` are for the device's thread.

    Of what a slow reader has not fetched, only the newest codes of each image are kept.
    """

    def __init__(self, wish: Wish, sizes: tuple[int, ...]):
        self.wish, self.sizes = wish, sizes
        self.left = deque(range(len(wish.labels)))
        """Images that have not joined the batch yet."""
        self.cancelled = False
        self._loop, self._arrived = asyncio.get_running_loop(), asyncio.Event()
        self._lock = threading.Lock()
        self._news: dict[int, News] = {}
        self._error: Exception | None = None

    def grow(self, image: int, codes: Tensor) -> None:
        """An image has come this far."""
        self._tell(News(image, codes, False))

    def finish(self, image: int, codes: Tensor) -> None:
        """An image is done."""
        try:
            self._tell(News(image, check_drawn(codes[None], self.sizes)[0], True))
        except UserError as error:
            self.fail(JobError(str(error)))

    def fail(self, error: Exception) -> None:
        """Nothing more will come."""
        self._error, self.cancelled = error, True
        self._wake()

    async def news(self) -> AsyncIterator[list[News]]:
        """What happened to the images since the last time, until all are done. `JobError` where the device failed."""
        missing = len(self.wish.labels)
        while missing:
            await self._arrived.wait()
            self._arrived.clear()
            if self._error:
                raise self._error
            with self._lock:
                fetched, self._news = self._news, {}
            missing -= sum(each.done for each in fetched.values())
            if fetched:
                yield list(fetched.values())

    def _tell(self, news: News) -> None:
        with self._lock:
            self._news[news.image] = news
        self._wake()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.set)
