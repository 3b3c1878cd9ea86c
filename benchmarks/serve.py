"""`fqgan serve` under load, in ratios that one run gives. This process asks, over loopback; the server is another one.

python benchmarks/serve.py [--preset far-photos] [--tokenizer photos-dual] [--seconds 20] [--batch 32]
python benchmarks/serve.py --soak 30    # minutes of mixed load: how much memory the server holds

Models have random weights. All requests ask for one picture of one class at guidance 2 and the temperature 1. Figures:

- offline: the sampler at its best batch, which is 1, then decoding and PNG, one after the other, as `fqgan generate`
  does it; and codes alone;
- closed load: 32 clients that each ask anew when they have been answered (aim: 0.85 of offline);
- Poisson arrivals at 70 % of what the closed load reached: latency over that of a lone request (aim: median 1.5, 99th
  percentile 3);
- the plain way, a lock around `generator.generate`, against ours, at 8 clients (aim: ours 3 times as many pictures).

With --soak requests of all kinds, good and bad, come at two a second, and some clients hang up. The server's resident
memory is sampled each 30 seconds; the first sixth of the time is its warm-up (aim: within 5 % of that in the end). It
needs Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import functools
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import torch
from PIL import Image

import fqgan
from fqgan.config import presets
from fqgan.generator.model import FAR
from fqgan.serve.images import png
from fqgan.tokenizer.model import FactorizedTokenizer

CLASSES = 10
JSON = {"Content-Type": "application/json"}


def write_models(folder: Path, preset: str, tokenizer_preset: str) -> None:
    """A generator with random weights that carries a tokenizer with such."""
    torch.manual_seed(0)
    tokenizer = FactorizedTokenizer(presets.get(tokenizer_preset).model).eval()
    sizes = tuple(quantizer.codebook_size for quantizer in tokenizer.quantizers)
    grid = (tokenizer.config.grid, tokenizer.config.grid)
    config = replace(presets.get_generator(preset).model, codebook_sizes=(), grid=(), num_classes=0)
    generator = FAR(config.resolved(sizes, grid, CLASSES)).eval()
    with torch.no_grad():
        for output in generator.head.outputs:
            output.weight.normal_(0, 0.02)  # pyright: ignore
    generator.carry(tokenizer)
    fqgan.save_generator(generator, folder / "generator")


def offline(folder: Path, batches: list[int], seconds: float) -> tuple[float, float, int]:
    """Pictures a second and codes a second at the best batch, and that batch."""
    generator = fqgan.load_generator(folder / "generator", "auto")
    found: dict[int, tuple[float, float]] = {}
    for batch in batches:
        sampler = generator.sampler(batch)
        sampler([0])
        drawing = decoding = 0.0
        made = 0
        while drawing + decoding < seconds or not made:
            began = time.perf_counter()
            codes = sampler([i % CLASSES for i in range(batch)], first_image=made)
            drawing += (drawn := time.perf_counter()) - began
            with torch.inference_mode():
                for own in codes:
                    png(generator.tokenizer.decode(own[None])[0].cpu())
            decoding += time.perf_counter() - drawn
            made += batch
        found[batch] = made / (drawing + decoding), made / drawing
        print(f"offline, batch {batch}: {found[batch][0]:.2f} pictures/s, {found[batch][1]:.2f} without decoding")
    best = max(found, key=lambda batch: found[batch][0])
    return *found[best], best


@contextmanager
def process(*command: str) -> Iterator[tuple[str, int]]:
    """The address at which a server serves, and its process."""
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        for line in server.stdout:
            if found := re.search(r"serves at (\S+)", line):
                # its log is read on: a full pipe would stop it
                threading.Thread(target=deque, args=(server.stdout, 0), daemon=True).start()
                yield found[1], server.pid
                return
        raise SystemExit("the server did not start")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


class Client:
    """Asks for pictures, and keeps how long each took."""

    def __init__(self, http: httpx.AsyncClient):
        self._http, self.times, self.asked = http, list[float](), 0

    async def ask(self) -> None:
        self.asked += 1
        data = {"classes": [self.asked % CLASSES], "seed": self.asked}
        began = time.perf_counter()
        response = await self._http.post("/api/generate", json=data)
        response.raise_for_status()
        self.times.append(time.perf_counter() - began)

    async def closed(self, clients: int, seconds: float) -> float:
        """Answers a second to clients that ask anew when they have been answered, after a warm-up of a fifth."""
        began, ends = time.perf_counter() + seconds / 5, time.perf_counter() + 1.2 * seconds
        inside = 0

        async def one() -> None:
            nonlocal inside
            while time.perf_counter() < ends:
                await self.ask()
                inside += began <= time.perf_counter() < ends

        await asyncio.gather(*(one() for _ in range(clients)))
        return inside / seconds

    async def poisson(self, rate: float, seconds: float) -> list[float]:
        """Latencies of requests that arrive at this rate, whatever became of others."""
        self.times.clear()
        rng, tasks, began, at = random.Random(0), [], time.perf_counter(), 0.0
        while (at := at + rng.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
            tasks.append(asyncio.create_task(self.ask()))
        await asyncio.gather(*tasks)
        return sorted(self.times)


async def measure(address: str, seconds: float, clients: int, rates: bool) -> dict[str, float]:
    """Throughput of a closed load; of ours also latencies."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as http:
        client = Client(http)
        for _ in range(3):
            await client.ask()
        client.times.clear()
        began = time.perf_counter()
        while time.perf_counter() - began < seconds / 4 or len(client.times) < 5:
            await client.ask()
        found = {"lone": statistics.median(client.times), "eight": await client.closed(8, seconds)}
        if rates:
            found["closed"] = await client.closed(clients, seconds)
            times = await client.poisson(0.7 * found["closed"], 2 * seconds)
            found["median"], found["p99"] = statistics.median(times), times[int(0.99 * len(times))]
            found["arrivals"] = len(times)
        return found


