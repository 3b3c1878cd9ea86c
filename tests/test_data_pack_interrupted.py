"""Packing that is interrupted, meets unreadable pictures, or finds its folder filled."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packs import Noise, contents, folder, packed, pixels

from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.data import packer, shards
from fqgan.data.packer import Packer
from fqgan.data.shards import PackOptions
from fqgan.data.sources import open_source

__all__ = ["folder"]  # fixtures

Refused = Callable[..., str]


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that holds how many pictures may be read."""
    file, read, parent = tmp_path / "gate", packer._read, os.getpid()

    def gated(*arguments: Any) -> Any:
        while arguments[-1] >= int(file.read_text() or 0) and os.path.exists(f"/proc/{parent}"):
            time.sleep(0.002)
        return read(*arguments)

    monkeypatch.setattr(packer, "_read", gated)
    monkeypatch.setattr(packer, "CHUNK", 2)
    return file


def in_a_child(*argv: object) -> int:
    """Start the command in a forked process of its own, its output in `out.log`."""
    if child := os.fork():
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        sys.stdout = sys.stderr = open("out.log", "w", buffering=1)  # noqa: SIM115
        code = main([str(argument) for argument in argv])
    finally:
        os._exit(code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_is_interrupted_goes_on(
    number: signal.Signals,
    folder: Path,
    tmp_path: Path,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["data", "pack", folder, "--size", "32", "--shards", "8", "--workers", "1", "--out"]
    for first in range(3):
        gate.write_text(str(5 * first + 8))  # five pictures a file: some of the next one's, too
        child = in_a_child(*command, "out")
        waiting = tmp_path / "out/.train-unfinished"
        while len(list(waiting.glob("*.parquet"))) <= first or not list(waiting.glob(".*.writing")):
            assert not os.waitpid(child, os.WNOHANG)[0], (tmp_path / "out.log").read_text()
            time.sleep(0.002)
        assert not list((tmp_path / "out").glob("*.parquet")), "a part of the set is not taken for all of it"
        os.kill(child, number)
        time.sleep(0.5)  # on a loaded machine the worker was through before its parent heard of the signal
        gate.write_text("40")  # a worker ends after what it is at
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if number == signal.SIGINT:
            assert code == 130
            assert "files finished; the same command resumes" in (tmp_path / "out.log").read_text().splitlines()[-1]
            assert not list(waiting.glob(".*.writing"))
    capsys.readouterr()
    assert main([str(argument) for argument in (*command, "out")]) == 0
    text = capsys.readouterr().out
    assert ", 15 of them done;" in text
    assert "train-00002-of" not in text
    assert "train-00003-of" in text
    assert main([str(argument) for argument in (*command, "straight")]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")
    capsys.readouterr()
    assert main([str(argument) for argument in (*command, "out")]) == 0
    assert "out is packed already" in capsys.readouterr().out


def test_a_full_disk_keeps_the_finished_files(
    folder: Path, tmp_path: Path, mounted: Callable[[str], Path], refused: Refused
) -> None:
    command = f"data pack {folder} --size 32 --format png --shards 4 --workers 1 --out".split()
    assert main([*command, str(tmp_path / "straight")]) == 0
    whole = sum(path.stat().st_size for path in (tmp_path / "straight").iterdir())
    out = mounted(f"size={whole // 2 // 1024}k") / "out"
    line = refused(*command, out)
    assert "of-00004.parquet cannot be written: No space left on device: free some space" in line
    assert line.endswith("; the same command resumes")
    assert list(out.rglob("train-0*.parquet")) and not list(out.rglob("*.writing"))
    mounted(f"size={2 * whole}")
    assert main([*command, str(out)]) == 0
    assert contents(out) == contents(tmp_path / "straight")


def test_a_disk_that_is_full_at_the_end_of_a_file(
    folder: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above without a mount."""

    def fail(path: Path) -> None:
        if "00002" in path.name:
            raise OSError(errno.ENOSPC, "full")

    command = [
        "data",
        "pack",
        str(folder),
        "--size",
        "32",
        "--shards",
        "3",
        "--workers",
        "0",
        "--out",
        tmp_path / "out",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "sync", fail)
        assert "train-00002-of-00003.parquet cannot be written: No space left" in refused(*command)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == [
        ".train-unfinished",
        ".train.pack.json",
        "lock",
        *(f"train-{i:05d}-of-00003.parquet" for i in range(2)),
    ]
    assert main([str(argument) for argument in command]) == 0


def test_unreadable_pictures_are_left_out_and_named(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [0, 9, 10, 25, 39]
    result = packed(Noise([40], 33, unreadable=bad), tmp_path / "out", workers=2, shards=4)
    assert result.labels.tolist() == [i for i in range(40) if i not in bad]
    manifest = json.loads((tmp_path / "out/.train.pack.json").read_text())
    assert [shard["rows"] for shard in manifest["shards"]] == [8, 9, 9, 9]
    assert [shard["unreadable"] for shard in manifest["shards"]] == [
        ["noise 0 is unreadable", "noise 9 is unreadable"],
        ["noise 10 is unreadable"],
        ["noise 25 is unreadable"],
        ["noise 39 is unreadable"],
    ]
    file = folder / "cat/00.png"
    file.write_bytes(file.read_bytes()[:200])
    options = ["--size", "32", "--workers", "1", "--out", str(tmp_path / "cli")]
    assert main(["data", "pack", str(folder), *options]) == 0
    text = capsys.readouterr().out
    assert f"warning: left out: {file} cannot be read as a picture" in text
    assert "1 unreadable ones left out" in text


def test_too_many_unreadable_pictures_end_it(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="noise 10 is unreadable; 11 of the 40 pictures of noise cannot be read so far, mo"
    ):
        packed(Noise([40], 33, unreadable=range(20)), tmp_path / "out", share=0.2)
    assert not (tmp_path / "out").exists(), "nothing was finished, nothing is left"
    with pytest.raises(UserError, match=r"noise 7 is unreadable; 1 of the 40 .* more than --max-unreadable 0 allows"):
        packed(Noise([40], 33, unreadable=[7, 30]), tmp_path / "out", share=0.0, shards=8)
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 1, "finished files are kept"
    assert (
        packed(Noise([40], 33, unreadable=[7, 30]), tmp_path / "out", share=0.1, shards=8).labels.tolist().count(7) == 0
    )
    with pytest.raises(UserError, match="not one picture of noise can be read"):
        packed(Noise([5], unreadable=range(5)), tmp_path / "none")


def test_another_source_or_other_options_are_refused(folder: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    command = ["data", "pack", folder, "--out", out, "--size", "32", "--workers", "0"]
    assert main([str(argument) for argument in command]) == 0
    before = contents(out)
    line = refused(*command, "--quality", "90", "--crop-min", "0.8")
    assert f"{out} was begun with other settings (crop_min: 0.0 -> 0.8, quality: 95 -> 90): restore them or" in line
    label = folder / "cat/00.png"
    label.rename(folder / "emu/00.png")
    told = f"{out} is packed from {folder}, which is another source or has changed since (other "
    assert told in refused(*command)
    (folder / "emu/00.png").rename(label)
    pixels(99, 60, 60).save(label)
    assert "(other pixels)" in refused(*command)
    (out / ".train.pack.json").unlink()
    assert "out exists and is no packed set" in refused(*command)
    (out / ".train.pack.json").write_bytes(before[".train.pack.json"])
    assert contents(out) == before


def test_the_same_source_by_another_path_is_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    for source in ("pictures", str(folder)):
        assert main(["data", "pack", source, "--out", "out", "--size", "32", "--workers", "0"]) == 0
    assert "out is packed already" in capsys.readouterr().out


def test_a_lost_file_is_made_again(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "out", shards=4)
    before = contents(tmp_path / "out")
    (tmp_path / "out/train-00001-of-00004.parquet").unlink()
    packed(folder, tmp_path / "out", shards=4)
    assert contents(tmp_path / "out") == before


def test_two_processes_do_not_pack_into_one_folder(folder: Path, tmp_path: Path) -> None:
    first = Packer(open_source(str(folder)), tmp_path / "out", PackOptions(size=32), workers=0)
    second = Packer(open_source(str(folder)), tmp_path / "out", PackOptions(size=32), workers=0)
    told = []

    def meanwhile(count: int) -> None:
        with pytest.raises(UserError, match="is in use by another process") as caught:
            second.run()
        told.append(caught)

    first.run(meanwhile)
    assert told
    assert second.run().complete, "it sees what the first one did"
