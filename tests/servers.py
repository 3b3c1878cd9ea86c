"""Tiny models behind a server: in this process, on a port of its own or without one."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from generators import tiny
from PIL import Image
from test_tokenizer import small
from torch import Tensor

import fqgan
from fqgan.config.serving import ServingSettings
from fqgan.data.transforms import to_tensor
from fqgan.generator.model import FAR
from fqgan.serve.engine import Engine
from fqgan.serve.server import listen, make_server
from fqgan.tokenizer.pictures import to_image

CLASSES = ("apple", "bee", "cow", "dog")
GRID, SIDE = (4, 4), 8
"""Positions, and pixels a side of a picture."""


def write_models(folder: Path) -> Path:
    """A tokenizer `tok`, a generator of four classes `gen`, one without classes `free`, of 4 x 4 positions."""
    tokenizer = small(2, image_size=SIDE)
    sizes = tuple(quantizer.codebook_size for quantizer in tokenizer.quantizers)
    fqgan.save_tokenizer(tokenizer, folder / "tok")
    for name, classes in (("gen", len(CLASSES)), ("free", 0)):
        generator = tiny(codebook_sizes=sizes, grid=GRID, num_classes=classes)
        generator.carry(tokenizer)
        generator.label_names = CLASSES[:classes]
        fqgan.save_generator(generator, folder / name)
    return folder


def settings(models: Path, **changes: Any) -> ServingSettings:
    """Of a server of all three."""
    names = tuple(str(models / name) for name in ("tok", "gen", "free"))
    return replace(ServingSettings(models=names, port=0, device="cpu", batch=4), **changes)


@contextmanager
def served(chosen: ServingSettings, **options: Any) -> Iterator[tuple[str, Engine]]:
    """The address of a server that runs in a thread of this process, and its engine."""
    engine = Engine(chosen, **options)
    listening = listen("127.0.0.1", 0)
    server = make_server(engine)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", engine
    finally:
        server.should_exit = True
        thread.join()


def pixels(url: str) -> Tensor:
    """(3, H, W) uint8 of a data URL, or of base64."""
    data = base64.b64decode(url.partition(",")[2] if url.startswith("data:") else url)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return to_tensor(image)


@torch.inference_mode()
def decoded(generator: FAR, codes: Tensor) -> Tensor:
    """(3, H, W) uint8 of codes (k, h, w), decoded alone."""
    return to_tensor(to_image(generator.tokenizer.decode(codes[None])[0]))


def png(width: int = 20, height: int = 16, format: str = "PNG") -> bytes:
    """A picture with a gradient."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(buffer, format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def generator(models: Path) -> FAR:
    return fqgan.load_generator(models / "gen")


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def ask(address: str, **data: Any) -> httpx.Response:
    return httpx.post(f"{address}/api/generate", json={"model": "gen", "classes": [0], **data}, timeout=60)