@functools.cache
def noise(side: int) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def mixed(rng: random.Random) -> tuple[str, dict[str, object]]:
    """A request: where to, and what httpx sends. A quarter of them are mistakes."""
    file = noise(rng.choice([64, 200, 640, 1500]))
    url = "data:image/png;base64," + base64.b64encode(file).decode()
    form = {"files": {"picture": ("a.png", file)}}
    draw = {"classes": [rng.randrange(CLASSES)], "num": rng.randint(1, 4), "seed": rng.randrange(2**32)}
    draw |= rng.choice([{}, {"cfg_scale": 1}, {"temperature": 0.8, "top_k": 50}, {"top_p": 0.9}])
    return rng.choice(
        [
            ("/api/generate", {"json": draw}),
            ("/api/generate", {"json": draw | {"stream": True}}),
            ("/api/edit", {"json": draw | {"picture": url, "keep": [0], "best_of": rng.randint(1, 4)}}),
            ("/api/edit", {"json": draw | {"picture": url, "region": [16, 16, 48, 48], "stream": True}}),
            ("/api/reconstruct", form),
            ("/api/encode", form),
            ("/api/likelihood", {"json": {"picture": url, "class": draw["classes"][0]}}),
            ("/api/decode", {"json": {"codes": [[[rng.randrange(64) for _ in range(8)] for _ in range(8)]] * 2}}),
            ("/v1/images/generations", {"json": {"prompt": str(draw["classes"][0]), "n": 2, "seed": draw["seed"]}}),
            ("/api/generate", {"json": draw | {"num": 10**6}}),
            ("/api/generate", {"content": b" " * rng.randint(1, 2**23), "headers": JSON}),
            ("/api/encode", {"files": {"picture": ("a.png", file[:-99])}}),
        ]
    )


