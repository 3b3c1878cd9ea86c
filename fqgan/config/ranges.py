"""The range that each number of a configuration must lie in."""

from __future__ import annotations

import math
import re
from typing import Any

from fqgan.base.errors import UserError
from fqgan.base.schema import LARGEST, digits, flatten

# what numbers may be; all others must be at least 0
_AT_LEAST_1 = re.compile(
    r"model\.(image_size|stem|channels|channel_multipliers|res_blocks|z_channels|adapter_head_dim|feature_head_depth|"
    r"feature_head_heads|factors\.\d+\.(codebook_size|code_dim)|"
    r"codebook_sizes|grid|width|depth|heads|mlp_multiple|head_depth)|"
    r"data\.(window|lanes)|"
    r"discriminator\.(channels|layers|r1_every)|"
    r"train\.(batch|log_every|checkpoint_every|keep_last|sample_images)"
)
_ABOVE_0 = (
    "loss.entropy_temperature",
    "loss.representation_temperature",
    "model.norm_eps",
    "model.rope_base",
    "optimizer.lr",
)
_BELOW_1 = (
    "data.jitter",
    "data.max_unreadable",
    "model.class_dropout",
    "model.dropout",
    "discriminator.lecam_decay",
    "optimizer.beta1",
    "optimizer.beta2",
    "optimizer.momentum",
    "quantizer.ema_decay",
    "train.ema_decay",
)
# larger integers, from a broken file, would keep a machine busy before anything is compared
_AT_MOST = (
    (re.compile(r"model\.(res_blocks|feature_head_depth|depth|head_depth|factors\.\d+\.adapter_depth)"), 1000),
    (re.compile(r"model\.channel_multipliers"), 2**10),
    (re.compile(r"model\.(codebook_sizes|num_classes|mlp_multiple|factors\.\d+\.codebook_size)"), 2**24),
    (re.compile(r"model\..*"), 2**16),
    # what is started or kept in memory as often
    (re.compile(r"data\.workers"), 2**10),
    (re.compile(r"data\.lanes|data\.window|train\.sample_images"), 2**16),
    (re.compile(r"train\.batch|train\.micro_batch"), 2**32),
    (re.compile(r".*"), LARGEST - 1),
)
_ENTRIES = 1000


def check_ranges(config: Any, prefix: str = "") -> None:
    """`UserError` for the first number outside its range; infinity and not-a-number are outside every range."""
    for leaf, value in flatten(config).items():
        name = prefix + leaf
        if isinstance(value, tuple) and len(value) > _ENTRIES:
            raise UserError(f"{name} has {len(value)} entries, at most {_ENTRIES} make sense")
        most = next(limit for names, limit in _AT_MOST if names.fullmatch(name))
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str):
                continue
            if isinstance(number, int) and number > most:
                raise UserError(f"{name} must be at most {most}, got {digits(number)}")
            low, high = int(bool(_AT_LEAST_1.fullmatch(name))), 1 if name in _BELOW_1 else math.inf
            if not low <= number < high or (name in _ABOVE_0 and not number):
                rule = "above 0" if name in _ABOVE_0 else f"at least {low}" + (" and below 1" if high == 1 else "")
                raise UserError(f"{name} must be {rule}, got {number}")


def at_least(smallest: int, **values: int) -> None:
    """`UserError` that names the first option below `smallest`."""
    for name, value in values.items():
        if value < smallest:
            raise UserError(f"--{name} must be at least {smallest}, got {value}")
        if value >= LARGEST:
            raise UserError(f"--{name} must be below 2^63, got {digits(value)}")
