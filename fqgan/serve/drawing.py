"""Pictures drawn for a request, as one answer or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import torch
from fastapi.responses import JSONResponse, Response, StreamingResponse
from torch import Tensor

from fqgan.base.inputs import as_count
from fqgan.generator.edit import likeliest
from fqgan.serve.engine import Engine, Unit, picture, result, unfinished
from fqgan.serve.images import data_url
from fqgan.serve.jobs import JobError, News, Wish
from fqgan.serve.models import Served
from fqgan.serve.requests import Drawn


@dataclass(frozen=True)
class Order:
    """What a request wants drawn.

    Attributes:
        best_of: candidates for each picture, of which `fqgan.generator.edit.likeliest` takes one.
    """

    engine: Engine
    unit: Unit
    served: Served
    wish: Wish
    best_of: int = 1


def order_of(
    engine: Engine,
    unit: Unit,
    served: Served,
    wanted: Drawn,
    given: Tensor | None = None,
    mask: Tensor | None = None,
    best_of: int = 1,
) -> Order:
    """An order; `UserError` for classes that are none, too many pictures and impossible settings. As in
    `fqgan.generator.edit.redraw`, picture i is the best of the random streams from best_of * (index + i) on."""
    generator = served.generator
    labels = [served.label(word) for word in dict.fromkeys(wanted.classes or [])]
    number = dict(zip(dict.fromkeys(wanted.classes or []), labels, strict=True))
    classes = [number[word] for word in wanted.classes or []] or [generator.null_class]
    count = engine.checked_count(wanted.num or len(classes)) * best_of
    engine.checked_count(count)
    drawn = [classes[i // best_of % len(classes)] for i in range(count)]
    conditional = any(label != generator.null_class for label in drawn)
    config = wanted.config(conditional, generator.config.codebook_sizes)
    first = as_count(wanted.index * best_of, "index times best_of", most=2**63)
    follow = wanted.stream and best_of == 1
    return Order(engine, unit, served, Wish(tuple(drawn), wanted.seed, first, config, given, mask, follow), best_of)


async def answer(order: Order, stream: bool) -> Response:
    """All pictures at once, or as they grow."""
    began = time.monotonic()
    if not stream:
        return JSONResponse({"images": [each async for each in _images(order)]})
    events = _events(order, began)
    first = await anext(events)  # whatever is refused is refused with a status of its own
    return StreamingResponse(
        _chained(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _chained(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(events):  # pyright: ignore[reportArgumentType]
        yield first
        async for each in events:
            yield each


async def _events(order: Order, began: float) -> AsyncIterator[bytes]:
    if order.best_of > 1:
        async for each in _images(order):
            yield _event("image", each)
    else:
        async with aclosing(order.engine.draw(order.unit, order.served, order.wish)) as drawing:  # pyright: ignore
            try:
                async for batch in drawing:
                    for event in await asyncio.gather(*(_told(order, news) for news in batch)):
                        yield event
            except JobError as error:
                yield _event("error", {"error": str(error)})
                return
    yield _event("done", {"seconds": round(time.monotonic() - began, 3)})


async def _told(order: Order, news: News) -> bytes:
    if news.done:
        return _event("image", await _image(order, news.image, news.codes))
    file = await unfinished(order.unit, order.served, news.codes)
    h, w = order.served.generator.config.grid
    progress = {"image": news.image, "position": news.codes.shape[1], "of": h * w, "picture": data_url(file)}
    return _event("progress", progress)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def _images(order: Order) -> AsyncIterator[dict[str, Any]]:
    """All pictures, in their order."""
    codes = await order.engine.finished(order.unit, order.served, order.wish)
    chosen = range(len(codes))
    if order.best_of > 1:
        wish, codec = order.wish, order.unit.codec
        draws = (order.served.generator, torch.stack(codes), wish.mask, wish.labels, order.best_of, codec.size)
        chosen = (await result(codec.run(likeliest, *draws))).tolist()
    images = await asyncio.gather(*(_image(order, i, codes[i]) for i in chosen))
    for number, image in enumerate(images):
        yield image | {"image": number}


async def _image(order: Order, image: int, codes: Tensor) -> dict[str, Any]:
    wish, generator = order.wish, order.served.generator
    label = wish.labels[image]
    names = generator.label_names
    shown = None if label == generator.null_class else names[label] if names else label
    file = await picture(order.unit, order.served.tokenizer, codes)
    return {
        "image": image,
        "picture": data_url(file),
        "codes": codes.tolist(),
        "seed": wish.seed,
        "index": wish.first + image,
        "class": shown,
    }
