"""Images in .npz files as ADM's evaluator reads and its samplers write them."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fqgan.base.errors import UserError
from fqgan.base.files import check_file, reading, replacing
from fqgan.data.sources.base import Findings, Found, ImageSource, Request
from fqgan.data.sources.labels import check_labels

LOCAL_HEADER = 30  # bytes of a zip entry's header before its name
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # names of fields in UTF-8, and arrays of numbers have none
}
_UNPACKED_MOST = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1100}
"""How numpy packs arrays -> bytes that a packed one may stand for."""
FORM = ".npz of ADM"


class NpzSource(ImageSource):
    """`arr_0` (n, H, W, 3) uint8 with the labels of `arr_1` where there are any.

    What is stored without compression, as numpy's `savez` does, is mapped and not read into memory. `UserError` for
    files that hold something else.
    """

    def __init__(self, path: Path, request: Request, findings: Findings | None = None) -> None:
        self.name = name = request.spec
        self._path = path
        self.findings = findings or Findings()
        self.findings.form = FORM
        self.classes = request.classes
        self._pixels = read_array(path, "arr_0", mapped=True)
        shape, kind = self._pixels.shape, self._pixels.dtype
        if len(shape) != 4 or shape[3] != 3 or kind != np.uint8:
            raise UserError(f"{name}: arr_0 must be (n, H, W, 3) uint8, got {shape} {kind}")
        if not len(self._pixels):
            raise UserError(f"{name} holds no picture: arr_0 is empty")
        self.labels = np.full(len(self._pixels), -1, np.int64)
        if "arr_1" in keys(path) and request.options.labels != "none":
            labels = read_array(path, "arr_1")
            if labels.shape != (len(self._pixels),) or labels.dtype.kind not in "iu":
                found = f"{labels.shape} {labels.dtype}"
                raise UserError(f"{name}: arr_1 must be {len(self._pixels)} whole numbers, got {found}")
            check_labels(labels, self.classes, name)  # before a large one turns into -1
            self.labels = labels.astype(np.int64)
            self.findings.labels_from = "arr_1"
        self.blocks = [len(self._pixels)]

    def read(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.asarray(self._pixels[index])), int(self.labels[index])

    def describe(self, index: int) -> str:
        return f"picture {index} of {self._path}"

    def names(self) -> Iterable[str]:
        return [self._path.name]

    def files(self) -> Iterable[Path]:
        return [self._path]


def keys(path: Path) -> set[str]:
    """Names of a file's arrays; `UserError` where it is missing or no .npz."""
    check_file(path)
    with reading(path, "an .npz file"), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_array(path: Path, key: str, mapped: bool = False) -> npt.NDArray[Any]:
    """One array of a file; with `mapped`, from the disk as it is used, if it is stored without compression. `UserError`
    for objects, which would be pickles, and for headers that promise what the file cannot hold, before any memory is
    taken for them."""
    there = check_file(path)
    if key not in keys(path):
        raise UserError(f"{path} holds no array {key}")
    with reading(f"{path}: {key}", "an array"), zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{key}.npy")
        packed = _UNPACKED_MOST.get(entry.compress_type, 0) * entry.compress_size
        if entry.file_size > packed or entry.header_offset + entry.compress_size > there:
            raise ValueError("compressed in a way that numpy does not use, or of more bytes than the file")
        with archive.open(entry) as file:
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = _READERS[version](file)
            left = entry.file_size - file.tell()
            if dtype.hasobject:
                raise ValueError("it holds objects")
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > left:
                raise ValueError(f"its header promises {shape} {dtype}, and {left} bytes follow")
            if mapped and entry.compress_type == zipfile.ZIP_STORED and math.prod(shape):
                offset = _begin(path, entry) + file.tell()
                return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)


def _begin(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the content of an entry begins in the file."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        return entry.header_offset + header_length(file.read(LOCAL_HEADER))


def header_length(header: bytes) -> int:
    """Bytes of a zip entry's header, of which the first `LOCAL_HEADER` are given."""
    # the lengths of the name and of what follows it are the last numbers, and may differ from the index's
    return LOCAL_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))


def write_images(
    path: Path, images: Iterable[npt.NDArray[np.uint8]], shape: Sequence[int], labels: npt.NDArray[np.int64]
) -> None:
    """ADM's .npz, whole or not at all and always the same bytes: `arr_0`, the images (H, W, 3) one after the other to
    `shape` (n, H, W, 3), and `arr_1`, their labels (n,)."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        # an entry of fixed date: the same bytes every time
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for image in images:
                if image.shape != tuple(shape[1:]):
                    sizes = " and ".join("x".join(map(str, each)) for each in (shape[1:3], image.shape[:2]))
                    raise UserError(f"{path}: pictures of one size are needed, got {sizes}")
                file.write(image.tobytes())
        with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
            np.lib.format.write_array(file, labels.astype("<i8"))


def claims(found: Found) -> bool:
    """Whether a file is of this form."""
    return found.suffix == ".npz"


def open_found(found: Found, request: Request, findings: Findings) -> NpzSource:
    """Open one; `UserError` for several."""
    if len(found.files) > 1:
        raise UserError(f"{request.spec} names {len(found.files)} .npz files: name one")
    return NpzSource(Path(found.files[0]), request, findings)
