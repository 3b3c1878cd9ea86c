"""Optimizer, schedule and bookkeeping: what every training run sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fqgan.config.ranges import setting


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule, in steps."""

    CHANGEABLE = True

    kind: Literal["adam", "muon"] = setting("adam", changeable=False)
    """adam: the paper's. muon: orthogonal updates of the hidden matrices and Adam for the rest, in far fewer steps."""
    lr: float = setting(2e-4, positive=True)
    beta1: float = setting(0.9, below=1)
    beta2: float = setting(0.95, below=1)
    momentum: float = setting(0.95, below=1)
    """Nesterov momentum of Muon's matrices."""
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    final_lr: float = 0.0
    """Where the cosine ends, as a fraction of `lr`."""
    weight_decay: float = 0.0
    """Decoupled decay (AdamW) of all tensors of two and more dimensions, embedding tables among them; biases and norms
    have none."""
    clip: float = 1.0
    """Largest gradient norm (of generator and discriminator each); 0: no clipping."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch, precision and bookkeeping of a training run."""

    CHANGEABLE = True

    batch: int = setting(256, least=1, most=2**32, changeable=False)
    """Images (codes of images) of one optimizer step over all ranks."""
    micro_batch: int = setting(0, most=2**32)
    """Images of a rank at a time; 0: batch / ranks. batch must be a multiple of micro_batch * ranks."""
    epochs: float = 40
    """Passes over the data; converted to steps once."""
    steps: int = 0
    """Optimizer steps; 0: from `epochs`."""
    precision: Literal["bf16", "float32"] = "bf16"
    """Autocast of the networks; quantizer and losses are float32 always."""
    compile: bool = False
    """torch.compile of the networks; needs a C++ compiler on a CPU."""
    ema_decay: float = setting(0.0, below=1, changeable=False)
    """Decay of the weights' moving average a step; 0: none."""
    seed: int = setting(0, changeable=False)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False
    """Deterministic kernels on a GPU, for bit-exact resume there."""
    skip_nonfinite: int = 0
    """Steps in a row that may be left out, and are counted, where a loss or gradient is not finite; one more stops the
    training."""
    log_every: int = setting(50, least=1)
    """Steps between lines of stats.jsonl."""
    image_every: int = 1000
    """Steps between pictures of reconstructions or samples; 0: after the last step only."""
    validate_every: int = 5000
    """Steps between validations; 0: after the last step only."""
    validation_images: int = 2048
    """Images of one validation at most."""
    checkpoint_every: int = setting(5000, least=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = setting(2, least=1)
    """Checkpoints kept."""
    wandb: str = ""
    """Project to log to on Weights & Biases (needs the package wandb); empty: none."""
