"""Studies of rows that are trained: what they declare, what is reused, resumed and refused, and how they are judged."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import start, wait_for

from fqgan import schema
from fqgan.cli import main
from fqgan.commands import study_training
from fqgan.config import FactorConfig, TokenizerRunConfig
from fqgan.engine.run import read_stats
from fqgan.engine.trainer import Trainer
from fqgan.errors import UserError
from fqgan.presets import child
from fqgan.studies.judgement import judge, mean_and_error, spread
from fqgan.studies.plan import Line, Ordering, Row, Study, change, load_rows, settings_of, undeclared
from fqgan.studies.tables import latex, markdown
from fqgan.studies.tokenizers import ABLATION_PRESETS, SCALING_PRESETS, ablation, scaling
from fqgan.studies.workers import spread as over_processes
from fqgan.tokenizer.training import train_tokenizer

Refused = Callable[..., str]
# 40 dimensions: a Frechet distance in 1,280 takes seconds on one core
MEASURE = ("--measure.features", "efficientnet-lite0:stage3@32", "--measure.workers", "0", "--measure.kept", "0")
PRESETS = {**ABLATION_PRESETS, **SCALING_PRESETS}


@pytest.fixture
def base(tiny: TokenizerRunConfig) -> TokenizerRunConfig:
    """Two factors of one dimension, one of them taught, with both regularisers."""
    taught = FactorConfig("semantic", 16, 4, 1, teacher="efficientnet-lite0@32")
    return child(
        tiny,
        model={
            "factors": (FactorConfig("visual", 32, 4, 1), taught),
            "feature_head_width": 32,
            "feature_head_depth": 1,
        },
        data={"validation": tiny.data.source},
    )


@pytest.fixture
def study_of(base: TokenizerRunConfig, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of a tiny study."""
    file = tmp_path / "base.json"

    def call(name: str, *rest: object, out: str = "out", **changes: dict[str, Any]) -> list[str]:
        schema.save(child(base, **changes), file)
        argv = ["study", name, "cifar10-cpu", "--config", file, "--out", tmp_path / out, *MEASURE, *rest]
        return [str(argument) for argument in argv]

    return call


def table(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


# --- judgement


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.3, 0.4, 0.5), "holds"),  # mean 0.4, error 0.1 / sqrt(3) = 0.0577
        ((-0.3, -0.4, -0.5), "fails"),
        ((0.3, 0.4, -0.01), "open"),  # one seed disagrees
        ((0.01, 0.02, 0.9), "open"),  # all agree, but mean 0.31 and error 0.295
        ((-0.01, -0.02, -0.9), "open"),
        ((0.4,), "open"),  # one seed has no error
        ((0.2, 0.2), "holds"),
        ((0.0, 0.0), "open"),
        ((math.nan, 0.2), "open"),
    ],
)
def test_orderings_are_judged_by_sign_and_twice_the_standard_error(
    differences: tuple[float, ...], verdict: str
) -> None:
    assert judge(differences).verdict == verdict


def test_the_error_of_a_mean() -> None:
    assert mean_and_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx((3.0, math.sqrt(14 / 3) / 2))
    assert spread([1.0, 2.0, 3.0, 6.0]) == pytest.approx(math.sqrt(14 / 3))
    assert math.isnan(mean_and_error([1.0])[1])
    with pytest.raises(ValueError, match="at least one"):
        judge([])


# --- rows


def small_study(*rows: Row) -> Study:
    return Study("small", "Small", "tokenizer", rows, tuple(Line(row.name, row.name, row.name) for row in rows))


