"""The token store: a data set's codes in memory-mapped arrays, with a manifest that says what they are codes of."""

from __future__ import annotations

import io
import math
import mmap
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import file_sha256
from fqgan.config import ForeignConfig, TokenizerConfig
from fqgan.data.fingerprint import digest
from fqgan.data.remote import RemoteFolder, is_remote
from fqgan.data.token_manifest import MANIFEST, TOKENIZER, UNFINISHED, File, StoreManifest, is_manifest, parse_manifest
from fqgan.data.transforms import CENTER
from fqgan.models.find import model_config

LOOKED_AT = 64
"""Images whose codes are looked at when a store is opened; the others are when they are taken."""


class TokenStore:
    """Codes and labels of a data set's images, `num_crops` of each.

    Opening reads the manifest and the arrays' headers; codes are mapped, and read when they are asked for.

    Args:
        folder: what `fqgan extract` wrote.
        manifest: its manifest, checked.
    """

    def __init__(self, folder: Path | RemoteFolder, manifest: StoreManifest) -> None:
        options = manifest.options
        self.path, self.manifest = folder, manifest
        self.name = f"token store {folder}"
        self.codebook_sizes = options.codebook_sizes
        self.grid: tuple[int, int] = (options.grid[0], options.grid[1])
        self.num_factors, self.num_crops = manifest.num_factors, manifest.num_crops
        self.center_crop = CENTER[options.crops]
        """Index of the centre crop."""
        self.label_names, self.num_classes = manifest.label_names, manifest.num_classes
        self.tokenizer_fingerprint = options.tokenizer
        """The tokenizer's."""
        self.blocks = [manifest.count]
        """One, as any image can be read at any time (`fqgan.data.order`)."""
        self._ends = np.cumsum([shard.images for shard in manifest.shards])
        self._maps: dict[int, npt.NDArray[Any]] = {}

    @classmethod
    def open(cls, path: str | Path, verify: bool = False) -> TokenStore:
        """Open a store, here or at s3://, gs:// or https://; `verify` also reads all of it and checks the sums.

        Of a store elsewhere, shards come to the local cache when their codes are asked for.

        `UserError` for what is no store, not finished, of another format, truncated or damaged.
        """
        if is_remote(path):
            folder = RemoteFolder(str(path))
            file = folder / MANIFEST
            manifest = parse_manifest(schema.load_json(file), file)
            if not verify:
                return cls(folder, manifest)
        else:
            folder = Path(path)
            manifest = read_manifest(folder)
        if problem := next((text for _, text in problems(folder, manifest, verify)), ""):
            raise UserError(f"token store {folder}: {problem}: extract it again, with the same command and --verify")
        store = cls(folder, manifest)
        some = np.unique(np.linspace(0, len(store) - 1, min(len(store), LOOKED_AT)).astype(np.int64))
        store.take(some, np.full(len(some), store.center_crop))  # raises what it sees in codes, and in any label
        return store

    def __len__(self) -> int:
        return self.manifest.count

    def __getitem__(self, place: tuple[int, int]) -> tuple[npt.NDArray[Any], int]:
        """Codes (k, h*w) and label of (image, crop)."""
        index, crop = place
        if not (0 <= index < len(self) and 0 <= crop < self.num_crops):
            raise IndexError(f"image {index}, crop {crop} of {len(self)} images with {self.num_crops} crops")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return self._codes(shard)[index - self._first(shard), crop], int(self.labels[index])

    def take(self, indices: npt.ArrayLike, crops: npt.ArrayLike) -> tuple[Tensor, Tensor]:
        """Codes (b, k, h, w) and labels (b,), both int64, of b images and one crop each.

        `IndexError` for images or crops that are not there.
        """
        images, chosen = np.asarray(indices, np.int64), np.asarray(crops, np.int64)
        if np.any((images < 0) | (images >= len(self)) | (chosen < 0) | (chosen >= self.num_crops)):
            raise IndexError(f"images or crops beyond {len(self)} images with {self.num_crops} crops")
        codes = np.empty((len(images), self.num_factors, math.prod(self.grid)), np.int64)
        shards = np.searchsorted(self._ends, images, side="right")
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            codes[here] = self._codes(int(shard))[images[here] - self._first(int(shard)), chosen[here]]
        beyond = codes.max((0, 2), initial=0) >= np.array(self.codebook_sizes)
        if beyond.any():
            factor = int(beyond.argmax())
            raise UserError(
                f"{self.name} has codes up to {codes[:, factor].max()} of factor {factor}, whose codebook has "
                f"{self.codebook_sizes[factor]}: extract it again, with the same command and --verify"
            )
        return torch.from_numpy(codes).unflatten(2, self.grid), torch.from_numpy(self.labels[images])

    @property
    def tokenizer_path(self) -> Path:
        """An exported tokenizer for `fqgan.load_tokenizer`: the one that encoded. Of a tokenizer of others the folder
        says what it was."""
        if isinstance(self.path, Path):
            return self.path / TOKENIZER
        return self.path.linked([file.name for file in self.manifest.tokenizer_files], self.tokenizer_fingerprint[:32])

    def tokenizer_at(self, given: str = "") -> str | Path:
        """Where to load the tokenizer from: what a user gave, or the one that the store carries. `UserError` where that
        is one of others, which it does not hold."""
        if (address := self.tokenizer_address) and not given:
            raise UserError(
                f"{self.name} was made with {address}, a tokenizer by address: add --tokenizer {address}, which runs "
                "its code"
            )
        return given or self.tokenizer_path

    @property
    def factor_names(self) -> list[str]:
        """The names of the k factors, in their order."""
        return [factor.name for factor in self._tokenizer_config.factors]

    @property
    def code_dims(self) -> tuple[int, ...]:
        """Dimensions of the codes' vectors; 0 where they are not known."""
        return tuple(factor.code_dim for factor in self._tokenizer_config.factors)

    @property
    def tokenizer_address(self) -> str:
        """Of the tokenizer of others that encoded, which no store carries; empty of one of this package."""
        config = self._tokenizer_config
        return config.address if isinstance(config, ForeignConfig) else ""

    @cached_property
    def _tokenizer_config(self) -> TokenizerConfig | ForeignConfig:
        return model_config(self.tokenizer_path, "tokenizer")

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """(images,) int64; -1 where there is none."""
        labels = np.empty(len(self), np.int64)
        for end, shard in zip(self._ends, self.manifest.shards, strict=True):
            header = array_header("<i8", (shard.images,))
            found = np.fromfile(self.path / shard.labels.name, "<i8", offset=len(header))
            if len(found) and not -1 <= found.min() <= found.max() < max(self.num_classes, 1):
                raise UserError(
                    f"{self.name}: {shard.labels.name} has labels from {found.min()} to {found.max()}, and the store "
                    f"{self.num_classes} classes: extract it again, with the same command and --verify"
                )
            labels[end - shard.images : end] = found
        return labels

    def data_fingerprint(self) -> dict[str, Any]:
        """JSON-ready numbers and digests by which a resumed run notices another content (`fingerprint.changes`)."""
        shards = self.manifest.shards
        return {
            "images": len(self),
            "crops": self.num_crops,
            "classes": self.num_classes,
            "tokenizer": self.tokenizer_fingerprint,
            "class names": digest(self.label_names),
            "codes": digest(shard.codes.sha256 for shard in shards),
            "labels": digest(shard.labels.sha256 for shard in shards),
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.manifest)  # a mapped array would be pickled as a copy of all codes

    def _first(self, shard: int) -> int:
        return int(self._ends[shard]) - self.manifest.shards[shard].images

    def _codes(self, number: int) -> npt.NDArray[Any]:
        """The mapped codes of a shard."""
        if number not in self._maps:
            shard, options = self.manifest.shards[number], self.manifest.options
            shape = options.shape(shard.images)
            with (self.path / shard.codes.name).open("rb") as file:
                if os.fstat(file.fileno()).st_size != shard.codes.bytes:
                    raise UserError(f"{self.name}: {shard.codes.name} has another size than {MANIFEST} tells")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(mmap, "MADV_RANDOM"):
                mapped.madvise(mmap.MADV_RANDOM)  # without it the system reads up to megabytes ahead for each image
            codes = np.frombuffer(mapped, options.dtype, offset=len(array_header(options.dtype, shape)))
            self._maps[number] = codes.reshape(shape)
        return self._maps[number]


