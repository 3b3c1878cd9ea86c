"""Nothing of a user's is destroyed, and nothing of ours is left half-made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from begun import run, train
from test_bad_input import TRAIN, Refused, here, nothing_happens, snapshot, write_picture

from fqgan.base.errors import UserError
from fqgan.base.folder import ResumableFolder
from fqgan.base.outputs import check_output
from fqgan.engine.sizes import check_pictures
from fqgan.tokenizer.quantizers.keeper import kmeans

__all__ = ["here", "nothing_happens", "run"]  # fixtures


def test_copies_of_checkpoints_are_left_alone(run: Path) -> None:
    """`step-best` sorts behind all numbers: it must neither be resumed from nor push the new checkpoint out."""
    checkpoints = run / "checkpoints"
    mine = ("step-best", "step-00000001-mine", "step-zero", "step-9", "best")
    for name in mine:
        shutil.copytree(checkpoints / "step-00000001", checkpoints / name)
    (checkpoints / "step-x").mkdir()
    (checkpoints / "step-y").write_text("x")
    assert train("--train.steps", "3", "--train.keep-last", "1", "--train.checkpoint-every", "1") == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == sorted([*mine, "step-x", "step-y", "step-00000003"])


def test_a_checkpoint_that_is_a_link_is_not_followed_when_it_goes(run: Path) -> None:
    kept = run / "checkpoints/step-00000001"
    shutil.move(kept, run.parent / "elsewhere")
    kept.symlink_to(run.parent / "elsewhere", target_is_directory=True)
    assert train("--train.steps", "2", "--train.keep-last", "1") == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert (run.parent / "elsewhere/state.json").exists()


@pytest.mark.parametrize(
    "files",
    [
        {"lock": "precious"},
        {"lock": "precious", "thesis.txt": "x"},
        {"checkpoints/mine.bin": "x"},
        {"checkpoints/mine.bin": "x", "config.json": '{"mine": 1}'},
        {"config.json": '{"mine": 1}'},
        {"config.json": "no json"},
        {"lock": "", "thesis.txt": "x"},
    ],
)
def test_a_folder_of_somebody_else_is_no_run(files: dict[str, str], here: Path, nothing_happens: Refused) -> None:
    for name, text in files.items():
        (here / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "run" / name).write_text(text)
    assert "run exists and is no run folder: choose another name" in nothing_happens(*TRAIN)


def test_what_a_kill_at_the_start_leaves_is_taken(here: Path) -> None:
    (here / "run").mkdir()
    (here / "run/lock").touch()
    (here / "run/.config.json.writing").write_text("{")
    assert train("--train.steps", "1") == 0


@pytest.mark.parametrize(
    "command",
    [
        "data pack data --out data",
        "data pack data --out data/packed",
        "data pack data/0.png,data --out data",
        "extract exported --data data --out data",
        "extract exported --data data --out exported",
        "reconstruct exported data/0.png --out data",
        "reconstruct exported data/0.png --out data/0.png",
        "data info data --json data/0.png",
        "data info data/0.png --json data/0.png",
        "evaluate tokenizer exported --data data --out data/0.png --workers 0",
        "evaluate samples data data --out data/1.png --workers 0",
        "evaluate statistics data --out exported/model.safetensors/x.safetensors",
        "convert exported exported",
        "convert exported exported/config.json --to released",
    ],
)
def test_an_output_is_never_an_input_nor_somebodys(command: str, here: Path, nothing_happens: Refused) -> None:
    for i in range(4):
        write_picture(here / "data" / f"{i}.png")
    assert any(word in nothing_happens(*command.split()) for word in ("--out", "--json", "DST"))


def test_outputs_that_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("numbers.json").write_text('{"step": 1}')
    Path("empty.json").touch()
    for name in ("numbers.json", "empty.json", "new/deep.json", "photos"):
        check_output(Path(name), folder=False, inputs=["photos", "hf:org/name", "s3://bucket/x", "no*such", ""])
    np.savez("set.npz", arr_0=np.zeros(1))
    check_output(Path("set.npz"), folder=False)
    os.mkfifo("pipe")
    for name, told in (("pipe", "is a pipe or device"), ("a\0b", "is no name of a file"), ("x" * 300, "File name too")):
        with pytest.raises(UserError, match=told):
            check_output(Path(name), folder=False)


def test_nothing_is_left_of_a_run_that_never_began(
    here: Path, nothing_happens: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "needs the package wandb" in nothing_happens(*TRAIN, "--train.wandb", "x")
    write_picture(here / "data" / "0.png", (20, 20))
    options = ("--data.source", "data", "--data.small", "refuse", "--train.batch", "1")
    assert "below the image size 32" in nothing_happens(*TRAIN, *options)
    (here / "run").mkdir()
    assert "below the image size 32" in nothing_happens(*TRAIN, *options), "an empty folder stays"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--model.image-size 65536 --train.batch 4", "parameters in training need at least 274.9 GB"),
        ("--train.batch 4000000000", "samples at a time (--train.micro-batch) need at least"),
        ("--model.channels 65536", "parameters in training need at least"),
        ("--train.batch 99999999999999999999", "train.batch must be at most 4294967296, got 99999999999999999999"),
        ("--train.seed 99999999999999999999", "train.seed must be at most 9223372036854775807"),
        ("--data.lanes 999999999", "data.lanes must be at most 65536"),
        ("--num-factors 999999999999", "--num-factors must be an integer from 1 to 100"),
        ("--model.factors.0.name=", "a factor's name must be printable, got ''"),
        ("--model.factors.0.teacher efficientnet-lite0@99999", "the input must have at most 4,096 pixels a side"),
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_allocated(
    options: str, told: str, nothing_happens: Refused
) -> None:
    assert told in nothing_happens(*TRAIN, *options.split())


def test_pictures_that_no_memory_holds(nothing_happens: Refused) -> None:
    with pytest.raises(UserError, match=r"1 picture\(s\) of 1000000 pixels at a time need at least 12,000.0 GB"):
        check_pictures(1, 1_000_000, 0, torch.device("cpu"))


def test_a_folder_in_the_making_has_one_owner(tmp_path: Path) -> None:
    def folder() -> ResumableFolder:
        return ResumableFolder(tmp_path / "x", kind="box", known=(tmp_path / "x/box").exists)

    first = folder()
    first.take()
    with pytest.raises(UserError, match="is in use by another process"):
        folder().take()
    first.abandon()
    assert not (tmp_path / "x").exists()
    first.take()
    (tmp_path / "x/box").touch()
    (tmp_path / "x/.half.writing").touch()
    first.release()
    second = folder()
    second.take()
    assert sorted(os.listdir(tmp_path / "x")) == [".lock", "box"]
    changed = second.changed({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}, lambda name: name == "b.c")
    assert changed == {"b.c": (2, 3)}
    with pytest.raises(UserError, match=r"begun with other settings \(a: 1 -> 2\): restore them"):
        second.changed({"a": 1}, {"a": 2})
    second.release(finished=True)
    assert os.listdir(tmp_path / "x") == ["box"]


STREAMS = """
import sys
from fqgan.cli import run
sys.argv = ["fqgan", "data", "info", sys.argv[1], "--workers", "0"]
run()
"""


# each starts Python anew
@pytest.mark.parametrize(
    "shell",
    [
        ">/dev/full",
        "<&- >&- 2>&-",
        *(pytest.param(each, marks=pytest.mark.slow) for each in (">&-", "| head -c 0", "2>&-")),
    ],
)
def test_closed_and_full_streams_end_nothing(shell: str, pictures: Path) -> None:
    command = f"set -o pipefail; '{sys.executable}' -c '{STREAMS}' '{pictures}' {shell}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_names_that_a_terminal_cannot_show(tmp_path: Path) -> None:
    folder = tmp_path / "ü\n\x1b[31m漢"
    write_picture(folder / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", STREAMS, str(folder)],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    assert rb"\xfc\n\x1b[31m\u6f22" in done.stdout.splitlines()[0]


def test_kmeans_ends_where_nothing_moves() -> None:
    rows = torch.nn.functional.normalize(torch.randn(200, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    few, many = (kmeans(rows, 8, n, torch.Generator().manual_seed(1)) for n in (300, 10**9))
    assert torch.equal(few, many)


def test_a_refusal_removes_only_what_it_made(run: Path, refused: Refused) -> None:
    """Copies under other names are no checkpoints to resume from, and nothing to delete either."""
    (run / "checkpoints/step-00000001").rename(run / "checkpoints/best")
    write_picture(run.parent / "data" / "0.png", (20, 20))
    kept = snapshot(run / "checkpoints")
    options = ("--data.source", "data", "--data.small", "refuse", "--train.batch", "1")
    assert "below the image size 32" in refused(*TRAIN, *options)
    assert snapshot(run / "checkpoints") == kept and (run / "config.json").exists()


def test_foreign_configs_and_other_kinds_of_runs(here: Path, run: Path, nothing_happens: Refused) -> None:
    (here / "other").mkdir()
    (here / "other/config.json").write_text('{"train": {"lr": 1}, "model": "x"}')
    line = nothing_happens(*TRAIN[:-1], "other")
    assert "other exists and is no run folder" in line
    content = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**content, "label_smoothing": 0.1}))
    assert "run is a run of another kind (its config.json has label_smoothing)" in nothing_happens(*TRAIN)


@pytest.mark.parametrize(
    "command",
    [
        "evaluate tokenizer exported --data data --workers 0 --out exported/config.json",
        "evaluate statistics data --workers 0 --out exported/model.safetensors",
        "evaluate samples data data --workers 0 --npz mine.npz",
        "evaluate samples data data --workers 0 --out mine.json",
        "data info data --json exported/config.json",
        "reconstruct exported data/0.png --out mine",
        "quickstart --run mine",
    ],
)
def test_files_of_somebody_stay(command: str, here: Path, nothing_happens: Refused) -> None:
    for i in range(4):
        write_picture(here / "data" / f"{i}.png")
    write_picture(here / "mine" / "0.png")
    (here / "mine.json").write_text('{"mine": 1}')
    np.savez(here / "mine.npz", mine=np.zeros(3))
    line = nothing_happens(*command.split())
    assert "choose another" in line


def test_a_foreign_eval_json_stays(here: Path, run: Path, nothing_happens: Refused) -> None:
    (run / "eval.json").write_text("notes")
    assert "run/eval.json holds something else" in nothing_happens("evaluate", "tokenizer", "run", "--data", "photos")


def test_a_run_does_not_lie_in_its_data(here: Path, nothing_happens: Refused) -> None:
    for i in range(8):
        write_picture(here / "data" / f"{i}.png")
    line = nothing_happens(*TRAIN[:-1], "data/run", "--data.source", "data")
    assert "--run data/run lies in the input data" in line


def test_a_refused_resume_leaves_config_and_history_alone(here: Path, run: Path, refused: Refused) -> None:
    for i in range(7):
        write_picture(here / "data" / f"{i}.png")
    before = (run / "config.json").read_bytes()
    line = refused(*TRAIN, "--train.steps", "2", "--data.source", "data", "--optimizer.lr", "1e-5")
    assert "changed since its last checkpoint" in line
    assert (run / "config.json").read_bytes() == before


def test_half_written_files_of_a_store_below_stay(tmp_path: Path) -> None:
    (tmp_path / "x/store/.unfinished").mkdir(parents=True)
    (tmp_path / "x/box").touch()
    (tmp_path / "x/store/.unfinished/lock").touch()
    (tmp_path / "x/store/.codes-00000.npy.writing").touch()
    folder = ResumableFolder(tmp_path / "x", kind="box", known=(tmp_path / "x/box").exists)
    folder.take()
    folder.release()
    assert (tmp_path / "x/store/.codes-00000.npy.writing").exists()


def test_a_service_that_does_not_start_is_one_line(
    here: Path, nothing_happens: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Service:
        @staticmethod
        def init(**settings: Any) -> None:
            raise RuntimeError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", Service)
    line = nothing_happens(*TRAIN, "--train.wandb", "x")
    assert "W&B does not start (api_key not configured)" in line
