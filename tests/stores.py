"""Token stores of made-up codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import fqgan
from fqgan.data.token_manifest import StoreManifest, StoreOptions
from fqgan.data.token_writer import TokenWriter
from fqgan.data.tokens import TokenStore
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
    shard: int = 5,
    labels: tuple[int, ...] = (),
) -> TokenStore:
    """Images of a class share half of their codes; labels, by default one of each class, go round. Without names or
    labels where asked."""
    sizes = tuple(quantizer.codebook_size for quantizer in tokenizer.quantizers)
    grid = (side // tokenizer.config.downsampling,) * 2
    options = StoreOptions(tokenizer.fingerprint(), sizes, grid, side, crops, images_per_shard=shard)
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
    given = np.resize(labels or range(classes), images) if labelled else np.full(images, -1)
    patterns, noise = np.random.default_rng(1), np.random.default_rng(seed)
    of_class = patterns.integers(0, np.array(sizes)[:, None], (classes, 1, *options.shape(1)[2:]))
    codes = noise.integers(0, np.array(sizes)[:, None], options.shape(images))
    codes = np.where(noise.random(codes.shape) < 0.5, of_class[given], codes)
    writer = TokenWriter(folder, manifest, images)
    for number in writer.begin(lambda path: fqgan.save_tokenizer(tokenizer, path)):
        span = slice(*writer.ranges[number])
        writer.write(number, codes[span], given[span], [])
    writer.finish()
    writer.close()
    return TokenStore.open(folder)
