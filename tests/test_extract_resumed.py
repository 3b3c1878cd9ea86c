"""Extraction that is done again, refused, interrupted by kills and full disks, or done by several ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from extractions import CLASSES, command, contents, data, write_picture
from processes import on_two_ranks

import fqgan
from fqgan.base.errors import UserError
from fqgan.base.files import lock
from fqgan.cli import main
from fqgan.config import TokenizerRunConfig
from fqgan.data.tokens import TokenStore
from fqgan.data.workers import Batches
from fqgan.engine import distributed
from fqgan.tokenizer.model import FactorizedTokenizer

__all__ = ["command", "data"]  # fixtures

Refused = Callable[..., str]


def test_a_finished_store_stays_as_it_is(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "store"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("data: image folder; ")
    assert lines[1].startswith("15 images of data with 1 crop each in 4 shards; tokenizer ")
    assert " images/s, " in lines[2]
    assert lines[3:] == ["15 images, 15 crops of 2 x 8 x 8 codes: 5.0 kB in 4 shards", "store"]
    before = {path: path.stat().st_mtime_ns for path in Path("store").rglob("*")}
    assert main([*command, "store", "--verify"]) == 0
    assert "store is extracted already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("store").rglob("*")} == before


def test_a_damaged_store_is_made_whole(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "store"]) == 0
    before = contents("store")
    data = Path("store/codes-00002.npy")
    data.write_bytes(data.read_bytes()[:-1] + b"\x07")
    os.truncate("store/labels-00000.npy", 3)
    assert main([*command, "store", "--verify"]) == 0
    text = capsys.readouterr().out
    assert "warning: labels-00000.npy is truncated (3 of 160 bytes); it is made again" in text
    assert "warning: codes-00002.npy is damaged" in text
    assert "in 4 shards, 2 of them done" in text
    assert contents("store") == before


def test_unreadable_pictures_are_left_out_and_listed(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    assert main([*command, "whole"]) == 0
    bad = sorted(Path("data").rglob("*.png"))[6]
    bad.write_bytes(bad.read_bytes()[:99])
    capsys.readouterr()
    assert main([*command, "store", "--workers", "2"]) == 0
    text = capsys.readouterr().out
    assert f"warning: left out: {bad} cannot be read as a picture" in text
    assert "14 images, 1 unreadable ones left out, 14 crops" in text
    store, whole = TokenStore.open("store"), TokenStore.open("whole")
    [left_out] = store.manifest.unreadable
    assert left_out.index == 6
    assert str(bad) in left_out.problem
    kept = [i for i in range(15) if i != 6]
    assert torch.equal(store.take(range(14), [0] * 14)[0], whole.take(kept, [0] * 14)[0])
    assert store.labels.tolist() == whole.labels[kept].tolist()
    line = refused(*command, "strict", "--max-unreadable", "0")
    assert "1 of the 15 pictures of data cannot be read so far, more than --max-unreadable 0 allows" in line
    for file in Path("data").rglob("*.png"):
        file.write_bytes(b"")
    assert "11 of the 15 pictures of data cannot be read so far" in refused(*command, "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data nowhere", "nowhere does not exist"),
        ("--size 30", "image size 30x30 is no multiple of the tokenizer's downsampling factor 4"),
        ("--weights ema", "exported has no moving average"),
        ("--crops nine", "invalid choice 'nine' for argument '--crops'"),
        ("--crop-range 0.5", "--crop-range must be at least 1, got 0.5"),
        ("--batch 0", "--batch must be at least 1, got 0"),
        ("--shard-images -1", "--shard-images must be at least 0, got -1"),
        ("--max-unreadable 2", "--max-unreadable must be between 0 and 1, got 2.0"),
        ("--out exported", "--out exported is an input: choose another name"),
        ("--out tiny", "--out tiny is a file: name a folder"),
        ("--size 40 --small refuse", "data/cat/12.png is 52x40 pixels"),
        (
            "--size 64 --small refuse",
            "pixels, below the image size 64: choose a smaller size, or say what becomes of such",
        ),
    ],
)
def test_refused_before_anything_is_written(
    options: str, message: str, command: tuple[str, ...], refused: Refused
) -> None:
    Path("tiny").write_text("")
    if "--size 40" in options:
        for i in range(15):
            write_picture(Path(f"data/{CLASSES[i % 3]}/{i}.png"), i, 52, 40)
        write_picture(Path("data/cat/12.png"), 0, 52, 39)
        message = message.replace("52x40", "52x39")
    before = contents(".")
    assert message in refused(*command, "out", *options.split())
    assert contents(".") == before
    assert not Path("out").exists()


def test_other_settings_or_data_are_refused(
    command: tuple[str, ...], refused: Refused, tiny: TokenizerRunConfig
) -> None:
    assert main([*command, "store"]) == 0
    line = refused(*command, "store", "--crops", "flip", "--precision", "bf16")
    assert line.endswith(
        "store was begun with other settings (crops: 'center' -> 'flip', precision: 'float32' -> 'bf16'): "
        "restore them or use a new --out"
    )
    torch.manual_seed(1)
    other = FactorizedTokenizer(tiny.model)
    fqgan.save_tokenizer(other, "other")
    line = refused("extract", "other", *command[2:], "store")
    before = TokenStore.open("store").tokenizer_fingerprint[:12]
    assert f"(tokenizer: '{before}' -> '{other.fingerprint()[:12]}')" in line
    next(Path("data").rglob("*.png")).unlink()
    line = refused(*command, "store")
    assert "store is made of data, which is another data set or has changed since (images: 15 -> 14)" in line
    Path("store/manifest.json").write_text("{}")
    assert "store/manifest.json is no token store's manifest" in refused(*command, "store")


def test_a_store_in_use_is_refused(command: tuple[str, ...], refused: Refused) -> None:
    Path("store/.unfinished").mkdir(parents=True)
    with lock(Path("store/.unfinished/lock")):
        assert "store is in use by another process: wait for it, or choose another --out" in refused(*command, "store")
    assert main([*command, "store"]) == 0


def test_more_ranks_than_images(command: tuple[str, ...], refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "start", lambda device: distributed.World(0, 16, torch.device("cpu")))
    assert "data holds 15 picture(s) for 16 ranks: start no more than it holds" in refused(*command, "store")


def test_a_full_disk(command: tuple[str, ...], mounted: Callable[[str], Path], refused: Refused) -> None:
    assert main([*command, "straight", "--crops", "ten"]) == 0
    whole = sum(map(len, contents("straight").values()))
    out = mounted(f"size={whole - 12_000}") / "store"
    line = refused(*command, out, "--crops", "ten")
    assert "cannot be written: No space left on device: free some space; the same command resumes" in line
    assert not list(out.rglob(".*.writing"))
    mounted(f"size={3 * whole}")
    assert main([*command, str(out), "--crops", "ten"]) == 0
    assert contents(out) == contents("straight")


def in_a_child(argv: list[str], monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> int:
    """The command in a forked process, which waits that long before each batch; its output goes to `log`."""
    if child := os.fork():
        return child
    code, read = 1, Batches.__next__

    def slow(batches: Any) -> Any:
        time.sleep(seconds)
        return read(batches)

    try:
        monkeypatch.setattr(Batches, "__next__", slow)
        sys.stdout = sys.stderr = open("log", "a", buffering=1)  # noqa: SIM115
        code = main(argv)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_is_interrupted_goes_on(
    number: signal.Signals, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*command, "store", "--batch", "1"]
    assert main([*command, "straight"]) == 0
    for done in (1, 2):
        child = in_a_child(argv, monkeypatch, 0.05)
        while len(list(Path("store").glob(".unfinished/shard-*.json"))) < done:
            assert not os.waitpid(child, os.WNOHANG)[0], Path("log").read_text()
            time.sleep(0.002)
        os.kill(child, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if number != signal.SIGKILL:
            assert code == 128 + number
            last = Path("log").read_text().splitlines()[-1]
            assert last == f"stopped with {done} of 4 shards finished; the same command resumes"
        with pytest.raises(UserError, match=rf"store is not finished \({done} shard"):
            TokenStore.open("store")
    assert os.waitpid(in_a_child(argv, monkeypatch), 0)[1] == 0
    assert "in 4 shards, 2 of them done" in Path("log").read_text()
    assert contents("store") == contents("straight")


@pytest.mark.slow
def test_two_ranks_write_what_one_does(command: tuple[str, ...]) -> None:
    """Their errors are told once."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fqgan", "--"]
    argv = [*command, "store", "--crops", "ten"]
    assert main([*command, "straight", "--crops", "ten"]) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *torchrun, *argv], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stdout
    assert done.stdout.splitlines()[-1] == "store"
    assert contents("store") == contents("straight")
    assert "store is extracted already" in on_two_ranks(argv)
    told = on_two_ranks([*argv, "--precision", "bf16"], status=2)
    assert told.count("fqgan: error:") == 1
    assert "store was begun with other settings (precision: 'float32' -> 'bf16')" in told
