"""The function behind `plan`: a run's memory, time and disk on given GPUs, before any of them is rented."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fqgan.config import SourceOptions, TokenizerConfig, TokenizerRunConfig
from fqgan.config.planning import PlanSettings
from fqgan.config.presets import PRESETS, named
from fqgan.data.sources import open_source
from fqgan.data.token_manifest import code_type
from fqgan.data.tokens import TokenStore
from fqgan.data.transforms import NUM_CROPS
from fqgan.engine.sizes import micro_batch, num_parameters, total_steps
from fqgan.generator.model import FAR
from fqgan.lab.planning.cards import BEST, LAUNCH, USUAL, Card, Collective, card, collective
from fqgan.lab.planning.memory import Memories, Memory
from fqgan.lab.planning.steps import RunConfig, Step, follow_encoding
from fqgan.tokenizer.extraction import crops_per_pass
from fqgan.tokenizer.model import FactorizedTokenizer

KNOWN = {"imagenet": (1_281_167, 1000), "cifar10": (50_000, 10), "cifar100": (50_000, 100)}
"""Images and classes of sets that need not be there."""
_PACKED = 76_000 / 256**2
"""Bytes of a packed picture for each pixel of its shorter side squared, as docs/imagenet.md estimates them."""
_BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sums at a time."""
_CALLS = {
    "_allgather_base_": ("weights of a block gathered", 1),
    "_reduce_scatter_base_": ("gradients of a block scattered", 1),
    "allgather_": ("teachers' and own features gathered", 1),
    "allreduce_": ("statistics summed", 2),
}


@dataclass(frozen=True)
class Saving:
    """What an option does to memory.

    Attributes:
        largest: micro-batch that fits; 0: none.
        peak: bytes at the plan's micro-batch.
        work: FLOPs of an image, in those without the option.
    """

    option: str
    largest: int
    peak: int
    work: float


@dataclass(frozen=True)
class Time:
    """Seconds of a step; `best` and `usual` kernels."""

    best: float
    usual: float


@dataclass(frozen=True)
class Extraction:
    """Encoding the data set with the trained tokenizer.

    Attributes:
        seconds: of the whole set on all GPUs, in each precision.
        size: bytes of the token store.
    """

    crops: int
    flops: int
    seconds: dict[str, Time]
    size: int


@dataclass(frozen=True)
class Plan:
    """What a run takes. Bytes, seconds and FLOPs; sizes of memory are those of one GPU.

    Attributes:
        rows: memory by micro-batch, the plan's own among them.
        flops: of an image, in training.
        computation: seconds a step of the GPUs alone.
        step: seconds a step with communication: all of it hidden at best, none usually.
        launches: operators of a step.
        disk: bytes of pictures, codes and checkpoints.
        extraction: of tokenizers.
    """

    subject: str
    kind: str
    card: Card
    gpus: int
    parameters: int
    images: int
    batch: int
    micro_batch: int
    steps: int
    fits: bool
    rows: list[Memory]
    savings: list[Saving]
    flops: float
    launches: int
    computation: Time
    step: Time
    collectives: list[Collective]
    disk: dict[str, int]
    extraction: Extraction | None

    @property
    def accumulated(self) -> int:
        """Micro-batches of a GPU in a step."""
        return self.batch // (self.micro_batch * self.gpus)

    @property
    def communication(self) -> float:
        """Seconds of a step."""
        return sum(each.seconds for each in self.collectives)

    def to_json(self) -> dict[str, Any]:
        """As plain values, with what follows from them."""
        return {
            **asdict(self),
            "usable_memory": self.card.usable,
            "accumulated": self.accumulated,
            "communication": self.communication,
            "hours": asdict(Time(*(each * self.steps / 3600 for each in (self.step.best, self.step.usual)))),
        }


