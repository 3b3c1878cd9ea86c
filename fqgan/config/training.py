"""Optimizer, schedule and bookkeeping: what every training run sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fqgan.base.errors import UserError
from fqgan.config.devices import Device
from fqgan.config.ranges import check_ranges, setting


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule, in steps."""

    CHANGEABLE = True

    kind: Literal["adam", "muon"] = setting("adam", changeable=False)
    """adam: the paper's optimizer. muon: orthogonal updates for the hidden matrices and Adam for the rest, which needs
    far fewer steps."""
    lr: float = setting(2e-4, positive=True)
    beta1: float = setting(0.9, below=1)
    beta2: float = setting(0.95, below=1)
    momentum: float = setting(0.95, below=1)
    """Nesterov momentum of the matrices that Muon updates."""
    schedule: Literal["constant", "cosine", "cooldown"] = "constant"
    """Learning rate after the warm-up: constant; falling to `final_lr` along half a cosine; or constant and in the last
    steps falling there along a line (Hu et al. 2024, Hägele et al. 2024)."""
    cooldown: float = setting(0.2, most=1)
    """Share of the steps in which the learning rate falls, for the schedule `cooldown`."""
    warmup_steps: int = 0
    """Number of steps in which the learning rate rises linearly to `lr`."""
    final_lr: float = 0.0
    """Learning rate at the end of a schedule that falls, as a fraction of `lr`."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW) of all tensors with two or more dimensions, embedding tables included. Biases and
    norms are not decayed."""
    clip: float = 1.0
    """Largest gradient norm; the discriminator's gradient is clipped separately. 0: no clipping."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch, precision and bookkeeping of a training run."""

    CHANGEABLE = True

    batch: int = setting(256, least=1, most=2**32, changeable=False)
    """Number of images (or of images' codes) in one optimizer step, over all ranks."""
    micro_batch: int = setting(0, most=2**32)
    """Number of images that one rank holds at a time; 0: batch / ranks. batch must be a multiple of micro_batch *
    ranks."""
    epochs: float = 40
    """Number of passes over the data; converted to steps when training starts."""
    steps: int = 0
    """Number of optimizer steps; 0: computed from `epochs`."""
    precision: Literal["bf16", "float32"] = "bf16"
    """Precision of the networks (autocast); quantizer and losses always use float32."""
    compile: bool = False
    """Compile the networks with torch.compile, which needs a C++ compiler on a CPU."""
    ema_decay: float = setting(0.0, below=1, changeable=False)
    """Decay per step of the weights' moving average; 0: no moving average."""
    seed: int = setting(0, changeable=False)
    """Seed of weights, sample order and all that is drawn in training."""
    device: Device = "auto"
    deterministic: bool = False
    """Use deterministic kernels on a GPU, so that a run resumes bit for bit there."""
    skip_nonfinite: int = 0
    """How many steps in a row may be skipped (and counted) because a loss or gradient is not finite. One more stops the
    training."""
    log_every: int = setting(50, least=1)
    """Number of steps between two lines of stats.jsonl."""
    image_every: int = 1000
    """Number of steps between two pictures of reconstructions or samples; 0: a picture after the last step only."""
    validate_every: int = 5000
    """Number of steps between two validations; 0: a validation after the last step only."""
    validation_images: int = 2048
    """Largest number of images in one validation."""
    checkpoint_every: int = setting(5000, least=1)
    """Number of steps between two checkpoints; the last step is always saved."""
    keep_last: int = setting(2, least=1)
    """Number of newest checkpoints that are kept."""
    wandb: str = ""
    """Project on Weights & Biases that the run logs to (needs the package wandb); empty: none."""


def check_run(config: Any) -> None:
    """`UserError` for the first setting of a training run outside its range, and for a run without a length."""
    check_ranges(config)
    if not config.train.steps and not config.train.epochs:
        raise UserError("train.steps and train.epochs are both 0: set one of them")
