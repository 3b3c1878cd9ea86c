"""`fqgan plan`: what is followed on tensors without content is what real steps take."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fqgan.cli import main
from fqgan.config import GeneratorRunConfig, TokenizerRunConfig, presets
from fqgan.config.planning import PlanSettings
from fqgan.generator.model import FAR
from fqgan.lab.planning import steps
from fqgan.lab.planning.cards import CARDS, GIB, card, collective
from fqgan.lab.planning.plan import plan
from fqgan.lab.planning.table import notes
from fqgan.lab.planning.tracking import FLOAT, HALF

CPU = torch.device("cpu")


def tokenizer(name: str = "cifar10-dual", **sections: dict[str, Any]) -> TokenizerRunConfig:
    return presets.child(presets.get(name), **{"train": {"precision": "float32"}, **sections})


def generator(name: str = "far-tiny", k: int = 2, size: int = 256, **train: Any) -> GeneratorRunConfig:
    model = {"codebook_sizes": (size,) * k, "grid": (8, 8), "num_classes": 10}
    return presets.child(presets.get_generator(name), model=model, train={"precision": "float32", **train})


def real_trainer(config: Any, micro_batch: int) -> tuple[Any, Any]:
    trainer = steps.real_trainer(config, micro_batch, CPU)
    return trainer, trainer.task.batches(0)


def measured_peak(config: Any, micro_batch: int) -> int:
    """Most bytes that torch's profiler saw alive in three real steps, from the making of the networks on."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    gc.collect()  # what an earlier profile saw allocated, and the collector frees only now, would count as freed here
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        trainer, batches = real_trainer(config, micro_batch)
        for step in range(3):
            trainer.optimize(step, batches)
    results: Any = profile.profiler.kineto_results  # pyright: ignore
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    return int(np.cumsum([size for _, size in events]).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "micro_batch"),
    [
        (tokenizer("photos-dual"), 4),
        (tokenizer("cifar10-triple", discriminator={"weight": 0.5}, train={"precision": "bf16"}), 4),
        (tokenizer("cifar10-vqgan", optimizer={"kind": "adam"}), 32),
        (generator("far-photos"), 16),
        (generator("far-small", k=3, size=4096, activation_checkpointing=True), 4),
    ],
    ids=["photos-dual", "cifar10-triple with a GAN", "cifar10-vqgan", "far-photos", "far-small, recomputing"],
)
def test_the_planned_peak_is_the_measured_one(config: Any, micro_batch: int) -> None:
    planned = steps.follow_one(config, micro_batch, gpu=False)
    assert planned.peak == pytest.approx(measured_peak(config, micro_batch), rel=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("config", [tokenizer(discriminator={"weight": 0.5}), generator(k=3)])
def test_the_planned_arithmetic_is_that_of_real_steps(config: Any) -> None:
    planned = steps.follow_one(config, 2, gpu=False)
    trainer, batches = real_trainer(config, 2)
    steps._start_optimizers(trainer.task)
    with FlopCounterMode(display=False) as counter:
        trainer.optimize(16, batches)
    assert planned.work[:, 0].sum() + planned.update[:, 0].sum() == counter.get_total_flops()


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_generators_arithmetic_has_a_closed_form(k: int) -> None:
    """Two FLOPs a weight and position forward and four backward; attention's products of all pairs of positions take
    2 products forward and 5 backward, with the scores made again."""
    config = generator("far-small", k=k, size=512)
    model = config.model
    n, d, hidden = model.num_positions, model.width, model.mlp_width
    block = 4 * d * d + 3 * d * hidden
    backbone = n * (model.depth * block + k * d * d)
    head = n * k * model.head_depth * block + n * k * d * 512
    attention = 2 * d * (model.depth * n * n + n * model.head_depth * k * k)
    found = steps.follow_one(config, 2)
    # the linear classifiers' forward pass makes their gradients, too: as much all in all
    expected = 6 * (backbone + head) + 7 * attention
    assert found.work[:, 0].sum() / 2 == pytest.approx(expected, rel=0.02)


def test_memory_by_kind_follows_from_the_numbers_of_weights() -> None:
    config = generator(ema_decay=0.99)
    step = steps.follow_one(config, 4, share=8)
    count = 4 * sum(p.numel() for p in FAR(config.model).parameters())
    for kind, copies in (("weights", 1), ("gradients", 1), ("average", 1), ("teachers", 0)):
        assert step.memory[kind] == pytest.approx(copies * count, rel=0.02), kind
    assert steps.follow_one(presets.child(config, optimizer={"kind": "adam"}), 4).memory["optimizer"] == pytest.approx(
        2 * count, rel=0.02
    )


def test_sharded_weights_are_an_eighth_on_each_of_eight_gpus() -> None:
    config = presets.child(generator(ema_decay=0.99), optimizer={"kind": "adam"})
    copied, sharded = (
        steps.follow_one(config, 4, 8),
        steps.follow_one(presets.child(config, train={"fsdp": True}), 4, 8),
    )
    for kind in ("weights", "optimizer", "average"):
        assert sharded.memory[kind] == pytest.approx(copied.memory[kind] / 8, rel=0.05), kind
    assert copied.memory["gradients"] == copied.gradients  # DDP's buckets are always there
    names = {name for name, _ in sharded.collectives}
    assert {"_allgather_base_", "_reduce_scatter_base_"} <= names
    gathered = sum(size for name, size in sharded.collectives if name == "_allgather_base_")
    scattered = sum(size for name, size in sharded.collectives if name == "_reduce_scatter_base_")
    weights = 4 * sum(p.numel() for p in FAR(config.model).parameters())
    assert scattered == pytest.approx(weights, rel=0.05)
    assert weights < gathered < 2.1 * weights  # forward, and again backward, but for the last block


@pytest.mark.slow
def test_activations_grow_with_the_micro_batch_and_shrink_when_they_are_computed_again() -> None:
    config = tokenizer("photos-dual", train={"precision": "bf16"})
    small, step = (steps.follow_one(config, each) for each in (4, 8))
    large = step.memory["activations"]
    assert 1.5 * small.memory["activations"] < large
    train = {"precision": "bf16", "activation_checkpointing": "all"}
    again = steps.follow_one(tokenizer("photos-dual", train=train), 8)
    assert again.memory["activations"] < 0.8 * large
    assert again.work[:, 0].sum() > step.work[:, 0].sum()


@pytest.mark.slow
def test_the_plan_chooses_the_largest_micro_batch_that_fits() -> None:
    config = generator("far-small", batch=64, precision="bf16")
    made = plan(config, PlanSettings(gpu="2.2:100:1000"))
    assert made.fits and 1 < made.micro_batch < 64
    assert made.accumulated * made.micro_batch == 64
    peaks = {row.micro_batch: row.peak for row in made.rows}
    assert peaks[made.micro_batch] <= made.card.usable < peaks[2 * made.micro_batch]
    (saving,) = made.savings
    assert saving.largest >= made.micro_batch and saving.work > 1 and saving.peak < peaks[made.micro_batch]
    told = notes(plan(config, PlanSettings(gpu="1.65:100:1000")))
    assert "warning: a micro-batch of 1 does not fit" in told and "no image fits" in told


def test_time_is_the_slower_of_arithmetic_and_memory() -> None:
    made = card("80:100:1000")
    work = np.array([[int(1e12), 10, HALF], [0, int(1e9), FLOAT], [int(1e12), int(1e3), FLOAT]])
    assert made.seconds(work) == pytest.approx(1e12 / 100e12 + 1e9 / 1e12 + 1e12 / (100e12 / 16))
    assert card("H100") is CARDS["h100"]
    assert made.memory * GIB == pytest.approx(80e9)


def test_collectives_cross_machines_at_the_networks_speed() -> None:
    inside = collective("sum", [10**9], 2, gpus=8, node=8, link=450, network=50)
    assert inside.seconds == pytest.approx(2 * (7 / 8 / 450 / 0.7 + 3 * 5e-6), rel=1e-6)
    outside = collective("sum", [10**9], 2, gpus=64, node=8, link=450, network=50)
    assert outside.seconds == pytest.approx(2 * (7 / 8 / 400 / 0.7 + 6 * 5e-6), rel=1e-6)
    assert collective("sum", [10**9], 1, gpus=2, node=1, link=450, network=50).seconds > inside.seconds


@pytest.mark.slow
def test_more_gpus_than_the_network_serves_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["plan", "far-tiny", "--gpus", "512", "--train.batch", "512", "--network", "0.01", "--data", "cifar10"]
    assert main(options) == 0
    told = capsys.readouterr().out
    assert "the network is the limit, 'gradients summed' before all" in told
    assert "far-tiny on 512 x H100 SXM" in told


@pytest.mark.slow
def test_a_checkpoint_takes_the_planned_place(tmp_path: Path) -> None:
    options = ["--data.source", "photos", "--train.batch", "1", "--train.precision", "float32", "--data.workers", "0"]
    small = [
        "--train.steps",
        "1",
        "--train.validate-every",
        "0",
        "--train.validation-images",
        "8",
        "--train.device",
        "cpu",
    ]
    assert main(["train-tokenizer", "photos-dual", "--run", str(tmp_path / "run"), *options, *small]) == 0
    assert main(["plan", "photos-dual", "--json", str(tmp_path / "plan.json"), *options]) == 0
    planned = json.loads((tmp_path / "plan.json").read_text())
    files = (tmp_path / "run" / "checkpoints").glob("*/*.safetensors")
    assert planned["disk"]["checkpoint"] == pytest.approx(sum(file.stat().st_size for file in files), rel=0.05)
    assert planned["micro_batch"] == 1 and planned["fits"] and planned["images"] > 0
    assert 0 < planned["hours"]["best"] <= planned["hours"]["usual"]


def test_a_stores_codes_take_the_planned_place() -> None:
    made = plan(presets.child(presets.get_generator("far-tiny"), train={"batch": 1}), PlanSettings(crops="flip"))
    assert made.images == 1_281_167
    assert made.disk["codes"] == 1_281_167 * (2 * 2 * 256 * 2 + 8)
    assert math.isclose(made.flops, made.to_json()["flops"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["dual-ds16", "--gpu", "h10"], "unknown --gpu 'h10'; did you mean"),
        (["dual-ds16", "--gpu", "80:0:1"], "GB:TFLOPS:GBPS"),
        (["dual-ds16", "--gpus", "3"], "train.batch 256 is no multiple"),
        (["dual-ds16", "--gpus", "2000"], "at most 1,024"),
        (["dual-ds16", "--gpus", "0"], "--gpus must be at least 1"),
        (["dual-ds16", "--network", "0"], "network must be above 0"),
        (["dual-ds17"], "unknown preset 'dual-ds17'"),
        (["dual-ds16", "--data", "nowhere"], "nowhere"),
        (["far-base", "--data", "nowhere"], "nowhere"),
        (["far-base", "--tokenizer", "dual"], "unknown preset 'dual'"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_other_files_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.json").write_text("{}")
    assert main(["plan", "far-tiny", "--json", str(tmp_path / "mine.json")]) == 2
    assert (tmp_path / "mine.json").read_text() == "{}"


@pytest.mark.slow
def test_a_preset_of_the_paper_is_followed_at_full_size() -> None:
    """With CLIP ViT-L/14, LPIPS and the GAN, none of whose weights are there."""
    step = steps.follow_one(presets.get("dual-ds16"), 4, 8)
    assert 1.5e12 < step.work[:, 0].sum() / 4 < 1.7e12
    weights = step.memory["weights"]
    assert weights == pytest.approx(4 * (150.4e6 + 2.77e6), rel=0.01)  # the tokenizer's and the discriminator's
    assert step.memory["gradients"] == pytest.approx(weights, rel=0.01)
    assert step.memory["optimizer"] == pytest.approx(2 * weights, rel=0.01)
    assert step.memory["teachers"] == pytest.approx(2 * 303e6 + 4 * 14.7e6, rel=0.02)  # CLIP in bf16, VGG-16
    assert step.peak < CARDS["h100"].usable / 4
