"""All devices of a server with their models, and what requests ask of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config.serving import ServingSettings
from fqgan.engine.devices import pick_device
from fqgan.serve.codec import Codec
from fqgan.serve.images import png, unfinished_png
from fqgan.serve.jobs import Job, News, Wish
from fqgan.serve.metrics import Metrics
from fqgan.serve.models import Catalogue, Served, load, places
from fqgan.serve.worker import BusyError, Worker
from fqgan.tokenizer.model import FactorizedTokenizer

T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """A device: its models, the thread that draws, and those that encode and decode."""

    catalogue: Catalogue
    worker: Worker
    codec: Codec


class Engine:
    """Loads the models of a server on every device, and starts their threads.

    `draining` says that the server is about to end, `cut` how many requests that cost.

    Args:
        devices: None: as the settings say, all GPUs of that kind.

    Raises:
        UserError: models that are not there or do not fit together; no such device.
    """

    def __init__(self, settings: ServingSettings, devices: Sequence[torch.device] | None = None):
        self.settings, self.metrics = settings, Metrics()
        self.draining, self.cut = False, 0
        self._aside = 0
        found = places(settings.chosen)
        self.units = [self._unit(load(found, device, settings.precision), device) for device in devices or self._all()]

    def _all(self) -> list[torch.device]:
        device = pick_device(self.settings.device)
        if device.type != "cuda":
            return [device]
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]

    def _unit(self, catalogue: Catalogue, device: torch.device) -> Unit:
        generators = {name: each.generator for name, each in catalogue.models.items() if each.model.kind == "generator"}
        worker = Worker(device, generators, self.settings.batch, self.settings.queue, self.metrics)
        return Unit(catalogue, worker, Codec(device))

    @property
    def ready(self) -> bool:
        """Whether requests are welcome."""
        return not self.draining and all(unit.worker.alive for unit in self.units)

    @property
    def unit(self) -> Unit:
        """The device with the least to do."""
        return min(self.units, key=lambda unit: unit.worker.load)

    def stop(self) -> None:
        """End all threads, after what they have accepted."""
        for unit in self.units:
            unit.worker.stop()
            unit.codec.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Room for a request that draws nothing; `BusyError` where too many of them are there already."""
        if self._aside >= self.settings.queue:
            raise BusyError(1)
        self._aside += 1
        try:
            yield
        finally:
            self._aside -= 1

    def checked_count(self, count: int) -> int:
        """A number of pictures; `UserError` for more than a request may ask for."""
        if not 1 <= count <= self.settings.most:
            raise UserError(f"a request may ask for 1 to {self.settings.most} pictures, not for {count}")
        return count

    async def draw(self, unit: Unit, served: Served, wish: Wish) -> AsyncIterator[list[News]]:
        """Codes as they come, until all pictures are done; whoever stops listening ends the job. `BusyError` before the
        first."""
        job = Job(wish, served.generator.config.codebook_sizes)
        unit.worker.submit(served.name, job)
        try:
            async for news in job.news():
                yield news
        finally:
            unit.worker.cancel(job)

    async def finished(self, unit: Unit, served: Served, wish: Wish) -> list[Tensor]:
        """Codes (k, h, w) of all pictures."""
        codes: dict[int, Tensor] = {}
        drawing = self.draw(unit, served, wish)
        try:
            async for batch in drawing:
                codes |= {news.image: news.codes for news in batch if news.done}
        finally:
            await drawing.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        return [codes[image] for image in sorted(codes)]


async def result(future: Future[T]) -> T:
    """Of a thread's work; where nobody waits any more and it has not begun, it never does."""
    return await asyncio.wrap_future(future)


async def picture(
    unit: Unit, tokenizer: FactorizedTokenizer, codes: Tensor, keep: tuple[int, ...] | None = None
) -> bytes:
    """A PNG of codes (k, h, w)."""
    return await result(unit.codec.decode(tokenizer, codes, png, keep))


async def unfinished(unit: Unit, served: Served, codes: Tensor) -> bytes:
    """A PNG of the codes (k, t) that a picture has so far."""
    h, w = served.generator.config.grid
    whole = torch.nn.functional.pad(codes, (0, h * w - codes.shape[1])).view(-1, h, w)
    then = partial(unfinished_png, grid=(h, w), positions=codes.shape[1])
    return await result(unit.codec.decode(served.tokenizer, whole, then))
