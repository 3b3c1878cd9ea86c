"""All metrics on real pictures, as in the tables of docs/metrics.md: training pictures against test pictures, halves of
the test pictures, and test pictures against copies that were compressed, blurred or spoiled by noise.

python benchmarks/metrics_pictures.py cifar10/train.parquet cifar10/test.parquet --size 32 --features classifier:RUN
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from fqgan.data.images import ImageSource, open_source
from fqgan.data.loader import evaluation_batches
from fqgan.data.order import evenly_spaced
from fqgan.data.transforms import center_crop, normalize
from fqgan.engine.distributed import World
from fqgan.evaluation.collect import FeatureSet, Reading, collect
from fqgan.evaluation.scores import set_scores
from fqgan.tokenizer.evaluation import Scores
from fqgan.vision.measuring import load_network
from fqgan.vision.perceptual import load_perceptual

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--features", default="efficientnet-lite0")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--num", type=int, default=2000)
    arguments = parser.parse_args()
    train, test = open_source(arguments.train), open_source(arguments.test, "validation")
    network = load_network(arguments.features)
    world = World(0, 1, torch.device("cpu"))
    chosen = evenly_spaced(len(test), arguments.num)
    whole = View(test, chosen, arguments.size)

    def features(view: View) -> FeatureSet:
        return collect(network, view, Reading(arguments.size, 50, 0, 1, False, 10**6), world)[0]

    def row(name: str, reference: FeatureSet, view: View) -> dict[str, float]:
        scores = set_scores(reference, features(view), network)
        if view.indices == chosen and view is not whole:
            pixels = Scores("cpu", load_perceptual("efficientnet-lite0"))
            batches = [
                evaluation_batches(each, size=arguments.size, batch=50, workers=1)  # pyright: ignore[reportArgumentType]
                for each in (whole, view)
            ]
            for (real, labels, _), (copy, _, _) in zip(*batches, strict=True):
                pixels.update(normalize(real), normalize(copy), labels)
            scores |= pixels.compute()
        told = [f"{scores[key]:.4g}" if key in scores else "-" for key in (*METRICS, *PIXELS)]
        told[1] += f" ± {scores['kernel_distance_error']:.2g}"
        print(f"| {name} | " + " | ".join(told) + " |", flush=True)
        return scores

    print(f"{network.name}, {len(chosen)} pictures of {arguments.size} pixels")
    print("| pictures | " + " | ".join((*METRICS, *PIXELS)) + " |")
    print("|---" * (len(METRICS) + len(PIXELS) + 1) + "|")
    reference = features(whole)
    row("train against test", reference, View(train, evenly_spaced(len(train), len(chosen)), arguments.size))
    row("halves of test", features(View(test, chosen[::2], arguments.size)), View(test, chosen[1::2], arguments.size))
    kinds: list[tuple[str, Callable[..., Change], tuple[float, ...]]] = [
        ("JPEG quality", jpeg, (75, 30, 10)),
        ("blur of sigma", blur, (0.5, 1, 2)),
        ("noise of deviation", noise, (5, 15, 40)),
    ]
    for name, kind, strengths in kinds:
        rows = [row(f"{name} {s}", reference, View(test, chosen, arguments.size, kind(s))) for s in strengths]
        for key, sign in (("frechet", 1), ("kernel_distance", 1), ("perceptual", 1), ("psnr", -1), ("ssim", -1)):
            values = [sign * each[key] for each in rows]
            assert values == sorted(values), f"{key} does not follow the strength of {name}: {values}"


if __name__ == "__main__":
    main()
