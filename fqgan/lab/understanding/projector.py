"""The projector from pictures' features into a frozen language model, the only thing that is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fqgan.config import ProjectorRunConfig
from fqgan.data.order import SampleStream
from fqgan.engine.distributed import World
from fqgan.engine.optim import make_optimizer
from fqgan.engine.run import RunFolder
from fqgan.engine.session import session, train
from fqgan.engine.sizes import share_of
from fqgan.engine.speed import autocast
from fqgan.engine.task import Phase, Task
from fqgan.lab.understanding.banks import ScaledFeatures
from fqgan.lab.understanding.captions import CaptionSet
from fqgan.lab.understanding.language import LanguageModel

NAME = "projector"
Batch = tuple[Tensor, list[list[int]]]


class Projector(nn.Module):
    """Features (b, positions, channels) -> vectors (b, positions, width): two layers with a GELU between them, as in
    LLaVA 1.5, or one."""

    def __init__(self, kind: str, channels: int, width: int):
        super().__init__()
        layers = [nn.Linear(channels, width)]
        if kind == "mlp":
            layers += [nn.GELU(), nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """As the class says."""
        return self.layers(features)


class ProjectorTask(Task):
    """Captions after pictures; a sample is a picture with one of its captions."""

    def __init__(
        self,
        config: ProjectorRunConfig,
        world: World,
        language: LanguageModel,
        features: ScaledFeatures,
        captions: CaptionSet,
        content: dict[str, Any],
    ):
        self.config, self.world, self.language, self.features = config, world, language, features
        self.content = content
        texts = [text for several in captions.captions for text in several]
        self.tokens = language.caption_tokens(texts)
        self.pictures = [i for i, several in enumerate(captions.captions) for _ in several]
        torch.manual_seed(config.train.seed)
        projector = Projector(config.model.projector, len(features.channels), language.width).to(world.device)
        self.phases = [Phase(NAME, projector, make_optimizer(projector, config.optimizer), self._loss)]

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Features and captions' tokens of a rank, from a step on."""
        train = self.config.train
        stream = SampleStream([len(self.pictures)], train.seed, 1)
        for keys in stream.batches(**share_of(train, self.world, start_step)):
            pairs = [index for _, index in keys]
            features = self.features.take([self.pictures[pair] for pair in pairs])
            yield features.to(self.world.device), [self.tokens[pair] for pair in pairs]

    def _loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        features, captions = batch
        with autocast(self.world.device, self.config.train.precision):
            sums, counts = self.language.losses(network(features), captions)
        loss = sums.sum() / counts.sum()
        return loss, {"loss": loss.detach()}

    def data_fingerprint(self) -> dict[str, Any]:
        """What the samples depend on."""
        return self.content

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Nothing: the test captions are read once, in the end."""
        return {}

    def picture(self, model: nn.Module, path: Path) -> None:
        """There is none of captions."""


def train_projector(
    config: ProjectorRunConfig,
    language: LanguageModel,
    features: ScaledFeatures,
    captions: CaptionSet,
    content: dict[str, Any],
    run: Path,
) -> Projector:
    """Train, or go on training, the run in folder `run`.

    Args:
        content: what the samples depend on, JSON-ready; a run refuses to go on with another.
    """
    config.check()
    with session(config.train) as world:
        task = ProjectorTask(config, world, language, features, captions, content)
        train(task, RunFolder(run, config), world, len(task.pictures))
        return task.phases[0].module.eval()  # pyright: ignore[reportReturnType]


@torch.inference_mode()
def write_captions(
    projector: Projector, language: LanguageModel, features: ScaledFeatures, *, batch: int, beams: int, tokens: int
) -> Iterator[list[str]]:
    """Captions of all pictures, a batch at a time."""
    for pictures in _batches(len(features), batch):
        vectors = projector(features.take(pictures).to(language.device))
        yield language.write(vectors, beams, tokens)


@torch.inference_mode()
def mean_loss(
    projector: Projector, language: LanguageModel, features: ScaledFeatures, captions: Sequence[str], batch: int
) -> float:
    """Cross-entropy in nats a token of one caption for each picture, its end included."""
    total = count = 0.0
    for pictures in _batches(len(features), batch):
        tokens = language.caption_tokens([captions[i] for i in pictures])
        sums, counts = language.losses(projector(features.take(pictures).to(language.device)), tokens)
        total, count = total + sums.sum().item(), count + counts.sum().item()
    return total / count


def _batches(count: int, batch: int) -> Iterator[list[int]]:
    return (list(range(start, min(start + batch, count))) for start in range(0, count, batch))