def resident(number: int) -> float:
    """A process's resident memory in MB."""
    return int(Path(f"/proc/{number}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


async def soak(address: str, number: int, seconds: float, rate: float = 2.0) -> None:
    """Mixed load, and what the server's memory does meanwhile; ends with status 1 where an answer was a 5xx."""
    rng, answers, began = random.Random(0), Counter[str](), time.perf_counter()
    samples, tasks = list[tuple[float, float]](), set[asyncio.Task[None]]()

    async def one() -> None:
        path, sent = mixed(rng)
        try:
            async with http.stream("POST", path, **sent) as response:  # pyright: ignore[reportArgumentType]
                answers[f"{response.status_code // 100}xx"] += 1
                async for _ in response.aiter_raw():
                    if rng.random() < 0.1:
                        answers["hung up"] += 1
                        break
        except httpx.HTTPError as error:
            answers[type(error).__name__] += 1

    async def sample() -> None:
        while True:
            samples.append((time.perf_counter() - began, resident(number)))
            print(f"{samples[-1][0] / 60:5.1f} min: {samples[-1][1]:.0f} MB, {json.dumps(answers)}", flush=True)
            await asyncio.sleep(30)

    async with httpx.AsyncClient(base_url=address, timeout=300, limits=httpx.Limits(max_connections=64)) as http:
        sampling = asyncio.create_task(sample())
        while time.perf_counter() - began < seconds:
            task = asyncio.create_task(one())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(rng.expovariate(rate))
        await asyncio.gather(*tasks)
        sampling.cancel()
    end = resident(number)
    at, warm = next(each for each in samples if each[0] >= seconds / 6)
    peak = max(held for when, held in samples if when >= at)
    print(f"resident memory: {warm:.0f} MB after a warm-up of {at / 60:.1f} min, {end:.0f} MB in the end", end="")
    print(f" ({end / warm:.3f} of it), {peak:.0f} MB at most since; {json.dumps(answers)}")
    if answers["5xx"]:
        raise SystemExit(1)


def plain(folder: Path) -> None:
    """The plain way: a thread a request, and a lock around the model."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse

    from fqgan.serve.images import data_url
    from fqgan.serve.server import listen

    generator, lock = fqgan.load_generator(folder / "generator", "auto"), threading.Lock()
    app = FastAPI()

    @app.post("/api/generate")
    def generate(data: dict[str, object]) -> JSONResponse:
        with lock, torch.inference_mode():
            codes = generator.generate(data["classes"], seed=data["seed"])  # pyright: ignore
            files = [png(generator.tokenizer.decode(own[None])[0].cpu()) for own in codes]
        return JSONResponse({"images": [{"picture": data_url(file)} for file in files]})

    listening = listen("127.0.0.1", 0)
    print(f"plain serves at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run([listening])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="far-photos")
    parser.add_argument("--tokenizer", default="photos-dual")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32, help="of the server")
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 16, 32, 64], help="offline: the best one counts")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="mixed load, and the server's memory")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        return plain(Path(options.plain))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder, options.preset, options.tokenizer)
        print(f"{options.preset} with {options.tokenizer}, random weights, torch {torch.__version__}", flush=True)
        served = ("-m", "fqgan", "serve", str(folder / "generator"), "--port=0", f"--batch={options.batch}")
        if options.soak:
            with process(*served) as (there, number):
                return asyncio.run(soak(there, number, 60 * options.soak))
        before = offline(folder, options.batches, options.seconds / 2)
        with process(*served) as (there, _):
            ours = asyncio.run(measure(there, options.seconds, options.clients, rates=True))
        with process(__file__, "--plain", str(folder)) as (there, _):
            other = asyncio.run(measure(there, options.seconds, options.clients, rates=False))
        # once more: on a machine that others use, too, the two differ, and then no ratio here is worth much
        pictures, codes, best = max(before, offline(folder, [before[2]], options.seconds / 2))
    print(f"offline at batch {best}: {pictures:.2f} pictures/s = 1 ({codes:.2f} without decoding)")
    print(f"closed load, {options.clients} clients: {ours['closed']:.2f} pictures/s, {ours['closed'] / pictures:.2f}")
    print(
        f"{ours['arrivals']:.0f} Poisson arrivals at 70 %: median {ours['median'] / ours['lone']:.2f} and 99th "
        f"percentile {ours['p99'] / ours['lone']:.2f} times a lone request's {ours['lone']:.3f} s"
    )
    print(
        f"8 clients: {ours['eight']:.2f} pictures/s, {ours['eight'] / other['eight']:.2f} times those of the plain "
        f"way ({other['eight']:.2f}; its lone request {other['lone']:.3f} s)"
    )
    return None


if __name__ == "__main__":
    main()
