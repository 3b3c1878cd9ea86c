"""Named configurations. Each is one diff from its parent.

`fqgan train-tokenizer photos-triple --run runs/triple` trains one; any field can be changed on the command line, such
as a factor's teacher: `--model.factors.1.teacher dinov2:/path/to/folder`. The presets of the paper (`dual-ds16` and so
on) need ImageNet, CLIP or DINOv2 and the LPIPS weights; `photos-*` run offline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as but
from typing import Any, TypeVar

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.config import FactorConfig, GeneratorRunConfig, TokenizerRunConfig

CLIP_L, CLIP_B = "clip:openai/clip-vit-large-patch14", "clip:openai/clip-vit-base-patch16"
DINO_S = "dinov2:facebook/dinov2-small"
Run = TypeVar("Run", TokenizerRunConfig, GeneratorRunConfig)
T = TypeVar("T")


def child(parent: Run, **changes: dict[str, Any]) -> Run:
    """A copy of `parent` with fields of its sections changed: child(p, model={"stem": 2}, train={"batch": 8})."""
    return but(parent, **{section: but(getattr(parent, section), **fields) for section, fields in changes.items()})


DS8 = {"channel_multipliers": (1, 2, 2, 4)}

DUAL_DS16 = TokenizerRunConfig()
DUAL_DS8 = child(DUAL_DS16, model=DS8)
TRIPLE_DS16 = child(
    DUAL_DS16,
    model={
        "factors": (
            FactorConfig("visual"),
            FactorConfig("mid", teacher=DINO_S),
            FactorConfig("high", teacher=CLIP_B),
        )
    },
)
TRIPLE_DS8 = child(TRIPLE_DS16, model=DS8)
VQGAN_DS16 = child(DUAL_DS16, model={"factors": (FactorConfig("visual", adapter_depth=0),)})
VQGAN_DS16_32K = child(VQGAN_DS16, model={"factors": (FactorConfig("visual", 32768, adapter_depth=0),)})

VQGAN_DS8 = child(VQGAN_DS16, model=DS8)

# Small models for small images: codes of fewer dimensions for fewer codes, a stem that spares full resolution, and a
# teacher and a perceptual distance that ship in a package. Tuned for minutes on two CPU cores (LOG.md).
SMALL_DUAL = child(
    DUAL_DS16,
    model={
        "image_size": 64,
        "stem": 4,
        "channels": 64,
        "channel_multipliers": (1, 2),
        "res_blocks": 1,
        "attention": False,
        "z_channels": 64,
        "feature_head_width": 128,
        "feature_head_depth": 1,
        "factors": (
            FactorConfig("visual", 1024, 4, adapter_depth=1),
            FactorConfig("semantic", 1024, 4, adapter_depth=1, teacher="efficientnet-lite0@64"),
        ),
    },
    data={"crop_min": 1.0, "workers": 1},
    loss={
        "perceptual": "efficientnet-lite0",
        "perceptual_weight": 0.3,
        "entropy_weight": 0.003,
        "disentangle_weight": 0.02,
        "representation_weight": 0.02,
    },
    discriminator={"weight": 0.0},
    optimizer={"kind": "muon", "lr": 3e-3, "schedule": "cosine", "warmup_steps": 50},
    train={
        "batch": 16,
        "epochs": 0.0,
        "steps": 1240,
        "ema_decay": 0.99,
        "log_every": 25,
        "image_every": 500,
        "validate_every": 310,
        "checkpoint_every": 310,
    },
)
# what generalises from ten photographs (docs/results.md, the quickstart)
PHOTOS_DUAL = child(
    SMALL_DUAL,
    data={"source": "photos", "crop_min": 0.7, "turn": True, "jitter": 0.1},
    loss={"perceptual_weight": 0.15},
    optimizer={"schedule": "cooldown", "cooldown": 0.4},
)
PHOTOS_DUAL_128 = child(PHOTOS_DUAL, model={"image_size": 128})
# Three levels as the paper's triple, offline: the middle factor learns a map halfway up the network whose end the
# semantic factor learns. Both teachers and the perceptual distance share one pass over the images.
PHOTOS_TRIPLE = child(
    PHOTOS_DUAL,
    model={
        "factors": (
            FactorConfig("visual", 1024, 4, adapter_depth=1),
            FactorConfig("mid", 1024, 4, adapter_depth=1, teacher="efficientnet-lite0:stage3@64"),
            FactorConfig("semantic", 1024, 4, adapter_depth=1, teacher="efficientnet-lite0@64"),
        )
    },
)
PHOTOS_VQGAN = child(PHOTOS_DUAL, model={"factors": (FactorConfig("visual", 2048, 4, adapter_depth=0),)})
CIFAR10_DUAL = child(SMALL_DUAL, model={"image_size": 32, "stem": 2}, train={"batch": 64, "steps": 0, "epochs": 20.0})
# More updates, paid for by a teacher that shares the perceptual distance's pass (docs/results.md)
CIFAR10_DUAL_NEXT = child(
    CIFAR10_DUAL,
    model={"factors": (SMALL_DUAL.model.factors[0], but(SMALL_DUAL.model.factors[1], teacher="efficientnet-lite0@32"))},
    train={"batch": 32},
)
CIFAR10_TRIPLE = child(CIFAR10_DUAL, model={"factors": PHOTOS_TRIPLE.model.factors})
CIFAR10_VQGAN = child(CIFAR10_DUAL, model={"factors": PHOTOS_VQGAN.model.factors})

PRESETS = {
    "photos-dual": PHOTOS_DUAL,
    "photos-dual-128": PHOTOS_DUAL_128,
    "photos-triple": PHOTOS_TRIPLE,
    "photos-vqgan": PHOTOS_VQGAN,
    "cifar10-dual": CIFAR10_DUAL,
    "cifar10-dual-next": CIFAR10_DUAL_NEXT,
    "cifar10-triple": CIFAR10_TRIPLE,
    "cifar10-vqgan": CIFAR10_VQGAN,
    "dual-ds16": DUAL_DS16,
    "dual-ds8": DUAL_DS8,
    "triple-ds16": TRIPLE_DS16,
    "triple-ds8": TRIPLE_DS8,
    "vqgan-ds16": VQGAN_DS16,
    "vqgan-ds16-32k": VQGAN_DS16_32K,
    "vqgan-ds8": VQGAN_DS8,
}

# Generators leave number and size of the codebooks, grid and classes to the token store: each fits a dual and a triple
# tokenizer alike.
FAR_BASE = GeneratorRunConfig()
FAR_LARGE = child(FAR_BASE, model={"width": 1280, "depth": 36, "heads": 20, "head_depth": 4})
FAR_SMALL = child(
    FAR_BASE,
    model={"width": 256, "depth": 6, "heads": 4, "head_depth": 1, "mlp_multiple": 64},
    optimizer={"lr": 1e-3, "schedule": "cosine", "warmup_steps": 50},
    train={"batch": 64, "ema_decay": 0.99},
)
FAR_TINY = child(FAR_SMALL, model={"width": 128, "depth": 4, "heads": 2})
# what gained in docs/results.md (the recipe of a generator)
FAR_TINY_NEXT = child(
    FAR_TINY,
    model={"heads": 4, "dropout": 0.0, "code_vectors": True, "target_positions": True},
    optimizer={"kind": "muon", "lr": 3e-3, "schedule": "cooldown", "cooldown": 0.4},
    train={"cluster_weight": 0.3},
)
# For the codes of `photos-dual`: minutes on two CPU cores (LOG.md).
FAR_PHOTOS = child(
    FAR_TINY_NEXT,
    sampling={"temperature": (0.8,)},
    train={
        "steps": 1100,
        "log_every": 25,
        "image_every": 400,
        "validate_every": 100,
        "validation_images": 240,
        "checkpoint_every": 200,
    },
)

GENERATOR_PRESETS = {
    "far-photos": FAR_PHOTOS,
    "far-tiny": FAR_TINY,
    "far-tiny-next": FAR_TINY_NEXT,
    "far-small": FAR_SMALL,
    "far-base": FAR_BASE,
    "far-large": FAR_LARGE,
}


def trial(preset: Run, steps: int, **train: Any) -> Run:
    """A preset with other settings of `train`; with `steps` above 0 it is of that length, and logged and validated
    often enough for curves."""
    if steps:
        train["steps"] = steps
        for name, times in (("log_every", 20), ("validate_every", 5)):
            train[name] = min(getattr(preset.train, name), max(1, steps // times))
    return child(preset, train=train)


def get(name: str) -> TokenizerRunConfig:
    """The tokenizer preset of a name, as `named`."""
    return named(PRESETS, name)


def get_generator(name: str) -> GeneratorRunConfig:
    """The generator preset of a name, as `named`."""
    return named(GENERATOR_PRESETS, name)


def named(presets: Mapping[str, T], name: str) -> T:
    """The preset of a name; `UserError` that names the nearest one otherwise."""
    if name not in presets:
        raise UserError(f"unknown preset {name!r}{did_you_mean(name, presets)} (presets: {', '.join(presets)})")
    return presets[name]
