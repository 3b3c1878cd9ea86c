"""The function behind `demo`."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import make_folder, write_text
from fqgan.config import GeneratorRunConfig
from fqgan.config.quickstart import DemoSettings
from fqgan.data.loader import EvaluationSet
from fqgan.data.sources.photos import PhotoSource
from fqgan.data.transforms import normalize
from fqgan.engine.distributed import World
from fqgan.generator.model import load_generator
from fqgan.generator.pictures import labelled_rows
from fqgan.metrics.psnr import psnr
from fqgan.tokenizer.pictures import reconstruction_rows, save_picture


@dataclass(frozen=True)
class Demo:
    """What was made."""

    reconstructions: Path
    """A picture: a column a held-out crop, a row each of `rows`."""
    rows: tuple[str, ...]
    """Original, reconstruction, each factor alone."""
    psnr: tuple[float, ...]
    """Of each crop's reconstruction, in dB."""
    samples: Path
    """A picture: generated images, a row a class."""
    generated: int
    """How many these are."""
    seconds: float
    """That drawing and decoding them took."""

    @property
    def mean_psnr(self) -> float:
        """Mean over the crops, in dB."""
        return sum(self.psnr) / len(self.psnr)


def demo(settings: DemoSettings, world: World) -> Demo:
    """Reconstruct a held-out crop of each packaged photograph and generate images of each class, with the models of a
    quickstart, into two pictures.

    Raises:
        UserError: where the quickstart has not made both models, or the folder cannot be written or holds pictures of
            somebody else.
    """
    settings.check()
    facts = settings.out / "demo.json"
    pictures = [settings.out / f"{name}.png" for name in ("reconstructions", "samples")]
    for path in pictures:
        if path.exists() and not facts.exists():
            raise UserError(f"--out {settings.out} holds a {path.name} of another origin: choose another folder")
    generator = load_generator(settings.generator, world.device)
    tokenizer = generator.tokenizer
    held_out = PhotoSource("validation", 3)
    crops = EvaluationSet(held_out, tokenizer.config.image_size)
    middle = range(1, len(held_out), 3)  # crops at the edge of a strip show less
    images = normalize(torch.stack([crops[i][0] for i in middle])).to(world.device)
    reconstructed = reconstruction_rows(tokenizer, tokenizer.encode(images))
    names = ("original", "reconstruction", *(f"{factor.name} alone" for factor in tokenizer.config.factors))
    began = time.monotonic()
    classes = len(generator.label_names)
    labels = torch.arange(classes).repeat_interleave(settings.num)
    sampling = schema.load(GeneratorRunConfig, settings.generator / "config.json").sampling
    with torch.inference_mode():
        samples = tokenizer.decode(generator.sampler(len(labels), **sampling.values)(labels, settings.seed))
    seconds = time.monotonic() - began
    made = Demo(
        reconstructions=pictures[0],
        rows=names[: 1 + len(reconstructed)],
        psnr=tuple(psnr(images, reconstructed[0]).tolist()),
        samples=pictures[1],
        generated=len(labels),
        seconds=seconds,
    )
    make_folder(settings.out)
    known = {"run": str(settings.run), "seed": settings.seed, "sampling": sampling.values, "psnr": made.psnr}
    write_text(facts, json.dumps({"demo": known}, indent=2) + "\n")
    save_picture(labelled_rows([images, *reconstructed], made.rows), pictures[0])
    save_picture(labelled_rows(list(samples.split(settings.num)), generator.label_names), pictures[1])
    return made
