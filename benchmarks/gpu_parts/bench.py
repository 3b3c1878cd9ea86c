"""What every part works with: rows within a time budget, timing, memory, the largest batch that fits, kernels."""

from __future__ import annotations

import argparse
import gc
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch
from sampler import timed

from fqgan.base.errors import in_one_line, out_of_memory
from gpu_parts.results import Results, Row, in_words

GIB = 2**30


class Bench:
    """One part's rows.

    Args:
        options: of benchmarks/gpu.py.
        until: time of the clock at which the part has to be done.
    """

    def __init__(self, options: argparse.Namespace, part: str, until: float):
        self.results, self.part, self.until = Results(options.out), part, until
        self._began = time.time()
        self.device, self.small = torch.device(options.device), options.small
        if self.small:  # small networks on more threads than free cores are many times as slow; C++ takes minutes
            torch.set_num_threads(1)
            torch.compile = partial(torch.compile, backend="aot_eager")

    @property
    def rows(self) -> dict[str, Row]:
        return self.results.rows.get(self.part, {})

    def row(
        self, name: str, measure: Callable[[], Row], needs: float = 5.0, limit: float = 120.0, aim: str = ""
    ) -> Row | None:
        """The values of a row: measured now, or before. None where it failed or no longer fits.

        Args:
            measure: returns unit -> value; what it holds is freed afterwards.
            needs: seconds; with less left the row is skipped.
            limit: seconds after which the runner ends this process.
        """
        if name in self.rows:
            return self.rows[name].get("values")
        if not self.small and self.until - time.time() < needs:
            return self._put(name, {"skipped": f"less than {needs:.0f} s were left"}, aim)
        self.start(name, limit)
        try:
            return self._put(name, {"values": measure()}, aim)
        except Exception as error:
            self._put(name, {"error": told(error)}, aim)
            self._leave_if_broken()
            return None
        finally:
            free()

    def start(self, name: str, limit: float) -> None:
        """A row is under way."""
        self._began = time.time()
        self.results.put(self.part, name, {"until": time.time() + limit})

    def derived(self, name: str, values: Row, aim: str = "") -> None:
        """A row that follows from others, so that it is never out of date."""
        self._began = time.time()
        self._put(name, {"values": values}, aim)

    def _put(self, name: str, row: Row, aim: str) -> Row | None:
        row |= ({"aim": aim} if aim else {}) | {"took": round(time.time() - self._began, 1)}
        self.results.put(self.part, name, row)
        print(f"{self.part}: {name}: {in_words(row)} ({row['took']:.0f} s)", flush=True)
        return row.get("values")

    def _leave_if_broken(self) -> None:
        """After an illegal access nothing works on a GPU in this process any more: the runner starts another one."""
        if self.device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(3)

    def seconds(self, call: Callable[[], object], times: int = 5, most: float = 4.0) -> float:
        """The median of several calls after one that does not count; fewer where they take more than `most` in all."""
        timed(call, self.device)
        taken = [timed(call, self.device)]
        while len(taken) < (2 if self.small else times) and sum(taken) < most:
            taken.append(timed(call, self.device))
        return sorted(taken)[len(taken) // 2]

    @contextmanager
    def memory(self) -> Iterator[Callable[[], float]]:
        """Within, a function that gives the most GiB that tensors on the GPU took since (on a CPU: this process)."""
        if self.device.type != "cuda":
            yield lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            return
        torch.cuda.reset_peak_memory_stats()
        yield lambda: torch.cuda.max_memory_allocated() / GIB

    def largest(self, run: Callable[[int], object], first: int, most: int, slowest: float = 4.0) -> int:
        """The largest size for which `run(size)` works: doubled until memory ends, one call takes `slowest` seconds or
        the size is `most`, then halfway to the size that failed. `MemoryError` where not even `first` fits."""
        fits, size = 0, first
        while size <= (first * 2 if self.small else most):
            seconds = self._fits(run, size)
            if seconds is None:
                between = (fits + size) // 2
                fits = between if fits < between and self._fits(run, between) is not None else fits
                break
            fits, size = size, 2 * size
            if seconds > slowest:
                break
        if not fits:
            raise MemoryError(f"not even a batch of {first} fits")
        return fits

    def shrunk(self, run: Callable[[int], object], size: int) -> int:
        """`size`, or what is left of it after quarters are taken off until `run` works; each try may compile anew."""
        while self._fits(run, size) is None:
            if size < 2:
                raise MemoryError("not even a batch of 1 fits")
            size = size * 3 // 4
        return size

    def _fits(self, run: Callable[[int], object], size: int) -> float | None:
        """Seconds of a call; None where memory does not suffice."""
        try:
            return timed(lambda: run(size), self.device)
        except Exception as error:
            if not out_of_memory(error):
                raise
        free()
        return None

    def kernels(self, call: Callable[[], object], most: int = 8) -> Row:
        """The kernels that take most of a call's time on the GPU (on a CPU: operators), each with its share."""
        activity = torch.profiler.ProfilerActivity
        cuda = self.device.type == "cuda"
        call()
        with torch.profiler.profile(activities=[activity.CUDA if cuda else activity.CPU]) as profile:
            timed(call, self.device)
        taken: dict[str, float] = {}
        for event in profile.key_averages():
            own = event.self_device_time_total if cuda else event.self_cpu_time_total
            taken[event.key] = taken.get(event.key, 0.0) + own
        total = sum(taken.values()) or 1.0
        first = sorted(taken, key=lambda name: -taken[name])[:most]
        return {"": "; ".join(f"{taken[name] / total:.0%} {name[:70]}" for name in first), "ms": total / 1e3}


def told(error: BaseException) -> str:
    """An exception in a line."""
    if out_of_memory(error):
        return f"out of memory ({in_one_line(Exception(str(error)))[:80]})"
    return f"{type(error).__name__}: {in_one_line(Exception(str(error)))}"


def free() -> None:
    """Give back what no tensor needs any more."""
    gc.collect()
    if torch.cuda.is_available():
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
