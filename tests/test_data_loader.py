"""Batches: the same images for any ranks, workers and interruption; clean errors; workers that behave."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise import Noise, batches

from fqgan.base.errors import UserError
from fqgan.base.spread import spread_evenly
from fqgan.config import DataConfig, SourceOptions
from fqgan.data.loader import TrainingSet, evaluation_batches, training_batches
from fqgan.data.order import SampleStream
from fqgan.data.transforms import center_crop, flip, to_tensor


def equal(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_shapes_and_order() -> None:
    source = Noise([7, 9, 4])
    result = batches(source, 5)
    assert [(images.shape, images.dtype) for images, _ in result] == [((12, 3, 32, 32), torch.uint8)] * 5
    stream = SampleStream(source.blocks, seed=3, window=2)
    labels = torch.cat([labels for _, labels in result])
    assert labels.dtype == torch.int64
    assert labels.tolist() == [index for _, index in stream.take(0, 60)]


def test_any_number_of_ranks_and_micro_batches_covers_the_same_stream() -> None:
    source = Noise([7, 9, 4])
    whole = torch.cat([images for images, _ in batches(source, 4)])
    for world, micro in ((1, 4), (2, 6), (2, 3), (3, 2), (4, 1)):
        ranks = [batches(source, 4, micro_batch=micro, rank=rank, world=world) for rank in range(world)]
        interleaved = torch.cat([images for turn in zip(*ranks, strict=True) for images, _ in turn])
        assert torch.equal(interleaved, whole), (world, micro)


def test_resume_is_the_tail() -> None:
    source = Noise([7, 9, 4])
    assert equal(batches(source, 3, start_step=4), batches(source, 7)[4:])


def test_workers_change_nothing() -> None:
    source, config = Noise([7, 9, 4]), DataConfig(workers=2, window=2)
    assert equal(batches(source, 4, config, micro_batch=4), batches(source, 4, micro_batch=4))
    assert not multiprocessing.active_children()


def test_global_random_state_is_left_alone() -> None:
    """`iter(DataLoader)` draws from torch's global generator unless it has its own: a resumed run would differ."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches(Noise([20]), 2)
    list(evaluation_batches(Noise([20]), size=32, batch=8))
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_must_be_divisible() -> None:
    with pytest.raises(UserError, match=r"^batch 12 is no multiple of micro_batch 5 times 2 ranks$"):
        batches(Noise([20]), 1, micro_batch=5, world=2)


def test_a_data_set_may_be_smaller_than_a_batch_but_not_than_the_ranks() -> None:
    """A batch of 12 from 5 pictures: each comes in every epoch of the stream, crops and flips anew."""
    result = batches(Noise([5]), 5)
    labels = torch.cat([labels for _, labels in result])
    assert [sorted(labels[i : i + 5].tolist()) for i in range(0, 60, 5)] == [list(range(5))] * 12
    assert len({image.numpy().tobytes() for images, _ in result for image in images}) > 50
    ranks = [batches(Noise([5]), 5, micro_batch=3, rank=rank, world=4) for rank in range(4)]
    interleaved = torch.cat([images for turn in zip(*ranks, strict=True) for images, _ in turn])
    assert torch.equal(interleaved, torch.cat([images for images, _ in result]))
    message = r"^noise holds 5 picture\(s\) for 6 ranks: start no more than it holds$"
    with pytest.raises(UserError, match=message):
        batches(Noise([5]), 1, micro_batch=2, world=6)


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    config = DataConfig(workers=0)
    images = {
        (seed, epoch, index): TrainingSet(Noise([4]), config, 32, seed)[epoch, index][0]
        for seed in range(2)
        for epoch in range(2)
        for index in range(2)
    }
    again = TrainingSet(Noise([4]), config, 32, 1)
    again[0, 0]
    assert torch.equal(again[1, 1][0], images[1, 1, 1])
    assert len({image.numpy().tobytes() for image in images.values()}) == 8


def test_fractions_of_one_are_centre_crops_and_half_are_mirrored() -> None:
    source = Noise([200])
    dataset = TrainingSet(source, DataConfig(crop_min=1, crop_max=1), 32, seed=0)
    mirrored = 0
    for index in range(200):
        crop = center_crop(source.read(index)[0], 32)
        image = dataset[0, index][0]
        mirrored += torch.equal(image, to_tensor(flip(crop)))
        assert torch.equal(image, to_tensor(crop)) or torch.equal(image, to_tensor(flip(crop)))
    assert 65 <= mirrored <= 135
    plain = TrainingSet(source, DataConfig(crop_min=1, crop_max=1, flip=False), 32, seed=0)
    assert torch.equal(plain[0, 0][0], to_tensor(center_crop(source.read(0)[0], 32)))


def test_turns_are_even_and_change_nothing_else() -> None:
    source = Noise([200])
    turned = TrainingSet(source, DataConfig(turn=True), 32, seed=0)
    upright = TrainingSet(source, DataConfig(), 32, seed=0)
    counts = [0, 0, 0, 0]
    for index in range(200):
        image, plain = turned[0, index][0], upright[0, index][0]
        (quarters,) = [k for k in range(4) if torch.equal(image, plain.rot90(k, (1, 2)))]
        counts[quarters] += 1
    assert min(counts) >= 30


