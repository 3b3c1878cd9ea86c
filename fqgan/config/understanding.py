"""Configuration of the study of understanding: a small language model, and the projector into one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fqgan.base.errors import UserError
from fqgan.config.ranges import check_ranges, setting
from fqgan.config.training import OptimizerConfig, TrainConfig

Feature = Literal["continuous", "discrete", "network", "blind"]
"""What a language model reads of a picture: a tokenizer's features before quantization; its codes' embeddings; the
packaged EfficientNet's map; zeros."""
IMAGE = "<image>"
"""Where a prompt has the picture."""


@dataclass(frozen=True)
class LanguageConfig:
    """A small Phi (transformers) whose tokens are words."""

    width: int = setting(128, least=1)
    depth: int = setting(2, least=1, most=1000)
    """Blocks."""
    heads: int = setting(4, least=1)
    dropout: float = setting(0.1, below=1)
    min_count: int = 2
    """How often a word occurs in the captions, at least; rarer ones are unknown."""

    def check(self) -> None:
        """Raise `UserError` for a model that cannot be built."""
        check_ranges(self, "model.")
        if self.width % self.heads or self.width // self.heads % 4:
            raise UserError(
                f"model.width {self.width} must be a multiple of 4 times model.heads ({self.heads}), for the rotary "
                "positions"
            )


@dataclass(frozen=True)
class LanguageRunConfig:
    """The training of the small language model on captions. The defaults take minutes on a CPU core (LOG.md)."""

    model: LanguageConfig = field(default_factory=LanguageConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=2e-3, schedule="cosine", warmup_steps=50, weight_decay=0.1)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            batch=16,
            steps=800,
            precision="float32",
            log_every=50,
            image_every=0,
            validate_every=200,
            checkpoint_every=100,
            keep_last=1,
        )
    )

    def check(self) -> None:
        """Raise `UserError` for settings that contradict each other."""
        self.model.check()
        check_ranges(self)


@dataclass(frozen=True)
class ProjectorConfig:
    """What is read of a picture, and how it is brought into a language model."""

    feature: Feature = "continuous"
    factors: tuple[int, ...] = ()
    """Of `continuous` and `discrete`: those whose channels are joined at each position."""
    projector: Literal["mlp", "linear"] = "mlp"
    """mlp: two layers with a GELU between them, as in LLaVA 1.5."""
    prompt: str = f"{IMAGE}\n"
    """What stands before a caption."""


@dataclass(frozen=True)
class ProjectorRunConfig:
    """The training of a projector: LLaVA's first stage, with its rate and schedule."""

    model: ProjectorConfig = field(default_factory=ProjectorConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-3, beta2=0.999, schedule="cosine", warmup_steps=20)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            batch=256, epochs=1, log_every=20, image_every=0, validate_every=0, checkpoint_every=100, keep_last=1
        )
    )

    def check(self) -> None:
        """Raise `UserError` for settings that contradict each other."""
        check_ranges(self)
        if self.model.prompt.count(IMAGE) != 1:
            raise UserError(f"the prompt must hold {IMAGE} once, got {self.model.prompt!r}")
        if not self.train.steps and not self.train.epochs:
            raise UserError("train.steps and train.epochs are both 0: set one of them")


TINY_PROJECTOR = ProjectorRunConfig(
    optimizer=OptimizerConfig(lr=2e-3, beta2=0.999, schedule="cosine", warmup_steps=20, weight_decay=0.05),
    train=TrainConfig(
        batch=16,
        steps=600,
        precision="float32",
        log_every=50,
        image_every=0,
        validate_every=0,
        checkpoint_every=100,
        keep_last=1,
    ),
)
"""For the small language model, on one CPU core."""
