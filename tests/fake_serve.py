"""A stand-in for the server of `fqgan serve` in tests of its page: the same answers in form, made up in content."""

from __future__ import annotations

import base64
import io
import json
import threading
from dataclasses import dataclass, field
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fqgan

STATIC = Path(fqgan.__file__).parent / "serve" / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CELL = 8
NAMES = ("astronaut", "cat", "coffee", "flower", "hubble", "rocket")
CLASSES = (*NAMES, "pagoda", "brick", "retina", "moon")


def tokenizer(name: str, factors: tuple[str, ...] = ("visual", "semantic"), grid: tuple[int, int] = (8, 8)) -> dict:
    """What /api/models says of a tokenizer."""
    return {
        "name": name,
        "kind": "tokenizer",
        "factors": list(factors),
        "codebook_sizes": [64] * len(factors),
        "grid": list(grid),
        "image_size": CELL * max(grid),
        "downsampling": CELL,
        "classes": [],
        "num_classes": 0,
        "tokenizer": None,
        "parameters": 3_612_345,
        "card": f"# {name}\n\nReconstructs **{CELL} x {CELL}** pixels a position, see `fqgan reconstruct`.\n\n"
        "| metric | value |\n|---|---|\n| PSNR | 21.3 |\n\n- of photographs\n- <img src=x onerror=alert(1)>\n",
        "defaults": None,
    }


def generator(name: str, of: dict, classes: tuple[str, ...] = CLASSES, num_classes: int | None = None) -> dict:
    """What /api/models says of a generator over a tokenizer."""
    k = len(of["factors"])
    return of | {
        "name": name,
        "kind": "generator",
        "classes": list(classes),
        "num_classes": len(classes) if num_classes is None else num_classes,
        "tokenizer": of["name"],
        "parameters": 12_800_000,
        "card": f"# {name}\n\nDraws codes of `{of['name']}`.",
        "defaults": {"cfg_scale": 2.0, "temperature": [1.0] * k, "top_k": [0] * k, "top_p": [1.0] * k},
    }


