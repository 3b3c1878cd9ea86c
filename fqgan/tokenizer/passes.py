"""Crops through a tokenizer, in passes of a fixed size."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fqgan.data.transforms import normalize
from fqgan.tokenizer.protocol import Tokenizer


def exact_convolutions() -> AbstractContextManager[None]:
    """In here float32 means float32: by default convolutions on a GPU round their input to 10 bits."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


class Passes:
    """Runs crops through a tokenizer in passes of `size`, so that the codes do not depend on how the crops came.

    On a CPU several passes run beside each other, each on one thread: what a convolution of several threads gives
    depends in its last bits on their number.
    """

    def __init__(self, tokenizer: Tokenizer, device: torch.device, size: int) -> None:
        self.tokenizer, self.device, self.size = tokenizer, device, size
        self.threads = torch.get_num_threads() if device.type == "cpu" else 0
        self._pool = ThreadPoolExecutor(max(1, self.threads), initializer=torch.set_num_threads, initargs=(1,))
        self._waiting: list[Tensor] = []
        self._results: list[Tensor | Future[Tensor]] = []

    def __enter__(self) -> Passes:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, crops: Tensor) -> None:
        """Take uint8 crops (n, 3, size, size)."""
        self._waiting.append(crops)
        if sum(map(len, self._waiting)) < self.size:
            return
        waiting = torch.cat(self._waiting)
        whole = len(waiting) // self.size * self.size
        self._waiting = [waiting[whole:].clone()]
        for part in waiting[:whole].split(self.size):
            self._start(part)

    def finish(self) -> npt.NDArray[np.int32]:
        """Codes (n, k, h*w) of all crops since the last call; the last pass may be smaller."""
        rest = torch.cat(self._waiting) if self._waiting else torch.empty(0)
        if len(rest):
            self._start(rest)
        results = [each.result() if isinstance(each, Future) else each for each in self._results]
        self._waiting, self._results = [], []
        return torch.cat(results).cpu().numpy() if results else np.empty(0, np.int32)

    def _start(self, crops: Tensor) -> None:
        if not self.threads:
            self._results.append(self._codes(crops))  # a GPU works on while the next crops are read
            return
        most = 2 * self.threads
        if len(self._results) >= most and isinstance(oldest := self._results[-most], Future):
            oldest.result()  # no more crops in memory than needed to keep all threads busy
        self._results.append(self._pool.submit(self._codes, crops))

    @torch.inference_mode()
    def _codes(self, crops: Tensor) -> Tensor:
        return self.tokenizer.encode(normalize(crops.to(self.device)), values=False).flatten(2).to(torch.int32)
