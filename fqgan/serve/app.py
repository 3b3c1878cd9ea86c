"""The web application: routes, errors in one sentence, the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from fqgan.base.errors import UserError
from fqgan.serve import api, openai_api
from fqgan.serve.engine import Engine
from fqgan.serve.gate import Gate, refusal
from fqgan.serve.jobs import JobError
from fqgan.serve.requests import Refused
from fqgan.serve.worker import BusyError

STATIC = Path(__file__).parent / "static"
"""The page and its files."""
_SENTENCE = {"type": "object", "required": ["error"], "properties": {"error": {"type": ["string", "object"]}}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": sentence, "content": {"application/json": {"schema": _SENTENCE}}}
    for status, sentence in (
        ("4XX", "What is wrong with the request, in one sentence."),
        ("504", "The request took longer than the server's deadline."),
    )
}


def make_app(engine: Engine) -> FastAPI:
    """The application around an engine, whose threads end with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(
        title="fqgan",
        version=metadata.version("fqgan"),
        description="Factorized tokenizers and generators of images.",
        lifespan=lifespan,
        responses=_REFUSALS,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
    )
    app.include_router(api.routes(engine))
    app.include_router(openai_api.routes(engine))
    _add_state(app, engine)
    _add_page(app)
    _add_errors(app)
    app.add_middleware(Gate, engine=engine)
    if engine.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(engine.settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    return app


def _add_state(app: FastAPI, engine: Engine) -> None:
    no: dict[int | str, dict[str, Any]] = {
        503: {"description": "No.", "content": {"application/json": {"schema": {"type": "object"}}}}
    }

    @app.get("/healthz", responses=no)
    async def healthz() -> JSONResponse:
        """Whether the process lives, and its threads."""
        alive = all(unit.worker.alive for unit in engine.units)
        return JSONResponse({"alive": alive}, 200 if alive else 503)

    @app.get("/readyz", responses=no)
    async def readyz() -> JSONResponse:
        """Whether it takes requests: not while it drains."""
        return JSONResponse({"ready": engine.ready}, 200 if engine.ready else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus' metrics."""
        return Response(engine.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI) -> None:
    def file(name: str) -> Response:
        if not (STATIC / name).is_file():
            raise Refused(404, "this installation has no page; /openapi.json describes the interface")
        return FileResponse(STATIC / name)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return file("docs.html")

    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC), name="static")


def _add_errors(app: FastAPI) -> None:
    def answer(status: int, request: Request, error: Exception, headers: dict[str, str] | None = None) -> Response:
        return refusal(request.url.path, status, str(error), headers)

    @app.exception_handler(UserError)
    async def mistake(request: Request, error: UserError) -> Response:
        return answer(400, request, error)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return answer(error.status, request, error, error.headers)

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> Response:
        return answer(429, request, error, {"Retry-After": str(error.seconds)})

    @app.exception_handler(JobError)
    async def broken(request: Request, error: JobError) -> Response:
        return answer(500, request, error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        said = {404: "there is nothing at this address; /docs lists what is", 405: "this address takes another method"}
        sentence = said.get(error.status_code, str(error.detail))
        return refusal(request.url.path, error.status_code, sentence, dict(error.headers or {}))
