"""Token stores of made-up codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fqgan
from fqgan.data.token_writer import TokenWriter
from fqgan.data.tokens import StoreManifest, StoreOptions, TokenStore
from fqgan.data.transforms import CropKind
from fqgan.tokenizer.model import FactorizedTokenizer

CLASSES = ("cat", "dog", "emu")


def make_store(
    folder: Path,
    tokenizer: FactorizedTokenizer,
    *,
    images: int = 12,
    seed: int = 0,
    crops: CropKind = "flip",
    side: int = 16,
    names: tuple[str, ...] = CLASSES,
    labelled: bool = True,
) -> TokenStore:
    """Images of a class share half of their codes; labels go round. Without names or labels where asked."""
    sizes = tuple(quantizer.codebook_size for quantizer in tokenizer.quantizers)
    grid = (side // tokenizer.config.downsampling,) * 2
    options = StoreOptions(tokenizer.fingerprint(), sizes, grid, side, crops, images_per_shard=5)
    classes = max(1, len(names))
    manifest = StoreManifest(
        options,
        num_factors=len(sizes),
        num_crops=options.num_crops,
        weights="exported",
        source="made up",
        data={"images": images},
        label_names=names,
        num_classes=classes if labelled else 0,
    )
    labels = np.arange(images) % classes if labelled else np.full(images, -1)
    patterns, noise = np.random.default_rng(1), np.random.default_rng(seed)
    of_class = patterns.integers(0, np.array(sizes)[:, None], (classes, 1, *options.shape(1)[2:]))
    codes = noise.integers(0, np.array(sizes)[:, None], options.shape(images))
    codes = np.where(noise.random(codes.shape) < 0.5, of_class[labels], codes)
    writer = TokenWriter(folder, manifest, images)
    for number in writer.begin(lambda path: fqgan.save_tokenizer(tokenizer, path)):
        span = slice(*writer.ranges[number])
        writer.write(number, codes[span], labels[span], [])
    writer.finish()
    writer.close()
    return TokenStore.open(folder)
