"""`fqgan serve` against bad input: a status of 4xx with one sentence, and nothing leaks, grows or breaks."""

from __future__ import annotations

import base64
import gc
import io
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hostile import GOOD, HOSTILE, JSON
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as options
from PIL import Image
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as described_by
from servers import png, served, settings

from fqgan.serve import connections, gate
from fqgan.serve.engine import Engine


def sentence(response: httpx.Response) -> str:
    """What a refusal says: one sentence as JSON, with nothing of the machine in it."""
    assert 400 <= response.status_code < 500, (response.status_code, response.text)
    found = response.json()["error"]
    text = found if isinstance(found, str) else found["message"]
    assert text and text.isprintable() and len(text) <= 500, text
    for word in ("Traceback", 'File "', ".py", "/tmp", "/home", "site-packages", "torch.", " at 0x"):
        assert word not in text, text
    return text


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


@pytest.mark.slow
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


CHECKS = [
    checks.not_a_server_error,
    described_by.status_code_conformance,
    described_by.content_type_conformance,
    described_by.response_schema_conformance,
]
LIKELY = {"model": "gen", "codes": GOOD, "picture": "cat", "keep": ["f0"], "prompt": "bee", "size": 8, "class": 1}
"""Values that get a made-up request further than to its first mistake."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_what_is_made_of_the_description_never_breaks_the_server(
    running: tuple[str, Engine], mode: GenerationMode, capfd: pytest.CaptureFixture[str]
) -> None:
    """Requests that the description allows, or nearly; each as it is made, then with likelier values."""
    statuses: Counter[int] = Counter()
    operations = schemathesis.openapi.from_url(f"{running[0]}/openapi.json").get_all_operations()
    for operation in (each.ok() for each in operations):
        if mode == GenerationMode.NEGATIVE and not operation.body:
            continue  # of names any may be asked for

        @options(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case) -> None:
            for names in ([], ["model"], [*LIKELY]):
                if isinstance(case.body, dict):
                    case.body |= {name: LIKELY[name] for name in names if name in case.body or name == "model"}
                elif names and case.path_parameters:
                    case.path_parameters["name"] = "cat" if "pictures" in case.path else "gen"
                response = case.call(timeout=60)
                case.validate_response(response, checks=CHECKS)
                statuses[response.status_code] += 1
                if response.status_code >= 400:
                    sentence(httpx.Response(response.status_code, content=response.content))

        ask()
    output = "".join(capfd.readouterr())
    assert "Traceback" not in output and "failed" not in output
    assert statuses[400] > 100 and (mode == GenerationMode.NEGATIVE or statuses[200] > 100), statuses


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
        except OSError:  # it is gone already
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
            for path in ("/api/models", "/v1/models", "/metrics", "/openapi.json", "/api/none"):
                response = client.get(path, headers={k: v.encode("latin-1") for k, v in headers.items()})
                assert response.status_code == 401 and "token" in sentence(response)
        assert client.get("/healthz").status_code == 200 == client.get("/docs").status_code
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


@pytest.mark.slow
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
