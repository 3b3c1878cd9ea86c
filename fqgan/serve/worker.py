"""The thread that owns a device's samplers: pictures join the running batch on its way, and leave it when they are done
or nobody waits for them any more."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable

import torch

from fqgan.base.printing import say, say_lines
from fqgan.generator.model import FAR
from fqgan.generator.sampler import Sampler
from fqgan.serve.codec import shares
from fqgan.serve.jobs import Job, JobError
from fqgan.serve.metrics import Metrics


class BusyError(Exception):
    """Too many pictures wait already.

    Attributes:
        seconds: after which it is worth another try.
    """

    def __init__(self, seconds: int):
        super().__init__(f"too many pictures are waiting here: try again in {seconds} s")
        self.seconds = seconds


class Lane:
    """One generator's running batch. For the device's thread alone, but for what `Worker` guards."""

    def __init__(self, name: str, generator: FAR, batch: int, metrics: Metrics):
        self.sampler, self.sizes = Sampler(generator, batch, None), generator.config.codebook_sizes
        self.waiting: deque[Job] = deque()
        self._rows: dict[int, tuple[Job, int]] = {}
        """Row of the sampler -> job and image."""
        self._generator, self._batch, self._name, self._metrics = generator, batch, name, metrics

    @property
    def busy(self) -> bool:
        """Whether anything is under way or waits."""
        return bool(self.waiting or self._rows)

    def leave(self) -> None:
        """Let go of pictures that nobody waits for."""
        gone = [row for row, (job, _) in self._rows.items() if job.cancelled]
        self.sampler.leave(gone)
        for row in gone:
            del self._rows[row]

    def join(self, picked: Iterable[tuple[Job, int]]) -> None:
        """Start pictures."""
        for job, image in picked:
            wish = job.wish
            given = {} if wish.given is None else {"given": wish.given[None], "mask": wish.mask[None]}  # pyright: ignore
            rows = self.sampler.join([wish.labels[image]], wish.seed, wish.first + image, wish.config, **given)
            self._rows[rows[0]] = job, image

    def step(self) -> None:
        """Move all pictures on by a position, and tell their jobs."""
        rows = len(self._rows)
        self._metrics.rows.labels(self._name).set(rows)
        if not rows:
            return
        began = time.perf_counter()
        done, codes = self.sampler.step()
        if done:
            codes = codes.cpu()
        for row, own in zip(done, codes, strict=False):
            job, image = self._rows.pop(row)
            job.finish(image, own)
        width = self.sampler.grid[1]
        for row, (job, image) in self._rows.items():
            if job.wish.follow and not self.sampler.slots.at[row] % width:
                job.grow(image, self.sampler.so_far(row).cpu().clone())
        self._metrics.stepped(rows, self._batch, time.perf_counter() - began, len(done))

    def fail(self) -> None:
        """End all that is under way, and begin afresh: whatever broke may have left the batch in any state."""
        for job in {*self.waiting, *(job for job, _ in self._rows.values())}:
            job.fail(JobError("the model failed on this request"))
        self._rows.clear()
        self.sampler = Sampler(self._generator, self._batch, None)


class Worker:
    """A device's thread and its queue, whose methods any thread may call.

    Args:
        device: that the models are on.
        generators: by name.
        batch: pictures that each draws at a time.
        queue: pictures that may wait in all.
    """

    def __init__(self, device: torch.device, generators: dict[str, FAR], batch: int, queue: int, metrics: Metrics):
        self._lanes = {name: Lane(name, each, batch, metrics) for name, each in generators.items()}
        self._batch, self._queue, self._metrics = batch, queue, metrics
        self._changed = threading.Condition()
        self._stopped = False
        self._pace = 0.0
        """Seconds that a picture takes in a full batch, of late."""
        self._device, self._threads = device, shares(device)[0]
        self._thread = threading.Thread(target=self._run, name="fqgan-draw", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is there."""
        return self._thread.is_alive()

    @property
    def load(self) -> int:
        """Pictures under way or waiting."""
        with self._changed:
            return sum(lane.sampler.batch - lane.sampler.free for lane in self._lanes.values()) + self._waiting()

    def submit(self, name: str, job: Job) -> None:
        """Queue a job for a generator; `BusyError` where it does not fit."""
        with self._changed:
            waiting = self._waiting()
            if self._stopped or waiting + len(job.left) > self._queue:
                raise BusyError(min(600, max(1, math.ceil((waiting + self._batch) / self._batch * self._pace))))
            self._lanes[name].waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody waits for a job any more: its pictures give up their places before the next position."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    def stop(self) -> None:
        """End the thread, after all that was accepted is done."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _waiting(self) -> int:
        return sum(len(job.left) for lane in self._lanes.values() for job in lane.waiting if not job.cancelled)

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # a thread has a number, and a GPU, of its own
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        while True:
            with self._changed:
                while not (busy := [lane for lane in self._lanes.values() if lane.busy]):
                    self._metrics.waiting.set(0)
                    if self._stopped:
                        return
                    self._changed.wait()
            for lane in busy:
                try:
                    self._advance(lane)
                except Exception:  # the next request may be a better one
                    say("fqgan serve: a step of the sampler failed", error=True)
                    say_lines(traceback.format_exc())
                    with self._changed:
                        lane.fail()
                        lane.waiting.clear()

    def _advance(self, lane: Lane) -> None:
        began = time.perf_counter()
        with self._changed:
            lane.leave()
            picked = self._picked(lane)
            self._metrics.waiting.set(self._waiting())
        lane.join(picked)
        lane.step()
        took = (time.perf_counter() - began) * lane.sampler.positions
        self._pace += 0.1 * (took - self._pace)

    def _picked(self, lane: Lane) -> list[tuple[Job, int]]:
        """The images that take the free rows: one of each waiting job in turn, so that large requests do not keep small
        ones waiting."""
        picked: list[tuple[Job, int]] = []
        while lane.waiting and len(picked) < lane.sampler.free:
            job = lane.waiting.popleft()
            if job.cancelled:
                continue
            picked.append((job, job.left.popleft()))
            if job.left:
                lane.waiting.append(job)
        return picked
