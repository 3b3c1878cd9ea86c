"""Encodes, decodes and scores beside the sampler, on threads of its own."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from fqgan.data.transforms import normalize
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.passes import exact_convolutions

T = TypeVar("T")
_PASS = 8  # pictures that a GPU takes at a time

_Key = tuple[FactorizedTokenizer, tuple[int, ...] | None, bool, torch.Size]
"""Tokenizer, factors to keep, whether it encodes, and the shape of an input."""


def shares(device: torch.device) -> tuple[int, int]:
    """Threads of a device's sampler, and of its codec. On a CPU a quarter of all, but one at least, decodes, each a
    picture of its own, and the others draw: sharing cores costs both more than either gains."""
    threads = torch.get_num_threads()
    if device.type != "cpu":
        return threads, 1
    decoding = max(1, threads // 4)
    return max(1, threads - decoding), decoding


class Codec:
    """A device's encoder and decoder.

    What a picture becomes does not depend on what others ask for: a CPU takes pictures one by one, each on one thread;
    on a GPU those that wait go together, in passes that are filled up to one size.
    """

    def __init__(self, device: torch.device):
        cpu = device.type == "cpu"
        self.device, self.size = device, 1 if cpu else _PASS
        threads = shares(device)[1]
        self._pool = ThreadPoolExecutor(threads, "fqgan-codec", torch.set_num_threads, (1,))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._lock = threading.Lock()
        self._waiting: dict[_Key, deque[tuple[Tensor, Callable[[Tensor], Any], Future[Any]]]] = defaultdict(deque)

    def decode(
        self,
        tokenizer: FactorizedTokenizer,
        codes: Tensor,
        then: Callable[[Tensor], T],
        keep: tuple[int, ...] | None = None,
    ) -> Future[T]:
        """What `then` makes of the picture (3, H, W) on the CPU, not clipped, of codes (k, h, w) that are known to be
        right. Pictures do not pile up: a client waits for the small file that becomes of one."""
        return self._queued((tokenizer, keep, False, codes.shape), codes, then)

    def encode(self, tokenizer: FactorizedTokenizer, picture: Tensor) -> Future[Tensor]:
        """Codes (k, h, w) on the CPU of a picture (3, H, W) uint8."""
        return self._queued((tokenizer, None, True, picture.shape), picture, lambda codes: codes)

    def run(self, call: Callable[..., T], *values: Any) -> Future[T]:
        """The result of any other call, in its turn."""
        return self._pool.submit(self._called, call, *values)

    def stop(self) -> None:
        """End the threads, after all that was accepted is done."""
        self._pool.shutdown()

    def _queued(self, key: _Key, value: Tensor, then: Callable[[Tensor], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._waiting[key].append((value, then, future))
        self._pool.submit(self._pass, key)
        return future

    def _pass(self, key: _Key) -> None:
        """Take the next pictures of a kind; none may be left where an earlier pass took them along."""
        with self._lock:
            queue = self._waiting[key]
            taken = [queue.popleft() for _ in range(min(self.size, len(queue)))]
            if not queue:
                del self._waiting[key]
        taken = [each for each in taken if each[2].set_running_or_notify_cancel()]
        if not taken:
            return
        try:
            inputs = [value for value, _, _ in taken]
            inputs += inputs[-1:] * (self.size - len(inputs))
            results = self._called(self._computed, key, torch.stack(inputs))
            finished = [then(result) for (_, then, _), result in zip(taken, results, strict=False)]
        except Exception as error:
            for _, _, future in taken:
                future.set_exception(error)
            return
        for (_, _, future), result in zip(taken, finished, strict=True):
            future.set_result(result)

    def _computed(self, key: _Key, inputs: Tensor) -> Tensor:
        tokenizer, keep, encodes, _ = key
        inputs = inputs.to(self.device)
        if encodes:
            return tokenizer.encode(normalize(inputs), values=False).cpu()
        return tokenizer.decode(inputs, keep, values=False).cpu()

    def _called(self, call: Callable[..., T], *values: Any) -> T:
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if self.device.type == "cpu":
                return call(*values)
            with exact_convolutions():  # a switch of the whole process: one thread alone may turn it
                return call(*values)
