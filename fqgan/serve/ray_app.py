"""The same application on many machines: replicas of Ray Serve, as many as the requests need.

`serve run fqgan.serve.ray_app:app models=hf:org/name,other=/models/other replicas=8` starts it; docs/serving.md says
more.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields, replace
from typing import Any

from fqgan.base.errors import UserError
from fqgan.config.serving import ServingSettings
from fqgan.serve.server import check_installed


@dataclass(frozen=True)
class Replicas:
    """How many copies of the server run, and on what."""

    least: int = 1
    most: int = 4
    gpus: float = 1.0
    """Of each; 0: it computes on its machine's CPU."""
    ongoing: int = 32
    """Requests a replica at which another one is started; it takes twice as many."""

    def check(self) -> None:
        """`UserError` for numbers that make no sense."""
        if not 0 <= self.least <= self.most or self.most < 1 or self.gpus < 0 or self.ongoing < 1:
            raise UserError(f"replicas make no sense: {self}")


def application(settings: ServingSettings, replicas: Replicas) -> Any:
    """A Ray Serve application. Every replica loads the models by itself, from a path that all machines have or from
    the hub.

    `UserError` without Ray.
    """
    check_installed()
    try:
        serve = importlib.import_module("ray.serve")
    except ImportError:
        raise UserError("many machines need Ray Serve: run pip install 'fqgan[ray]'") from None
    replicas.check()
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
            "max_replicas": replicas.most,
            "target_ongoing_requests": replicas.ongoing,
        },
        max_ongoing_requests=2 * replicas.ongoing,
        graceful_shutdown_timeout_s=settings.drain,
        ray_actor_options={"num_gpus": replicas.gpus},
    )(serve.ingress(build)())
    return replica.bind()


def app(arguments: dict[str, str]) -> Any:
    """For `serve run`: `models`, separated by commas, `token`, `device`, `precision`, `batch`, `queue`, `most`, and of
    `Replicas` `least`, `most_replicas`, `gpus`, `ongoing`."""
    given = dict(arguments)
    models = tuple(filter(None, given.pop("models", "").split(",")))
    if not models:
        raise UserError("name the models: serve run fqgan.serve.ray_app:app models=hf:org/name")
    given["replicas"] = given.pop("most_replicas", "4")
    replicas = Replicas(
        int(given.pop("least", "1")),
        int(given.pop("replicas")),
        float(given.pop("gpus", "1")),
        int(given.pop("ongoing", "32")),
    )
    known = {each.name: each.type for each in fields(ServingSettings)}
    if unknown := sorted(given.keys() - known.keys()):
        raise UserError(f"unknown argument {unknown[0]}")
    values: dict[str, Any] = {name: int(text) if known[name] == "int" else text for name, text in given.items()}
    return application(ServingSettings(models=models, **values), replicas)
