"""`fqgan serve` as a process, and over its life: starts, full queues, deadlines, clients that hang up, SIGTERM."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch
from servers import CLASSES, served, settings

import fqgan
from fqgan.base.errors import UserError
from fqgan.config.serving import ServingSettings
from fqgan.generator.model import FAR
from fqgan.generator.sampler import Sampler
from fqgan.serve import app, connections, images, ray_app
from fqgan.serve.codec import Codec
from fqgan.serve.engine import Engine
from fqgan.serve.models import places
from fqgan.serve.requests import Drawn
from fqgan.serve.server import listen
from fqgan.tokenizer.model import FactorizedTokenizer

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def generator(models: Path) -> FAR:
    return fqgan.load_generator(models / "gen")


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step takes at least 30 ms: 16 of them half a second."""
    step = Sampler.step
    monkeypatch.setattr(Sampler, "step", lambda self: (time.sleep(0.03), step(self))[1])


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def ask(address: str, **data: Any) -> httpx.Response:
    return httpx.post(f"{address}/api/generate", json={"model": "gen", "classes": [0], **data}, timeout=60)


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


class Process:
    """`fqgan serve` as a process of its own."""

    def __init__(self, *arguments: object, code: str = "", **environment: str):
        command = ["-c", code, *map(str, arguments)] if code else ["-m", "fqgan", "serve", *map(str, arguments)]
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.address = ""
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append(line.rstrip())
            if found := re.search(r"serves at (\S+)", line):
                self.address = found[1]
                break
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        self.lines += [line.rstrip() for line in self._process.stdout]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        status = self._process.wait(60)
        self._reader.join()
        return status

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.wait()


SLOWLY = """
import sys, time
from fqgan.generator.sampler import Sampler
step = Sampler.step
Sampler.step = lambda self: (time.sleep(0.02), step(self))[1]
from fqgan import cli
sys.argv = ["fqgan", "serve", *sys.argv[1:]]
cli.run()
"""


