"""Configuration of a classifier: a small network whose features measure images where no pretrained one should."""

from __future__ import annotations

from dataclasses import dataclass, field

from fqgan.base.errors import UserError
from fqgan.config.data import DataConfig
from fqgan.config.ranges import check_ranges, setting
from fqgan.config.training import OptimizerConfig, TrainConfig, check_run


@dataclass(frozen=True)
class ClassifierConfig:
    """A ResNet of basic blocks (He et al. 2016)."""

    image_size: int = setting(32, least=1)
    """Side of the input in pixels."""
    channels: int = setting(64, least=1)
    """Width of the first stage; each stage after it doubles the width and halves the resolution."""
    stem: int = setting(2, least=1)
    """Stride of the first convolution."""
    stages: int = 3
    """Number of stages."""
    res_blocks: int = setting(1, least=1, most=1000)
    """Number of residual blocks in each stage."""
    num_classes: int = setting(0, most=2**24)
    """Number of classes; 0: as many as the training data have."""

    @property
    def dim(self) -> int:
        """Dimensions of the pooled feature."""
        return self.channels * 2 ** (self.stages - 1)

    def check(self) -> None:
        """Raise `UserError` for an architecture that cannot be built."""
        check_ranges(self, "model.")
        if not self.stages:
            raise UserError("model.stages must be at least 1, got 0")
        if self.image_size < self.stem * 2 ** (self.stages - 1):
            raise UserError(f"model.image_size {self.image_size} is too small for model.stages {self.stages}")


@dataclass(frozen=True)
class ClassifierRunConfig:
    """A classifier's training run. The defaults are for pictures of CIFAR's size: minutes on two CPU cores (LOG.md)."""

    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    data: DataConfig = field(default_factory=lambda: DataConfig(workers=1))
    label_smoothing: float = setting(0.1, changeable=True)
    """Share of each target that is spread evenly over all classes."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig("muon", lr=2e-3, schedule="cosine", warmup_steps=50, weight_decay=0.02)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            batch=128,
            epochs=10,
            ema_decay=0.99,
            image_every=0,
            validate_every=400,
            validation_images=10_000,
            checkpoint_every=400,
        )
    )

    def check(self) -> None:
        """Raise `UserError` for settings that contradict each other."""
        self.model.check()
        check_run(self)
        if self.label_smoothing >= 1:
            raise UserError(f"label_smoothing must be below 1, got {self.label_smoothing}")
