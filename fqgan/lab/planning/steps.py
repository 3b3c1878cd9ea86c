"""The real training step of a run on tensors without content: what is alive at its peak, and what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fqgan.config import GeneratorRunConfig, TokenizerConfig, TokenizerRunConfig
from fqgan.data.sources import ImageSource
from fqgan.engine.distributed import World
from fqgan.engine.task import Task
from fqgan.engine.trainer import Trainer
from fqgan.generator.cross_entropy import Clusters
from fqgan.generator.task import Batch, GeneratorTask
from fqgan.lab.planning.stand_in import without_content
from fqgan.lab.planning.tracking import FLOAT, TF32, Tracker
from fqgan.nets.architectures import blank_networks
from fqgan.tokenizer.checks import with_teacher_dims
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.task import TokenizerTask

RunConfig = TokenizerRunConfig | GeneratorRunConfig
KINDS = ("weights", "gradients", "optimizer", "average", "teachers", "activations")


@dataclass(frozen=True)
class Step:
    """One optimizer step of one GPU.

    Attributes:
        images: of the GPU, in `parts` micro-batches.
        memory: bytes of each of `KINDS` when most are alive. Weights are those in training, activations all the rest.
        work: (operators of the micro-batches, 3), as `Tracker.work`.
        update: the same of the optimizer.
        collectives: as `Tracker.collectives`, without DDP's sum of gradients.
        gradients: bytes of them.
    """

    images: int
    parts: int
    memory: dict[str, int]
    work: npt.NDArray[np.int64]
    update: npt.NDArray[np.int64]
    collectives: list[tuple[str, int]]
    gradients: int

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.memory.values())


class _NoPictures(ImageSource):
    labels, blocks = np.zeros(0, np.int64), []

    def names(self) -> list[str]:
        return []


class _TokenizerTask(TokenizerTask):
    """Its pictures have no content, and come from nowhere."""

    micro_batch = 1

    def raw_batches(self, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.config.model.image_size
        while True:
            pixels = torch.zeros(self.micro_batch, 3, size, size, dtype=torch.uint8, device=self.world.device)
            yield pixels, torch.zeros(len(pixels), dtype=torch.int64)


class _GeneratorTask(GeneratorTask):
    """Its codes are zeros, and its run begins."""

    micro_batch = 1

    def progress(self) -> float:
        return 0.0

    def batches(self, start_step: int) -> Iterator[Batch]:
        model, rows = self.config.model, self.micro_batch
        while True:
            codes = torch.zeros(rows, model.num_factors, *model.grid, dtype=torch.int64)
            yield self._placed(codes, torch.zeros(rows, dtype=torch.int64))


class _Trainer(Trainer):
    """Takes every step for finite, and notes where the updates begin."""

    before_update = 0
    tracker: Tracker

    def _not_finite(self, terms: dict[str, Tensor], norms: dict[str, Tensor]) -> str:
        self.before_update = len(self.tracker.work)
        return ""


def follow(
    config: RunConfig, choose: Callable[[dict[int, Step]], int], gpus: int = 1, share: int = 1, *, gpu: bool = True
) -> dict[int, Step]:
    """Optimizer steps by micro-batch, followed on tensors without content. The GAN is under way with all its penalties.

    Args:
        config: the run's settings, with nothing left open.
        choose: of the steps so far, says the next micro-batch, images of a GPU at a time; 0 ends.
        gpus: ranks, each with its own GPU; this is the first one.
        share: images of a GPU in a step: smaller micro-batches find the gradients of others.
        gpu: False follows what happens on a CPU.
    """
    found: dict[int, Step] = {}
    with _ranks(gpus), without_content(gpu), Tracker() as tracker:
        trainer = _trainer(config, World(0, gpus, torch.device("cpu")), gpu, tracker)
        _start_optimizers(trainer.task)
        while micro_batch := choose(found):
            found[micro_batch] = _followed(trainer, micro_batch, micro_batch < share)
    return found


def follow_one(config: RunConfig, micro_batch: int, gpus: int = 1, *, share: int = 0, gpu: bool = True) -> Step:
    """`follow` of one micro-batch; share 0: as large as it."""
    return follow(config, lambda found: 0 if found else micro_batch, gpus, share or micro_batch, gpu=gpu)[micro_batch]


def real_trainer(config: RunConfig, micro_batch: int, device: torch.device) -> Trainer:
    """The trainer that `follow` follows, with content, to be measured: its networks have random weights, and its
    pictures or codes are zeros."""
    trainer = _trainer(config, World(0, 1, device), device.type != "cpu", Tracker())
    task: Any = trainer.task
    task.micro_batch = micro_batch
    return trainer


def _followed(trainer: _Trainer, micro_batch: int, accumulate: bool) -> Step:
    task: Any = trainer.task
    tracker, gpus = trainer.tracker, trainer.world.size
    sharded = getattr(trainer.config, "fsdp", False) and gpus > 1
    parts = 2 if accumulate and sharded else 1  # until the last micro-batch a rank keeps all of its gradients
    task.micro_batch, trainer.accumulate = micro_batch, parts
    changes, work, calls = len(tracker.changes), len(tracker.work), len(tracker.collectives)
    trainer.optimize(trainer.steps - 1, task.batches(0))
    alive = tracker.alive(dict(_kinds(trainer)), KINDS[-1])
    gradients = int(alive["gradients"][changes:].max())
    if not sharded and (accumulate or gpus > 1):  # other micro-batches' are there, or DDP keeps room for them
        alive["gradients"] = np.full_like(alive["gradients"], gradients)
    total = np.sum([*alive.values()], axis=0)
    moment = changes + int(total[changes:].argmax())
    operators = np.array(tracker.work, dtype=np.int64)
    return Step(
        images=parts * micro_batch,
        parts=parts,
        memory={name: int(numbers[moment]) for name, numbers in alive.items()},
        work=operators[work : trainer.before_update],
        update=operators[trainer.before_update :],
        collectives=tracker.collectives[calls:],
        gradients=gradients,
    )


def follow_encoding(config: TokenizerConfig, crops: int, precision: str) -> npt.NDArray[np.int64]:
    """The operators of one pass of `extract`, (n, 3), as `Tracker.work`."""
    with without_content(gpu=True), torch.no_grad():
        tokenizer = FactorizedTokenizer(config).eval()
        tokenizer.precision = precision
        images = torch.zeros(crops, 3, config.image_size, config.image_size)
        with Tracker() as tracker:
            tokenizer.encode(images, values=False)
    work = np.array(tracker.work, dtype=np.int64)
    work[work[:, 2] == TF32, 2] = FLOAT  # extraction computes exactly
    return work


def _trainer(config: Any, world: World, gpu: bool, tracker: Tracker) -> _Trainer:
    """Of an eager run with the memory layout of its device."""
    steps = 2
    config = replace(config, train=replace(config.train, batch=world.size, micro_batch=1, compile=False))
    if isinstance(config, TokenizerRunConfig):
        steps = config.discriminator.r1_every + 1
        config = replace(config, discriminator=replace(config.discriminator, start=0))
        if gpu and config.train.channels_last == "auto":
            config = replace(config, train=replace(config.train, channels_last="on"))
        perceptual, teachers = blank_networks(config, torch.device("cuda" if gpu else "cpu"))
        config = with_teacher_dims(config, teachers)
        task = _TokenizerTask(config, world, _NoPictures(), None, teachers, perceptual)
    else:
        names = [str(i) for i in range(config.model.num_factors)]
        sizes = config.model.codebook_sizes if config.train.cluster_weight else ()
        counts = [*config.train.clusters] * len(sizes)
        clusters = [_even_clusters(size, count) for size, count in zip(sizes, counts, strict=False)]
        store = SimpleNamespace(factor_names=names)
        task = _GeneratorTask(config, world, store, None, clusters=clusters)  # pyright: ignore
    trainer = _Trainer(task, None, world, steps, config.train, config.optimizer)  # pyright: ignore
    trainer.tracker = tracker
    return trainer


def _even_clusters(size: int, count: int) -> Clusters:
    """Of `size` codes, as far as memory goes: the largest cluster has four times as many codes as their mean."""
    widest = min(size, -(-4 * size // count))
    return Clusters(torch.zeros(size, dtype=torch.int64), torch.zeros(count, widest, dtype=torch.int64))


def _start_optimizers(task: Task) -> None:
    """Their state is there, as it is from the second step on."""
    for phase in task.phases:
        for parameter in filter(lambda each: each.requires_grad, phase.module.parameters()):
            parameter.grad = torch.zeros_like(parameter)
        phase.optimizer.step()
        phase.optimizer.zero_grad()


def _kinds(trainer: Trainer) -> Iterator[tuple[str, Iterable[Tensor]]]:
    task: Any = trainer.task
    modules = [phase.module for phase in task.phases]
    own = [*map(_own, (each for module in modules for each in (*module.parameters(), *module.buffers())))]
    yield KINDS[0], own
    yield KINDS[1], [_own(p.grad) for module in modules for p in module.parameters() if p.grad is not None]
    states = [each for phase in task.phases for state in phase.optimizer.state.values() for each in state.values()]
    yield KINDS[2], [_own(each) for each in states if isinstance(each, Tensor)]
    yield KINDS[3], [*map(_own, trainer.ema.module.state_dict().values())] if trainer.ema else []
    frozen: list[nn.Module] = [
        *getattr(task, "teachers", {}).values(),
        getattr(task, "perceptual", None) or nn.Identity(),
    ]
    yield KINDS[4], [each for module in frozen for each in (*module.parameters(), *module.buffers())]


def _own(tensor: Any) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@contextmanager
def _ranks(count: int) -> Iterator[None]:
    """A process group of `count` ranks, of which only this one is there: what it sends goes nowhere."""
    if count == 1:
        yield
        return
    from torch.distributed import device_mesh
    from torch.distributed.fsdp._fully_shard import _fsdp_param
    from torch.testing._internal.distributed.fake_pg import FakeStore

    arrange = device_mesh.init_device_mesh

    def arranged(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():  # a mesh looks at the numbers of its ranks
            return arrange(*args, **kwargs)

    def own_chunk(tensor: Tensor, num_chunks: int, dim: int) -> list[Tensor]:
        """The first rank's part; FSDP2 makes one for each rank, and uses its own: half a minute for 512 ranks."""
        return [tensor.narrow(dim, 0, -(-tensor.shape[dim] // num_chunks))]

    dist.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    try:
        with (
            patch.object(device_mesh, "init_device_mesh", arranged),
            patch.object(_fsdp_param, "_chunk_with_empty", own_chunk),
        ):
            yield
    finally:
        dist.destroy_process_group()
