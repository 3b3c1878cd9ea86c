"""The part of OpenAI's interface that generators can speak: /v1/images/generations and /v1/models."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from fqgan.base.errors import UserError
from fqgan.serve.api import describes
from fqgan.serve.drawing import order_of
from fqgan.serve.engine import Engine, picture
from fqgan.serve.images import data_url
from fqgan.serve.models import Served
from fqgan.serve.requests import Drawn, Refused, Sampled, checked, payload


class Generations(Sampled):
    """OpenAI's fields, and as extra ones how to draw. What else its clients send means nothing here."""

    model_config = ConfigDict(extra="ignore", strict=True)
    prompt: Annotated[str, Field(max_length=1000)] | int = Field(description="Name or number of a class.")
    n: int | None = Field(None, ge=1, description="Pictures; 1 unless said.")
    size: Annotated[str, Field(max_length=20)] | None = Field(None, description="The model's own, as 256x256.")
    response_format: Literal["url", "b64_json"] | None = Field(None, description="url, a data URL, unless said.")
    stream: bool | None = None


def routes(engine: Engine) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1")
    started = int(time.time())

    def card(served: Served) -> dict[str, Any]:
        return {"id": served.name, "object": "model", "created": started, "owned_by": "fqgan"}

    @router.get("/models")
    async def models() -> JSONResponse:
        """All models."""
        served = engine.units[0].catalogue.models.values()
        return JSONResponse({"object": "list", "data": [card(each) for each in served]})

    @router.get("/models/{name}")
    async def model(name: str) -> JSONResponse:
        """One of them."""
        found = engine.units[0].catalogue.models.get(name)
        if found is None:
            raise Refused(404, "there is no such model here")
        return JSONResponse(card(found))

    @router.post("/images/generations", openapi_extra=describes(Generations))
    async def generations(request: Request) -> JSONResponse:
        """Pictures of a class."""
        body = checked(Generations, await payload(request))
        if body.stream:
            raise UserError("stream is not to be had here: /api/generate streams")
        unit = engine.unit
        served = unit.catalogue.get(body.model, "generator")
        h, w = served.pixels
        if body.size not in (None, "auto", f"{w}x{h}"):
            raise UserError(f"size must be {w}x{h}: the model {served.name} makes no other pictures")
        shared = {name: getattr(body, name) for name in Sampled.model_fields}
        wanted = Drawn(**shared, classes=_classes(served, body.prompt), num=body.n or 1)
        order = order_of(engine, unit, served, wanted)
        request.scope["note"] |= {"model": served.name, "pictures": len(order.wish.labels)}
        codes = await engine.finished(unit, served, order.wish)
        files = await asyncio.gather(*(picture(unit, served.tokenizer, each) for each in codes))
        if body.response_format == "b64_json":
            data = [{"b64_json": base64.b64encode(file).decode()} for file in files]
        else:
            data = [{"url": data_url(file)} for file in files]
        return JSONResponse({"created": int(time.time()), "data": data})

    return router


def _classes(served: Served, prompt: str | int) -> list[str | int] | None:
    """The class that a prompt names; to an unconditional generator it is empty, or `none`."""
    if not served.generator.config.num_classes and str(prompt).strip() in ("", "none"):
        return None
    return [served.label(prompt)]
