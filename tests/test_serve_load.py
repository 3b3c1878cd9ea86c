"""`fqgan serve` under load: full queues, deadlines, clients that hang up, and steps that fail."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from servers import ask, generator, served, settings, until

from fqgan.generator.model import FAR
from fqgan.generator.sampler import Sampler
from fqgan.serve import connections, images
from fqgan.serve.codec import Codec
from fqgan.tokenizer.model import FactorizedTokenizer

__all__ = ["generator"]  # fixtures


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes at least 30 ms: 16 of them half a second."""
    step = Sampler.step
    monkeypatch.setattr(Sampler, "step", lambda self: (time.sleep(0.03), step(self))[1])


def test_a_full_queue_answers_429_and_says_when_to_come_back(models: Path, slowly: None, generator: FAR) -> None:
    with served(settings(models, batch=2, queue=6, most=4)) as (address, engine), ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda seed: ask(address, num=4, seed=seed), range(6)))
        assert {response.status_code for response in found} == {200, 429}
        assert sum(response.status_code == 200 for response in found) >= 1
        for seed, response in enumerate(found):
            if response.status_code == 429:
                assert int(response.headers["retry-after"]) >= 1 and "try again in" in response.json()["error"]
            else:
                codes = generator.generate([0] * 4, seed=seed).tolist()
                assert [each["codes"] for each in response.json()["images"]] == codes
        until(lambda: engine.unit.worker.load == 0)
        assert ask(address, num=4).status_code == 200


def test_what_waits_stays_within_the_queue_however_many_ask(models: Path, slowly: None) -> None:
    seen = []
    with served(settings(models, batch=2, queue=5, most=2)) as (address, engine), ThreadPoolExecutor(40) as pool:
        answers = [pool.submit(ask, address, num=2, seed=i) for i in range(40)]
        while not all(each.done() for each in answers):
            seen.append(engine.unit.worker.load)
            time.sleep(0.005)
        assert {each.result().status_code for each in answers} == {200, 429}
    assert max(seen) <= 2 + 5


def test_small_requests_do_not_wait_for_large_ones(models: Path, slowly: None) -> None:
    with served(settings(models, batch=2)) as (address, _), ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        large = pool.submit(lambda: (ask(address, num=16), time.monotonic() - began)[1])
        time.sleep(0.2)
        small = pool.submit(lambda: (ask(address), time.monotonic() - began)[1])
        assert small.result() < 0.6 * large.result()


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_a_request_and_frees_its_rows(models: Path, slowly: None, stream: bool) -> None:
    with served(settings(models, deadline=0.3)) as (address, engine):
        if stream:
            response = ask(address, stream=True, num=4)
            last = response.text.split("\n\n")[-2]
            assert response.status_code == 200 and last.startswith("event: error\ndata: ")
            assert "longer than the 0.3 s" in json.loads(last.partition("data: ")[2])["error"]
        else:
            response = ask(address, num=4)
            assert response.status_code == 504 and "longer than the 0.3 s" in response.json()["error"]
        until(lambda: engine.unit.worker.load == 0, 2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_a_client_that_hangs_up_frees_its_rows(models: Path, slowly: None, stream: bool, half: bool) -> None:
    """With the whole connection closed, or its own half only."""
    body = json.dumps({"model": "gen", "classes": [0], "num": 60, "stream": stream}).encode()
    head = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with served(settings(models)) as (address, engine):
        connection = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        connection.sendall(head.encode() + body)
        until(lambda: engine.unit.worker.load == 60)
        time.sleep(0.2)
        connection.shutdown(socket.SHUT_WR) if half else connection.close()
        until(lambda: engine.unit.worker.load == 0, 2)  # all 60 would take eight seconds
        connection.close()


def test_a_client_that_does_not_read_is_shown_out(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 0.3)
    monkeypatch.setattr(images, "photograph_png", lambda name: b"\0" * 2**24)
    with served(settings(models)) as (address, _):
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", int(address.rpartition(":")[2])))
            connection.sendall(b"GET /api/pictures/cat.png HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
            time.sleep(1)
            got = 0
            with suppress(ConnectionResetError):
                while part := connection.recv(2**20):
                    got += len(part)
            assert got < 2**23  # what was on its way, and then the end
        # one that reads slowly, but does, gets everything
        with httpx.stream("GET", f"{address}/api/pictures/cat.png") as response:
            assert sum((time.sleep(0.01), len(part))[1] for part in response.iter_raw(2**19)) == 2**24


def test_a_gpus_passes_are_filled_up_and_give_each_picture_its_own(
    models: Path, generator: FAR, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes, decode = [], FactorizedTokenizer.decode

    def noted(self: FactorizedTokenizer, codes: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        shapes.append(len(codes))
        return decode(self, codes, *given, **named)

    tokenizer, codes = generator.tokenizer, generator.generate([0, 1, 2, 3, 0, 1, 2], seed=2)
    expected = [tokenizer.decode(each[None])[0] for each in codes]
    monkeypatch.setattr(FactorizedTokenizer, "decode", noted)
    codec = Codec(torch.device("cpu"))
    codec.size = 3
    blocked = threading.Event()
    codec.run(blocked.wait)  # all seven wait together
    futures = [codec.decode(tokenizer, each, lambda image: image) for each in codes]
    cancelled = codec.decode(tokenizer, codes[0], lambda image: image)
    assert cancelled.cancel()
    blocked.set()
    for future, image in zip(futures, expected, strict=True):
        torch.testing.assert_close(future.result(), image, rtol=0, atol=1e-5)
    codec.stop()
    assert shapes == [3, 3, 3]


def test_a_failing_step_ends_its_requests_and_no_others(
    models: Path, generator: FAR, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step, broken = Sampler.step, threading.Event()

    def failing(self: Sampler) -> Any:
        if broken.is_set():
            raise RuntimeError("no more of anything at 0xdeadbeef")
        return step(self)

    monkeypatch.setattr(Sampler, "step", failing)
    with served(settings(models)) as (address, engine):
        broken.set()
        response = ask(address)
        assert response.status_code == 500 and response.json() == {"error": "the model failed on this request"}
        broken.clear()
        assert ask(address).json()["images"][0]["codes"] == generator.generate([0])[0].tolist()
        assert engine.ready
    assert "0xdeadbeef" in capfd.readouterr().out
