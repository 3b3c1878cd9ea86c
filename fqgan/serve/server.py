"""The function behind `serve`: loads models, listens, and ends when it is told to, with nothing lost."""

from __future__ import annotations

import importlib.util
import signal
import socket
from typing import Any

from fqgan.base.errors import UserError
from fqgan.base.printing import say
from fqgan.config.serving import ServingSettings
from fqgan.engine.stops import handling

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def check_installed() -> None:
    """`UserError` without the extra."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: run pip install 'fqgan[serve]'")


def serve(settings: ServingSettings) -> None:
    """Serve models until SIGTERM or Ctrl-C. Then no new connection is taken, running requests have `settings.drain`
    seconds, and the call returns. A second signal ends it at once.

    Raises:
        UserError: a package, a model or a device that is missing, an address that cannot be listened at.
    """
    settings.check()
    check_installed()
    listening = listen(settings.host, settings.port)
    with listening:
        from fqgan.serve.engine import Engine

        engine = Engine(settings)
        for facts in engine.units[0].catalogue.facts():
            about = f"{facts['parameters'] / 1e6:.1f} M parameters, {facts['image_size']} pixels"
            say(f"{facts['kind']} {facts['name']}: {about}")
        server = make_server(engine)
        place = f"[{settings.host}]" if ":" in settings.host else settings.host
        say(f"fqgan serves at http://{place}:{listening.getsockname()[1]} (Ctrl-C ends it)")
        # uvicorn hands its signals on when it is done: they have done their work then
        with handling(lambda number, frame: None, (signal.SIGTERM, signal.SIGINT)):
            server.run([listening])
    cut = f"{engine.cut} request(s) took too long and were cut"
    say(f"fqgan serve: {cut if engine.cut else 'all requests are done'}")


def make_server(engine: Any) -> Any:
    """uvicorn's server around an engine."""
    import uvicorn

    from fqgan.serve.app import make_app
    from fqgan.serve.connections import Connection

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            engine.draining = True
            await super().shutdown(sockets)

    return Server(
        uvicorn.Config(
            make_app(engine),
            http=Connection,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            log_level="critical",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=max(1, round(engine.settings.drain)),
            h11_max_incomplete_event_size=2**16,
        )
    )


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; `UserError` where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot listen at {host}, port {port}: {reason}; choose another --port or --host") from None
