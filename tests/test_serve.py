"""`fqgan serve`: what its routes answer, against the library's own functions."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from generators import tiny
from servers import CLASSES, GRID, SIDE, decoded, pixels, png, served, settings

import fqgan
from fqgan.base.errors import UserError
from fqgan.data.decode import decode_image
from fqgan.data.transforms import center_crop, normalize, to_tensor
from fqgan.generator.edit import redraw
from fqgan.generator.model import FAR
from fqgan.metrics.psnr import psnr
from fqgan.serve.engine import Engine
from fqgan.serve.models import Served
from fqgan.tokenizer.model import FactorizedTokenizer


@pytest.fixture(scope="module")
def generator(models: Path) -> FAR:
    return fqgan.load_generator(models / "gen")


@pytest.fixture(scope="module")
def tokenizer(models: Path) -> FactorizedTokenizer:
    return fqgan.load_tokenizer(models / "tok")


def answer(client: httpx.Client, path: str, **data: Any) -> dict[str, Any]:
    response = client.post(path, json=data)
    assert response.status_code == 200, response.text
    return response.json()


def events(client: httpx.Client, path: str, **data: Any) -> list[tuple[str, dict[str, Any]]]:
    """Name and data of server-sent events."""
    with client.stream("POST", path, json={**data, "stream": True}) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(response.iter_text()).split("\n\n")
    assert blocks.pop() == ""
    lines = [block.split("\n") for block in blocks]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def test_the_models_are_described(client: httpx.Client) -> None:
    found = client.get("/api/models").json()
    by_name = {each["name"]: each for each in found["models"]}
    assert list(by_name) == ["tok", "gen", "free"]
    assert found["version"] == metadata.version("fqgan")
    assert by_name["gen"] | {"card": "", "parameters": 0} == {
        "name": "gen",
        "kind": "generator",
        "factors": ["f0", "f1"],
        "codebook_sizes": [16, 17],
        "grid": list(GRID),
        "image_size": SIDE,
        "downsampling": 2,
        "classes": list(CLASSES),
        "num_classes": 4,
        "tokenizer": "tok",
        "parameters": 0,
        "card": "",
        "defaults": {"cfg_scale": 2.0, "temperature": [1.0, 1.0], "top_k": [0, 0], "top_p": [1.0, 1.0]},
    }
    assert by_name["gen"]["card"].startswith("# Class-conditional image generator")
    assert (by_name["tok"]["kind"], by_name["tok"]["tokenizer"], by_name["free"]["num_classes"]) == (
        "tokenizer",
        None,
        0,
    )
    for picture in found["pictures"]:
        response = client.get(picture["url"])
        assert response.headers["content-type"] == "image/png" and response.content[:4] == b"\x89PNG"


@pytest.mark.parametrize("as_form", [True, False])
def test_a_picture_is_reconstructed_as_by_the_library(
    client: httpx.Client, tokenizer: FactorizedTokenizer, as_form: bool
) -> None:
    file = png(40, 24)
    original = to_tensor(center_crop(decode_image(file, "x"), SIDE))
    codes = tokenizer.encode(normalize(original)[None])
    whole = tokenizer.decode(codes).detach()
    if as_form:
        response = client.post("/api/reconstruct", files={"picture": ("a.png", file)}, data={"model": "tok"})
        found = response.json()
    else:
        url = "data:image/png;base64," + base64.b64encode(file).decode()
        found = answer(client, "/api/reconstruct", picture=url, model="gen")  # the tokenizer that it carries
    assert found["codes"] == codes[0].tolist() and found["size"] == [SIDE, SIDE]
    assert torch.equal(pixels(found["original"]), original)
    assert found["psnr"] == pytest.approx(psnr(normalize(original)[None], whole).item())
    assert found["usage"] == {"f0": len(codes[0, 0].unique()), "f1": len(codes[0, 1].unique())}
    for picture, keep in ((found["reconstruction"], None), (found["alone"]["f0"], [0]), (found["alone"]["f1"], [1])):
        expected = ((tokenizer.decode(codes, keep)[0].detach() + 1) * 127.5).round().clamp(0, 255)
        assert torch.equal(pixels(picture), expected.byte())
    encoded = client.post("/api/encode", files={"picture": ("a.png", file)}, data={"size": "16"}).json()
    assert encoded["size"] == [16, 16] and torch.tensor(encoded["codes"]).shape == (2, 8, 8)


def test_codes_are_decoded_one_or_several_whole_or_by_factor(
    client: httpx.Client, generator: FAR, tokenizer: FactorizedTokenizer
) -> None:
    codes = generator.generate([0, 1], seed=3)
    found = answer(client, "/api/decode", model="tok", codes=codes.tolist())["images"]
    assert [pixels(each).tolist() for each in found] == [decoded(generator, each).tolist() for each in codes]
    kept = answer(client, "/api/decode", model="tok", codes=codes[0].tolist(), keep=["f1"])["images"]
    expected = ((tokenizer.decode(codes[:1], [1])[0].detach() + 1) * 127.5).round().clamp(0, 255).byte()
    assert len(kept) == 1 and torch.equal(pixels(kept[0]), expected)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"cfg_scale": 1.0},
    {"cfg_scale": [3.0, 1.5], "temperature": [0.9, 1.1], "top_k": [5, 0], "top_p": [1.0, 0.8]},
    {"temperature": 0.0},
    {"cfg_scale": 4, "cfg_schedule": "linear", "top_k": 3},
    {"cfg_scale": 4, "cfg_schedule": ["constant", "linear"]},
]


@pytest.mark.parametrize("chosen", SETTINGS)
def test_generated_codes_are_those_of_the_library(client: httpx.Client, generator: FAR, chosen: dict[str, Any]) -> None:
    found = answer(client, "/api/generate", model="gen", classes=["cow", 1, "Dog"], num=4, seed=7, index=5, **chosen)
    labels = [2, 1, 3, 2]
    codes = generator.generate(labels, seed=7, first_image=5, **chosen)
    assert [each["codes"] for each in found["images"]] == codes.tolist()
    assert [each["class"] for each in found["images"]] == [CLASSES[label] for label in labels]
    assert [(each["seed"], each["index"]) for each in found["images"]] == [(7, 5 + i) for i in range(4)]
    for each, own in zip(found["images"], codes, strict=True):
        assert torch.equal(pixels(each["picture"]), decoded(generator, own))


def test_generators_without_classes_and_pictures_of_no_class(
    client: httpx.Client, models: Path, generator: FAR
) -> None:
    free = fqgan.load_generator(models / "free")
    found = answer(client, "/api/generate", model="free", num=2)["images"]
    assert [each["codes"] for each in found] == free.generate(num=2).tolist()
    assert [each["class"] for each in found] == [None, None]
    found = answer(client, "/api/generate", model="gen", classes=None)["images"]
    assert found[0]["codes"] == generator.generate(num=1, cfg_scale=1)[0].tolist()


def test_a_stream_shows_each_picture_grow_row_by_row(client: httpx.Client, generator: FAR) -> None:
    found = events(client, "/api/generate", model="gen", classes=["bee"], num=6, seed=1)
    codes = generator.generate([1] * 6, seed=1)
    images = {data["image"]: data for name, data in found if name == "image"}
    assert {i: data["codes"] for i, data in images.items()} == dict(enumerate(codes.tolist()))
    assert found[-1][0] == "done" and found[-1][1]["seconds"] >= 0
    progress = [data for name, data in found if name == "progress"]
    assert progress and {data["position"] for data in progress} <= {4, 8, 12} and {d["of"] for d in progress} == {16}
    for data in progress:
        rows = data["position"] // GRID[1] * 2  # pixels
        picture = pixels(data["picture"])
        assert (picture[:, rows:] == 128).all() and not (picture[:, :rows] == 128).all()


def test_an_edit_keeps_what_it_is_told_to(client: httpx.Client, generator: FAR) -> None:
    codes = generator.generate([0], seed=11)[0]
    common = {"model": "gen", "codes": codes.tolist(), "classes": ["bee"], "num": 2, "seed": 5}

    def expected(mask: torch.Tensor, given: torch.Tensor = codes) -> list[Any]:
        return generator.generate([1, 1], seed=5, given=given[None], mask=mask[None]).tolist()

    def found(**options: Any) -> list[Any]:
        return [each["codes"] for each in answer(client, "/api/edit", **common, **options)["images"]]

    factor = torch.zeros(2, 4, 4, dtype=torch.bool)
    factor[1] = True
    assert found(keep=["f1"]) == expected(factor)
    outside = torch.ones(2, 4, 4, dtype=torch.bool)
    outside[:, 1:3, 0:2] = False
    assert found(region=[0, 3, 3, 5]) == expected(outside)  # cells of 2 pixels that the region touches
    assert found(region=[0, 3, 3, 5], keep=[1]) == expected(outside | factor)
    assert found(mask=(outside & factor).tolist()) == expected(outside & factor)
    other = generator.generate([3], seed=12)[0]
    mix = codes.clone().flatten(1)
    mix[0, 4:12] = other.flatten(1)[0, 4:12]
    options = {"codes": other.tolist(), "take": ["f0"], "from": 4, "to": 12}
    assert found(mix=options) == [mix.view(2, 4, 4).tolist()] * 2
    assert found(mix=options, keep=["f0"]) == expected(~factor, mix.view(2, 4, 4))
    streamed = events(client, "/api/edit", **common, keep=["f1"])
    assert sorted(data["codes"] for name, data in streamed if name == "image") == sorted(expected(factor))


def test_the_best_of_some_is_that_of_the_library(client: httpx.Client, generator: FAR) -> None:
    codes = generator.generate([0], seed=11)[0]
    region, factor, prefix = (torch.zeros(2, 4, 4, dtype=torch.bool) for _ in range(3))
    region[:], factor[0], prefix[:, :2] = True, True, True
    region[:, 1:3, 1:3] = False
    common = {"model": "gen", "codes": codes.tolist(), "classes": [1], "seed": 5}
    for mask in (region, factor, prefix):
        common["mask"] = mask.tolist()
        best = redraw(generator, codes, mask, 1, num=2, seed=5, first_image=2, best_of=3)
        found = answer(client, "/api/edit", **common, num=2, index=2, best_of=3)["images"]
        assert [each["codes"] for each in found] == best.tolist()
        for i, each in enumerate(found):
            assert each["image"] == i and each["index"] in range(6 + 3 * i, 9 + 3 * i)
            again = answer(client, "/api/edit", **common, index=each["index"])["images"]  # the draw that was taken
            assert again[0]["codes"] == each["codes"]
    refused = client.post("/api/edit", json={**common, "best_of": 4, "index": 2**62})
    assert refused.status_code == 400 and "index times best_of" in refused.json()["error"]


def test_a_picture_is_encoded_at_the_generators_grid_whatever_the_tokenizers_size(models: Path, tmp_path: Path) -> None:
    tokenizer = fqgan.load_tokenizer(models / "tok")
    sizes = tuple(quantizer.codebook_size for quantizer in tokenizer.quantizers)
    wide = tiny(codebook_sizes=sizes, grid=(3, 5), num_classes=4)
    wide.carry(tokenizer)
    fqgan.save_generator(wide, tmp_path / "wide")
    with (
        served(replace(settings(models), models=(str(tmp_path / "wide"),))) as (address, _),
        httpx.Client(base_url=address) as client,
    ):
        facts = client.get("/api/models").json()["models"][0]
        assert facts["grid"] == [3, 5] and facts["image_size"] == 10
        for path in ("/api/encode", "/api/reconstruct"):
            found = client.post(path, files={"picture": ("a.png", png())}).json()
            assert found["size"] == [6, 10] and torch.tensor(found["codes"]).shape == (2, 3, 5)
            assert answer(client, "/api/likelihood", codes=found["codes"])["total"] > 0
            square = client.post(path, files={"picture": ("a.png", png())}, data={"size": "8"}).json()
            assert square["size"] == [8, 8]


def test_words_in_a_form_stay_words(models: Path) -> None:
    """A model called 123 was looked for as the number."""
    names = (f"123={models / 'gen'}", f"true={models / 'tok'}")
    with served(replace(settings(models), models=names)) as (address, _), httpx.Client(base_url=address) as client:
        for name in ("123", "true"):
            found = client.post("/api/encode", files={"picture": ("a.png", png())}, data={"model": name, "size": "8"})
            assert found.status_code == 200 and found.json()["size"] == [8, 8]
        form = {"files": {"picture": ("a.png", png())}, "data": {"model": "123", "keep": '["f0"]', "classes": "[3]"}}
        assert client.post("/api/edit", **form).json()["images"][0]["class"] == CLASSES[3]
        form["data"] = {"model": "123", "class": "3"}
        by_number = client.post("/api/likelihood", **form).json()
        form["data"]["class"] = "dog"
        assert client.post("/api/likelihood", **form).json() == by_number


def test_a_name_of_several_classes_is_refused_and_their_numbers_are_taken(
    generator: FAR, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "label_names", ("2", "Crane", "crane", "crane"))
    served = Served("birds", generator)
    assert [served.label(word) for word in (0, 1, 2, 3, "0", "3", "Crane")] == [0, 1, 2, 3, 0, 3, 1]
    assert served.label("2") == 0  # a name before a number
    with pytest.raises(UserError, match=r"^'crane' names the classes 2, 3 of the model birds: give the number$"):
        served.label("crane")
    with pytest.raises(UserError, match=r"^'CRANE' names the classes 1, 2, 3 of the model birds"):
        served.label("CRANE")


def test_likelihood_is_that_of_the_library(client: httpx.Client, generator: FAR) -> None:
    codes = generator.generate([2], seed=1)
    bits = -generator.log_likelihood(codes, [2])[0]
    found = answer(client, "/api/likelihood", model="gen", codes=codes[0].tolist(), **{"class": "cow"})
    torch.testing.assert_close(torch.tensor(found["bits"]), bits, rtol=0, atol=1e-5)
    assert found["total"] == pytest.approx(bits.sum().item(), rel=1e-5)
    assert found["by_factor"] == {f"f{i}": pytest.approx(bits[i].sum().item(), rel=1e-5) for i in range(2)}
    file = {"picture": ("a.png", png())}
    assert client.post("/api/likelihood", files=file, data={"model": "gen", "class": "0"}).status_code == 200


def test_openais_client_gets_its_pictures(running: tuple[str, Engine], generator: FAR) -> None:
    with openai.OpenAI(base_url=f"{running[0]}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tok", "gen", "free"]
        assert client.models.retrieve("gen").object == "model"
        extra = {"seed": 9, "cfg_scale": [3.0, 1.0], "temperature": 0.9, "top_k": [4, 0]}
        found = client.images.generate(
            model="gen", prompt="dog", n=3, size=f"{SIDE}x{SIDE}", response_format="b64_json", extra_body=extra
        )
        codes = generator.generate([3] * 3, **extra)
        assert found.data and [pixels(str(each.b64_json)).tolist() for each in found.data] == [
            decoded(generator, each).tolist() for each in codes
        ]
        linked = client.images.generate(model="gen", prompt="3", quality="hd", user="me")
        assert linked.data and str(linked.data[0].url).startswith("data:image/png;base64,")
        assert torch.equal(pixels(str(linked.data[0].url)), decoded(generator, generator.generate([3])[0]))
        with pytest.raises(openai.BadRequestError, match=r"'dgo' is no class .*; did you mean 'dog'"):
            client.images.generate(model="gen", prompt="dgo")
        with pytest.raises(openai.BadRequestError, match="size must be 8x8"):
            client.images.generate(model="gen", prompt="dog", size="256x256")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("none")


def mixed(count: int) -> list[dict[str, Any]]:
    """Requests of all kinds."""
    return [
        {
            "classes": [i % 4, (i + 1) % 4],
            "num": 1 + i % 3,
            "seed": 100 + i,
            "index": i % 2,
            **SETTINGS[i % len(SETTINGS)],
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_everybody_gets_their_own_pictures_whoever_else_is_served(
    running: tuple[str, Engine], generator: FAR, count: int
) -> None:
    def ask(request: dict[str, Any], number: int) -> list[Any]:
        with httpx.Client(base_url=running[0], timeout=120) as client:
            if number % 4 == 3:
                found = [
                    data for name, data in events(client, "/api/generate", model="gen", **request) if name == "image"
                ]
                images = sorted(found, key=lambda data: data["image"])
            else:
                images = answer(client, "/api/generate", model="gen", **request)["images"]
            return [each["codes"] for each in images]

    requests = mixed(count)
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(ask, requests, range(count)))
    for request, codes in zip(requests, found, strict=True):
        own = dict(request)
        classes, num, index = (own.pop(name) for name in ("classes", "num", "index"))
        labels = [classes[i % 2] for i in range(num)]
        assert codes == generator.generate(labels, first_image=index, **own).tolist()


def test_two_devices_share_the_work(models: Path, generator: FAR) -> None:
    with served(settings(models), devices=[torch.device("cpu")] * 2) as (address, engine):
        assert len(engine.units) == 2

        def ask(seed: int) -> list[Any]:
            data = {"model": "gen", "classes": [0], "seed": seed, "num": 2}
            return httpx.post(f"{address}/api/generate", json=data, timeout=60).json()["images"]

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(ask, range(8)))
    for seed, images in enumerate(found):
        assert [each["codes"] for each in images] == generator.generate([0, 0], seed=seed).tolist()


def test_health_metrics_and_the_description(client: httpx.Client) -> None:
    answer(client, "/api/generate", model="gen", classes=[0], num=3)
    assert client.get("/healthz").json() == {"alive": True} and client.get("/readyz").json() == {"ready": True}
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(lines["fqgan_images_total"]) >= 3 and float(lines["fqgan_positions_total"]) >= 3 * 16
    assert float(lines['fqgan_requests_total{route="/api/generate",status="200"}']) >= 1
    assert lines["fqgan_queue_images"] == "0.0"
    schema = client.get("/openapi.json").json()
    paths = {"/api/models", "/api/reconstruct", "/api/encode", "/api/decode", "/api/generate", "/api/edit"}
    assert paths | {"/api/likelihood", "/v1/images/generations", "/v1/models", "/healthz"} <= set(schema["paths"])
    body = schema["paths"]["/api/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"classes", "num", "seed", "cfg_scale"} <= set(body["properties"])
