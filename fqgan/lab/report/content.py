"""Everything that the page tells about a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fqgan.config import GeneratorRunConfig, TokenizerRunConfig
from fqgan.lab.report.evidence import Evidence

Numbers = dict[str, Any]


@dataclass(frozen=True)
class Generation:
    """A generator on the tokenizer's codes, its pictures and their scores."""

    preset: str
    run: str
    """The run folder."""
    config: GeneratorRunConfig
    parameters: int
    steps: int
    """Optimizer steps behind the weights."""
    stats: list[Numbers]
    """The lines of its stats.jsonl."""
    factors: list[str]
    names: list[str]
    """The classes."""
    real: list[Tensor]
    """Of each class: real crops (n, 3, H, W) in [-1, 1]."""
    samples: list[Tensor]
    """Of each class: generated images (m, 3, H, W), not clipped."""
    evaluation: Numbers
    """Scores of the `samples`, of an `untrained` generator's, of `reconstructions`, `real` and `held_out` crops."""


@dataclass(frozen=True)
class Report:
    """A run, its evaluation and its pictures."""

    preset: str
    command: str
    """As it was typed."""
    run: str
    """The run folder."""
    config: TokenizerRunConfig
    parameters: int
    training_parameters: int
    """Those of the `parameters` that only training uses: the feature-prediction heads."""
    device: str
    steps: int
    """Optimizer steps behind the weights."""
    steps_before: int
    """Those of them that were done before this command."""
    command_seconds: float
    """Wall time of this command."""
    evaluation: Numbers
    """`eval.json`: `images`, and the scores of the `tokenizer` and the `baseline`."""
    stats: list[Numbers]
    """The lines of stats.jsonl."""
    evidence: Evidence
    generation: Generation | None = None

    @property
    def tokenizer(self) -> Numbers:
        """Scores of the tokenizer."""
        return self.evaluation["tokenizer"]

    @property
    def baseline(self) -> Numbers:
        """Scores of the mean-colour baseline."""
        return self.evaluation["baseline"]

    @property
    def factor_names(self) -> list[str]:
        """The factors, in order."""
        return [factor.name for factor in self.config.model.factors]

    @property
    def patch(self) -> str:
        """Pixels of one position, as `8×8`."""
        return f"{self.config.model.downsampling}×{self.config.model.downsampling}"

    @property
    def codebooks(self) -> str:
        """`2 × 1,024`, or `1,024 + 512` where the sizes differ."""
        sizes = [factor.codebook_size for factor in self.config.model.factors]
        if len(set(sizes)) == 1:
            return f"{len(sizes)} × {sizes[0]:,}"
        return " + ".join(f"{size:,}" for size in sizes)

    @property
    def bits_per_position(self) -> float:
        """What the codes of one position take at most."""
        return sum(math.log2(factor.codebook_size) for factor in self.config.model.factors)

    @property
    def bits_per_image(self) -> float:
        """What the codes of one image take at most."""
        return self.bits_per_position * self.config.model.grid**2

    @property
    def trained_on_the_judge(self) -> bool:
        """Whether training minimised the very perceptual distance that the page reports."""
        return self.config.loss.perceptual == "efficientnet-lite0" and self.config.loss.perceptual_weight > 0


def training_seconds(stats: list[Numbers]) -> float:
    """Seconds behind the logged steps, validations included.

    From the logged rates, so it holds however often the run was interrupted: work that was lost is not counted.
    """
    seconds, seen = 0.0, 0
    for line in stats:
        if line["images_per_second"] > 0:
            seconds += (line["images_seen"] - seen) / line["images_per_second"]
        seen = line["images_seen"]
    return seconds
