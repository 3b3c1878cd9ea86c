"""Requests that a server must refuse with one sentence."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image
from servers import png


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG that claims a size, with few bytes behind it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def narrow() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (1, 100_000)).save(buffer, "PNG")
    return buffer.getvalue()


GENERATE: list[dict[str, Any]] = [
    {"num": 0},
    {"num": -1},
    {"num": 10**6},
    {"num": 10**30},
    {"num": 1.5},
    {"num": "four"},
    {"num": True},
    {"num": [4]},
    {"classes": ["zebra"]},
    {"classes": ["appel"]},
    {"classes": [4]},
    {"classes": [-1]},
    {"classes": [10**40]},
    {"classes": [1.0]},
    {"classes": [None]},
    {"classes": [[0]]},
    {"classes": [True]},
    {"classes": "apple"},
    {"classes": 3},
    {"classes": {}},
    {"classes": [0] * 5000},
    {"classes": ["x" * 100_000]},
    {"classes": ["\ud800"]},
    {"classes": ["\0"]},
    {"classes": ["\u202e apple \n\n\x1b[31m"]},
    {"classes": ["²"]},
    {"classes": ["../../etc/passwd"]},
    {"classes": [0], "seed": -1},
    {"classes": [0], "seed": 2**64},
    {"classes": [0], "seed": 0.5},
    {"classes": [0], "seed": "0"},
    {"classes": [0], "seed": None},
    {"classes": [0], "seed": [1, 2]},
    {"classes": [0], "index": -1},
    {"classes": [0], "index": 2**63},
    {"classes": [0], "cfg_scale": -1},
    {"classes": [0], "cfg_scale": 1e300},
    {"classes": [0], "cfg_scale": [1, 2, 3]},
    {"classes": [0], "cfg_scale": []},
    {"classes": [0], "cfg_scale": "2"},
    {"classes": [0], "cfg_scale": {"f0": 2}},
    {"classes": [0], "cfg_scale": [[1, 2]]},
    {"classes": [0], "cfg_scale": True},
    {"classes": [0], "cfg_schedule": "steep"},
    {"classes": [0], "temperature": -0.1},
    {"classes": [0], "temperature": [1] * 100_000},
    {"classes": [0], "temperature": [1, None]},
    {"classes": [0], "top_k": -1},
    {"classes": [0], "top_k": 10**9},
    {"classes": [0], "top_k": 10**100},
    {"classes": [0], "top_k": 1.5},
    {"classes": [0], "top_k": [1, 2, 3]},
    {"classes": [0], "top_p": 0},
    {"classes": [0], "top_p": 1.1},
    {"classes": [0], "top_p": [0.5, -0.5]},
    {"classes": [0], "stream": "yes"},
    {"classes": [0], "stream": 1},
    {"classes": [0], "unknown": 1},
    {"classes": [0], "nmu": 1},
    {"classes": [0], "__class__": {}},
    {"classes": None, "cfg_scale": 3},
    {"classes": [0], "model": "none"},
    {"classes": [0], "model": "tok"},
    {"classes": [0], "model": "../gen"},
    {"classes": [0], "model": "/etc/passwd"},
    {"classes": [0], "model": "hf:org/name"},
    {"classes": [0], "model": ""},
    {"classes": [0], "model": 5},
    {"classes": [0], "model": ["gen"]},
    {"classes": [0], "model": "g" * 10_000},
    {"classes": [0], "model": None},
    {"classes": [0], "model": "free"},
]
CODES: list[Any] = [
    None,
    [],
    5,
    0.5,
    "codes",
    {},
    [[1, 2], [3]],
    [[[0] * 4] * 4],
    [[[0] * 4] * 4] * 3,
    [[[99] * 4] * 4] * 2,
    [[[-1] * 4] * 4] * 2,
    [[[0.5] * 4] * 4] * 2,
    [[[True] * 4] * 4] * 2,
    [[["0"] * 4] * 4] * 2,
    [[[None] * 4] * 4] * 2,
    [[[10**30] * 4] * 4] * 2,
    [[[]]] * 2,
    [[[[[0]]]]],
    [[[0] * 4] * 4, [[0] * 4] * 3],
    [{}] * 2,
]
BAD: list[Any] = [[[[0] * 5] * 5] * 2, [[[[0] * 4] * 4] * 2] * 3]  # elsewhere than in decode
LARGE: list[Any] = [[[[0] * 600] * 600] * 2, [[[0] * 2_000] * 1] * 2, [[[[0]]] * 2] * 100, [[[[0] * 1100] * 1000] * 2]]
GOOD = [[[0] * 4] * 4] * 2
EDIT: list[dict[str, Any]] = [
    {},
    {"keep": ["none"]},
    {"keep": [2]},
    {"keep": [-1]},
    {"keep": "f0"},
    {"keep": [["f0"]]},
    {"keep": ["f0"] * 1000},
    {"region": [0, 0, 4]},
    {"region": [0, 0, 0, 0]},
    {"region": [4, 4, 2, 2]},
    {"region": [0, 0, 9, 8]},
    {"region": [-1, 0, 4, 4]},
    {"region": ["a", 0, 4, 4]},
    {"region": [0, 0, 1e308, 1e308]},
    {"mask": True},
    {"mask": [[[0] * 4] * 4] * 2},
    {"mask": [[[True] * 4] * 4]},
    {"mask": [[[True] * 4] * 4, [[True] * 3] * 4]},
    {"mask": [[[True] * 4] * 4] * 2, "keep": ["f0"]},
    {"mix": {}},
    {"mix": {"codes": GOOD}},
    {"mix": {"codes": GOOD, "take": ["none"]}},
    {"mix": {"codes": GOOD, "take": ["f0"], "from": -1}},
    {"mix": {"codes": GOOD, "take": ["f0"], "to": 17}},
    {"mix": {"codes": GOOD, "take": ["f0"], "from": 9, "to": 3}},
    {"mix": {"codes": [], "take": ["f0"]}},
    {"mix": {"codes": GOOD, "take": ["f0"], "extra": 1}},
    {"mix": [1]},
    {"keep": ["f0"], "best_of": 0},
    {"keep": ["f0"], "best_of": 65},
    {"keep": ["f0"], "best_of": 10**9},
    {"keep": ["f0"], "num": 64, "best_of": 2},
    {"keep": ["f0"], "picture": "cat"},
]
PICTURES: list[Any] = [
    None,
    5,
    "",
    [],
    {"url": "file:///etc/passwd"},
    "nobody",
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1/",
    "data:image/png;base64,",
    "data:image/png,abc",
    "data:image/png;base64,AAAA",
    "data:text/html;base64,PGI+",
    "data:",
    "AAAA",
    "\ud800",
    "a" * 41,
]
FILES: list[bytes] = [
    b"",
    b"no picture",
    b"%PDF-1.7",
    b"GIF89a",
    b"\x89PNG\r\n\x1a\n",
    png()[:60],
    png()[:-30],
    bomb(100_000, 100_000),
    bomb(2**31 - 1, 2**31 - 1),
    bomb(8_000, 8_000),
    bomb(0, 5),
    bomb(50, 50),
    narrow(),
    b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n",
    b"P6 100000 100000 255\n" + b"\0" * 100,
    b"P6 99999999999999999999 1 255\n",
    png(format="TIFF")[:100],
    png(format="JPEG")[:200],
    b"BM" + b"\xff" * 60,
    bytes(range(256)) * 16,
]
RAW: list[tuple[str, bytes]] = [
    ("application/json", b""),
    ("application/json", b"null"),
    ("application/json", b"[]"),
    ("application/json", b"{"),
    ("application/json", b'{"num": NaN}'),
    ("application/json", b'{"cfg_scale": Infinity, "classes": [0]}'),
    ("application/json", b'{"cfg_scale": 1e999, "classes": [0], "model": "gen"}'),
    ("application/json", b'{"num": -Infinity}'),
    ("application/json", b"[" * 100_000),
    ("application/json", b'{"a":' * 100_000),
    ("application/json", b'{"seed": ' + b"9" * 10_000 + b"}"),
    ("application/json", b"\xff\xfe"),
    ("application/json", b'{"\xff": 1}'),
    ("application/json", b'{"classes": ["\\ud800"], "model": "gen"}'),
    ("application/json; charset=utf-7", b"+AHs-"),
    ("text/plain", b"{}"),
    ("", b"{}"),
    ("application/xml", b"<a/>"),
    ("application/x-www-form-urlencoded", b"num=3"),
    ("application/octet-stream", b"\0" * 100),
    ("multipart/form-data", b"x"),
    ("multipart/form-data; boundary=", b"--\r\n"),
    ("multipart/form-data; boundary=a", b"no form"),
    ("multipart/form-data; boundary=a", b"--a\r\n\r\n\r\n--a--"),
    ("multipart/form-data; boundary=a", b"--a\r\nContent-Disposition: form-data\r\n\r\nx\r\n--a--\r\n"),
    ("multipart/form-data; boundary=a", b'--a\r\nContent-Disposition: form-data; name="num"\r\n\r\nNaN\r\n--a--\r\n'),
    (
        "multipart/form-data; boundary=a",
        b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * 100 + b"--a--\r\n",
    ),
    (
        "multipart/form-data; boundary=a",
        b'--a\r\nContent-Disposition: form-data; name="n"; filename="../x"\r\n\r\n1\r\n' * 3 + b"--a--\r\n",
    ),
    ("multipart/form-data; boundary=" + "a" * 5000, b"--a"),
]
OPENAI: list[dict[str, Any]] = [
    {},
    {"prompt": None},
    {"prompt": ""},
    {"prompt": "zebra"},
    {"prompt": "a bee on a flower"},
    {"prompt": ["bee"]},
    {"prompt": "x" * 100_000},
    {"prompt": "bee", "n": 0},
    {"prompt": "bee", "n": 65},
    {"prompt": "bee", "n": "2"},
    {"prompt": "bee", "size": "1x1"},
    {"prompt": "bee", "size": "big"},
    {"prompt": "bee", "size": 256},
    {"prompt": "bee", "response_format": "webp"},
    {"prompt": "bee", "stream": True},
    {"prompt": "bee", "seed": -4},
    {"prompt": "bee", "model": "dall-e-3"},
]
PATHS = [
    "/nowhere",
    "/api",
    "/api/",
    "/api/pictures/none.png",
    "/api/pictures/..%2f..%2fetc%2fpasswd.png",
    "/api/pictures/%00.png",
    "/static/../app.py",
    "/static/..%2fapp.py",
    "/static/%2e%2e/app.py",
    "/static/..%5capp.py",
    "/static//etc/passwd",
    "/static/%2fetc%2fpasswd",
    "/static/\ufffd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "//etc/passwd",
    "/v1/models/..%2fx",
    "/" + "a" * 3000,
    "/api/generate?" + "x=1&" * 2000,
    "/docs/../../etc/passwd",
]


def hostile() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and what httpx sends."""
    for data in GENERATE:
        yield "POST", "/api/generate", {"content": json.dumps({"model": "gen", **data}), "headers": JSON}
    for codes in CODES + LARGE:
        yield "POST", "/api/decode", {"json": {"model": "tok", "codes": codes}}
    for codes in CODES + BAD:
        yield "POST", "/api/likelihood", {"json": {"model": "gen", "codes": codes}}
    for codes in CODES[:6] + BAD:
        yield "POST", "/api/edit", {"json": {"model": "gen", "codes": codes, "keep": [0]}}
    for data in EDIT:
        yield "POST", "/api/edit", {"json": {"model": "gen", "codes": GOOD, "classes": [0], **data}}
    for picture in PICTURES:
        yield "POST", "/api/encode", {"content": json.dumps({"picture": picture, "model": "tok"}), "headers": JSON}
    for size in (-8, 7, 1026, 10**9, 1.5, "8"):
        yield "POST", "/api/reconstruct", {"json": {"picture": "cat", "model": "tok", "size": size}}
    for file in FILES:
        yield "POST", "/api/reconstruct", {"files": {"picture": ("a.png", file)}, "data": {"model": "tok"}}
    for kind, body in RAW:
        yield "POST", "/api/generate", {"content": body, "headers": {"content-type": kind}}
    for data in OPENAI:
        yield "POST", "/v1/images/generations", {"json": {"model": "gen", **data}}
    for path in PATHS:
        yield "GET", path, {}
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "HEAD", "OPTIONS", "BREW"):
        yield method, "/api/generate", {}
    for headers in (
        {"origin": "http://evil.example"},
        {"host": "evil.example"},
        {"host": "[::"},
        {"host": ""},
        {"origin": "null"},
        {"origin": "http://[::"},
        {"content-encoding": "gzip"},
    ):
        yield "POST", "/api/generate", {"headers": JSON | headers, "content": b"{}"}


JSON = {"content-type": "application/json"}
HOSTILE = list(hostile())
