"""Studies of rows that are trained: what they declare, what is reused, resumed and refused, and how they are judged."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs import write_gpus
from processes import start, wait_for
from sets import write_pictures
from studied import table

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.engine.run import read_stats
from fqgan.engine.trainer import Trainer
from fqgan.lab.studies.tokenizers import ABLATION_PRESETS, SCALING_PRESETS
from fqgan.lab.studies.workers import spread as over_processes
from fqgan.tokenizer.task import train_tokenizer

Refused = Callable[..., str]
# 40 dimensions: a Frechet distance in 1,280 takes seconds on one core
MEASURE = ("--measure.features", "efficientnet-lite0:stage3@32", "--measure.workers", "0", "--measure.kept", "0")
PRESETS = {**ABLATION_PRESETS, **SCALING_PRESETS}


@pytest.fixture
def study_of(base: TokenizerRunConfig, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a tiny study."""
    file = tmp_path / "base.json"

    def call(name: str, *rest: object, out: str = "out", **changes: dict[str, Any]) -> list[str]:
        schema.save(child(base, **changes), file)
        argv = ["study", name, "cifar10-cpu", "--config", file, "--out", tmp_path / out, *MEASURE, *rest]
        return [str(argument) for argument in argv]

    return call


@pytest.mark.slow
def test_a_study_is_trained_measured_judged_and_reused(
    study_of: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    argv = study_of("ablation", "--seeds", 2, "--only", "vqgan", "vqgan-2k", "both")
    small, elsewhere = tmp_path / "small", tmp_path / "elsewhere"
    write_pictures(small, 6, 0, size=20)
    assert "shorter side of 20 pixels, below the 32 of the models" in refused(
        *argv, "--measure.data", small, "--measure.small", "refuse"
    )
    assert main(argv) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    assert printed.splitlines()[-5:] == [
        str(out / f) for f in ("table.md", "table.csv", "table.tex", "figure.png", "figure.pdf")
    ]
    rows = table(out)
    assert [(row["line"], row["seed"]) for row in rows] == [
        *(("vqgan", "0"), ("vqgan", "1"), ("vqgan-2k", "0"), ("vqgan-2k", "1"), ("both", "0"), ("both", "1"))
    ]
    # PSNR as `evaluate` wrote it, the paper's numbers beside it, and mean and spread by hand
    psnr = [float(row["psnr"]) for row in rows]
    measured = json.loads((out / "rows/both/seed-1/measured/both--efficientnet-lite0-stage3@32.json").read_text())
    assert measured["metrics"]["psnr"] == psnr[5] and rows[0]["paper_rfid"] == "3.71"
    text = (out / "table.md").read_text()
    mean, half = (psnr[0] + psnr[1]) / 2, abs(psnr[0] - psnr[1]) / math.sqrt(2)
    small, large = (float(rows[i]["parameters"]) for i in (0, 2))
    assert large - small == 16 * 4  # codes more, of 4 dimensions
    spent = [json.loads(file.read_text())["cpu_seconds"] for file in out.glob("rows/*/*/points/*/study.json")]
    assert len(spent) == 6 and all(0 < seconds < 600 for seconds in spent)
    assert f"| VQGAN, 32 codes | 8 | {small / 1e6:.2f}M |" in text and f"| 2 | {mean:.2f} ± {half:.2f} |" in text
    assert "efficientnet-lite0-stage3@32 †" in text  # a teacher's network
    difference = (psnr[2] - psnr[0] + psnr[3] - psnr[1]) / 2
    assert f"| 48 codes over 32 | PSNR (dB) | {difference:+.3f} |" in text
    assert "both over none" not in text  # its other line was left out
    assert (out / "figure.png").read_bytes()[:4] == b"\x89PNG" and (out / "figure.pdf").read_bytes()[:4] == b"%PDF"
    assert r"VQGAN, 32 codes & 8 & " in (out / "table.tex").read_text()

    # other images of the same name are measured anew
    there = [*argv, "--measure.data", str(elsewhere)]
    for count in (6, 7):
        write_pictures(elsewhere, count, 0, size=32)
        assert main(there) == 0 and capsys.readouterr().out.count(": measuring ") == 6
    assert main(argv) == 0 and table(out) == rows
    capsys.readouterr()

    times = {path: path.stat().st_mtime_ns for path in out.glob("rows/*/*/checkpoints/*/state.json")}
    pictures = (out / "figure.pdf").read_bytes()
    (out / "rows/both/seed-1/measured/both--efficientnet-lite0-stage3@32.json").unlink()
    shutil.rmtree(out / "rows/vqgan/seed-0/checkpoints")  # the exported point is what counts
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "training to" not in printed and printed.count("is measured already") == 5
    assert {path: path.stat().st_mtime_ns for path in times if path.exists()} == {
        path: time for path, time in times.items() if "vqgan/seed-0" not in str(path)
    }
    assert table(out) == rows and (out / "figure.pdf").read_bytes() == pictures


def test_machines_share_a_study_by_its_seeds(
    study_of: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--only", "vqgan", "--seeds")
    for seed in (0, 1):
        assert main(study_of("ablation", *options, 1, "--first-seed", seed, out=f"machine-{seed}")) == 0
    (alone,) = table(tmp_path / "machine-1")
    shutil.copytree(tmp_path / "machine-1/rows", tmp_path / "machine-0/rows", dirs_exist_ok=True)
    capsys.readouterr()
    assert main(study_of("ablation", *options, 2, out="machine-0")) == 0
    assert "training to" not in capsys.readouterr().out
    first, second = table(tmp_path / "machine-0")
    assert (first["seed"], second) == ("0", alone) and alone["seed"] == "1" and first["psnr"] != second["psnr"]


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_numbers(study_of: Callable[..., list[str]], tmp_path: Path) -> None:
    """Of rows that are measured on the way; rows that are not: tests/test_studies_generators.py."""
    options = ("--seeds", 1, "--only", "k2", "k3")
    train = {"steps": 6, "checkpoint_every": 2}
    assert main(study_of("scaling", *options, out="whole", train=train)) == 0
    argv = study_of("scaling", *options, train=train)
    run = tmp_path / "out/rows/k3/seed-0"
    process = start(argv)
    wait_for(run / "checkpoints/step-00000002", process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out/table.md").exists()
    assert main(argv) == 0
    assert table(tmp_path / "out") == table(tmp_path / "whole")
    assert [line["step"] for line in read_stats(run)] == list(range(1, 7))
    assert sorted(json.loads(file.read_text())["step"] for file in run.glob("points/*/study.json")) == [2, 3, 6]


def test_a_run_of_other_settings_is_refused_before_anything_is_trained(
    study_of: Callable[..., list[str]], base: TokenizerRunConfig, tmp_path: Path, refused: Refused
) -> None:
    argv = study_of("ablation", "--seeds", 1, "--only", "both", "vqgan")
    run = tmp_path / "out/rows/both/seed-0"
    train_tokenizer(child(base, train={"seed": 5}), run)
    line = refused(*argv)
    assert "row both at seed 0 does not declare (train.seed: 5, not 0)" in line
    shutil.rmtree(run)
    train_tokenizer(child(base, train={"steps": 1}, data={"window": 3}), run)
    assert "(train.steps: 1, not 2, data.window: 3, not 16)" in refused(*argv).replace(
        "data.window: 3, not 16, train.steps: 1, not 2", "train.steps: 1, not 2, data.window: 3, not 16"
    )
    shutil.rmtree(run)
    assert not (tmp_path / "out/rows/vqgan").exists()


def test_rows_of_other_data_lengths_or_protocols_are_not_compared(
    study_of: Callable[..., list[str]], tmp_path: Path, refused: Refused
) -> None:
    argv = study_of("ablation", "--seeds", 1, "--only", "factorized", "vqgan")
    assert main(argv) == 0
    point = tmp_path / "out/rows/vqgan/seed-0/points/1/study.json"
    facts = json.loads(point.read_text())
    for key, value, message in (
        ("images_seen", 12, "row vqgan, seed 0 has seen 12 images, row factorized 8: declare it"),
        ("data", {**facts["data"], "images": 9}, "row vqgan at seed 0 does not declare (data: images: 9 -> 8)"),
        ("data", {**facts["data"], "labels": "0"}, "row vqgan at seed 0 does not declare (data: other labels)"),
    ):
        point.write_text(json.dumps({**facts, key: value}))
        assert message in refused(*argv)
    point.write_text(json.dumps(facts))
    measured = tmp_path / "out/rows/vqgan/seed-0/measured/vqgan--efficientnet-lite0-stage3@32.json"
    content = json.loads(measured.read_text())
    content["protocol"]["size"] = 30
    measured.write_text(json.dumps(content))
    line = refused(*argv)
    assert "was not measured as" in line and "(size: 30, not 32)" in line


@pytest.mark.slow
def test_scaling_reads_several_lengths_from_one_run(
    study_of: Callable[..., list[str]], tmp_path: Path, refused: Refused
) -> None:
    options = ("--seeds", 2, "--only", "k2")
    assert main(study_of("scaling", *options, train={"steps": 4})) == 0
    out = tmp_path / "out"
    facts = [json.loads((out / f"rows/k2/seed-0/points/{f}/study.json").read_text()) for f in ("0.25", "0.5", "1")]
    assert [each["step"] for each in facts] == [1, 2, 4]
    assert [line["step"] for line in read_stats(out / "rows/k2/seed-0")] == [1, 2, 3, 4]
    text = (out / "table.md").read_text()
    assert (
        re.search(r"k = 2, 1 steps \| 4 \| [\d.]+M \| \d+ ± \d+ \| 2 \|", text)
        and "k = 2: all of the training over half" in text
    )
    # its last length is that of a run in one go
    whole = child(schema.load(TokenizerRunConfig, tmp_path / "base.json"), train={"seed": 0})
    train_tokenizer(whole, tmp_path / "whole")
    assert (
        read_stats(tmp_path / "whole")[-1]["reconstruction_loss"]
        == (read_stats(out / "rows/k2/seed-0")[-1]["reconstruction_loss"])
    )
    # of another length nothing is taken for the study's own, not even where a point's step would fit
    rows = table(out)
    assert main(study_of("scaling", *options, train={"steps": 4})) == 0 and table(out) == rows
    line = refused(*study_of("scaling", *options, train={"steps": 8}))
    assert "points/1 is of step 4, not 8" in line and not list(out.glob("rows/*/*/checkpoints/step-00000008"))
    other = study_of("scaling", *options, train={"steps": 4}, data={"window": 3})
    assert "does not declare (data.window: 16, not 3)" in refused(*other)
    argv = study_of("scaling", *options, out="cosine", optimizer={"schedule": "cosine"})
    assert "set --optimizer.schedule constant" in refused(*argv)
    assert not (tmp_path / "cosine").exists()


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(study_of: Callable[..., list[str]], tmp_path: Path) -> None:
    options = ("--seeds", 2, "--only", "vqgan")
    assert main(study_of("ablation", *options, out="one")) == 0
    assert main(study_of("ablation", *options, "--processes", 2)) == 0
    assert table(tmp_path / "out") == table(tmp_path / "one")


@pytest.mark.slow
def test_a_signal_reaches_all_processes_and_the_study_resumes(
    study_of: Callable[..., list[str]], tmp_path: Path
) -> None:
    train = {"steps": 9000, "checkpoint_every": 20}
    argv = study_of("ablation", "--seeds", 2, "--only", "vqgan", "--processes", 2, train=train)
    process = start(argv)
    runs = [tmp_path / f"out/rows/vqgan/seed-{seed}" for seed in (0, 1)]
    for run in runs:
        wait_for(run / "checkpoints/step-*", process)  # the first one may be gone already
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and "has failed" not in output, output
    for run in runs:
        saved = max(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())
        assert saved == len(read_stats(run)) < 9000


def test_a_signal_in_the_last_moment_of_a_row_is_not_lost(
    study_of: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Trainer._save

    def saved_and_signalled(self: Trainer, done: int) -> None:
        save(self, done)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_save", saved_and_signalled)
    with pytest.raises(SystemExit) as stopped:
        main(study_of("ablation", "--seeds", 2, "--only", "vqgan", train={"steps": 2, "checkpoint_every": 2}))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "out/rows/vqgan/seed-0/checkpoints/step-00000002").exists()
    assert not (tmp_path / "out/rows/vqgan/seed-1").exists()


@pytest.mark.slow
def test_every_process_sees_one_gpu_and_errors_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    files = [str(tmp_path / str(i)) for i in range(2)]
    over_processes(write_gpus, files, 2, gpus=2)
    assert {Path(file).read_text() for file in files} == {"4", "6"}
    with pytest.raises(UserError, match="a bad job"):
        over_processes(write_gpus, ["bad", files[0]], 2)
    with pytest.raises(UserError, match="Not a directory"):  # how the machine is, told in a line
        over_processes(write_gpus, [f"{files[0]}/below", files[1]], 2)


def test_options_that_make_no_sense_are_refused(study_of: Callable[..., list[str]], refused: Refused) -> None:
    assert "name what to study" in refused("study")
    assert "cannot study 'ablatoin'; did you mean 'ablation'?" in refused("study", "ablatoin")
    assert "name a preset first" in refused("study", "ablation")
    assert "unknown preset 'cifar'; did you mean 'cifar10'?" in refused("study", "ablation", "cifar")
    assert "--out is missing" in refused("study", "ablation", "cifar10")
    assert "--data.source is missing" in refused("study", "ablation", "cifar10", "--out", "x")
    assert "--seeds must be at least 1" in refused(*study_of("ablation", "--seeds", 0))
    assert "unknown row 'vqgn'; did you mean 'vqgan'?" in refused(*study_of("ablation", "--only", "vqgn"))