def test_a_row_differs_in_what_it_declares(base: TokenizerRunConfig) -> None:
    study = small_study(
        Row("a"),
        Row("c", "b", {"loss.disentangle_weight": 0.5}),
        Row("b", "a", {"model.factors.1.codebook_size": 8, "train.batch": 2}),
    )
    settings = settings_of(study, base)
    assert settings["a"] == base
    assert schema.diff(base, settings["c"]) == {
        "model.factors.1.codebook_size": (16, 8),
        "train.batch": (4, 2),
        "loss.disentangle_weight": (0.1, 0.5),
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((Row("a", "", {"train.seed": 3}),), "row a cannot declare train.seed"),
        ((Row("a", "", {"train": {}}),), "row a cannot declare train.seed"),
        ((Row("a", "", {"los.entropy_weight": 3}),), "row a: there is no setting los.entropy_weight; did you mean"),
        ((Row("a", "", {"model.factors.7.name": "x"}),), "there is no setting model.factors.7.name"),
        ((Row("a", "", {"train.batch": "x"}),), "row a: config: key train.batch must be int"),
        ((Row("a", "", {"train.batch": 0}),), "row a: train.batch must be at least 1"),
        ((Row("a", "b"), Row("b", "a")), "round in a circle"),
        ((Row("long"), Row("b", "lon")), "row b: unknown parent 'lon'; did you mean 'long'?"),
    ],
)
def test_rows_that_make_no_sense_are_refused(base: TokenizerRunConfig, rows: tuple[Row, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        settings_of(small_study(*rows), base)
    assert message in str(caught.value)


def test_a_config_that_differs_in_more_than_it_declares_is_refused(base: TokenizerRunConfig, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    schema.save(child(base, loss={"entropy_weight": 0.5}, train={"batch": 2, "log_every": 7, "seed": 9}), file)
    row = Row("own", "", {"loss.entropy_weight": 0.5}, config=str(file))
    with pytest.raises(UserError, match=r"row own: .*own.json differs .* not declared \(train.batch: 2, not 4\)"):
        settings_of(small_study(row), base)
    row = replace(row, changes={"loss": 0, "train.batch": 0})
    own = settings_of(small_study(row), base)["own"]
    assert (own.loss.entropy_weight, own.train.batch, own.train.seed) == (0.5, 2, base.train.seed)


def test_what_is_watched_or_left_open_may_differ(base: TokenizerRunConfig) -> None:
    filled = change(base, {"model.factors.1.teacher_dim": 1280, "train.log_every": 9, "data.workers": 3})
    assert undeclared(base, filled) == ""
    assert undeclared(filled, base) == "model.factors.1.teacher_dim: 0, not 1280"
    assert undeclared(base, change(base, {"data.flip": False, "train.seed": 1})) == (
        "data.flip: False, not True, train.seed: 1, not 0"
    )


def test_rows_of_a_file(tmp_path: Path, base: TokenizerRunConfig) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"rows": [{"name": "mine", "parent": "both", "changes": {"loss.entropy_weight": 0}}]}))
    study = ablation(base).extended(load_rows(file))
    assert settings_of(study, base)["mine"] == child(base, loss={"entropy_weight": 0.0})
    assert study.orderings[-1] == Ordering("mine over + both", "mine", "both")
    with pytest.raises(UserError, match="row 'both' is there already"):
        study.extended([Row("both")])
    for content, message in (
        ([{"nam": "x"}], "must be a list of objects with a name"),
        ([{"name": "x", "change": {}}], "unknown key 'change'; did you mean 'changes'?"),
        ([{"name": "../x"}], "a row's name is a folder's"),
        ([{"name": ".."}], "a row's name is a folder's"),
        (5, "must be a list of objects with a name"),
        ([{"name": "x", "changes": []}], "changes must be an object"),
        ([{"name": "x", "parent": 3}], "must be texts"),
        ([], "must be a list of objects with a name"),
    ):
        file.write_text(json.dumps({"rows": content}))
        with pytest.raises(UserError) as caught:
            load_rows(file)
        assert message in str(caught.value)


@pytest.mark.parametrize("name", ABLATION_PRESETS)
def test_the_ablations_rows(name: str) -> None:
    base = ABLATION_PRESETS[name]
    settings = settings_of(ablation(base), base)
    codes, depth = base.model.factors[0].codebook_size, base.model.factors[0].adapter_depth
    assert settings["both"] == base
    assert {
        row: (
            [(factor.codebook_size, factor.adapter_depth) for factor in config.model.factors],
            bool(config.loss.disentangle_weight),
            any(factor.teacher for factor in config.model.factors),
        )
        for row, config in settings.items()
    } == {
        "both": ([(codes, depth)] * 2, True, True),
        "represented": ([(codes, depth)] * 2, False, True),
        "disentangled": ([(codes, depth)] * 2, True, False),
        "factorized": ([(codes, depth)] * 2, False, False),
        "vqgan-2k": ([(2 * codes, 0)], False, False),
        "vqgan": ([(codes, 0)], False, False),
        "vqgan-adapter": ([(2 * codes, 2 * depth)], False, False),
    }
    for config in settings.values():  # nothing else, whatever the rows say
        others = (config.data, config.optimizer, config.quantizer, config.discriminator, config.train)
        assert others == (base.data, base.optimizer, base.quantizer, base.discriminator, base.train)


def test_the_papers_settings_are_pinned() -> None:
    paper = ABLATION_PRESETS["imagenet"]
    assert (paper.train.epochs, paper.train.batch, paper.optimizer.lr) == (10, 256, 2e-4)
    assert [factor.codebook_size for factor in paper.model.factors] == [16384, 16384]
    lines = {line.name: line.paper.get("rfid") for line in ablation(paper).lines}
    names = ["vqgan", "vqgan-2k", "factorized", "disentangled", "represented", "both", "vqgan-adapter"]
    assert lines == dict(zip(names, [3.71, 3.60, 2.00, 1.84, 1.73, 1.66, None], strict=True))
    paper = SCALING_PRESETS["imagenet"]
    assert (paper.train.epochs, paper.optimizer.schedule) == (40, "constant")
    study = scaling(paper)
    assert [line.label for line in study.lines[:3]] == ["k = 2, 10 epochs", "k = 2, 20 epochs", "k = 2, 40 epochs"]
    assert [line.paper.get("rfid") for line in study.lines] == [1.66, 1.25, 0.94, 1.30, 0.92, 0.76, None, None, None]
    triple = settings_of(study, paper)["k3"].model.factors
    assert [factor.teacher for factor in triple] == [
        *("", "dinov2:facebook/dinov2-small", "clip:openai/clip-vit-base-patch16")
    ]


