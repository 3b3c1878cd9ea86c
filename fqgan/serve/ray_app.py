"""The same application on many machines: replicas of Ray Serve, as many as the requests need.

`serve run fqgan.serve.ray_app:app models=hf:org/name,other=/models/other replicas=8` starts it; docs/serving.md says
more.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.config.serving import ServingSettings
from fqgan.serve.server import check_installed


@dataclass(frozen=True)
class Replicas:
    """How many copies of the server run, and on what."""

    least: int = 1
    replicas: int = 4
    """At most."""
    gpus: float = 1.0
    """Of each; 0: it computes on its machine's CPU."""
    cpus: float = 1.0
    """Cores that Ray sets aside for each."""
    ongoing: int = 32
    """Requests a replica at which another one is started; it takes twice as many."""

    def check(self) -> None:
        """`UserError` for numbers that make no sense."""
        parts = all(0 <= each < 1e6 for each in (self.gpus, self.cpus))
        if not (parts and 0 <= self.least <= self.replicas and self.replicas >= 1 and self.ongoing >= 1):
            raise UserError(f"replicas make no sense: {self}")


def application(settings: ServingSettings, replicas: Replicas) -> Any:
    """A Ray Serve application. Every replica loads the models by itself, from a path that all machines have or from
    the hub.

    `UserError` without Ray.
    """
    replicas.check()
    check_installed()
    try:
        serve = importlib.import_module("ray.serve")
    except ImportError:
        raise UserError("many machines need Ray Serve: run pip install 'fqgan[ray]'") from None
    # the address is that of Ray's proxies, which other machines reach: the token counts, not the host
    settings = replace(settings, token=settings.secret, host="0.0.0.0")
    settings.check()

    def build() -> Any:
        from fqgan.serve.app import make_app
        from fqgan.serve.engine import Engine

        return make_app(Engine(settings))

    replica = serve.deployment(
        name="fqgan",
        autoscaling_config={
            "min_replicas": replicas.least,
            "max_replicas": replicas.replicas,
            "target_ongoing_requests": replicas.ongoing,
        },
        max_ongoing_requests=2 * replicas.ongoing,
        max_queued_requests=settings.queue,
        graceful_shutdown_timeout_s=settings.drain,
        ray_actor_options={"num_gpus": replicas.gpus, "num_cpus": replicas.cpus},
    )(serve.ingress(build)())
    return replica.bind()


def app(arguments: dict[str, str]) -> Any:
    """For `serve run`: `models`, separated by commas; `least`, `replicas`, `gpus`, `cpus`, `ongoing` of `Replicas`;
    `token`, `device`, `precision`, `batch`, `queue`, `most` of the server.

    `UserError` for others, for values that are none, and without Ray.
    """
    given: dict[str, Any] = dict(arguments)
    models = tuple(filter(None, given.pop("models", "").split(",")))
    if not models:
        raise UserError("name the models: serve run fqgan.serve.ray_app:app models=hf:org/name")
    known = {"token": str, "device": str, "precision": str, "batch": int, "queue": int, "most": int}
    scale = {"least": int, "replicas": int, "gpus": float, "cpus": float, "ongoing": int}
    values: dict[str, Any] = {}
    for name, text in given.items():
        kind = (known | scale).get(name)
        if kind is None:
            raise UserError(f"unknown argument {name!r}{did_you_mean(name, [*known, *scale])}")
        try:
            values[name] = kind(text)
        except ValueError:
            raise UserError(f"{name} must be a number, got {text!r}") from None
    replicas = Replicas(**{name: value for name, value in values.items() if name in scale})
    settings = ServingSettings(models=models, **{name: value for name, value in values.items() if name in known})
    return application(settings, replicas)
