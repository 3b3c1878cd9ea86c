"""CIFAR-10 and CIFAR-100 by name, from the files that torchvision keeps."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from fqgan.base.errors import UserError
from fqgan.data.sources.base import Findings, ImageSource

NAMES = ("cifar10", "cifar100")


class CifarSource(ImageSource):
    """The 50,000 training or 10,000 test pictures of 32 x 32 pixels, all of them in memory.

    They are never downloaded here. torchvision reads its files, which are pickles, only after it has checked their
    MD5 sums. `UserError` where they are missing or changed, with the command that fetches them.
    """

    def __init__(self, name: str, split: str = "train") -> None:
        own = "its own files"
        self.findings = Findings("CIFAR in torchvision's files", split=split, split_rule=own, labels_from=own)
        from torchvision import datasets

        self.name = f"{name} ({split})"
        root = cifar_root()
        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        try:
            data = kind(root, train=split == "train", download=False)
        except (RuntimeError, OSError):
            folder = root / kind.base_folder
            found = "is not whole" if folder.is_dir() else "does not exist"
            fetch = f"from torchvision.datasets import {kind.__name__} as D; D('{root}', download=True)"
            beside = f"; for the folder beside you say ./{name}" if Path(name).exists() else ""
            raise UserError(
                f"{name}: {folder} {found}: set FQGAN_DATA to the folder that holds {kind.base_folder}, or get it with "
                f'python -c "{fetch}"{beside}'
            ) from None
        self.classes = tuple(data.classes)
        self.labels = np.array(data.targets, dtype=np.int64)
        self.blocks = [len(self.labels)]
        self._pixels = data.data

    def read(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._pixels[index]), int(self.labels[index])

    def describe(self, index: int) -> str:
        return f"picture {index} of {self.name}"

    def names(self) -> Iterable[str]:
        return [self.name]


def cifar_root() -> Path:
    """Where torchvision's folders are looked for: `$FQGAN_DATA`, else ~/.cache/fqgan/datasets."""
    return Path(os.environ.get("FQGAN_DATA") or "~/.cache/fqgan/datasets").expanduser()
