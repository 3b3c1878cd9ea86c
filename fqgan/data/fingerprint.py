"""What tells one data set from another, so that a resumed run notices when its own has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from fqgan.base.files import file_sha256
from fqgan.data.sources import ImageSource


def data_fingerprint(source: ImageSource) -> dict[str, Any]:
    """JSON-ready numbers and digests of all that the order of samples and their labels depend on. The pictures
    themselves are not read: a broken one may be repaired."""
    return {
        "images": len(source),
        "blocks": len(source.blocks),
        "classes": len(source.classes),
        "block lengths": digest(np.array(source.blocks)),
        "class names": digest(source.classes),
        "labels": digest(source.labels),
        "names": digest(source.names()),
    }


def content_sha256(source: ImageSource) -> str:
    """sha256 in hex of all that a source holds: names, labels, and its files' bytes or, of pictures in memory, their
    pixels. Where the files lie and when they were written does not matter."""
    whole = hashlib.sha256(f"{digest(source.names())} {digest(source.labels)}".encode())
    files = list(source.files())
    for path in files:
        whole.update(bytes.fromhex(file_sha256(path)))
    for index in range(0 if files else len(source)):
        whole.update(source.read(index)[0].tobytes())
    return whole.hexdigest()


def digest(data: npt.NDArray[np.int64] | Iterable[str]) -> str:
    """sha256 in hex of numbers, or of words in their order."""
    if not isinstance(data, np.ndarray):
        text = "\n".join(data)
        try:
            content = text.encode("utf-8", "surrogateescape")  # as the system spells names of files
        except UnicodeEncodeError:  # half characters, as JSON may hold them
            content = text.encode("utf-8", "surrogatepass")
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha256(data.astype("<i8").tobytes()).hexdigest()
