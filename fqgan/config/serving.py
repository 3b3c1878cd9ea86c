"""What `serve` takes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.config.devices import Device
from fqgan.config.quickstart import QuickstartSettings, models_of
from fqgan.config.ranges import at_least

TOKEN = "FQGAN_TOKEN"
"""The environment variable that may hold the token."""


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """Models behind a web server."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL ...")] = ()
    """Tokenizers and generators: run folders, checkpoints, exports, released files or hf:org/name, each as PATH or
    NAME=PATH. None: the two models of the quickstart."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but this machine's own needs a token."""
    port: int = 8000
    """Port to listen at; 0: any free one."""
    token: str = ""
    """Token that requests must carry (`Authorization: Bearer TOKEN`). Empty: that of the environment variable
    FQGAN_TOKEN, which no list of processes shows; without one, requests need none."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call this server from a browser, as https://example.org; none unless named."""
    device: Device = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of all models; bf16 gives other pictures of the same quality, faster where the hardware has it."""
    batch: int = 32
    """Pictures that a generator draws at a time."""
    queue: int = 256
    """Pictures that may wait for a place in the batch; more are refused with status 429."""
    most: int = 64
    """Pictures that one request may ask for."""
    deadline: float = 300.0
    """Seconds after which a request ends with status 504, whatever it waits for."""
    drain: float = 60.0
    """Seconds that running requests have to finish after SIGTERM."""

    @property
    def secret(self) -> str:
        """The token; empty: none is asked for."""
        return self.token or os.environ.get(TOKEN, "")

    @property
    def loopback(self) -> bool:
        """Whether this machine alone can connect."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def chosen(self) -> tuple[str, ...]:
        """The models, or the quickstart's; `UserError` where neither is there."""
        if self.models:
            return self.models
        run = QuickstartSettings.run
        if not (pair := models_of(run)):
            raise UserError(f"name a model, or run fqgan quickstart first: its models are not in {run}")
        return tuple(map(str, pair))

    def check(self) -> None:
        """`UserError` for numbers that make no sense, and for an open address without a token."""
        at_least(1, batch=self.batch, queue=self.queue, most=self.most)
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port must be from 0 to 65535, got {self.port}")
        if self.most > self.queue:
            raise UserError(f"--most {self.most} pictures of a request would never fit --queue {self.queue}")
        for name in ("deadline", "drain"):
            if not 0 < getattr(self, name) < 1e9:
                raise UserError(f"--{name} must be a number of seconds above 0, got {getattr(self, name)}")
        if not self.loopback and not self.secret:
            raise UserError(f"--host {self.host} lets other machines in: give --token or set {TOKEN}")
        if not (self.secret.isascii() and self.secret.isprintable()) or " " in self.secret:
            raise UserError("--token must be of plain letters, digits and signs, without spaces")
        for origin in self.cors:
            if origin.rstrip("/") != origin or not origin.startswith(("http://", "https://")):
                raise UserError(f"--cors takes origins such as https://example.org, got {origin!r}")
