"""`fqgan serve` over its life: starts, SIGTERM, mistakes on its command line, and on many machines."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch
from servers import CLASSES, ask, generator, served, settings, until

from fqgan.base.errors import UserError
from fqgan.config.serving import ServingSettings
from fqgan.generator.model import FAR
from fqgan.serve import app, ray_app
from fqgan.serve.engine import Engine
from fqgan.serve.models import places
from fqgan.serve.requests import Drawn
from fqgan.serve.server import listen

__all__ = ["generator"]  # fixtures

Refused = Callable[..., str]


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