@contextmanager
def process(*arguments: object, **options: Any) -> Iterator[Process]:
    started = Process(*arguments, **options)
    try:
        yield started
    finally:
        started.end()


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing_that_was_accepted(models: Path, generator: FAR) -> None:
    accepted: list[tuple[int, httpx.Response]] = []
    refused: list[Exception] = []
    unfinished: list[Exception] = []

    def client(number: int) -> None:
        for seed in range(100 * number, 100 * number + 100):
            try:
                accepted.append((seed, ask(server.address, num=2, seed=seed)))
            except httpx.ConnectError as error:
                refused.append(error)
                return
            except httpx.HTTPError as error:
                unfinished.append(error)
                return

    names = [models / name for name in ("tok", "gen", "free")]
    with process(*names, "--port", 0, "--batch", 4, "--device", "cpu", code=SLOWLY) as server:
        assert server.address, server.lines
        threads = [threading.Thread(target=client, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        until(lambda: len(accepted) >= 12)
        under_way = httpx.get(f"{server.address}/metrics").text
        server.signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.wait() == 0, server.lines
        assert server.lines[-1] == "fqgan serve: all requests are done" and "Traceback" not in "".join(server.lines)
    assert float(re.search(r"^fqgan_batch_images\{model=\"gen\"\} (\S+)", under_way, re.M)[1]) > 0  # pyright: ignore
    assert not unfinished and len(refused) == 12
    assert len(accepted) > 12 and {response.status_code for _, response in accepted} == {200}
    logged = [line for line in server.lines if " POST /api/generate 200 " in line]
    assert len(logged) == len(accepted)
    for seed, response in accepted[-6:]:
        found = [each["codes"] for each in response.json()["images"]]
        assert found == generator.generate([0, 0], seed=seed).tolist()


@pytest.mark.slow
def test_a_drain_ends_in_time_and_says_what_it_cut(models: Path) -> None:
    options = ["--port", 0, "--batch", 1, "--device", "cpu", "--drain", 1]
    with process(models / "gen", *options, code=SLOWLY) as server, ThreadPoolExecutor(1) as pool:
        long = pool.submit(ask, server.address, num=60)  # 20 seconds
        until(lambda: 'fqgan_batch_images{model="gen"} 1.0' in httpx.get(f"{server.address}/metrics").text)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        with pytest.raises(httpx.HTTPError):
            long.result().raise_for_status()
        assert server.wait() == 0, server.lines
        assert time.monotonic() - began < 10
        assert server.lines[-1] == "fqgan serve: 1 request(s) took too long and were cut"
        assert "Traceback" not in "".join(server.lines)


@pytest.mark.slow
def test_the_command_serves_by_name_until_ctrl_c(models: Path) -> None:
    with process(f"pets={models / 'gen'}", "--port", 0, "--device", "cpu", FQGAN_TOKEN="key") as server:
        assert server.lines[0].startswith("generator pets: 0.")
        assert server.lines[-1] == f"fqgan serves at {server.address} (Ctrl-C ends it)"
        headers = {"authorization": "Bearer key"}
        found = httpx.get(f"{server.address}/api/models", headers=headers).json()["models"]
        assert [(each["name"], each["tokenizer"], each["classes"]) for each in found] == [("pets", None, list(CLASSES))]
        assert httpx.get(f"{server.address}/api/models").status_code == 401
        server.signal(signal.SIGINT)
        assert server.wait() == 0, server.lines


def test_mistakes_on_the_command_line_are_told_in_one_line(
    models: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FQGAN_TOKEN", raising=False)
    tok, gen = models / "tok", models / "gen"
    assert "name a model, or run fqgan quickstart first" in refused("serve")
    assert "nowhere does not exist" in refused("serve", "nowhere", "--port", 0)
    assert "--host 0.0.0.0 lets other machines in: give --token or set FQGAN_TOKEN" in refused(
        "serve", tok, "--host", "0.0.0.0"
    )
    assert "two models are called tok" in refused("serve", tok, tok, "--port", 0)
    assert "'a b' cannot name a model" in refused("serve", f"a b={tok}", "--port", 0)
    assert "--cors takes origins" in refused("serve", tok, "--cors", "*")
    assert "--port must be from 0 to 65535" in refused("serve", tok, "--port", 65536)
    assert "--batch must be at least 1" in refused("serve", tok, "--batch", 0)
    assert "--most 9 pictures of a request would never fit --queue 8" in refused(
        "serve", tok, "--most", 9, "--queue", 8
    )
    assert "--deadline must be a number of seconds" in refused("serve", tok, "--deadline", "nan")
    assert "--token must be of plain letters" in refused("serve", tok, "--token", "a b")
    with listen("127.0.0.1", 0) as taken:
        told = refused("serve", gen, "--port", taken.getsockname()[1])
    assert "cannot listen at 127.0.0.1" in told and "choose another --port" in told
    monkeypatch.setattr("fqgan.serve.server._NEEDED", ("fastapi", "no_such_package"))
    assert "serving needs no_such_package: run pip install 'fqgan[serve]'" in refused("serve", gen)


def test_without_a_name_the_quickstarts_models_are_served(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, name in (("tokenizer", "tok"), ("generator", "gen")):
        (tmp_path / "runs/quickstart").mkdir(parents=True, exist_ok=True)
        (tmp_path / "runs/quickstart" / kind).symlink_to(models / name)
    assert [place.name for place in places(ServingSettings().chosen)] == ["tokenizer", "generator"]


def test_a_generator_without_a_tokenizer_takes_the_served_one_that_is_its_own(
    models: Path, generator: FAR, tmp_path: Path
) -> None:
    codes = generator.generate([0])
    shutil.copytree(models / "gen", tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "tokenizer")
    with pytest.raises(UserError, match="bare carries no tokenizer: serve the one that it belongs to"):
        Engine(ServingSettings(models=(str(tmp_path / "bare"),), device="cpu"))
    engine = Engine(ServingSettings(models=(str(tmp_path / "bare"), str(models / "tok")), device="cpu"))
    try:
        assert [facts["tokenizer"] for facts in engine.units[0].catalogue.facts()] == ["tok", None]
        assert torch.equal(
            engine.units[0].catalogue.get("bare").tokenizer.decode(codes), generator.tokenizer.decode(codes)
        )
    finally:
        engine.stop()


def test_a_missing_page_is_a_clear_404(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "STATIC", tmp_path / "none")
    with served(settings(models)) as (address, _):
        response = httpx.get(address)
        assert response.status_code == 404 and "no page" in response.json()["error"]
        assert httpx.get(f"{address}/static/x.js").status_code == 404


def test_the_page_and_its_files_are_served_without_a_token(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.html").write_text("<p>page")
    (tmp_path / "page.js").write_text("1")
    monkeypatch.setattr(app, "STATIC", tmp_path)
    with served(settings(models, token="t")) as (address, _):
        assert httpx.get(f"{address}/?token=t").text == "<p>page"
        assert httpx.get(f"{address}/static/page.js").text == "1"
        for path in ("/static/..%2fservers.py", "/static/../index.html", "/static/%2e%2e/%2e%2e/etc/passwd"):
            assert httpx.get(address + path).status_code in (401, 404)


def test_many_machines_without_ray_end_in_one_line(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    with pytest.raises(UserError, match=r"^many machines need Ray Serve: run pip install 'fqgan\[ray\]'$"):
        ray_app.app({"models": str(models / "gen"), "token": "t"})
    with pytest.raises(UserError, match="name the models"):
        ray_app.app({})
    for wrong, message in (
        ({"replica": "2"}, "unknown argument 'replica'; did you mean 'replicas'"),
        ({"gpus": "all"}, "gpus must be a number, got 'all'"),
        ({"cpus": "nan", "token": "t"}, "replicas make no sense"),
    ):
        with pytest.raises(UserError, match=message):
            ray_app.app({"models": "x", **wrong})


def test_ray_is_handed_the_application_and_how_it_grows(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with the part of Ray Serve's interface that is used; test_serve_ray.py has Ray itself."""
    built: dict[str, Any] = {}

    class Deployment:
        def __init__(self, **options: Any):
            built.update(options)

        def __call__(self, ingress: Any) -> Any:
            built["ingress"] = ingress
            return self

        def bind(self) -> str:
            return "bound"

    stand_in = ModuleType("ray.serve")
    stand_in.deployment = Deployment  # pyright: ignore
    stand_in.ingress = lambda build: lambda: build  # pyright: ignore
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    monkeypatch.setitem(sys.modules, "ray.serve", stand_in)
    with pytest.raises(UserError, match="FQGAN_TOKEN"):
        ray_app.app({"models": str(models / "gen")})
    given = {"models": f"pets={models / 'gen'},{models / 'tok'}", "token": "t", "replicas": "8", "gpus": "0.5"}
    assert ray_app.app({**given, "device": "cpu"}) == "bound"
    assert built["autoscaling_config"] == {"min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 32}
    assert built["ray_actor_options"] == {"num_gpus": 0.5, "num_cpus": 1.0}
    application = built["ingress"]()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(application)
        async with (
            application.router.lifespan_context(application),
            httpx.AsyncClient(transport=transport, base_url="http://ray") as client,
        ):
            data = {"model": "pets", "classes": [1], "seed": 4}
            return await client.post("/api/generate", json=data, headers={"authorization": "Bearer t"})

    response = asyncio.run(ask())
    assert response.status_code == 200 and response.json()["images"][0]["class"] == CLASSES[1]


def test_sampling_fields_are_those_of_the_library() -> None:
    """A field that the library gains must not be forgotten here."""
    from dataclasses import fields

    from fqgan.config import SamplingConfig

    own = {each.name for each in fields(SamplingConfig)}
    assert own - set(Drawn.model_fields) == {"cfg_power", "cfg_interval"}
