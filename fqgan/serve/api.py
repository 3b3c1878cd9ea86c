"""Our own interface, /api: encode, decode, reconstruct, generate, edit, score."""

from __future__ import annotations

import asyncio
from importlib import metadata
from typing import Any

import torch
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_codes, as_factors, as_tensor
from fqgan.base.schema import finite
from fqgan.data.transforms import normalize
from fqgan.engine.sizes import check_pictures
from fqgan.generator.edit import kept_mask, mixed
from fqgan.metrics.psnr import psnr
from fqgan.serve import images
from fqgan.serve.drawing import answer, order_of
from fqgan.serve.engine import Engine, Unit, picture, result
from fqgan.serve.models import Served
from fqgan.serve.requests import CODES, Body, Decoded, Drawn, Edited, Likely, Pictured, Refused, checked, payload

_STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
LARGEST_SIDE = 1024
"""Pixels of a picture at most, where a client chooses."""


def describes(kind: type[Body], form: bool = False) -> dict[str, Any]:
    """What OpenAPI says of a request's body. The routes read it themselves: NaN and foreign types end there."""
    schema = kind.model_json_schema(by_alias=True)
    schema.pop("$defs", None)
    if "mix" in schema["properties"]:
        schema["properties"]["mix"] = {"type": "object", "description": "codes, take, from, to: positions taken over."}
    types = ["application/json", *(["multipart/form-data"] if form else [])]
    return {"requestBody": {"required": True, "content": {name: {"schema": schema} for name in types}}}


