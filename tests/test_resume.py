"""Exact resume, kills at bad moments, and ranks: through the real command line, in processes of their own."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import IN_FLOAT64, finish, on_two_ranks, start
from runs import (
    STEPS,
    TRAINING,
    assert_alike,
    assert_same,
    command,
    contents,
    killed_and_resumed,
    lines,
    stopped_by,
)

from fqgan.config import FactorConfig, TokenizerRunConfig
from fqgan.config.presets import child

QUANTIZER_OPTIONS = {"gradient": "rotation", "ema_decay": 0.9, "restart_after": 1, "kmeans_iterations": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(12):
        yy, xx = np.mgrid[0:40, 0:48] / 40
        waves = np.stack([np.sin((3 + i) * xx + c) + np.cos((2 + i) * yy - c) for c in range(3)], -1)
        pixels = 128 + 50 * waves + rng.normal(0, 8, waves.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def everything(pictures: Path) -> TokenizerRunConfig:
    """GAN, entropy, InfoNCE, EMA, augmentation, dropout, changed codes, accumulation and workers, at once and tiny."""
    return child(
        TokenizerRunConfig(),
        model={
            "image_size": 32,
            "channels": 32,
            "channel_multipliers": (1, 1, 1),
            "res_blocks": 1,
            "z_channels": 32,
            "dropout": 0.1,
            "adapter_head_dim": 16,
            "feature_head_width": 32,
            "feature_head_depth": 1,
            "factors": (
                FactorConfig("visual", 32, 4, 1),
                FactorConfig("semantic", 48, 4, 1, teacher="efficientnet-lite0@32"),
            ),
        },
        data={"source": str(pictures), "workers": 2},
        loss={"perceptual": "efficientnet-lite0"},
        latent={"perturb_share": 0.3, "perturb_neighbours": 4, "mask_share": 0.5},
        discriminator={"start": 2, "channels": 32, "layers": 2},
        optimizer={"warmup_steps": 2, "schedule": "cosine"},
        train=TRAINING,
    )


@pytest.fixture(scope="module")
def uninterrupted(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "straight"
    finish(start(command(everything(pictures), run)))
    return run


def test_everything_is_on(uninterrupted: Path) -> None:
    files = (uninterrupted / "checkpoints" / f"step-{STEPS:08d}").glob("*.safetensors")
    stems = {"discriminator", "discriminator-optimizer", "ema", "statistics", "tokenizer", "tokenizer-optimizer"}
    assert {file.stem for file in files} - {"extra"} == stems
    line = lines(uninterrupted)[-1]
    for term in ("reconstruction", "perceptual", "codebook", "commitment", "entropy", "disentangle", "representation"):
        assert np.isfinite(line[f"{term}_loss"])
    assert np.isfinite(line["gan_loss"]) and np.isfinite(line["discriminator_loss"])
    assert "gan_loss" not in lines(uninterrupted)[1] and "gan_loss" in lines(uninterrupted)[2]


def test_kill_at_a_random_moment(uninterrupted: Path, pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    killed_and_resumed(command(everything(pictures), run), run, after="step-00000003")
    assert_same(run, uninterrupted)


DIE_WHILE_SAVING = """
import os, signal, sys
import fqgan.engine.checkpoint as checkpoint
from fqgan.cli import main
whole = checkpoint.save_file
def save_file(tensors, path):
    whole(tensors, path)
    if "step-00000006" in str(path) and path.name.startswith("ema"):
        with open(path, "r+b") as file:
            file.truncate(100)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = save_file
