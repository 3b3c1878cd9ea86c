"""What differs between systems: macOS starts loader processes anew instead of forking, and Windows is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sets import write_pictures
from test_data_sources import png, table
from test_data_tar import samples, write_tar

from fqgan import cli
from fqgan.config import DataConfig
from fqgan.data import workers
from fqgan.data.loader import CropSet, EvaluationSet, TrainingSet
from fqgan.data.sources import open_source
from fqgan.data.tokens import TokenStore
from fqgan.engine import sizes, speed

SPAWNING = """
import multiprocessing
from fqgan import cli
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    cli.run()
"""
ON_WINDOWS = """
import sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None  # an import of it fails
sys.platform = "win32"
from fqgan import cli
cli.run()
"""


@pytest.mark.parametrize("arguments", [["--help"], ["train-tokenizer", "photos-dual"], ["doctor"], []])
def test_windows_is_refused_in_one_line(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", ON_WINDOWS, *arguments], capture_output=True, text=True, check=False)
    sentence = "fqgan: error: fqgan runs on Linux and macOS, not on Windows itself: install it in WSL 2\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def archive(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for i in range(4):
            file.writestr(f"{i % 2}/{i}.png", png(i))
    return path


def listing(path: Path) -> Path:
    write_pictures(path.parent / "pictures", 4, seed=0)
    path.write_text("file_name,label\n" + "".join(f"pictures/class{i % 2}/{i:03d}.png,{i % 2}\n" for i in range(4)))
    return path


def arrays(path: Path) -> Path:
    np.savez(path, arr_0=np.zeros((4, 8, 8, 3), np.uint8), arr_1=np.arange(4))
    return path


FORMS: dict[str, Callable[[Path], object]] = {
    "folder": lambda root: write_pictures(root / "folder", 4, seed=0),
    "zip": lambda root: archive(root / "a.zip"),
    "list": lambda root: listing(root / "a.csv"),
    "tar": lambda root: write_tar(root / "a.tar", samples(range(4))),
    "parquet": lambda root: table(root / "a.parquet", image=[{"bytes": png(i)} for i in range(4)], label=[0, 1, 0, 1]),
    "npz": lambda root: arrays(root / "a.npz"),
    "photos": lambda root: "photos",
}


@pytest.mark.parametrize("form", FORMS)
def test_all_that_a_worker_is_handed_can_be_sent_to_another_process(form: str, tmp_path: Path) -> None:
    """Before the first read and after it, when files are open."""
    source = open_source(str(FORMS[form](tmp_path)))
    reads = (
        (TrainingSet(source, DataConfig(), 8, 0).read_or_replace, (0, 3)),
        (EvaluationSet(source, 8).read_or_skip, 3),
        (CropSet(source, 8, "flip", 1.0).read, 3),
    )
    for read, key in reads:
        sent = pickle.dumps(workers._Reader(read))
        here = workers._Reader(read)[key]
        for each in (sent, pickle.dumps(workers._Reader(read))):
            there = pickle.loads(each)[key]
            assert torch.equal(there[0][0], here[0][0]) and there[0][1:] == here[0][1:] and there[1] == here[1]
    assert pickle.loads(pickle.dumps((workers._begin, workers._collate))) == (workers._begin, workers._collate)


@pytest.mark.slow
def test_commands_work_where_processes_are_spawned(tmp_path: Path) -> None:
    """As on macOS: a training with its validation, and an extraction, with loader processes; the codes are
    those of one process."""
    (tmp_path / "spawning.py").write_text(SPAWNING)
    write_pictures(tmp_path / "set", 8, seed=0, size=40)

    def run(line: str) -> str:
        command = [sys.executable, "spawning.py", *line.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(
        "train-tokenizer photos-dual --data.source set --data.validation set --data.workers 1 --run run --train.device "
        "cpu --train.precision float32 --train.batch 4 --train.steps 2 --model.image-size 32 --loss.perceptual none "
        "--model.factors.1.teacher="
    )
    run("extract run --data set --workers 2 --out store-2 --device cpu")
    here = ["extract", f"{tmp_path}/run", "--data", f"{tmp_path}/set", "--out", f"{tmp_path}/store-0"]
    assert cli.main([*here, "--workers", "0", "--device", "cpu"]) == 0
    alone, spawned = (TokenStore.open(str(tmp_path / f"store-{count}")) for count in (0, 2))
    assert torch.equal(alone.take(range(8), [0] * 8)[0], spawned.take(range(8), [0] * 8)[0])


def test_memory_and_the_allocator_do_without_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cgroups, no glibc: the machine's memory is what counts, and freed memory stays as it is."""

    def not_there(path: Path, *rest: object, **options: object) -> str:
        raise FileNotFoundError(path)

    class OtherLibrary:
        def __getattr__(self, name: str) -> object:
            raise AttributeError(name)

    monkeypatch.setattr(Path, "read_text", not_there)
    monkeypatch.setattr(speed.ctypes, "CDLL", lambda name: OtherLibrary())
    speed.keep_freed_memory()
    pages = {"SC_PAGE_SIZE": 16384, "SC_PHYS_PAGES": 2**20}
    monkeypatch.setattr(sizes.os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(sizes.resource, "getrlimit", lambda kind: (sizes.resource.RLIM_INFINITY,) * 2)
    assert sizes.memory_of(torch.device("cpu")) == 2**34
