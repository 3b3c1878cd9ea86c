"""All metrics on real pictures, as in the tables of LOG.md (2026-11-28: measurements moved from the manuals): training
pictures against test pictures, halves of the test pictures, and test pictures against copies that were compressed,
blurred or spoiled by noise.

python benchmarks/metrics_pictures.py cifar10/train.parquet cifar10/test.parquet --size 32 --features A classifier:RUN

Where a distance does not follow the strength of a change it says so below the table, and ends with status 1.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from fqgan.config.evaluation import Measuring
from fqgan.data.loader import evaluation_batches
from fqgan.data.order import evenly_spaced
from fqgan.data.sources import ImageSource, open_source
from fqgan.data.transforms import center_crop, normalize
from fqgan.engine.distributed import World
from fqgan.evaluation.collect import CentreCrops, FeatureSet, collect
from fqgan.evaluation.scores import set_scores
from fqgan.nets.measuring import FeatureNetwork, load_network
from fqgan.nets.perceptual import load_perceptual
from fqgan.tokenizer.validation import Scores

Change = Callable[[Image.Image, int], Image.Image]
METRICS = ("frechet", "kernel_distance", "score", "precision", "recall", "density", "coverage")
PIXELS = ("psnr", "ssim", "perceptual")


def jpeg(quality: int) -> Change:
    def change(image: Image.Image, index: int) -> Image.Image:
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return change


def blur(sigma: float) -> Change:
    return lambda image, index: image.filter(ImageFilter.GaussianBlur(sigma))


def noise(deviation: float) -> Change:
    def change(image: Image.Image, index: int) -> Image.Image:
        pixels = np.asarray(image) + np.random.default_rng(index).normal(0, deviation, (*image.size[::-1], 3))
        return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))

    return change


@dataclass
class View:
    """Some pictures of a source, cropped, each changed."""

    source: ImageSource
    indices: list[int]
    size: int
    change: Change = lambda image, index: image

    def __post_init__(self) -> None:
        self.name, self.classes, self.blocks = self.source.name, self.source.classes, [len(self.indices)]
        self.labels = self.source.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.source.read(self.indices[index])
        return self.change(center_crop(image, self.size), index), label

    def describe(self, index: int) -> str:
        return self.source.describe(self.indices[index])

    def names(self) -> list[str]:
        return [self.name]

    def files(self) -> list:
        return []

    def reserve(self, blocks: int) -> None:
        pass


KINDS: list[tuple[str, Callable[..., Change], tuple[float, ...]]] = [
    ("JPEG quality", jpeg, (75, 30, 10)),
    ("blur of sigma", blur, (0.5, 1, 2)),
    ("noise of deviation", noise, (5, 15, 40)),
]
RISING, FALLING = ("frechet", "kernel_distance", "perceptual"), ("psnr", "ssim", "precision", "recall", "coverage")


def pixel_scores(view: View, copy: View) -> dict[str, float]:
    """What compares each picture with its copy."""
    scores = Scores("cpu", load_perceptual("efficientnet-lite0"))
    batches = [
        evaluation_batches(each, size=view.size, batch=50, workers=1)  # pyright: ignore[reportArgumentType]
        for each in (view, copy)
    ]
    for (real, labels, _), (changed, _, _) in zip(*batches, strict=True):
        scores.update(normalize(real), normalize(changed), labels)
    return scores.compute()


def table(
    network: FeatureNetwork, pairs: list[tuple[str, View, View]], pixels: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Print the scores of each pair of sets."""
    known: dict[int, FeatureSet] = {}

    def features(view: View) -> FeatureSet:
        reading = CentreCrops(Measuring(batch=50, workers=1, kept=10**6), view.size)
        return collect(network, view, reading, World(0, 1, torch.device("cpu")))[0]  # pyright: ignore[reportArgumentType]

    print(f"\n{network.name}\n\n| pictures | " + " | ".join((*METRICS, *PIXELS)) + " |")
    print("|---" * (len(METRICS) + len(PIXELS) + 1) + "|")
    found = {}
    for name, reference, view in pairs:
        known = {id(reference): known.get(id(reference)) or features(reference)}
        scores = set_scores(known[id(reference)], features(view), network) | pixels.get(name, {})
        told = [f"{scores[key]:.4g}" if key in scores else "-" for key in (*METRICS, *PIXELS)]
        told[1] += f" ± {scores['kernel_distance_error']:.2g}"
        print(f"| {name} | " + " | ".join(told) + " |", flush=True)
        found[name] = scores
    return found


def not_monotone(found: dict[str, dict[str, float]]) -> list[str]:
    """Scores that do not follow the strength of a change."""
    told = []
    for name, _, strengths in KINDS:
        for key in (*RISING, *FALLING):
            values = [found[f"{name} {strength}"][key] for strength in strengths]
            if values != sorted(values, reverse=key in FALLING):
                told.append(f"{key} does not follow the strength of {name}: {values}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--features", nargs="+", default=["efficientnet-lite0"])
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--num", type=int, default=2000)
    arguments = parser.parse_args()
    train, test = open_source(arguments.train), open_source(arguments.test, "validation")
    size, chosen = arguments.size, evenly_spaced(len(test), arguments.num)
    whole = View(test, chosen, size)
    copies = {f"{name} {s}": View(test, chosen, size, kind(s)) for name, kind, strengths in KINDS for s in strengths}
    pairs = [
        ("halves of test", View(test, chosen[::2], size), View(test, chosen[1::2], size)),
        ("train against test", whole, View(train, evenly_spaced(len(train), len(chosen)), size)),
        *((name, whole, copy) for name, copy in copies.items()),
    ]
    print(f"{len(chosen)} pictures of {size} pixels", flush=True)
    pixels = {name: pixel_scores(whole, copy) for name, copy in copies.items()}
    told = []
    for name in arguments.features:
        network = load_network(name)
        told += [f"{network.name}: {line}" for line in not_monotone(table(network, pairs, pixels))]
    print("\n" + "\n".join(told or ["all of " + ", ".join((*RISING, *FALLING)) + " follow every change's strength"]))
    sys.exit(bool(told))


if __name__ == "__main__":
    main()
