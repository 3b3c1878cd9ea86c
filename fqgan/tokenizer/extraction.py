"""A data set's images -> codes in a token store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fqgan.data.fingerprint import fingerprint
from fqgan.data.loader import CropSet
from fqgan.data.sources import ImageSource
from fqgan.data.token_manifest import LeftOut, StoreManifest, StoreOptions
from fqgan.data.token_writer import TokenWriter, images_per_shard
from fqgan.data.transforms import NUM_CROPS, CropKind, normalize
from fqgan.data.unreadable import Omissions
from fqgan.data.workers import load
from fqgan.engine.distributed import World
from fqgan.engine.memory import check_pictures
from fqgan.engine.signals import Stop, stop_requests
from fqgan.tokenizer.model import FactorizedTokenizer

PASS_PIXELS = {"cpu": 1 << 17, "cuda": 1 << 21}
"""Pixels that go through the tokenizer together, unless a number of crops is asked for: 32 crops of 64 pixels on a CPU,
where each thread has a pass of its own; 32 of 256 pixels on a GPU."""


def plan(
    tokenizer: FactorizedTokenizer,
    source: ImageSource,
    *,
    size: int,
    crops: CropKind,
    crop_range: float,
    weights: str,
    device: str,
    crops_per_pass: int = 0,
    shard_images: int = 0,
) -> StoreManifest:
    """What a store of these codes will say of itself. 0 crops a pass: as `PASS_PIXELS` has it; 0 images a shard: as
    `fqgan.data.token_writer.images_per_shard` has it."""
    tokenizer.check_size(size, size)
    side = size // tokenizer.config.downsampling
    sizes = tuple(quantizer.codebook_size for quantizer in tokenizer.quantizers)
    options = StoreOptions(
        tokenizer=tokenizer.fingerprint(),
        codebook_sizes=sizes,
        grid=(side, side),
        image_size=size,
        crops=crops,
        crop_range=crop_range,
        small=source.options.small,
        range=" ".join(source.options.range),
        precision=tokenizer.precision,
        device=device,
        crops_per_pass=crops_per_pass or max(1, PASS_PIXELS[device] // size**2),
        images_per_shard=shard_images or images_per_shard(len(source), NUM_CROPS[crops]),
    )
    check_pictures(options.crops_per_pass, size, tokenizer.config.channels, torch.device(device))
    return StoreManifest(
        options,
        num_factors=len(sizes),
        num_crops=options.num_crops,
        weights=weights,
        source=source.name,
        data=fingerprint(source),
        understood=source.explain(size),
        label_names=source.classes,
        num_classes=max(len(source.classes), int(source.labels.max()) + 1),
    )


def extract(
    tokenizer: FactorizedTokenizer,
    source: ImageSource,
    writer: TokenWriter,
    missing: list[int],
    world: World,
    *,
    batch: int,
    workers: int,
    max_unreadable: float,
    advance: Callable[[int], None] = lambda images: None,
    note: Callable[[str], None] = lambda text: None,
) -> None:
    """Encode this rank's share of the `missing` shards: every world.size-th one.

    Neither ranks nor batches nor workers nor threads change a code: shards are ranges of the data set, and within one
    the crops go through the tokenizer in passes of a fixed size, on a CPU each on one thread.

    Args:
        batch: images that a worker reads at a time.
        max_unreadable: share of the images that may be unreadable, of those that this rank reads in this start.
        advance: is told how many images were done.
        note: is told which ones were left out.

    Raises:
        UserError: too many pictures cannot be read, one is too small, or a worker process was killed.
        SystemExit: after Ctrl-C or SIGTERM, with the status that it stands for.
    """
    options = writer.manifest.options
    own = missing[world.rank :: world.size]
    ranges = [range(*writer.ranges[number]) for number in own]
    keys = (chunk for span in ranges for chunk in _chunks(span, batch))
    source.reserve(1)  # every block is read once, in order
    reader = CropSet(source, options.image_size, options.crops, options.crop_range)
    omissions = Omissions(source.name, len(source), max_unreadable, writer.folder / "manifest.json")
    batches = load(reader.read, keys, workers, pin_memory=False)
    # in float32 means in float32: by default convolutions on a GPU round their input to 10 bits
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    try:
        with exact, stop_requests() as stop, Passes(tokenizer, world.device, options.crops_per_pass) as passes:
            for number, span in zip(own, ranges, strict=True):
                kept: list[int] = []
                unreadable: list[LeftOut] = []
                for chunk, (crops, problems) in zip(_chunks(span, batch), batches, strict=False):
                    _check(stop, writer, note)
                    for index, problem in zip(chunk, problems, strict=True):
                        if problem:
                            omissions.add(problem, note)
                            unreadable.append(LeftOut(index, problem))
                    good = [i for i, problem in enumerate(problems) if not problem]
                    passes.add(crops[good].flatten(0, 1))
                    kept += [chunk[i] for i in good]
                    advance(len(chunk))
                codes = passes.finish().reshape(options.shape(len(kept)))
                writer.write(number, codes, source.labels[kept], unreadable)
    finally:
        batches.close()


class Passes:
    """Runs crops through a tokenizer in passes of `size`, so that the codes do not depend on how the crops came.

    On a CPU several passes run beside each other, each on one thread: what a convolution of several threads gives
    depends in its last bits on their number.
    """

    def __init__(self, tokenizer: FactorizedTokenizer, device: torch.device, size: int) -> None:
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


def _chunks(span: range, length: int) -> Iterator[list[int]]:
    return (list(span[i : i + length]) for i in range(0, len(span), length))


def _check(stop: Stop, writer: TokenWriter, note: Callable[[str], None]) -> None:
    if stop.number:
        done = len(writer.records())
        note(f"stopped with {done} of {len(writer.ranges)} shards finished; the same command goes on")
        raise SystemExit(128 + stop.number)
