"""What /metrics says, in Prometheus' words."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_STEPS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1)
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1)


class Metrics:
    """Counters of one server. Labels are names of models and routes, never what a client made up."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.waiting = Gauge("fqgan_queue_images", "Pictures that wait for a place in a batch", registry=registry)
        self.rows = Gauge("fqgan_batch_images", "Pictures under way", ["model"], registry=registry)
        self.fill = Histogram(
            "fqgan_batch_fill", "Share of a batch's places taken, at each step", registry=registry, buckets=_SHARES
        )
        self.positions = Counter("fqgan_positions", "Positions drawn, over all pictures", registry=registry)
        self.images = Counter("fqgan_images", "Pictures drawn", registry=registry)
        self.steps = Histogram("fqgan_step_seconds", "Time of a step", registry=registry, buckets=_STEPS)
        self.requests = Counter(
            "fqgan_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "fqgan_request_seconds", "Time of a request", ["route"], registry=registry, buckets=_SECONDS
        )

    def stepped(self, rows: int, batch: int, seconds: float, done: int) -> None:
        """A step of a batch with `rows` places taken, after which `done` pictures are finished."""
        self.fill.observe(rows / batch)
        self.positions.inc(rows)
        self.images.inc(done)
        self.steps.observe(seconds)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
