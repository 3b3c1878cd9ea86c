"""A plan in words: the table of memory, and what follows it line by line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fqgan.base.progress import readable_bytes
from fqgan.lab.planning.cards import BEST, FRAGMENTED, GIB, RESERVED, USUAL
from fqgan.lab.planning.plan import Plan, Time
from fqgan.lab.planning.steps import KINDS


def table(plan: Plan) -> Any:
    """Memory by micro-batch, as a rich table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    card = plan.card
    names = {"micro-batch": "images", "gradients": "grads", "optimizer": "optim.", "activations": "activ."}
    title = (
        f"{plan.subject} on {plan.gpus:,} x {card.name}: GiB of a GPU, whose {card.memory:g} leave {_gib(card.usable)}"
    )
    grid = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    kinds = [kind for kind in KINDS if any(row.kinds[kind] for row in plan.rows)]
    for name in ("micro-batch", *kinds, "peak", ""):
        grid.add_column(names.get(name, name), justify="right" if name else "left")
    for row in plan.rows:
        mark = "" if row.peak <= card.usable else "too large"
        if row.micro_batch == plan.micro_batch:
            mark = ", ".join(filter(None, ["planned", mark]))
        numbers = [_gib(row.kinds[kind]) for kind in kinds]
        grid.add_row(f"{row.micro_batch:,}", *numbers, _gib(row.peak), mark)
    return grid


def notes(plan: Plan) -> str:
    """All else, a line each."""
    return "\n".join(f"{name:<15}{text}" for name, text in _notes(plan))


def _notes(plan: Plan) -> Iterator[tuple[str, str]]:
    card, step = plan.card, plan.step
    yield (
        "memory",
        (f"when most is needed; {RESERVED / GIB:g} GiB and {FRAGMENTED:.0%} are left to CUDA, NCCL and gaps"),
    )
    if not plan.fits:
        yield "", f"warning: a micro-batch of {plan.micro_batch:,} does not fit: use what saves memory"
    for saving in plan.savings:
        fits = f"up to {saving.largest:,} images at a time" if saving.largest else "no image fits"
        less = f"{_gib(saving.peak)} GiB for {plan.micro_batch:,}"
        yield "", f"{saving.option}: {fits}, {less}, {saving.work:.2f} times the arithmetic"
    yield "arithmetic", f"{plan.flops / 1e9:,.0f} GFLOP an image, {plan.parameters / 1e6:,.1f} M parameters"
    parts = f"{plan.accumulated} x " if plan.accumulated > 1 else ""
    yield (
        "a step",
        (
            f"{_seconds(step)} for {plan.batch:,} images ({parts}{plan.micro_batch:,} a GPU), "
            f"{_between(Time(plan.batch / step.usual, plan.batch / step.best), ',.0f')} images/s, "
            f"{_between(_utilisation(plan), '.0%')} of the GPU's bf16 arithmetic"
        ),
    )
    yield (
        "",
        (
            f"best to usual: operators reach {BEST:.0%} to {USUAL:.0%} of their own limits, arithmetic or memory; "
            f"{plan.launches:,} of them, uncompiled"
        ),
    )
    hours = Time(step.best * plan.steps / 3600, step.usual * plan.steps / 3600)
    epochs = plan.steps * plan.batch / plan.images
    yield (
        "the run",
        (
            f"{plan.steps:,} steps, {epochs:,.1f} epochs of {plan.images:,} images: {_long(hours)}, "
            f"{_between(Time(hours.best * plan.gpus, hours.usual * plan.gpus), ',.0f')} GPU-hours"
        ),
    )
    if plan.collectives:
        yield from _communication(plan)
    if plan.extraction:
        made = plan.extraction
        times = ", ".join(
            f"{_long(Time(time.best / 3600, time.usual / 3600))} in {precision}"
            for precision, time in made.seconds.items()
        )
        crops = f"{made.crops} crops of each image" if made.crops > 1 else "each image"
        yield "extraction", f"{crops}: {times}; codes {readable_bytes(made.size)}"
    disk = {name: readable_bytes(size) for name, size in plan.disk.items()}
    first = f"pictures about {disk['pictures']} (packed)" if "pictures" in disk else f"codes {disk['codes']}"
    yield "disk", f"{first}, a checkpoint {disk['checkpoint']}, {disk['checkpoints']} with those that are kept"
    yield "", f"{card.name}: {card.tflops[0]:g} TFLOP/s in bf16, {card.bandwidth:,.0f} GB/s; calculated, not measured"


def _communication(plan: Plan) -> Iterator[tuple[str, str]]:
    first, waiting, own = plan.collectives[0], plan.communication, plan.computation.best
    yield (
        "communication",
        "; ".join(
            f"{each.name}: {readable_bytes(each.size)}, {1e3 * each.seconds:,.1f} ms" for each in plan.collectives
        ),
    )
    if waiting > own:
        told = f"the network is the limit, '{first.name}' before all: {waiting / own:.1f} times the best computation"
    else:
        told = f"{waiting / own:.0%} of the best computation, which can hide it; '{first.name}' is the largest part"
    yield "", told


def _utilisation(plan: Plan) -> Time:
    """Shares of the bf16 arithmetic that a step's FLOPs are, usual first."""
    flops = plan.flops * plan.batch / plan.gpus / (plan.card.tflops[0] * 1e12)
    return Time(flops / plan.step.usual, flops / plan.step.best)


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f}" if size >= 10 * GIB else f"{size / GIB:.2f}"


def _between(time: Time, form: str) -> str:
    low, high = format(time.best, form), format(time.usual, form)
    return low if low == high else f"{low} to {high}"


def _seconds(time: Time) -> str:
    return f"{_between(Time(1e3 * time.best, 1e3 * time.usual), ',.0f')} ms"


def _long(hours: Time) -> str:
    """Hours as minutes, hours or days."""
    for unit, length in (("days", 24.0), ("h", 1.0)):
        if hours.usual >= 2 * length:
            return f"{_between(Time(hours.best / length, hours.usual / length), '.1f')} {unit}"
    return f"{_between(Time(60 * hours.best, 60 * hours.usual), '.0f')} min"
