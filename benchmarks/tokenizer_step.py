"""A tokenizer's optimizer step, for benchmarks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor

from fqgan.config import TokenizerRunConfig
from fqgan.data.sources import ImageSource
from fqgan.engine.distributed import World
from fqgan.engine.run import RunFolder
from fqgan.engine.trainer import Trainer
from fqgan.nets.features import Teacher
from fqgan.nets.perceptual import PerceptualDistance
from fqgan.tokenizer.task import Batch, TokenizerTask


class TrainingStep:
    """One optimizer step of the real training loop, on fixed images (b, 3, H, W), which may be replaced."""

    def __init__(
        self,
        config: TokenizerRunConfig,
        source: ImageSource,
        teachers: dict[str, Teacher],
        perceptual: PerceptualDistance | None,
        images: Tensor,
    ):
        world = World(0, 1, images.device)
        self.task = TokenizerTask(config, world, source, None, teachers, perceptual)
        run = RunFolder(Path(tempfile.gettempdir(), "fqgan-benchmark-that-writes-nothing"), config)
        self.trainer = Trainer(self.task, run, world, 10**6, config.train, config.optimizer)
        self.show(images)
        self.step = 0

    def show(self, images: Tensor) -> None:
        """Go on with other images."""
        self.images = images.contiguous(memory_format=self.task._memory_format)

    def __call__(self) -> None:
        self.trainer.optimize(self.step, iter([Batch(self.images)]))
        self.step += 1