def plan(config: RunConfig, settings: PlanSettings, subject: str = "run") -> Plan:
    """What a run of these settings takes.

    Args:
        subject: what to call it.

    Raises:
        UserError: settings that no run can have, an unknown GPU, data that cannot be opened.
    """
    settings.check_machines()
    chosen, gpus, train = card(settings.gpu), settings.gpus, config.train
    config, images = _resolved(config)
    config.check()
    share = micro_batch(replace(train, micro_batch=0), gpus)
    own = train.micro_batch and micro_batch(train, gpus)
    memories = Memories(config, gpus, share, chosen.usable, own)
    micro, fitting = memories.planned, memories.largest
    step, accumulated = memories.steps[micro], share // micro
    computation, launches = _computation(chosen, step, accumulated)
    collectives = [*_collectives(step, accumulated, config, settings, chosen)]
    waiting = sum(each.seconds for each in collectives)
    savings = [
        _saving(option, Memories(other, gpus, share, chosen.usable, micro), step)
        for option, other in _savings(config, gpus)
    ]
    return Plan(
        subject=subject,
        kind="tokenizer" if isinstance(config, TokenizerRunConfig) else "generator",
        card=chosen,
        gpus=gpus,
        parameters=_parameters(config),
        images=images,
        batch=train.batch,
        micro_batch=micro,
        steps=total_steps(train, images),
        fits=memories.at(micro).peak <= chosen.usable,
        rows=[memories.at(each) for each in memories.choices if each <= max(micro, 2 * fitting)],
        savings=savings,
        flops=_flops(step),
        launches=launches,
        computation=computation,
        step=Time(max(computation.best, waiting), computation.usual + waiting),
        collectives=collectives,
        disk=_disk(config, step, images, settings),
        extraction=_extraction(config.model, images, settings, chosen)
        if isinstance(config, TokenizerRunConfig)
        else None,
    )


def _resolved(config: RunConfig) -> tuple[RunConfig, int]:
    """The settings with nothing left open, and how many images there are."""
    if isinstance(config, TokenizerRunConfig):
        known = _known(config.data.source)
        return config, known[0] if known else len(
            open_source(config.data.source, "train", SourceOptions.of(config.data))
        )
    named_set = _known(config.data)
    if named_set is None:
        store = TokenStore.open(config.data)
        return config.resolved(store.codebook_sizes, store.grid, store.num_classes, store.code_dims), len(store)
    images, classes = named_set
    tokenizer = named(PRESETS, config.tokenizer or "dual-ds16").model
    sizes = config.model.codebook_sizes or tuple(factor.codebook_size for factor in tokenizer.factors)
    grid = config.model.grid or (tokenizer.grid, tokenizer.grid)
    dims = tuple(factor.code_dim for factor in tokenizer.factors)
    return config.resolved(sizes, grid, config.model.num_classes or classes, dims), images


def _known(name: str) -> tuple[int, int] | None:
    """Images and classes of a set that is known by name, or of a number of images; None for what must be opened."""
    if name.isascii() and name.isdigit() and int(name):
        return int(name), 1000
    return None if Path(name).exists() and name else KNOWN.get(name or "imagenet")


def _parameters(config: RunConfig) -> int:
    with torch.device("meta"):
        tokenizer = isinstance(config, TokenizerRunConfig)
        return num_parameters(FactorizedTokenizer(config.model) if tokenizer else FAR(config.model))


def _flops(step: Step) -> float:
    """Of an image."""
    return float(step.work[:, 0].sum()) / step.images


def _computation(chosen: Card, step: Step, accumulated: int) -> tuple[Time, int]:
    """Of a step of `accumulated` micro-batches, and how many operators that are."""
    times = accumulated / step.parts
    limit = times * chosen.seconds(step.work) + chosen.seconds(step.update)
    launches = round(times * len(step.work)) + len(step.update)
    return _kernels(limit, launches), launches


def _kernels(limit: float, operators: int, times: float = 1) -> Time:
    """Seconds of good and of usual kernels, or of Python starting them; `limit`: seconds at the operators' limits."""
    return Time(*(times * max(limit / share, operators * LAUNCH) for share in (BEST, USUAL)))