def photo(name: str, height: int = 64, width: int = 64) -> np.ndarray:
    """A made-up picture (height, width, 3) of uint8: hills below a sky, in colours of the name's own."""
    rng = np.random.default_rng(sum(name.encode()))
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    low, high = rng.uniform(90, 250, (2, 3))
    picture = low + (high - low) * y[..., None]
    for layer in range(3):
        ridge = 0.35 + 0.2 * layer + 0.12 * np.sin(2 * np.pi * (x * rng.uniform(0.6, 2) + rng.uniform()))
        picture = np.where((y > ridge)[..., None], rng.uniform(20, 200, 3) * (1 - 0.2 * layer), picture)
    return (picture + rng.normal(0, 5, picture.shape)).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, k: int) -> np.ndarray:
    """(k, h, w) codes: of factor 0 a cell's colour in four steps a channel, of the others its brightness in steps."""
    h, w = (side // CELL for side in pixels.shape[:2])
    cells = pixels[: h * CELL, : w * CELL].reshape(h, CELL, w, CELL, 3).mean((1, 3))
    steps = (cells // 64).astype(int)
    colour = steps @ [16, 4, 1]
    return np.stack([colour, *((cells.mean(-1) / (4 * (f + 1))).astype(int) for f in range(k - 1))])


def decode(codes: np.ndarray, keep: list[int] | None = None) -> np.ndarray:
    """(H, W, 3) pixels of (k, h, w) codes."""
    k = len(codes)
    colour = np.stack([codes[0] // 16, codes[0] // 4 % 4, codes[0] % 4], -1) * 64.0 + 32
    if k > 1:
        light = codes[1] * 4.0 + 2
        if keep == [0]:
            light = np.full_like(light, 128)
        elif keep is not None and 0 not in keep:
            colour = np.full_like(colour, 128)
        colour = colour + (light - colour.mean(-1))[..., None] * 0.8
    return colour.clip(0, 255).astype(np.uint8).repeat(CELL, 0).repeat(CELL, 1)


def address(pixels: np.ndarray) -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass
class Wishes:
    """How the server behaves. `fail`: path -> (status, body, headers) of its next answer. `asked`: (path, JSON).

    `go_on`: generation waits for it in the middle of the first picture."""

    models: list[dict]
    pictures: tuple[str, ...] = NAMES
    token: str = ""
    go_on: threading.Event | None = None
    fail: dict[str, tuple[int, dict, dict[str, str]]] = field(default_factory=dict)
    asked: list[tuple[str, Any]] = field(default_factory=list)


class FakeServe(ThreadingHTTPServer):
    """Serves the page, and answers it."""

    daemon_threads = True

    def __init__(self, wishes: Wishes, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.wishes = wishes
        self.url = f"http://127.0.0.1:{self.server_port}/"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # pages that hang up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeServe  # pyright: ignore

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        wishes = self.server.wishes
        if path == "/" or path.startswith("/static/"):
            file = STATIC / (path.removeprefix("/static/").strip("/") or "index.html")
            if not file.is_file():
                return self.answer(404, {"error": "no such file"})
            return self.send(200, file.read_bytes(), TYPES[file.suffix])
        if self.refused(path):
            return None
        if path == "/api/models":
            pictures = [{"name": name, "url": f"/api/pictures/{name}.png"} for name in wishes.pictures]
            return self.answer(200, {"models": wishes.models, "pictures": pictures, "version": "0.2.0"})
        name = path.removeprefix("/api/pictures/").removesuffix(".png")
        if name in wishes.pictures:
            return self.send(200, base64.b64decode(address(photo(name)).partition(",")[2]), "image/png")
        return self.answer(404, {"error": f"there is nothing at {path}"})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        body, file = self.read(raw)
        self.server.wishes.asked.append((self.path, body))
        if self.refused(self.path):
            return None
        model = next((each for each in self.server.wishes.models if each["name"] == body["model"]), None)
        if model is None:
            return self.answer(422, {"error": f"there is no model {body['model']!r} here"})
        k, (h, w) = len(model["factors"]), model["grid"]
        if self.path in ("/api/reconstruct", "/api/encode"):
            size = (w * CELL, h * CELL)
            image = Image.open(io.BytesIO(file)) if file else Image.fromarray(photo(body["picture"]))
            pixels = np.asarray(image.convert("RGB").resize(size))
            return self.answer(200, self.reconstruct(model, pixels, encode(pixels, k)))
        if self.path == "/api/decode":
            codes = np.array(body["codes"])
            assert codes.shape == (k, h, w)
            return self.answer(200, {"images": [address(decode(codes))]})
        assert self.path in ("/api/generate", "/api/edit") and body["stream"]
        return self.draw(model, body, k, h, w)

    def reconstruct(self, model: dict, pixels: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
        """What both `encode` and `reconstruct` answer; the page takes what it needs."""
        made, names = decode(codes), list(enumerate(model["factors"]))
        psnr = 10 * np.log10(255**2 / ((pixels.astype(float) - made) ** 2).mean())
        return {
            "codes": codes.tolist(),
            "size": list(pixels.shape[:2]),
            "original": address(pixels),
            "reconstruction": address(made),
            "alone": {} if len(codes) == 1 else {name: address(decode(codes, [i])) for i, name in names},
            "psnr": float(psnr),
            "usage": {name: len(np.unique(codes[i])) for i, name in names},
        }

    def draw(self, model: dict, body: dict, k: int, h: int, w: int) -> None:
        """Streams pictures row by row: the end of a photograph's codes, the rest grey."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for image in range(body["num"]):
            chosen = (body.get("classes") or [None])[image % len(body.get("classes") or [None])]
            pixels = photo(f"{CLASSES[(chosen or 0) % 10]}{body['seed']}{image}", h * CELL, w * CELL)
            codes = encode(pixels, k)
            if "mask" in body:
                codes = np.where(body["mask"], body["codes"], codes)
            if "keep" in body:
                kept = [name in body["keep"] for name in model["factors"]]
                codes = np.where(np.array(kept)[:, None, None], body["codes"], codes)
            made = decode(codes)
            for row in range(1, h):
                part = made.copy()
                part[row * CELL :] = 128
                facts = {"image": image, "position": row * w, "of": h * w, "picture": address(part)}
                self.event("progress", facts)
                if self.server.wishes.go_on and row == h // 2:
                    self.server.wishes.go_on.wait(60)
            facts = {"image": image, "picture": address(made), "codes": codes.tolist(), "seed": body["seed"]}
            self.event("image", facts | {"index": image, "class": chosen})
        self.event("done", {"seconds": 0.4})
        self.close_connection = True

    def event(self, name: str, data: dict) -> None:
        self.wfile.write(f"event: {name}\ndata: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()

    def read(self, raw: bytes) -> tuple[dict, bytes]:
        """A request's fields and its file."""
        kind = self.headers["Content-Type"]
        if kind.startswith("application/json"):
            return json.loads(raw), b""
        form = message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + raw)
        parts: dict[str, Any] = {}
        for part in form.get_payload():  # pyright: ignore
            parts[part.get_param("name", header="content-disposition")] = part.get_payload(decode=True)  # pyright: ignore
        picture = parts.pop("picture")
        return {name: value.decode() for name, value in parts.items()}, picture

    def refused(self, path: str) -> bool:
        """Whether a wish or a missing token ended the request."""
        wishes = self.server.wishes
        if wishes.token and self.headers.get("Authorization") != f"Bearer {wishes.token}":
            self.answer(401, {"error": "this server needs its token"})
        elif path in wishes.fail:
            status, body, headers = wishes.fail.pop(path)
            self.answer(status, body, headers)
        else:
            return False
        return True

    def answer(self, status: int, body: dict, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(body).encode(), "application/json", headers)

    def send(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def pair() -> list[dict]:
    """A tokenizer and a generator over it."""
    dual = tokenizer("tokenizer")
    return [dual, generator("generator", dual)]
