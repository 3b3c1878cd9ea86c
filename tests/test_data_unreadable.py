"""Broken pictures: replaced in training, left out of evaluations, named and counted in both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from noise import Noise, batches

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import DataConfig, TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.data import workers
from fqgan.data.loader import TrainingSet, evaluation_batches, training_batches
from fqgan.data.order import SampleStream
from fqgan.data.sources import open_source
from fqgan.data.unreadable import FLOOR, UnreadableMeter
from fqgan.engine.run import read_stats
from fqgan.lab.report.evidence import gather
from fqgan.tokenizer.model import FactorizedTokenizer

BLOCKS = [7, 9, 4]
BAD = (2, 8, 17)
CONFIG = DataConfig(workers=0, window=2)


@pytest.fixture(autouse=True)
def nothing_named_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_named", set())


def labels(result: list[Any]) -> list[int]:
    return [label for _, batch in result for label in batch.tolist()]


def test_another_of_the_block_takes_its_place() -> None:
    """All other samples are as if nothing were broken."""
    source = Noise(BLOCKS, unreadable=BAD)
    found = labels(batches(source, 10))
    owner = np.repeat(np.arange(3), BLOCKS)
    replaced = set()
    for label, (epoch, index) in zip(found, SampleStream(BLOCKS, 3, 2).take(0, 120), strict=True):
        if index in BAD:
            assert label not in BAD
            assert owner[label] == owner[index], "its block is at hand"
            replaced.add((epoch, index, label))
        else:
            assert label == index
    assert len({label for _, index, label in replaced if index == 8}) > 1, "the epochs take different ones"


def test_the_substitutes_depend_on_nothing_but_the_place() -> None:
    source = Noise(BLOCKS, unreadable=BAD)
    whole = torch.cat([images for images, _ in batches(source, 5)])
    for world, micro in ((1, 4), (2, 3), (4, 1)):
        ranks = [batches(source, 5, micro_batch=micro, rank=rank, world=world) for rank in range(world)]
        assert torch.equal(torch.cat([images for turn in zip(*ranks, strict=True) for images, _ in turn]), whole)
    config = DataConfig(workers=2, window=2)
    assert torch.equal(torch.cat([images for images, _ in batches(source, 5, config)]), whole)
    assert torch.equal(torch.cat([images for images, _ in batches(source, 2, start_step=3)]), whole[36:])


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_count_and_name(workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The count is that of the batches handed out, not of those that workers have prepared."""
    source, config = Noise([20], unreadable=(5,)), DataConfig(workers=workers)
    arguments = {"size": 32, "seed": 0, "batch": 4, "micro_batch": 4, "rank": 0, "world": 1, "start_step": 0}
    stream = training_batches(source, config, **arguments)
    place = [index for _, index in SampleStream([20], 0, 16).take(0, 40)]
    counts = []
    for _ in range(10):
        next(stream)
        counts.append(stream.unreadable)
    stream.close()
    assert counts == [sum(index == 5 for index in place[: 4 * (i + 1)]) for i in range(10)]
    assert capsys.readouterr().out == "warning: skipped: noise 5 is unreadable\n", "met twice, named once"


def test_a_block_without_a_readable_picture_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    source = Noise([1, 3, 8], unreadable=(0, 1, 2, 3))
    assert set(labels(batches(source, 4))) == set(range(4, 12))
    assert len(capsys.readouterr().out.splitlines()) == 4
    with pytest.raises(UserError, match=r"^noise \d+ is unreadable; nor can \d+ others of noise that were tried"):
        batches(Noise([5, 9], unreadable=range(14)), 1)


def test_a_limit_of_nothing_ends_at_the_first() -> None:
    with pytest.raises(UserError, match=r"^noise 8 is unreadable$"):
        batches(Noise([20], unreadable=(8,)), 2, replace(CONFIG, max_unreadable=0.0))
    with pytest.raises(UserError, match=r"^noise 3 is unreadable$"):
        TrainingSet(Noise([20], unreadable=(3,)), CONFIG, 32, 0)[0, 3]


def test_a_flood_of_names_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    list(evaluation_batches(Noise([200], unreadable=range(150)), size=32, batch=8))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == workers.NAMED + 1
    assert lines[-1] == "warning: more pictures are skipped"


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_them_out(workers: int) -> None:
    stream = evaluation_batches(Noise([12], unreadable=(1, 4, 5, 6, 7)), size=32, batch=4, workers=workers)
    assert [indices.tolist() for _, _, indices in stream] == [[0, 2, 3], [8, 9, 10, 11]]
    assert stream.unreadable == 5
    assert not list(evaluation_batches(Noise([3], unreadable=range(3)), size=32, batch=2, workers=workers))


def meter(limit: float, seen: int, failed: int, before: int = 0) -> UnreadableMeter:
    result = UnreadableMeter(limit)
    result.load_state(torch.tensor([before]))
    result.update(seen, failed)
    result.compute(lambda sums: sums)
    return result


@pytest.mark.parametrize(("seen", "failed"), [(10, 1), (FLOOR, FLOOR), (5000, 50), (0, 0)])
def test_few_unreadable_pictures_go(seen: int, failed: int) -> None:
    meter(0.01, seen, failed, before=10_000).check()  # what failed before the start has been repaired, maybe


def test_many_end_the_run() -> None:
    message = r"^11 of the last 111 pictures cannot be read, more than data\.max_unreadable 0\.05 allows; .*--data\.max"
    with pytest.raises(UserError, match=message):
        meter(0.05, 100, 11).check()
    meter(0.11, 100, 11).check()