def routes(engine: Engine) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/api")
    packaged = images.packaged()

    def chosen(request: Request, body: Body, kind: str) -> tuple[Unit, Served]:
        unit = engine.unit
        served = unit.catalogue.get(body.model, kind)
        request.scope["note"]["model"] = served.name
        return unit, served

    @router.get("/models")
    async def models() -> JSONResponse:
        """What is served here."""
        pictures = [{"name": name, "url": f"/api/pictures/{name}.png"} for name in packaged]
        facts = engine.units[0].catalogue.facts()
        return JSONResponse({"models": facts, "pictures": pictures, "version": metadata.version("fqgan")})

    @router.get("/pictures/{name}.png", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def packaged_picture(name: str) -> Response:
        """A packaged photograph."""
        if name not in packaged:
            raise Refused(404, "there is no such packaged photograph")
        file = await asyncio.to_thread(images.photograph_png, name)
        return Response(file, media_type="image/png", headers={"Cache-Control": "max-age=86400"})

    @router.post("/reconstruct", openapi_extra=describes(Pictured, form=True))
    async def reconstruct(request: Request) -> JSONResponse:
        """A picture through a tokenizer and back."""
        body = checked(Pictured, await payload(request))
        unit, served = chosen(request, body, "tokenizer")
        with engine.aside():
            original, codes = await _encoded(unit, served, body)
            return JSONResponse(finite(await _reconstructed(unit, served, original, codes)))

    @router.post("/encode", openapi_extra=describes(Pictured, form=True))
    async def encode(request: Request) -> JSONResponse:
        """The codes of a picture."""
        body = checked(Pictured, await payload(request))
        unit, served = chosen(request, body, "tokenizer")
        with engine.aside():
            original, codes = await _encoded(unit, served, body)
        return JSONResponse({"codes": codes.tolist(), "size": list(original.shape[1:])})

    @router.post("/decode", openapi_extra=describes(Decoded))
    async def decode(request: Request) -> JSONResponse:
        """Pictures of codes."""
        body = checked(Decoded, await payload(request))
        unit, served = chosen(request, body, "tokenizer")
        codes = _codes(served, body.codes)
        engine.checked_count(len(codes))
        f = served.tokenizer.config.downsampling
        if max(codes.shape[2:]) * f > max(LARGEST_SIDE, served.tokenizer.config.image_size):
            raise UserError(
                f"the picture would have {codes.shape[3] * f}x{codes.shape[2] * f} pixels: that is too many"
            )
        keep = None if body.keep is None else tuple(as_factors(body.keep, served.factors))
        with engine.aside():
            files = await asyncio.gather(*(picture(unit, served.tokenizer, each, keep) for each in codes))
        return JSONResponse({"images": [images.data_url(file) for file in files]})

    @router.post("/generate", openapi_extra=describes(Drawn), responses=_STREAM)
    async def generate(request: Request) -> Response:
        """Pictures by class."""
        body = checked(Drawn, await payload(request))
        unit, served = chosen(request, body, "generator")
        order = order_of(engine, unit, served, body)
        request.scope["note"]["pictures"] = len(order.wish.labels)
        return await answer(order, body.stream)

    @router.post("/edit", openapi_extra=describes(Edited, form=True), responses=_STREAM)
    async def edit(request: Request) -> Response:
        """A picture of which some codes are kept and the others drawn."""
        body = checked(Edited, await payload(request))
        unit, served = chosen(request, body, "generator")
        with engine.aside():
            codes, mask = await _given(unit, served, body)
        order = order_of(engine, unit, served, body, codes, mask, body.best_of)
        request.scope["note"]["pictures"] = len(order.wish.labels)
        return await answer(order, body.stream)

    @router.post("/likelihood", openapi_extra=describes(Likely, form=True))
    async def likelihood(request: Request) -> JSONResponse:
        """What it takes to write a picture's codes down, in bits."""
        body = checked(Likely, await payload(request))
        unit, served = chosen(request, body, "generator")
        generator = served.generator
        label = generator.null_class if body.class_ is None else served.label(body.class_)
        with engine.aside():
            codes = await _own_codes(unit, served, body)
            found = -await result(unit.codec.run(lambda: generator.log_likelihood(codes[None], [label])[0].cpu()))
        sums = found.sum((1, 2), dtype=torch.float64).tolist()
        answer = {
            "bits": [[[finite(bits) for bits in row] for row in factor] for factor in found.tolist()],
            "total": sum(sums),
            "by_factor": finite(dict(zip(served.factors, sums, strict=True))),
        }
        return JSONResponse(finite(answer))

    return router


async def received(unit: Unit, given: Any, side: tuple[int, int]) -> Tensor:
    """A picture that somebody sent, (3, H, W) uint8."""
    if not isinstance(given, str | bytes):
        raise UserError("picture is missing: a file in a form, a data URL, or the name of a packaged photograph")
    return await result(unit.codec.run(images.received, given, *side))


async def _encoded(unit: Unit, served: Served, body: Pictured) -> tuple[Tensor, Tensor]:
    """A picture (3, H, W) uint8 and its codes (k, h, w)."""
    original = await received(unit, body.picture, _sides(served, body.size))
    return original, await result(unit.codec.encode(served.tokenizer, original))


def _sides(served: Served, size: int) -> tuple[int, int]:
    """Height and width of the crop that is encoded: a square's, or where no size is wanted the model's own."""
    if not size:
        return served.pixels
    tokenizer, own = served.tokenizer, max(served.pixels)
    tokenizer.check_size(size, size)
    if size > max(LARGEST_SIDE, own):
        raise UserError(f"size must be at most {max(LARGEST_SIDE, own)} pixels, got {size}")
    check_pictures(1, size, tokenizer.config.channels, tokenizer.post_quant.weight.device)
    return size, size


async def _reconstructed(unit: Unit, served: Served, original: Tensor, codes: Tensor) -> dict[str, Any]:
    tokenizer = served.tokenizer

    def compared(image: Tensor) -> tuple[bytes, float]:
        return images.png(image), psnr(normalize(original)[None], image[None]).item()

    whole, decibels = await result(unit.codec.decode(tokenizer, codes, compared))
    alone = {}
    if tokenizer.num_factors > 1:
        files = await asyncio.gather(*(picture(unit, tokenizer, codes, (i,)) for i in range(tokenizer.num_factors)))
        alone = {name: images.data_url(file) for name, file in zip(served.factors, files, strict=True)}
    return {
        "codes": codes.tolist(),
        "size": list(original.shape[1:]),
        "original": images.data_url(await result(unit.codec.run(images.stored_png, original))),
        "reconstruction": images.data_url(whole),
        "alone": alone,
        "psnr": decibels,
        "usage": {name: len(own.unique()) for name, own in zip(served.factors, codes, strict=True)},
    }


def _codes(served: Served, given: Any, grid: tuple[int, ...] | None = None) -> Tensor:
    """Codes (n, k, h, w) of a client, one picture's or several's; `UserError` for what is none."""
    found = as_tensor(given, "codes")
    if found.ndim not in (3, 4):
        raise UserError(f"codes must be {CODES.lower()}, or a list of such, got {found.ndim} levels of lists")
    found = found[None] if found.ndim == 3 else found
    return as_codes(found, served.tokenizer.codebook_sizes, grid=grid)


def _one(served: Served, given: Numbers) -> Tensor:
    """Codes (k, h, w) of one picture on the generator's grid."""
    codes = _codes(served, given, tuple(served.generator.config.grid))
    if len(codes) != 1:
        raise UserError(f"codes of one picture are wanted here, got {len(codes)}")
    return codes[0]


async def _own_codes(unit: Unit, served: Served, body: Likely | Edited) -> Tensor:
    """Codes (k, h, w), as they were given or of a picture."""
    if (body.codes is None) == (body.picture is None):
        raise UserError("give a picture, or else codes")
    if body.codes is not None:
        return _one(served, body.codes)
    original = await received(unit, body.picture, served.pixels)
    return await result(unit.codec.encode(served.tokenizer, original))


def _own_mask(mask: Numbers, shape: tuple[int, int, int]) -> Tensor:
    """A client's mask (k, h, w) of booleans; `UserError` for another shape or type."""
    found = as_tensor(mask, "mask")
    if found.dtype != torch.bool or tuple(found.shape) != shape:
        raise UserError(f"mask must be booleans in lists of {' x '.join(map(str, shape))}")
    return found


async def _given(unit: Unit, served: Served, body: Edited) -> tuple[Tensor, Tensor]:
    """Codes and mask (k, h, w) of an edit."""
    grid: Any = tuple(served.generator.config.grid)
    chosen = body.keep is not None or body.region is not None
    if chosen and body.mask is not None:
        raise UserError("a mask says all that is kept: leave keep and region out")
    if not chosen and body.mask is None and body.mix is None:
        raise UserError("say what is kept: keep, region, mask or mix")
    if body.mask is not None:
        mask = _own_mask(body.mask, (len(served.factors), *grid))
    elif chosen:
        cell = served.tokenizer.config.downsampling
        mask = kept_mask(grid, served.factors, body.keep or [], body.region, cell=cell)
    else:
        mask = torch.ones(len(served.factors), *grid, dtype=torch.bool)
    codes = await _own_codes(unit, served, body)
    if mix := body.mix:
        codes = mixed(codes, _one(served, mix.codes), served.factors, mix.take, mix.from_, mix.to)
    return codes, mask