main(sys.argv[1:])
"""


def test_kill_while_a_checkpoint_is_written(uninterrupted: Path, pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    arguments = command(everything(pictures), run)
    process = start(arguments, code=DIE_WHILE_SAVING)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in sorted((run / "checkpoints").glob("step-*"))] == ["step-00000003"]
    assert "at step 3" in finish(start(arguments))
    assert_same(run, uninterrupted)
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_then_stop(uninterrupted: Path, pictures: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "stopped"
    config = everything(pictures)
    config = replace(config, train=replace(config.train, checkpoint_every=100))
    stopped_by(number, command(config, run), run)
    finish(start(command(config, run)))
    assert_same(run, uninterrupted)


# all that the GAN can do; R1 in every second step of it
VARIANTS = {
    "kind": "stylegan",
    "layers": 3,
    "channels": 8,
    "loss": "non-saturating",
    "adaptive": True,
    "warmup_steps": 2,
    "lecam_weight": 0.1,
    "r1_weight": 10.0,
    "r1_every": 2,
}


@pytest.mark.slow
def test_exact_resume_with_the_gan_variants(pictures: Path, tmp_path: Path) -> None:
    """Every second step has R1, LeCam has its averages, and the weight is still rising when the first process ends."""
    gan = {**VARIANTS, "start": 1, "warmup_steps": 4}
    config = child(
        everything(pictures),
        discriminator=gan,
        latent={"perturb_anneal": False},
        optimizer={"schedule": "constant"},
        data={"workers": 0},
    )
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    finish(start(command(config, straight)))
    finish(start(command(config, resumed, "--train.steps", "3")))
    assert "at step 3" in finish(start(command(config, resumed)))
    assert_same(resumed, straight)
    assert [line["step"] for line in lines(straight) if "r1_loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines(straight) if "lecam_loss" in line] == [3, 4, 5, 6]
    assert contents(straight, STEPS)["discriminator/logit_means"].abs().min() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gan", "quantizer", "lanes"),
    [({"norm": "group"}, {}, 1), (VARIANTS, {}, 1), ({"norm": "group"}, QUANTIZER_OPTIONS, 2)],
    ids=["plain", "gan variants", "quantizer options and lanes"],
)
def test_two_ranks_equal_one_process(
    pictures: Path, tmp_path: Path, gan: dict[str, Any], quantizer: dict[str, Any], lanes: int
) -> None:
    """Entropy, InfoNCE and the GAN's adaptive weight act on the global micro-batch: two ranks of 4 images are one
    process of 8. R1's second derivatives and LeCam's averages meet over ranks too."""
    visual, semantic = everything(pictures).model.factors
    config = child(
        everything(pictures),
        model={"dropout": 0.0, "factors": (visual, replace(semantic, codebook_size=192))},  # some of them die
        discriminator={**gan, "start": 1},
        quantizer=quantizer,
        latent={"perturb_share": 0.0, "mask_share": 0.0},
        train={"micro_batch": 0, "steps": 3, "checkpoint_every": 1, "validate_every": 3, "validation_images": 6},
        data={"workers": 0, "validation": str(pictures), "lanes": lanes},
    )
    alone, together = tmp_path / "alone", tmp_path / "together"
    finish(start(command(config, alone), code=IN_FLOAT64))
    assert "2 x cpu" in on_two_ranks(command(config, together), code=IN_FLOAT64)
    assert_alike(alone, together)
    assert {"gan_loss", "val_psnr", "val_semantic_usage"} <= lines(together)[-1].keys()
    if gan is VARIANTS:
        assert "r1_loss" in lines(together)[1] and "lecam_loss" in lines(together)[2]
        assert lines(together)[2]["gan_weight"] not in (0, 0.25), "half of the weight, times the adaptive factor"
    assert not quantizer or any(line["semantic_restarted"] for line in lines(together))
    before, a, b = contents(alone, 1), contents(alone, 3), contents(together, 3)
    for network in ("tokenizer/", "discriminator/"):
        names = [name for name in a if name.startswith(network)]
        moved = torch.cat([(a[name] - before[name]).flatten() for name in names])
        apart = torch.cat([(a[name] - b[name]).flatten() for name in names])
        assert moved.norm() > 0 and apart.norm() < 1e-6 * moved.norm(), network


def test_a_finished_run_stays_as_it_is(uninterrupted: Path, pictures: Path) -> None:
    stats = (uninterrupted / "stats.jsonl").read_bytes()
    output = finish(start(command(everything(pictures), uninterrupted)))
    assert "already done" in output
    assert (uninterrupted / "stats.jsonl").read_bytes() == stats


def test_more_steps_go_on_from_the_end(uninterrupted: Path, pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "longer"
    finish(start(command(everything(pictures), run, "--train.steps", "4")))
    finish(start(command(everything(pictures), run, "--train.steps", "5")))
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5]
    state = json.loads((run / "checkpoints" / "step-00000005" / "state.json").read_text())
    assert state["images_seen"] == 40