def test_the_meter_adds_up_over_ranks_and_restarts() -> None:
    first, second = meter(0.1, 50, 3, before=4), meter(0.1, 50, 2)
    together = first.state() + second.state()
    assert together.tolist() == [9, 0]
    both = torch.tensor([4 + 0, 0, 3 + 2, 0])
    assert first.compute(lambda sums: both) == {"unreadable": 9}
    resumed = UnreadableMeter(0.1)
    resumed.load_state(together)
    assert resumed.compute(lambda sums: sums) == {"unreadable": 9}
    resumed.update(0, 1, small=6)
    assert resumed.compute(lambda sums: sums) == {"unreadable": 10, "small": 6}
    assert resumed.state().tolist() == [10, 6]


@pytest.fixture
def spoiled(pictures: Path, tmp_path: Path) -> Path:
    """Eight pictures, two of them broken in different ways."""
    folder = tmp_path / "spoiled"
    shutil.copytree(pictures, folder)
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:200])
    (folder / "6.png").write_text("no picture")
    return folder


@pytest.fixture
def train(
    tiny: TokenizerRunConfig, spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[str, ...]]:
    """The command line of a run on the spoiled pictures."""
    monkeypatch.chdir(tmp_path)
    data = {"source": str(spoiled), "validation": str(spoiled)}
    schema.save(child(tiny, data=data, train={"validate_every": 2}), tmp_path / "tiny.json")
    return lambda run, *options: ("train-tokenizer", "dual-ds16", "--config", "tiny.json", "--run", run, *options)


def stats(run: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_stats(Path(run))]


def test_training_goes_on_and_counts(
    train: Callable[..., tuple[str, ...]], capsys: pytest.CaptureFixture[str], spoiled: Path
) -> None:
    """Interrupted or not: the count of stats.jsonl is part of the exact resume."""
    assert main([*train("straight", "--train.steps", "6")]) == 0
    printed = capsys.readouterr().out
    for name in ("3.png", "6.png"):
        assert printed.count(f"warning: skipped: {spoiled / name}") == 1
    assert main([*train("twice", "--train.steps", "3")]) == 0
    shutil.rmtree("twice/checkpoints/step-00000003")  # as if killed before it
    assert main([*train("twice", "--train.steps", "6")]) == 0
    counts = [line["unreadable"] for line in stats("straight")]
    assert counts == sorted(counts)
    assert counts[1] >= 2 and counts[3] >= 4 and counts[5] >= 6, "an epoch is two steps"
    assert [line.get("val_unreadable") for line in stats("straight")] == [None, 2, None, 2, None, 2]
    different = {"val_psnr", "val_ssim"}  # the last step of a shorter run is validated too
    assert [line.keys() | different for line in stats("twice")][3:] == [
        line.keys() | different for line in stats("straight")
    ][3:]
    assert stats("twice")[3:] == stats("straight")[3:]


def test_too_many_end_the_run_after_saving(
    train: Callable[..., tuple[str, ...]], refused: Callable[..., str], pictures: Path, spoiled: Path
) -> None:
    options = ("--train.steps", "12", "--train.checkpoint-every", "100")
    line = refused(*train("run", *options))
    assert "cannot be read, more than data.max_unreadable 0.01 allows" in line
    (saved,) = Path("run/checkpoints").iterdir()
    step = len(stats("run"))
    assert saved.name == f"step-{step:08d}" and step < 12
    assert stats("run")[-1]["unreadable"] == FLOOR + 1

    # both ways out: another limit, or whole pictures
    shutil.copytree("run", "other")
    assert main([*train("other", *options, "--data.max-unreadable", "0.5")]) == 0
    shutil.copytree(pictures, spoiled, dirs_exist_ok=True)
    assert main([*train("run", *options)]) == 0
    assert stats("run")[-1]["unreadable"] == FLOOR + 1


def test_evaluation_counts(
    exported: Path, spoiled: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    assert main(["evaluate", "tokenizer", str(exported), "--data", str(spoiled), "--workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert f"on 6 images of {spoiled} at 32 pixels (2 more cannot be read)" in printed.replace("\n", " ")
    assert f"warning: skipped: {spoiled / '3.png'} cannot be read" in printed
    numbers = json.loads((exported / "eval.json").read_text())
    assert (numbers["images"], numbers["unreadable"]) == (6, 2)
    for picture in spoiled.iterdir():
        picture.write_text("no picture")
    (exported / "eval.json").unlink()
    line = refused("evaluate", "tokenizer", exported, "--data", spoiled, "--workers", 0)
    assert "not one picture of the data could be read" in line
    assert not (exported / "eval.json").exists()


def test_a_report_shows_readable_pictures(tokenizer: FactorizedTokenizer, spoiled: Path) -> None:
    evidence = gather(tokenizer, open_source(str(spoiled)), torch.device("cpu"), 4)
    assert len(evidence.codes) == 6


def test_storage_that_fails_is_no_broken_picture(pictures: Path, tmp_path: Path) -> None:
    """A file that is gone would otherwise count as broken, and the run quietly go on with other pictures."""
    shutil.copytree(pictures, tmp_path / "data")
    source = open_source(str(tmp_path / "data"))
    (tmp_path / "data" / "4.png").unlink()
    with pytest.raises(UserError, match=r"4\.png does not exist$"):
        batches(source, 1)
    (tmp_path / "data" / "4.png").mkdir()
    with pytest.raises(UserError, match=r"4\.png cannot be read as a picture: .*directory"):
        batches(source, 1)