def test_an_ablation_needs_what_it_takes_away(base: TokenizerRunConfig) -> None:
    for changes in ({"model": {"factors": base.model.factors[:1]}}, {"loss": {"disentangle_weight": 0.0}}):
        with pytest.raises(UserError, match="an ablation starts from at least two factors"):
            ablation(child(base, **changes))
    with pytest.raises(UserError, match="scaling starts from two factors"):
        scaling(child(base, model={"factors": base.model.factors[:1]}))


# --- training


def test_a_study_is_trained_measured_judged_and_reused(
    study_of: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = study_of("ablation", "--seeds", 2, "--only", "vqgan", "vqgan-2k", "both")
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
    assert f"| VQGAN, 32 codes | 8 | 2 | {mean:.2f} ± {half:.2f} |" in text
    assert "efficientnet-lite0-stage3@32 †" in text  # a teacher's network
    difference = (psnr[2] - psnr[0] + psnr[3] - psnr[1]) / 2
    assert f"| 48 codes over 32 | PSNR (dB) | {difference:+.3f} |" in text
    assert "both over none" not in text  # its other line was left out
    assert (out / "figure.png").read_bytes()[:4] == b"\x89PNG" and (out / "figure.pdf").read_bytes()[:4] == b"%PDF"
    assert r"VQGAN, 32 codes & 8 & 2" in (out / "table.tex").read_text()

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


def test_a_killed_study_ends_with_the_same_numbers(study_of: Callable[..., list[str]], tmp_path: Path) -> None:
    options = ("--seeds", 1, "--only", "vqgan", "vqgan-2k")
    train = {"steps": 6, "checkpoint_every": 2}
    assert main(study_of("ablation", *options, out="whole", train=train)) == 0
    argv = study_of("ablation", *options, train=train)
    run = tmp_path / "out/rows/vqgan-2k/seed-0"
    process = start(argv)
    wait_for(run / "checkpoints/step-00000002", process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out/table.md").exists()
    assert main(argv) == 0
    assert table(tmp_path / "out") == table(tmp_path / "whole")
    assert [line["step"] for line in read_stats(run)] == list(range(1, 7))


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
    assert "| k = 2, 1 steps | 4 | 2 |" in text and "k = 2: all of the training over half" in text
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
    options = ("--seeds", 2, "--only", "vqgan", "vqgan-2k")
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
    assert process.returncode == 128 + signal.SIGTERM, output
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


def _call(job: str) -> None:
    if job == "bad":
        raise UserError("a bad job")
    Path(job).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))


@pytest.mark.slow
def test_every_process_sees_one_gpu_and_errors_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    files = [str(tmp_path / str(i)) for i in range(2)]
    over_processes(_call, files, 2, gpus=2)
    assert {Path(file).read_text() for file in files} == {"4", "6"}
    with pytest.raises(UserError, match="a bad job"):
        over_processes(_call, ["bad", files[0]], 2)
    with pytest.raises(UserError, match="Not a directory"):  # how the machine is, told in a line
        over_processes(_call, [f"{files[0]}/below", files[1]], 2)


def test_options_that_make_no_sense_are_refused(study_of: Callable[..., list[str]], refused: Refused) -> None:
    assert "name what to study" in refused("study")
    assert "cannot study 'ablatoin'; did you mean 'ablation'?" in refused("study", "ablatoin")
    assert "name a preset first" in refused("study", "ablation")
    assert "unknown preset 'cifar'; did you mean 'cifar10'?" in refused("study", "ablation", "cifar")
    assert "--out is missing" in refused("study", "ablation", "cifar10")
    assert "--data.source is missing" in refused("study", "ablation", "cifar10", "--out", "x")
    assert "--seeds must be at least 1" in refused(*study_of("ablation", "--seeds", 0))
    assert "unknown row 'vqgn'; did you mean 'vqgan'?" in refused(*study_of("ablation", "--only", "vqgn"))


@pytest.mark.parametrize("name", study_training.COMMANDS)
def test_every_preset_parses_through_the_command_line(name: str) -> None:
    command, build = study_training.COMMANDS[name]
    for preset, config in command.presets.items():
        more = ["--triple", "y"] if name == "curves" else []
        base, arguments = command.parse_all([preset, "--out", "x", "--measure.limit", "5", *more])
        assert base == config and arguments.measure.limit == 5
        settings_of(build(base, preset, arguments), base)


# --- tables


def test_tables_are_escaped() -> None:
    assert markdown(["a|b"], [["1"]]) == "| a\\|b |\n|---|\n| 1 |"
    text = latex(["x_1", "PSNR ↑"], [["50 % & more", "1.0 ± 0.1"]], "Title")
    assert r"x\_1 & PSNR $\uparrow$ \\" in text and r"50 \% \& more & 1.0 $\pm$ 0.1 \\" in text
