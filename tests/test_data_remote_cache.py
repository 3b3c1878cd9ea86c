"""The cache of remote files: below its bound, shared by threads and processes, right after kills and full disks."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_server import FileServer
from remote_files import CONTENT, folder, message, server
from torch.utils.data import DataLoader, Dataset

from fqgan.data import cache, remote
from fqgan.data.remote import RemoteFile, local_copy

__all__ = ["folder", "server"]  # fixtures

FORK = multiprocessing.get_context("fork")


def cached_bytes(folder: Path) -> int:
    """Of the files that are complete."""
    return sum(path.stat().st_size for path in folder.glob("[!.]*/[!.]*"))


def test_a_local_copy_is_mapped_and_fetched_once(server: FileServer) -> None:
    array = np.arange(50_000, dtype=np.int32).reshape(100, 500)
    saved = io.BytesIO()
    np.save(saved, array)
    server.files["codes.npy"] = saved.getvalue()
    path = local_copy(server.url("codes.npy"))
    assert path.suffix == ".npy" and np.array_equal(np.load(path, mmap_mode="r"), array)
    sent = server.sent
    assert local_copy(server.url("codes.npy")) == path
    assert server.sent == sent + 1
    path.write_bytes(b"cut")  # not by us: told by its size
    remote._caches.clear()
    assert np.array_equal(np.load(local_copy(server.url("codes.npy"))), array)


def test_the_cache_stays_below_its_bound(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FQGAN_CACHE_BYTES", "4500")
    server.files = {name: bytes(reversed(CONTENT)) if name == "b" else CONTENT for name in "ab"}
    files = {name: RemoteFile(server.url(name)) for name in "ab"}
    rng = np.random.default_rng(3)
    for _ in range(300):
        name, place, size = str(rng.choice(["a", "b"])), int(rng.integers(10_007)), int(rng.integers(1, 2500))
        assert files[name].pread(size, place) == server.files[name][place : place + size]
        assert cached_bytes(folder) <= 4500
    assert cached_bytes(folder) > 2000
    assert "FQGAN_CACHE_BYTES" in message(lambda: local_copy(server.url("a")))


def test_what_is_used_stays(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FQGAN_CACHE_BYTES", "5000")
    monkeypatch.setattr(cache, "_OPEN", 0)  # as if another process had opened it
    file = RemoteFile(server.url("a.bin"))
    for block in (0, 1, 2, 0, 3, 4, 0, 5, 6, 0, 7, 8, 0):
        file.pread(1, 1000 * block)
    assert server.asked["bytes=0-999"] == 1
    assert {path.name for path in folder.glob("*/*")} >= {"0", "8"}


@pytest.mark.parametrize("blocks", ["0", "999"])
def test_a_bound_below_one_block(server: FileServer, blocks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept on the disk, and small reads in a row do not fetch a block each."""
    monkeypatch.setenv("FQGAN_CACHE_BYTES", blocks)
    file = RemoteFile(server.url("a.bin"))
    assert b"".join(iter(lambda: file.read(100), b"")) == CONTENT
    assert sum(server.asked.values()) == 12


def test_a_full_disk_does_not_stop_reading(server: FileServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: object) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    file = RemoteFile(server.url("a.bin"))
    for _ in range(2):
        file.seek(0)
        assert file.read() == CONTENT
    assert not list(folder.glob("[!.]*/*"))


