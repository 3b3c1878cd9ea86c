"""Full disks, read-only ones and missing permissions: one line, exit status 2, nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import os
import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import UnwritableError, discard, lock, write_text
from fqgan.cli import main
from fqgan.config import TokenizerRunConfig
from fqgan.engine import checkpoint
from fqgan.engine.run import RunFolder, read_stats

Refused = Callable[..., str]
FULL = "No space left on device: free some space"
STEPS = 3


@pytest.fixture(scope="module")
def train(tiny: TokenizerRunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The command of a short run; its folder comes last."""
    file = tmp_path_factory.mktemp("config") / "tiny.json"
    schema.save(tiny, file)
    options = f"--train.steps {STEPS} --train.ema-decay 0.5 --train.image-every 1".split()
    return ("train-tokenizer", "dual-ds16", "--config", str(file), *options, "--run")


@pytest.fixture(scope="module")
def straight(train: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing disturbed."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    assert main([*train, str(run)]) == 0
    return run


def assert_same(run: Path, other: Path) -> None:
    last = f"checkpoints/step-{STEPS:08d}"
    files = sorted(path.name for path in (other / last).glob("*.safetensors"))
    assert "tokenizer-optimizer.safetensors" in files
    for name in files:
        a, b = load_file(run / last / name), load_file(other / last / name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert lines(run) == lines(other)


def lines(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_stats(run)]


@pytest.mark.parametrize(
    ("place", "size", "then"),
    [
        ("tensorboard", 0.0004, ""),
        (
            "(stats.jsonl|tensorboard|images/step-00000001.png)",
            0.001,
            r"; step 1 could not be saved \(.*\); the same command starts again",
        ),
        ("checkpoints/step-00000001", 0.5, "; the same command starts again"),
        ("checkpoints/step-00000002", 1.5, "; the same command resumes from step 1"),
        ("checkpoints/step-00000003", 2.5, "; the same command resumes from step 2"),
    ],
)
def test_a_full_disk_costs_nothing(
    place: str,
    size: float,
    then: str,
    train: tuple[str, ...],
    straight: Path,
    mounted: Callable[[str], Path],
    refused: Refused,
) -> None:
    """`size` is that of the disk in checkpoints."""
    last = straight / f"checkpoints/step-{STEPS:08d}"
    one = sum(path.stat().st_size for path in last.iterdir())
    disk = mounted(f"size={round(one * size / 4096) * 4}k")
    run = disk / "run"
    line = refused(*train, run)
    assert re.fullmatch(f"fqgan: error: {run}/{place} cannot be written: {FULL}{then}", line), line
    assert not list(disk.rglob(".*")), "nothing half-written"
    whole = sorted(disk.glob("run/checkpoints/*"))
    assert [path.name for path in whole] == [f"step-{step:08d}" for step in (1, 2)[: int(size)]]
    assert all(checkpoint.problem_of(path) == "" for path in whole)
    mounted(f"size={one * 5}")
    assert main([*train, str(run)]) == 0
    assert_same(run, straight)


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_checkpoint_that_finds_no_room(
    kind: type[Exception], train: tuple[str, ...], straight: Path, tmp_path: Path, refused: Refused
) -> None:
    """As above without a mount: safetensors tells the system's error in its text only."""
    error = OSError(errno.ENOSPC, "full") if kind is OSError else SafetensorError("No space left (os error 28)")
    whole = checkpoint.save_file

    def save_file(tensors: Any, path: Path) -> None:
        whole(tensors, path)
        if "step-00000002" in str(path) and path.stem == "ema":
            path.write_bytes(path.read_bytes()[:100])
            raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_file)
        line = refused(*train, tmp_path / "run")
    assert f"step-00000002 cannot be written: {FULL}; the same command resumes from step 1" in line
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000001"]
    assert main([*train, str(tmp_path / "run")]) == 0
    assert_same(tmp_path / "run", straight)


def test_a_read_only_disk(
    train: tuple[str, ...], exported: Path, pictures: Path, mounted: Callable[[str], Path], refused: Refused
) -> None:
    disk = mounted("size=1m")
    (disk / "empty").mkdir()
    mounted("ro")
    assert refused(*train, disk / "run").endswith(f"--run {disk / 'run'} cannot be written: Read-only file system")
    assert refused(*train, disk / "empty").endswith(f"{disk / 'empty/lock'} cannot be written: Read-only file system")
    line = refused("reconstruct", exported, pictures / "0.png", "--out", disk / "out")
    assert line.endswith(f"{disk / 'out'} cannot be written: Read-only file system")


def test_other_outputs_on_a_full_disk(
    exported: Path, pictures: Path, mounted: Callable[[str], Path], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mounted("size=4k")
    (disk / "out").mkdir()
    line = refused("reconstruct", exported, pictures / "0.png", "--out", disk / "out")
    assert line == f"fqgan: error: {disk / 'out/0.png'} cannot be written: {FULL}"
    assert not list((disk / "out").iterdir())
    (disk / "fill").write_bytes(bytes(4096))
    with pytest.raises(UnwritableError, match=FULL):
        write_text(disk / "new.json", "text")
    assert sorted(path.name for path in disk.iterdir()) == ["fill", "out"]


def test_a_folder_without_permission(tiny: TokenizerRunConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        run = Path(folder) / "run"
        before = os.geteuid()
        try:
            if before == 0:
                os.seteuid(65534)  # root may write everywhere
            with pytest.raises(UserError, match=f"^--run {run} cannot be written: Permission denied$"):
                RunFolder(run, tiny).open()
        finally:
            os.seteuid(before)


def test_what_nobody_foresaw_is_one_line_too(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("fqgan.commands.runs.TrainingCommand.parse", fail)
    error = OSError(errno.EIO, "x", "runs/x/some file")
    assert refused("train-tokenizer") == "fqgan: error: runs/x/some file: Input/output error"
    error = FileNotFoundError(errno.ENOENT, "a bug, most likely", "x")
    with pytest.raises(FileNotFoundError):
        main(["train-tokenizer"])


def test_a_kill_while_a_folder_is_deleted_leaves_nothing_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "samples"
    for name in ("a", "b"):
        folder.mkdir()
        (folder / name).touch()
        with monkeypatch.context() as patch:
            patch.setattr("fqgan.base.files.shutil.rmtree", lambda *_, **__: None)  # as if killed before
            discard(folder)
        assert not folder.exists() and [path.name for path in tmp_path.iterdir()] == [".samples.discarded"]
        discard(folder)
        assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    """Its loader's workers live on for seconds, and a forked process shares the lock."""
    reader, writer = os.pipe()
    if not (owner := os.fork()):
        held = lock(tmp_path / "lock")
        if not (worker := os.fork()):
            signal.pause()
        os.write(writer, str(worker).encode())
        signal.pause()
        held.close()
        os._exit(0)
    worker = int(os.read(reader, 20))
    with pytest.raises(BlockingIOError):
        lock(tmp_path / "lock")
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    try:
        lock(tmp_path / "lock").close()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reader)
        os.close(writer)
