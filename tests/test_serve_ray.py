"""`fqgan serve` as replicas of Ray Serve. Runs where the extra `ray` is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from servers import decoded, pixels, settings

import fqgan
from fqgan.serve.ray_app import Replicas, application
from fqgan.serve.server import listen

ray = pytest.importorskip("ray", reason="Ray Serve's test needs the extra: pip install 'fqgan[ray]'")
serve = pytest.importorskip("ray.serve", reason="Ray Serve's test needs the extra: pip install 'fqgan[ray]'")

pytestmark = pytest.mark.slow
HEADERS = {"authorization": "Bearer t"}


@pytest.fixture(scope="module")
def address(models: Path) -> Iterator[str]:
    """That of two replicas on this machine."""
    with pytest.MonkeyPatch.context() as patch, listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
        free.close()
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", "0" * 32)  # otherwise Ray writes one into the home folder
        patch.setenv("PYTHONPATH", str(Path(fqgan.__file__).parents[1]))  # the replicas' package is the tested one
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            replicas = Replicas(least=2, replicas=2, gpus=0, cpus=0.5, ongoing=4)
            serve.run(application(settings(models, token="t"), replicas))
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


def drawn(address: str) -> set[float]:
    """Pictures that the replicas have drawn; the same number of two is one of the set."""
    found = set()
    with httpx.Client(base_url=address, headers=HEADERS, timeout=60) as client:
        for _ in range(40):  # whichever replica answers
            lines = client.get("/metrics").text.splitlines()
            found |= {float(line.split()[1]) for line in lines if line.startswith("fqgan_images_total ")}
    return found


def test_two_replicas_answer_the_pictures_of_the_offline_sampler(address: str, models: Path) -> None:
    running = serve.status().applications["default"].deployments["fqgan"]
    assert {str(getattr(state, "value", state)): count for state, count in running.replica_states.items()} == {
        "RUNNING": 2
    }

    def ask(seed: int) -> list[dict[str, Any]]:
        data = {"model": "gen", "classes": [seed % 4], "num": 2, "seed": seed, "temperature": 0.9}
        response = httpx.post(f"{address}/api/generate", json=data, headers=HEADERS, timeout=120)
        assert response.status_code == 200, response.text
        return response.json()["images"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(24)))
    generator = fqgan.load_generator(models / "gen")
    for seed, images in enumerate(answers):
        codes = generator.generate([seed % 4] * 2, seed=seed, temperature=0.9)
        assert [each["codes"] for each in images] == codes.tolist()
        assert all(
            torch.equal(pixels(each["picture"]), decoded(generator, own))
            for each, own in zip(images, codes, strict=True)
        )
    each = sorted(drawn(address))
    assert each[0] > 0 and sum(each) * 2 / len(each) == 2 * 24, each
    print(f"two replicas drew {each[0]:.0f} and {each[-1]:.0f} pictures, all as offline")


def test_streams_and_refusals_pass_through(address: str, models: Path) -> None:
    assert httpx.get(f"{address}/api/models").status_code == 401
    assert httpx.get(f"{address}/").status_code == httpx.get(f"{address}/healthz").status_code == 200
    with httpx.Client(base_url=address, headers=HEADERS, timeout=60) as client:
        refused = client.post("/api/generate", json={"model": "gen", "classes": ["dgo"]})
        assert refused.status_code == 400 and "did you mean 'dog'" in refused.json()["error"]
        data = {"model": "gen", "classes": [2], "seed": 3, "stream": True}
        events = client.post("/api/generate", json=data).text.split("\n\n")
        assert events[-2].startswith("event: done")
        image = json.loads(events[-3].partition("data: ")[2])
        assert image["codes"] == fqgan.load_generator(models / "gen").generate([2], seed=3)[0].tolist()