def test_a_folder_that_cannot_be_made(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FQGAN_CACHE", str(tmp_path / "file" / "cache"))
    assert RemoteFile(server.url("a.bin")).read() == CONTENT


def test_a_file_that_vanishes_or_breaks_is_fetched_again(server: FileServer, folder: Path) -> None:
    file = RemoteFile(server.url("a.bin"))
    file.read()
    for path in folder.glob("*/*"):
        path.write_bytes(b"broken") if int(path.name) % 2 else path.unlink()
    assert file.pread(10_007, 0) == CONTENT
    remote._caches.clear()
    assert file.pread(10_007, 0) == CONTENT


def read_often(url: str, seed: int) -> None:
    file, rng = RemoteFile(url), np.random.default_rng(seed)
    for _ in range(150):
        place, size = int(rng.integers(10_007)), int(rng.integers(1, 2500))
        assert file.pread(size, place) == CONTENT[place : place + size]
        with remote._cache()._state():  # nobody removes any meanwhile
            assert cached_bytes(remote._cache().folder) <= 4500


def run_all(*processes: Any) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_several_processes_below_one_bound(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked after this process has used the file system itself."""
    monkeypatch.setenv("FQGAN_CACHE_BYTES", "4500")
    RemoteFile(server.url("a.bin")).read(10)
    run_all(*(FORK.Process(target=read_often, args=(server.url("a.bin"), seed)) for seed in range(3)))


def test_processes_that_begin_together_fetch_once(server: FileServer) -> None:
    url = server.url("a.bin")
    run_all(*(FORK.Process(target=lambda: RemoteFile(url).read(900)) for _ in range(4)))
    assert server.asked["bytes=0-999"] == 1


def test_threads_share_one_file(server: FileServer) -> None:
    file = RemoteFile(server.url("a.bin"))
    places = [int(place) for place in np.random.default_rng(4).integers(0, 10_000, 400)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda place: file.pread(50, place), places)) == [CONTENT[p : p + 50] for p in places]


def test_a_pickled_file_goes_on_where_it_was(server: FileServer) -> None:
    file = RemoteFile(server.url("a.bin"))
    file.seek(1234)
    copy = pickle.loads(pickle.dumps(file))
    assert copy.read(100) == CONTENT[1234:1334]
    server.files["a.bin"] = CONTENT[::-1]
    assert "has changed" in message(lambda: pickle.loads(pickle.dumps(file)).pread(1, 9000))


class Pieces(Dataset):
    """Pieces of 10 bytes of an open remote file."""

    def __init__(self, url: str) -> None:
        self.file = RemoteFile(url)

    def __len__(self) -> int:
        return self.file.size // 10

    def __getitem__(self, index: int) -> bytes:
        return self.file.pread(10, 10 * index)


def test_workers_of_a_loader(server: FileServer) -> None:
    pieces = Pieces(server.url("a.bin"))
    assert pieces[3] == CONTENT[30:40]  # the file system and the cache are in use before the fork
    loader = DataLoader(pieces, batch_size=100, num_workers=2, multiprocessing_context=FORK, collate_fn=b"".join)
    assert b"".join(loader) == CONTENT[:10_000]


def test_a_spawned_process(server: FileServer) -> None:
    file = RemoteFile(server.url("a.bin"))
    file.pread(1, 0)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(file.pread, (20, 995)) == CONTENT[995:1015]


def test_a_kill_leaves_nothing_that_is_trusted(server: FileServer, folder: Path, monkeypatch: Any) -> None:
    url = server.url("a.bin")

    def killed() -> None:
        def half(self: Path, data: memoryview) -> None:
            self.open("wb", buffering=0).write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        Path.write_bytes = half  # type: ignore
        RemoteFile(url).pread(10, 0)

    process = FORK.Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    (left,) = folder.glob("*/.*.writing")
    assert left.stat().st_size == 500
    monkeypatch.setenv("FQGAN_CACHE_BYTES", "4500")
    file = RemoteFile(url)
    assert file.read() == CONTENT
    assert left.exists()  # it might still be written, and counts
    os.utime(left, (0, 0))
    assert file.pread(10_007, 0) == CONTENT
    assert not left.exists()
    assert cached_bytes(folder) <= 4500


def test_a_child_forked_during_a_fetch_blocks_nobody(server: FileServer) -> None:
    made = remote._cache()
    with made.alone("x"):
        child = FORK.Process(target=time.sleep, args=(30,))
        child.start()
    started = time.monotonic()
    with made.alone("x"):
        assert time.monotonic() - started < 5
    child.kill()


def test_sizes_in_words() -> None:
    sizes = {
        "50G": 50e9,
        "50 gb": 50e9,
        "1.5T": 1.5e12,
        "2GiB": 2**31,
        "3Ki": 3072,
        "7": 7,
        "0": 0,
        "10M": 1e7,
        "5B": 5,
    }
    assert {text: cache.parse_bytes(text) for text in sizes} == sizes
    for text in ("", "x", "-1", "50X", "G", "1e9", "i"):
        assert "FQGAN_CACHE_BYTES" in message(lambda text=text: cache.parse_bytes(text))


def test_the_default_bound_leaves_half_of_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 10**9})
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    assert remote._cache().bound == 5 * 10**8
    usage.free = 10**15
    assert cache.from_environment().bound == 50 * 10**9
