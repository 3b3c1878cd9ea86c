"""`fqgan serve` against bad input: a status of 4xx with one sentence, and nothing leaks, grows or breaks."""

from __future__ import annotations

import base64
import gc
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as options
from PIL import Image
from servers import png, served, settings, write_models

from fqgan.serve import connections, gate
from fqgan.serve.engine import Engine

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def running(models: Path) -> Iterator[tuple[str, Engine]]:
    with served(settings(models)) as address:
        yield address


@pytest.fixture(scope="module")
def client(running: tuple[str, Engine]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running[0], timeout=60) as client:
        yield client


def sentence(response: httpx.Response) -> str:
    """What a refusal says: one sentence as JSON, with nothing of the machine in it."""
    assert 400 <= response.status_code < 500, (response.status_code, response.text)
    found = response.json()["error"]
    text = found if isinstance(found, str) else found["message"]
    assert text and text.isprintable() and len(text) <= 500, text
    for word in ("Traceback", 'File "', ".py", "/tmp", "/home", "site-packages", "torch.", " at 0x"):
        assert word not in text, text
    return text


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


def test_hostile_requests_get_one_sentence_each(
    client: httpx.Client, running: tuple[str, Engine], capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(HOSTILE) > 230
    for method, path, sent in HOSTILE:
        response = client.request(method, path, **sent)
        assert 400 <= response.status_code < 500, (method, path, str(sent)[:300], response.status_code, response.text)
        if method != "HEAD":
            sentence(response)
    output = "".join(capfd.readouterr())
    assert "Traceback" not in output and "failed" not in output
    engine = running[1]
    assert engine.unit.worker.load == 0 and engine.ready
    assert client.post("/api/generate", json={"model": "gen", "classes": [0]}).status_code == 200


VALUES = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(max_size=9),
    lambda inner: (
        strategies.lists(inner, max_size=4) | strategies.dictionaries(strategies.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = ["classes", "num", "seed", "cfg_scale", "top_k", "codes", "keep", "region", "mask", "mix", "picture", "size"]


@options(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    strategies.sampled_from(["generate", "edit", "decode", "encode", "likelihood", "reconstruct"]),
    strategies.dictionaries(strategies.sampled_from(FIELDS), VALUES, max_size=4),
)
def test_made_up_requests_never_break_the_server(client: httpx.Client, path: str, data: dict[str, Any]) -> None:
    body = json.dumps({"model": "gen", **data})
    response = client.post(f"/api/{path}", content=body, headers=JSON)
    if response.status_code != 200:
        sentence(response)


def test_a_body_of_more_than_20_mb_is_refused_by_its_word_and_by_its_bytes(client: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(25):
            yield b" " * 2**20

    for content in (b" " * (21 * 2**20), endless()):
        response = client.post("/api/generate", content=content, headers=JSON)
        assert response.status_code == 413 and sentence(response) == "the body is larger than 20 MB"
    large = b'{"model": "gen", "classes": [0]' + b" " * (19 * 2**20) + b"}"
    assert client.post("/api/generate", content=large, headers=JSON).status_code == 200


def test_bodies_are_held_up_to_a_bound_in_all(
    client: httpx.Client, running: tuple[str, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HELD", 2**20)
    response = client.post("/api/generate", content=b" " * 2**21, headers=JSON)
    assert response.status_code == 429 and response.headers["retry-after"] == "1"
    for _ in range(5):  # what was held is let go of
        assert client.post("/api/generate", content=b" " * 2**19, headers=JSON).status_code == 400


def test_uploads_stay_in_memory(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("a file was made")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    buffer = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).convert("RGB").save(buffer, "PNG")
    assert len(buffer.getvalue()) > 2 * 2**20
    response = client.post("/api/encode", files={"picture": ("a.png", buffer.getvalue())}, data={"model": "tok"})
    assert response.status_code == 200


def raw(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def everything(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(2**16):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GET / HT",
        b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\n",
    ],
)
def test_who_never_finishes_asking_is_shown_out(
    running: tuple[str, Engine], head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "ASK_SECONDS", 0.3)
    with raw(running[0]) as connection:
        connection.sendall(head)
        began = time.monotonic()
        with suppress(ConnectionResetError):
            everything(connection)
        assert time.monotonic() - began < 10


def test_a_slow_body_ends_in_time(running: tuple[str, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.5)
    with raw(running[0]) as connection:
        head = b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: 99\r\n\r\n{")
        found = everything(connection)
    assert found.startswith(b"HTTP/1.1 408") and b"did not arrive within 0.5 s" in found


@pytest.mark.parametrize(
    "text",
    [
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 2**17 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\r\nX: y HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_is_refused(running: tuple[str, Engine], client: httpx.Client, text: bytes) -> None:
    with raw(running[0]) as connection:
        try:
            connection.sendall(text)
            connection.shutdown(socket.SHUT_WR)
            found = everything(connection)
        except (ConnectionResetError, BrokenPipeError):
            found = b""
    assert not found or (found.split()[1][:1] == b"4" and b'{"error":' in found)
    assert client.get("/healthz").status_code == 200


def test_other_machines_need_the_token(models: Path) -> None:
    with served(settings(models, token="secret")) as (address, _), httpx.Client(base_url=address) as client:
        for headers in (
            {},
            {"authorization": "secret"},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer \xe9"},
        ):
            for path in ("/api/models", "/v1/models", "/metrics", "/openapi.json", "/docs", "/api/none"):
                response = client.get(path, headers={k: v.encode("latin-1") for k, v in headers.items()})
                assert response.status_code == 401 and "token" in sentence(response)
        assert client.get("/healthz").status_code == 200
        assert (
            client.get("/api/models", headers={"authorization": "Bearer secret", "host": "any.example"}).status_code
            == 200
        )
        assert client.get("/api/models?token=secret").status_code == 401


def test_pages_of_other_origins_call_only_where_asked(client: httpx.Client, models: Path) -> None:
    origin = {"origin": "https://example.org"}
    refused = client.get("/api/models", headers=origin)
    assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
    with served(settings(models, cors=("https://example.org",), token="t")) as (address, _):
        preflight = {
            **origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        found = httpx.options(f"{address}/api/generate", headers=preflight)
        assert found.status_code == 200 and found.headers["access-control-allow-origin"] == origin["origin"]
        found = httpx.get(f"{address}/api/models", headers={**origin, "authorization": "Bearer t"})
        assert found.status_code == 200 and found.headers["access-control-allow-origin"] == origin["origin"]
        assert httpx.get(f"{address}/api/models", headers={"origin": "https://other.org"}).status_code == 403


def test_many_hostile_requests_leave_no_objects_behind(client: httpx.Client) -> None:
    def count() -> int:
        gc.collect()
        return len(gc.get_objects())

    def some() -> None:
        for method, path, sent in HOSTILE[::16]:
            client.request(method, path, **sent)

    some()
    some()
    before = count()
    for _ in range(4):
        some()
    assert count() - before < 500


def test_the_log_has_a_line_a_request_and_no_secrets(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(settings(models, token="hush")) as (address, _):
        capfd.readouterr()
        url = "data:image/png;base64," + base64.b64encode(png()).decode()
        headers = {"authorization": "Bearer hush"}
        httpx.post(f"{address}/api/encode?token=hush", json={"picture": url, "model": "tok"}, headers=headers)
        httpx.post(f"{address}/api/generate", json={"classes": [0], "num": 2, "model": "gen"}, headers=headers)
        httpx.get(f"{address}/a%0ab%1b")
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 3 and "hush" not in "".join(lines) and url[30:60] not in "".join(lines)
    assert lines[0].startswith("127.0.0.1 POST /api/encode 200 ") and lines[0].endswith(" s model=tok")
    assert lines[1].endswith(" s model=gen pictures=2") and "/a\\nb\\x1b 401" in lines[2]