def test_jitter_is_one_line_per_channel_and_changes_nothing_else() -> None:
    source = Noise([20])
    jittered = TrainingSet(source, DataConfig(jitter=0.1), 32, seed=0)
    plain = TrainingSet(source, DataConfig(), 32, seed=0)
    found = []
    for index in range(20):
        for now, before in zip(jittered[0, index][0].float(), plain[0, index][0].float(), strict=True):
            inside = (now > 0) & (now < 255)
            slope, shift = np.polyfit(before[inside], now[inside], 1)
            # rounding moves a value by half, and the middle grey of gain 1 stays where it is
            assert (before[inside] * slope + shift - now[inside]).abs().max() < 1
            assert 0.9**2 - 0.01 < slope < 1.1**2 + 0.01 and abs(shift) < 0.1 * 127.5 + 1
            found.append(slope)
    assert np.std(found) > 0.03


def test_small_pictures_are_enlarged_skipped_or_refused() -> None:
    source = Noise([4], side=20)
    assert batches(source, 1)[0][0].shape == (12, 3, 32, 32)
    enlarged = evaluation_batches(source, size=32, batch=2)
    assert [images.shape for images, _, _ in enlarged] == [(2, 3, 32, 32)] * 2
    assert (enlarged.small, enlarged.unreadable) == (4, 0)

    source.options = SourceOptions(small="skip")
    skipped = evaluation_batches(source, size=32, batch=2)
    assert list(skipped) == []
    assert (skipped.small, skipped.unreadable) == (4, 0)

    source.options = SourceOptions(small="refuse")
    message = r"^noise \d is 30x20 pixels, below the image size 32: .*--data\.small enlarge or skip in training.*$"
    with pytest.raises(UserError, match=message):
        batches(source, 1)
    with pytest.raises(UserError, match=message):
        list(evaluation_batches(source, size=32, batch=2))


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_in_workers_are_one_clean_line(workers: int) -> None:
    stream = evaluation_batches(Noise([8], broken=(5, 6)), size=32, batch=2, workers=workers)
    assert [next(stream)[2].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(UserError) as caught:
        next(stream)
    assert str(caught.value) == "noise 5 is broken"
    assert not multiprocessing.active_children()


def test_evaluation_is_centre_crops_in_order() -> None:
    source = Noise([6, 5])
    result = list(evaluation_batches(source, size=32, batch=4))
    assert [len(labels) for _, labels, _ in result] == [4, 4, 3]
    images, labels, indices = (torch.cat(column) for column in zip(*result, strict=True))
    assert labels.tolist() == indices.tolist() == list(range(11))
    assert torch.equal(images, torch.stack([to_tensor(center_crop(source.read(i)[0], 32)) for i in range(11)]))


@pytest.mark.parametrize("limit", [0, 1, 4, 10, 99])
@pytest.mark.parametrize("world", [1, 3, 12])
def test_evaluation_limit_and_ranks(limit: int, world: int) -> None:
    shares = [
        [i for _, _, indices in evaluation_batches(Noise([10]), size=32, batch=2, limit=limit, rank=rank, world=world)
         for i in indices.tolist()]
        for rank in range(world)
    ]  # fmt: skip
    everything = [i for share in shares for i in share]
    assert everything == spread_evenly(10, limit)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


STREAM: dict[str, Any] = {
    "size": 32,
    "seed": 0,
    "batch": 2,
    "micro_batch": 2,
    "rank": 0,
    "world": 1,
    "start_step": 0,
}


def test_batches_that_go_as_garbage_end_their_workers() -> None:
    """A cycle of references goes by the garbage collector, which may close the queues first."""
    cycle: list[Any] = [training_batches(Noise([20]), DataConfig(workers=2), **STREAM)]
    next(cycle[0])
    cycle.append(cycle)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    del cycle
    began = time.monotonic()
    gc.collect()
    for worker in workers:
        worker.join(5)
        assert not worker.is_alive()
    assert time.monotonic() - began < 4, "at once, not after the loader's patience of 5 seconds"


def test_closing_ends_the_workers() -> None:
    stream = training_batches(Noise([20]), DataConfig(workers=2), **STREAM)
    next(stream)
    assert len(multiprocessing.active_children()) == 2
    stream.close()
    assert not multiprocessing.active_children()


SCRIPT = """
import sys, time
from fqgan.config import DataConfig, SourceOptions
from fqgan.data.sources import open_source
from fqgan.data.loader import training_batches
stream = training_batches(open_source("photos"), DataConfig(workers=2), size=64, seed=0, batch=4, micro_batch=4,
                          rank=0, world=1, start_step=0)
print("started", flush=True)
sys.stdin.readline()
for _ in range(8):
    next(stream)
print("alive", flush=True)
sys.stdin.readline()
"""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("end", ["killed", "exits"])
def test_workers_ignore_signals_and_end_with_their_parent(end: str) -> None:
    """Signals arrive while the workers start, when they once killed them; and a parent that exits with its stream
    still open once waited without end for workers that ignore SIGTERM."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=pipe, stdout=pipe, start_new_session=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        try:
            assert parent.stdout.readline() == b"started\n"
            workers = children(parent.pid)
            assert len(workers) == 2
            for worker in workers:
                os.kill(worker, signal.SIGINT)
                os.kill(worker, signal.SIGTERM)
            parent.stdin.write(b"\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == b"alive\n"
            assert all(map(runs, workers))
            if end == "exits":
                parent.stdin.close()
                assert parent.wait(timeout=60) == 0  # a loaded machine is slow; what is tested would wait for ever
        finally:
            parent.kill()
    deadline = time.monotonic() + 20  # torch's workers look for their parent every 5 s
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, workers))
