"""The quickstart's second half: codes, a small generator on them, and what its samples are worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fqgan.base.errors import UserError
from fqgan.commands import extract
from fqgan.config import GeneratorRunConfig, presets

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fqgan.data.sources.photos import PhotoSource
    from fqgan.lab.report.content import Generation

PRESET = "far-photos"
SAMPLES = 400
"""Generated images of each class that are measured."""
REFERENCE = 2000
"""Real crops that everything is compared with, at most."""
SHOWN_REAL, SHOWN_SAMPLES = 4, 6
"""Pictures of each class on the page."""
BATCH = 100
"""Images at a time."""


def train_crops(images: int) -> PhotoSource:
    """The crops that the generator learns from, and is compared with: twice as many of each class as it is to generate,
    or all of them."""
    from fqgan.data.sources.photos import PhotoSource

    return PhotoSource("train", 2 * images)


def extract_codes(run: Path, device: str, precision: str, images: int) -> None:
    """Token stores of the photographs' training and held-out crops: `run/tokens/train` and `run/tokens/validation`."""
    from fqgan.data.sources.photos import PhotoSource
    from fqgan.tokenizer.model import load_tokenizer

    tokenizer = run / "tokenizer"
    fingerprint = load_tokenizer(tokenizer).fingerprint()
    for source in (train_crops(images), PhotoSource("validation")):
        out = run / "tokens" / source.split
        _check_same(out, fingerprint, run)
        options = ["--split", source.split, "--device", device, "--precision", precision, "--workers", "1"]
        extract.main([str(tokenizer), "--data", "photos", "--out", str(out), *options], source)


def _check_same(store: Path, fingerprint: str, run: Path) -> None:
    """`UserError` for codes of another tokenizer: that of an earlier, shorter trial in the same folder."""
    from fqgan.data.token_manifest import MANIFEST
    from fqgan.data.tokens import TokenStore

    if (store / MANIFEST).exists() and TokenStore.open(store).fingerprint != fingerprint:
        raise UserError(
            f"{store} holds the codes of the tokenizer before it was trained on: delete {run / 'tokens'} and "
            f"{run / 'generator'}, or choose another --run"
        )


def run_config(run: Path, device: str, precision: str, steps: int) -> GeneratorRunConfig:
    """The preset, or a trial of another length, on the two stores."""
    config = presets.trial(presets.get_generator(PRESET), steps, device=device, precision=precision)
    tokens = run / "tokens"
    return replace(config, data=str(tokens / "train"), validation=str(tokens / "validation"))


def evaluate(run: Path, device: torch.device, images: int) -> Generation:
    """Generate images of every class, and compare them, and others for scale, with real crops."""
    import torch

    from fqgan.base import schema
    from fqgan.config import SamplingConfig
    from fqgan.data.sources.photos import PhotoSource
    from fqgan.engine import checkpoint
    from fqgan.engine.run import read_stats
    from fqgan.engine.sizes import num_parameters
    from fqgan.generator.model import FAR, load_generator
    from fqgan.generator.sampler import Sampler
    from fqgan.lab.judge import Judge
    from fqgan.lab.report.content import Generation
    from fqgan.nets.efficientnet import load_efficientnet_lite0

    config = schema.load(GeneratorRunConfig, run / "config.json")
    precision = config.train.precision
    generator = load_generator(run, device, precision=precision)
    tokenizer, classes = generator.tokenizer, len(generator.label_names)
    train, held_out = train_crops(images), PhotoSource("validation")
    size = tokenizer.config.image_size
    crops = partial(real_crops, size=size, device=device)
    labels = torch.arange(classes).repeat(images or SAMPLES)
    # the reference takes every other crop at most, the real ones to compare with it stand between those
    count = min(REFERENCE, len(train) // 2)
    reference = [i * len(train) // count for i in range(count)]
    between = list(crops(train, [i + 1 for i in reference]))

    def decoded(codes: Tensor, of: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for part, own in zip(codes.split(BATCH), of.split(BATCH), strict=True):
            with torch.inference_mode():
                yield tokenizer.decode(part.to(device)), own

    def reconstructed(real: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, own in real:
            with torch.inference_mode():
                yield tokenizer.decode(tokenizer.encode(images)), own

    codes = Sampler(generator, BATCH, config.sampling)(labels, seed=0)
    torch.manual_seed(0)
    with torch.device(device):
        fresh = FAR(generator.config).eval().set_precision(precision)
    untrained = Sampler(fresh, BATCH, SamplingConfig(cfg_scale=(1.0,)))(labels, seed=0)
    judge = Judge(load_efficientnet_lite0().to(device), crops(train, reference), classes, device)
    evaluation = {
        "reference": f"{count} training crops of {size} pixels",
        "sampling": vars(config.sampling),
        "samples": judge.scores(decoded(codes, labels)),
        "untrained": judge.scores(decoded(untrained, labels)),
        "reconstructions": judge.scores(reconstructed(between)),
        "real": judge.scores(between),
        "held_out": judge.scores(crops(held_out, range(len(held_out)))),
    }
    real = [torch.cat([images for images, _ in crops(train, _spread(train, label))]).cpu() for label in range(classes)]
    shown = torch.cat(
        [images.cpu() for images, _ in decoded(codes[: SHOWN_SAMPLES * classes], labels[: SHOWN_SAMPLES * classes])]
    )
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    return Generation(
        preset=PRESET,
        run=str(run),
        config=config,
        parameters=num_parameters(generator),
        steps=checkpoint.step_of(newest),
        stats=read_stats(run),
        factors=[factor.name for factor in tokenizer.config.factors],
        names=list(generator.label_names),
        evaluation=evaluation,
        real=real,
        samples=[shown[label::classes] for label in range(classes)],
    )


def _spread(source: Any, label: int) -> list[int]:
    """A few evenly spaced pictures of a class."""
    own = [i for i, other in enumerate(source.labels) if other == label]
    return [own[(2 * i + 1) * len(own) // (2 * SHOWN_REAL)] for i in range(SHOWN_REAL)]


def real_crops(source: Any, indices: Sequence[int], size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of real crops (b, 3, size, size) in [-1, 1] with their classes."""
    import torch

    from fqgan.data.loader import EvaluationSet
    from fqgan.data.transforms import normalize

    crops = EvaluationSet(source, size)
    for start in range(0, len(indices), BATCH):
        part = [crops[i] for i in indices[start : start + BATCH]]
        yield normalize(torch.stack([image for image, _, _ in part]).to(device)), torch.tensor([one[1] for one in part])