def _collectives(
    step: Step, accumulated: int, config: RunConfig, settings: PlanSettings, chosen: Card
) -> Iterator[Collective]:
    """Those of a step, the longest first."""
    gpus, sharded = settings.gpus, getattr(config.train, "fsdp", False)
    if gpus == 1:
        return
    calls: dict[tuple[str, int], list[int]] = defaultdict(list)
    for name, size in step.collectives:
        words, trips = _CALLS.get(name, (name, 1))
        once = name == "_reduce_scatter_base_"  # after the last micro-batch
        calls[words, trips] += [size] * (1 if once else accumulated // step.parts)
    if not sharded:
        buckets = -(-step.gradients // _BUCKET)
        calls["gradients summed", 2] = [step.gradients // buckets] * buckets
    machines = {"gpus": gpus, "node": settings.node, "link": chosen.link, "network": settings.network}
    made = [collective(words, sizes, trips, **machines) for (words, trips), sizes in calls.items()]
    yield from sorted(made, key=lambda each: -each.seconds)


def _savings(config: RunConfig, gpus: int) -> Iterator[tuple[str, RunConfig]]:
    """Options that save memory, as far as the run does not use them, and the run with each of them."""
    option = "--train.activation-checkpointing"
    if isinstance(config, TokenizerRunConfig):
        for blocks in ("transformer", "all"):
            if config.train.activation_checkpointing == "none":
                train = replace(config.train, activation_checkpointing=blocks)
                yield f"{option} {blocks}", replace(config, train=train)
        return
    if not config.train.activation_checkpointing:
        yield option, replace(config, train=replace(config.train, activation_checkpointing=True))
    if gpus > 1 and not config.train.fsdp and config.optimizer.kind != "muon":
        yield "--train.fsdp", replace(config, train=replace(config.train, fsdp=True))


def _saving(option: str, memories: Memories, without: Step) -> Saving:
    step = memories.steps[memories.planned]
    return Saving(option, memories.largest, step.peak, _flops(step) / _flops(without))


def _disk(config: RunConfig, step: Step, images: int, settings: PlanSettings) -> dict[str, int]:
    memory, whole = step.memory, settings.gpus if getattr(config.train, "fsdp", False) else 1
    checkpoint = whole * (memory["weights"] + memory["optimizer"] + memory["average"])
    sizes = {"checkpoint": checkpoint, "checkpoints": checkpoint * (config.train.keep_last + 1)}
    if isinstance(config, TokenizerRunConfig):
        return {"pictures": round(images * _PACKED * config.model.image_size**2), **sizes}
    return {"codes": _store_size(images, settings, config.model.codebook_sizes, config.model.num_positions), **sizes}


def _store_size(images: int, settings: PlanSettings, codebook_sizes: tuple[int, ...], positions: int) -> int:
    width = np.dtype(code_type(codebook_sizes)).itemsize
    return images * (NUM_CROPS[settings.crops] * len(codebook_sizes) * positions * width + 8)


def _extraction(model: TokenizerConfig, images: int, settings: PlanSettings, chosen: Card) -> Extraction:
    crops, a_pass = NUM_CROPS[settings.crops], crops_per_pass(model.image_size, torch.device("cuda"))
    passes = images * crops / a_pass / settings.gpus
    seconds: dict[str, Time] = {}
    work: npt.NDArray[np.int64] = np.zeros((0, 3), np.int64)
    for precision in ("float32", "bf16"):
        work = follow_encoding(model, a_pass, precision)
        seconds[precision] = _kernels(chosen.seconds(work), len(work), passes)
    sizes = tuple(factor.codebook_size for factor in model.factors)
    size = _store_size(images, settings, sizes, model.grid**2)
    return Extraction(crops, int(work[:, 0].sum()) // a_pass, seconds, size)
