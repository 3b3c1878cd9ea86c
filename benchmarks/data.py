"""Images a second of one core from every source, through the real training loader with one worker process.

python benchmarks/data.py [--images 512] [--size 256] [--repeats 3]

Pictures are JPEGs of 256 to 500 pixels a side, cut from the packaged photographs. Every source but `photos` holds the
same ones; `decoding` is what decoding alone takes, without crop and flip. Speeds are images for a second of the
worker's CPU time, as Linux counts it, so that other work on the machine weighs little; sources take turns, and the best
of the repeats counts.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fqgan.config import DataConfig
from fqgan.data import decode
from fqgan.data.loader import training_batches
from fqgan.data.sources import open_source
from fqgan.data.sources.photos import PHOTOS, _load

BATCH = 16


def pictures(count: int) -> list[bytes]:
    """JPEGs of random crops of the photographs."""
    rng = np.random.default_rng(0)
    result = []
    for i in range(count):
        photo = _load(PHOTOS[i % len(PHOTOS)])
        size = np.minimum(rng.integers(256, 501, 2), photo.size)
        left, top = rng.integers(0, np.array(photo.size) - size + 1)
        buffer = io.BytesIO()
        photo.crop((left, top, left + size[0], top + size[1])).save(buffer, "jpeg", quality=90)
        result.append(buffer.getvalue())
    return result


def write(folder: Path, data: list[bytes]) -> dict[str, str]:
    """The pictures as every kind of source: name -> what opens it."""
    (folder / "folder").mkdir()
    for i, content in enumerate(data):
        (folder / "folder" / f"{i:05d}.jpg").write_bytes(content)
    table = pa.table({"image": [{"bytes": content} for content in data]})
    pq.write_table(table, folder / "all.parquet", row_group_size=100)
    with tarfile.open(folder / "all.tar", "w") as archive:
        archive.add(folder / "folder", arcname=".")
    far = fsspec.filesystem("memory")  # a store without a network; from the second pass on the local cache is read
    for name in ("all.parquet", "all.tar"):
        far.pipe_file(f"/{name}", (folder / name).read_bytes())
    return {
        "folder": str(folder / "folder"),
        "parquet": str(folder / "all.parquet"),
        "tar": str(folder / "all.tar"),
        "parquet elsewhere": "memory://all.parquet",
        "tar elsewhere": "memory://all.tar",
        "photos": "photos",
    }


def loading(spec: str, images: int, size: int) -> Callable[[], float]:
    """A function that loads about `images` images of a source and tells the images a CPU second of its worker."""
    config, source = DataConfig(source=spec, workers=1), open_source(spec)

    def run() -> float:
        stream = training_batches(
            source, config, size=size, seed=0, batch=BATCH, micro_batch=BATCH, rank=0, world=1, start_step=0
        )
        (worker,) = multiprocessing.active_children()
        assert worker.pid
        for _ in range(3):  # the worker has started and is as many batches ahead as it will be at the end
            next(stream)
        before, steps = cpu_seconds(worker.pid), max(1, images // BATCH)
        for _ in range(steps):
            next(stream)
        seconds = cpu_seconds(worker.pid) - before
        stream.close()
        return steps * BATCH / seconds

    return run


def cpu_seconds(process: int) -> float:
    """CPU time of a process, in its own code and in the kernel."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def decoding(data: list[bytes]) -> Callable[[], float]:
    """A function that decodes the pictures one after the other and tells the images a CPU second."""

    def run() -> float:
        began = time.process_time()
        for content in data:
            decode.decode_image(content, "picture")
        return len(data) / (time.process_time() - began)

    return run


def main() -> None:
    """Run all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 512), ("size", 256), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HOME"] = os.environ["FQGAN_CACHE"] = folder  # the tar's index stays out of the user's cache
        data = pictures(options.images)
        runs = {"decoding": decoding(data)}
        for name, spec in write(Path(folder), data).items():
            runs[name] = loading(spec, options.images, options.size)
        best = dict.fromkeys(runs, 0.0)
        for _ in range(options.repeats):
            for name, run in runs.items():
                best[name] = max(best[name], run())
    decoder = "Pillow" if decode.simplejpeg is None else "simplejpeg"
    mean = sum(map(len, data)) / len(data) / 1024
    print(f"{len(data)} JPEGs of {mean:.0f} KiB on average, decoded by {decoder}, to {options.size} pixels")
    for name, speed in best.items():
        print(f"{name:>17}: {speed:7.1f} images/s, {speed / best['folder']:.2f} of folder")


if __name__ == "__main__":
    main()
