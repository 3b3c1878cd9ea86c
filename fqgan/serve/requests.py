"""What clients send, read and checked: JSON or forms in, plain data out, one sentence for a mistake."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from typing import Annotated, Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from fqgan.base.errors import UserError, brief
from fqgan.base.schema import did_you_mean
from fqgan.config import SamplingConfig
from fqgan.config.sampling import Schedule

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every form that is none

MOST_BYTES = 20 * 2**20
"""Of a request's body."""
MOST_VALUES = 2**20
"""In a body of JSON: as Python's objects they take ten times the memory."""
_ASIDE = 2**18  # bytes: parsing more would hold up all others
_TEXT = ("model", "class", "picture", "cfg_schedule")
"""Fields that hold text: in a form they stay as they are, whatever else they read as."""

Real = Annotated[float, Field(allow_inf_nan=False)]
Word = Annotated[str, Field(max_length=200)]
M = TypeVar("M", bound=BaseModel)
CODES = "Lists [k][h][w] of whole numbers"
PICTURE = "A file, a data URL, base64, or the name of a packaged photograph"


class Refused(Exception):
    """A request ends with this status and sentence."""

    def __init__(self, status: int, sentence: str, **headers: str):
        super().__init__(sentence)
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


class Body(BaseModel):
    """What all requests share."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: Word | None = Field(None, description="Name of the model; may be left out where there is one that fits.")


class Sampled(Body):
    """What all requests share that draw. One number for all factors, or one for each."""

    seed: int = Field(0, ge=0, lt=2**64)
    index: int = Field(0, ge=0, lt=2**63, description="Of the first picture: picture i draws from (seed, index + i).")
    cfg_scale: Real | list[Real] | None = None
    cfg_schedule: Schedule | list[Schedule] | None = None
    temperature: Real | list[Real] | None = None
    top_k: int | list[int] | None = None
    top_p: Real | list[Real] | None = None

    def config(self, conditional: bool, sizes: tuple[int, ...]) -> SamplingConfig:
        """How to draw; `UserError` for what the codebooks do not allow."""
        names = ("cfg_scale", "cfg_schedule", "temperature", "top_k", "top_p")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        chosen = SamplingConfig.of(**given).resolved(conditional)
        chosen.check(sizes)
        return chosen


class Drawn(Sampled):
    """Pictures by class."""

    classes: list[Word | int] | None = Field(
        None, max_length=1000, description="Names or numbers; picture i takes the one at i modulo their number."
    )
    num: int | None = Field(None, ge=1, description="Pictures; as many as classes unless said.")
    stream: bool = Field(False, description="Server-sent events progress, image, done instead of one answer.")


class Pictured(Body):
    """A picture: a file in a form, or in JSON a data URL, base64 or the name of a packaged photograph."""

    picture: Any = Field(None, description=f"{PICTURE}.")
    size: int = Field(0, ge=0, le=4096, description="Side of the crop in pixels; 0: the model's own.")


class Decoded(Body):
    """Codes to decode."""

    codes: Any = Field(description=f"{CODES}, or a list of such.")
    keep: list[Word | int] | None = Field(None, max_length=100, description="Factors to decode; all unless said.")


class Likely(Body):
    """Codes, or a picture, whose likelihood is asked for."""

    codes: Any = Field(None, description=CODES)
    picture: Any = Field(None, description=f"{PICTURE}; or else codes.")
    class_: Word | int | None = Field(None, alias="class", description="Name or number; none unless said.")


class Mix(BaseModel):
    """Codes taken over from another picture."""

    model_config = ConfigDict(extra="forbid", strict=True)
    codes: Any = Field(description=CODES)
    take: list[Word | int] = Field(max_length=100)
    from_: int = Field(0, alias="from")
    to: int | None = None


class Edited(Drawn):
    """A picture of which some codes are kept and the others drawn."""

    picture: Any = Field(None, description=f"{PICTURE}; or else codes.")
    codes: Any = Field(None, description=CODES)
    keep: list[Word | int] | None = Field(None, max_length=100, description="Factors that stay as they are.")
    region: list[Real] | None = Field(
        None, min_length=4, max_length=4, description="Left, top, right, bottom in pixels: what is drawn anew."
    )
    mask: Any = Field(None, description="Lists [k][h][w] of booleans, true where a code stays; or else keep, region.")
    mix: Mix | None = None
    best_of: int = Field(
        1,
        ge=1,
        description="Draw this many for each picture, and take the one under which the given codes behind the first "
        "drawn one are likeliest; where there are none, the one whose codes are.",
    )


def checked(kind: type[M], data: dict[str, Any]) -> M:
    """Data as a model; `UserError` in one sentence."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _names(kind))
    if first["type"] == "extra_forbidden":
        field = str(first["loc"][-1])[:60]
        raise UserError(f"unknown field {field!r}{did_you_mean(field, _names(kind))}")
    if first["type"] == "missing":
        raise UserError(f"the field {where or first['loc'][-1]} is missing")
    message = first["msg"][:1].lower() + first["msg"][1:]
    raise UserError(f"{where or 'the request'}: {message}, got {brief(first['input'])}")


def _names(kind: type[BaseModel]) -> set[str]:
    found = {each.alias or name for name, each in kind.model_fields.items()}
    return found | (_names(Mix) if "mix" in found else set())


async def payload(request: Request) -> dict[str, Any]:
    """The fields of a request; files as bytes. `Refused` for a foreign type, `UserError` for what cannot be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        body = await request.body()
        return await asyncio.to_thread(_json, body) if len(body) > _ASIDE else _json(body)
    if kind == "multipart/form-data":
        return await _form(request)
    raise Refused(415, "send application/json, or multipart/form-data with a picture")


def _json(body: bytes) -> dict[str, Any]:
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise Refused(413, f"the body holds more than {MOST_VALUES:,} values")
    try:
        data = json.loads(body, parse_constant=_no_number)
    except UserError:
        raise
    except (ValueError, RecursionError, MemoryError):
        raise UserError("the body is no JSON that can be read") from None
    if not isinstance(data, dict):
        raise UserError("the body must be a JSON object")
    return data


def _no_number(word: str) -> NoReturn:
    raise UserError(f"{word} is no number in JSON")


class _InMemory(MultiPartParser):
    spool_max_size = 2 * MOST_BYTES  # what is uploaded never gets to disk


async def _form(request: Request) -> dict[str, Any]:
    body = await request.body()

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = _InMemory(request.headers, stream(), max_files=1, max_fields=32, max_part_size=MOST_BYTES)
        form = await parser.parse()
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name in fields:
                raise UserError(f"the form has two fields {name[:60]!r}")
            fields[name] = await value.read() if isinstance(value, UploadFile) else _field(name, value)
        await form.close()
    except UserError:
        raise
    except MultiPartException as error:
        raise UserError(f"the form cannot be read: {str(error.message)[:200]}") from None
    except Exception:  # of the parser, on what is no form
        raise UserError("the form cannot be read") from None
    return fields


def _field(name: str, text: str) -> Any:
    """A form's field: what reads as JSON is that, unless the field holds text."""
    if name in _TEXT:
        return text
    try:
        return json.loads(text, parse_constant=_no_number)
    except UserError:
        raise
    except (ValueError, RecursionError):
        return text