def is_store(spec: str) -> bool:
    """Whether a finished token store lies at a path or address."""
    try:
        folder = RemoteFolder(spec) if is_remote(spec) else Path(spec)
        return is_manifest(schema.load_json(folder / MANIFEST))
    except UserError:
        return False


def read_manifest(folder: Path) -> StoreManifest:
    """The manifest of a finished store; `UserError` where there is none or it is of something else."""
    if not folder.exists():
        raise UserError(f"token store {folder} does not exist: make it with fqgan extract")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, no token store: name the folder that fqgan extract wrote")
    file = folder / MANIFEST
    if not file.exists():
        if (folder / UNFINISHED).is_dir():
            done = len(list((folder / UNFINISHED).glob("shard-*.json")))
            raise UserError(
                f"token store {folder} is not finished ({done} shard(s) so far): run the same fqgan extract command "
                "again, it goes on"
            )
        raise UserError(f"{folder} is no token store: it has no {MANIFEST}")
    return parse_manifest(schema.load_json(file), file)


def problems(folder: Path | RemoteFolder, manifest: StoreManifest, verify: bool = False) -> Iterable[tuple[File, str]]:
    """Files of a store that are missing, of a wrong size or no array of the right shape, each with what is wrong.
    `verify`: or of a wrong sum."""
    for file in manifest.tokenizer_files:
        if problem := problem_of(folder, file, verify=verify):
            yield file, problem
    for shard in manifest.shards:
        codes = array_header(manifest.options.dtype, manifest.options.shape(shard.images))
        for file, header in ((shard.codes, codes), (shard.labels, array_header("<i8", (shard.images,)))):
            if problem := problem_of(folder, file, header, verify):
                yield file, problem


def problem_of(folder: Path | RemoteFolder, file: File, header: bytes = b"", verify: bool = False) -> str:
    """What is wrong with a file; empty if nothing is."""
    try:
        with (folder / file.name).open("rb") as handle:
            start = handle.read(len(header))
            size = handle.seek(0, io.SEEK_END)
    except OSError as error:
        return f"{file.name} is missing" if isinstance(error, FileNotFoundError) else f"{file.name}: {error.strerror}"
    if size != file.bytes:
        return f"{file.name} is {'truncated' if size < file.bytes else 'too long'} ({size} of {file.bytes} bytes)"
    if start != header:
        return f"{file.name} is no array of the type and shape that {MANIFEST} tells"
    if verify and file_sha256(folder / file.name) != file.sha256:
        return f"{file.name} is damaged: its content has changed since it was written"
    return ""


def array_header(dtype: npt.DTypeLike, shape: tuple[int, ...]) -> bytes:
    """The first bytes of a .npy file."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def file_of(folder: Path, name: str) -> File:
    """The record of a file that is there."""
    path = folder / name
    return File(name, path.stat().st_size, file_sha256(path))
