"""Named configurations. Each is one diff from its parent."""

from __future__ import annotations

from dataclasses import replace as but
from typing import Any

from fqgan.config import FactorConfig, TokenizerRunConfig, did_you_mean
from fqgan.errors import UserError

CLIP_L, CLIP_B = "clip:openai/clip-vit-large-patch14", "clip:openai/clip-vit-base-patch16"
DINO_S = "dinov2:facebook/dinov2-small"


def child(parent: TokenizerRunConfig, **changes: dict[str, Any]) -> TokenizerRunConfig:
    """A copy of `parent` with fields of its sections changed: child(p, model={"stem": 2}, train={"batch": 8})."""
    return but(parent, **{section: but(getattr(parent, section), **fields) for section, fields in changes.items()})


DS8 = {"channel_multipliers": (1, 2, 2, 4)}

DUAL_DS16 = child(TokenizerRunConfig(), data={"upscale": True})
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

# Small models for small images; the teacher and the perceptual distance ship in a package.
PHOTOS_DUAL = child(
    DUAL_DS16,
    model={
        "image_size": 64,
        "stem": 2,
        "channels": 64,
        "channel_multipliers": (1, 2, 2),
        "res_blocks": 1,
        "z_channels": 64,
        "factors": (
            FactorConfig("visual", 1024, adapter_depth=1),
            FactorConfig("semantic", 1024, adapter_depth=1, teacher="efficientnet-lite0@96"),
        ),
        "feature_head_width": 128,
        "feature_head_depth": 1,
    },
    data={"source": "photos", "upscale": False, "workers": 1},
    loss={"perceptual": "efficientnet-lite0"},
    discriminator={"weight": 0.0},
    optimizer={"lr": 1e-3, "schedule": "cosine", "warmup_steps": 50},
    train={
        "batch": 32,
        "epochs": 0.0,
        "steps": 1000,
        "ema_decay": 0.99,
        "log_every": 20,
        "validate_every": 200,
        "image_every": 500,
        "checkpoint_every": 500,
    },
)

PRESETS = {
    "photos-dual": PHOTOS_DUAL,
    "dual-ds16": DUAL_DS16,
    "dual-ds8": DUAL_DS8,
    "triple-ds16": TRIPLE_DS16,
    "triple-ds8": TRIPLE_DS8,
    "vqgan-ds16": VQGAN_DS16,
    "vqgan-ds16-32k": VQGAN_DS16_32K,
}


def get(name: str) -> TokenizerRunConfig:
    """The preset of a name; `UserError` that names the nearest one otherwise."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)} (presets: {', '.join(PRESETS)})")
    return PRESETS[name]
