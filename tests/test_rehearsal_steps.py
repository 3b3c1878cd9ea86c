"""Nothing in a training step waits for the GPU but the one look at whether all is finite, and nothing in a sampler's.

Whole steps of the real `Trainer`: with numbers on the CPU, where a value that is asked for, or a shape that depends on
one, is seen; and on fake tensors of `cuda`, where copies are seen too, gradients being zeros: autograd needs a driver.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from generators import tiny as tiny_generator
from rehearsal import NothingWaits, aten, moved, rehearsed
from stores import make_store
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fqgan
from fqgan.classifier.training import ClassifierTask
from fqgan.config import ClassifierRunConfig, DataConfig, GeneratorRunConfig, TokenizerRunConfig, presets
from fqgan.config.presets import child
from fqgan.data.sources import open_source
from fqgan.data.tokens import TokenStore
from fqgan.engine.distributed import World
from fqgan.engine.task import Task
from fqgan.engine.trainer import Trainer
from fqgan.generator.sampler import Sampler
from fqgan.generator.task import Batch as CodeBatch
from fqgan.generator.task import GeneratorTask, train_generator
from fqgan.nets.architectures import blank_networks
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.task import TokenizerTask, train_tokenizer

HOME = f"{Path(fqgan.__file__).parent}{os.sep}"  # a clone may lie in a folder of the same name

pytest.importorskip("timm")

pytestmark = pytest.mark.slow
KINDS = ["adam", "muon"]
GPU = World(0, 1, torch.device("cuda", 0))
PICTURES = "fqgan.data.picture_task.training_batches"
WAITING = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
"""What asks for a value: of a tensor, or for the shape of another."""


class ValuesAsked(TorchDispatchMode):
    """Notes the functions of this program that ask for a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.by: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        indices = (
            [each for each in args[1] if each is not None]
            if func in (aten.index.Tensor, aten.index_put_.default)
            else []
        )
        if func in WAITING or any(each.dtype in (torch.bool, torch.uint8) for each in indices):
            own = [frame.name for frame in traceback.extract_stack() if frame.filename.startswith(HOME)]
            self.by.append(own[-1] if own else "torch")
        return func(*args, **(kwargs or {}))


@contextmanager
def steps_watched() -> Iterator[list[list[str]]]:
    """Who asked for values, of each step of the trainings in here."""
    found: list[list[str]] = []
    original = Trainer.optimize

    def watched(trainer: Trainer, step: int, batches: Iterator[Any]) -> None:
        batch = [next(batches) for _ in range(trainer.accumulate)]  # their making is the loader's
        with ValuesAsked() as asked:
            original(trainer, step, iter(batch))
        found.append(asked.by)

    with patch.object(Trainer, "optimize", watched):
        yield found


def everything(config: TokenizerRunConfig, kind: str) -> TokenizerRunConfig:
    """All that a tokenizer's step can do, and all in the first steps."""
    return child(
        config,
        discriminator={
            "weight": 0.1,
            "start": 1,
            "adaptive": True,
            "lecam_weight": 0.1,
            "r1_weight": 1.0,
            "r1_every": 2,
        },
        quantizer={"ema_decay": 0.9, "restart_after": 10},
        optimizer={"kind": kind, "clip": 1.0, "weight_decay": 0.01},
        train={"micro_batch": 2, "ema_decay": 0.9, "steps": 4, "log_every": 2, "checkpoint_every": 4},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizers_step_asks_for_one_value(kind: str, base: TokenizerRunConfig, tmp_path: Path) -> None:
    with steps_watched() as found:
        train_tokenizer(everything(base, kind), tmp_path / "run")
    assert found == [["_not_finite"]] * 4


@pytest.fixture
def generator_config(tiny: TokenizerRunConfig, tmp_path: Path) -> GeneratorRunConfig:
    torch.manual_seed(0)
    make_store(tmp_path / "store", FactorizedTokenizer(tiny.model).eval())
    config = child(
        presets.get_generator("far-tiny"),
        model={"width": 32, "depth": 2, "heads": 2, "mlp_multiple": 16},
        optimizer={"clip": 0.1, "weight_decay": 0.01},
        train={"batch": 8, "micro_batch": 4, "steps": 3, "ema_decay": 0.9, "image_every": 0, "device": "cpu"},
    )
    return replace(config, data=str(tmp_path / "store"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_generators_step_asks_for_one_value(kind: str, generator_config: GeneratorRunConfig, tmp_path: Path) -> None:
    with steps_watched() as found:
        train_generator(child(generator_config, optimizer={"kind": kind}), tmp_path / "run")
    assert found == [["_not_finite"]] * 3


@pytest.mark.parametrize("static", [False, True])
def test_a_samplers_steps_ask_for_none(static: bool) -> None:
    sampler: Sampler = tiny_generator().sampler(2, static=static, cfg_scale=2.0, top_k=3, top_p=0.9)
    with ValuesAsked() as asked:
        sampler([0, 1, 2])
    assert asked.by == ["check_drawn"]  # a look at what is finished


def test_a_value_that_is_asked_for_is_seen(generator_config: GeneratorRunConfig, tmp_path: Path) -> None:
    """What these tests are for."""
    loss = GeneratorTask._loss

    def curious(task: GeneratorTask, network: nn.Module, batch: CodeBatch) -> Any:
        found = loss(task, network, batch)
        return (found[0] if found[0] > 0 else -found[0]), found[1]

    with steps_watched() as found, patch.object(GeneratorTask, "_loss", curious):
        train_generator(generator_config, tmp_path / "run")
    assert found[0].count("_not_finite") == 1 and len(found[0]) == 3


def gradients(task: Task) -> Any:
    """Stands for `Tensor.backward`."""

    def backward(loss: Tensor) -> None:
        for phase in task.phases:
            for parameter in phase.module.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)

    return backward


class Loader:
    """Stands for a loader of batches in pinned memory."""

    unreadable = small = 0

    def __init__(self, *batch: Tensor):
        self.batch = batch

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return repeat(self.batch)


def steps_on_a_gpu(task: Task, config: Any) -> None:
    """Two steps of the trainer on fake tensors; the first makes what lasts. Who asks for the one value is left out."""
    run: Any = None
    trainer = Trainer(task, run, GPU, 100, config.train, config.optimizer)
    batches = task.batches(18)
    with patch.object(Trainer, "_not_finite", lambda *given: ""), patch.object(Tensor, "backward", gradients(task)):
        trainer.optimize(18, batches)
        with NothingWaits():
            trainer.optimize(19, batches)  # looks for dead codes
    assert trainer.window and all(each.device.type == "cuda" for each in trainer.window.values())


@contextmanager
def on_a_gpu(loader: str, *batch: tuple[tuple[int, ...], torch.dtype]) -> Iterator[None]:
    """Fake tensors, and a loader of batches of these shapes and types."""
    with rehearsed(), patch.object(nn.Module, "to", moved):
        tensors = [torch.zeros(shape, dtype=dtype) for shape, dtype in batch]
        with patch(loader, lambda *arguments, **options: Loader(*tensors)):
            yield


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizers_whole_step_stays_on_a_gpu(kind: str, base: TokenizerRunConfig) -> None:
    config = everything(base, kind)
    judge = {"kind": "frozen", "backbone": "efficientnet-lite0@32", "augment": ("colour", "translation", "cutout")}
    gan = {"adaptive": False, "r1_weight": 0.0} | (judge if kind == "adam" else {})
    config = child(config, discriminator=gan, train={"precision": "bf16"})
    source = open_source(config.data.source)
    with on_a_gpu(PICTURES, ((2, 3, 32, 32), torch.uint8), ((2,), torch.int64)):
        with GPU.device:
            perceptual, teachers = blank_networks(config, GPU.device)
            task = TokenizerTask(config, GPU, source, None, teachers, perceptual)
        steps_on_a_gpu(task, config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generators_whole_step_stays_on_a_gpu(kind: str, generator_config: GeneratorRunConfig) -> None:
    store = TokenStore.open(generator_config.data)
    model = generator_config.model.resolved(store.codebook_sizes, store.grid, store.num_classes)
    config = child(replace(generator_config, model=model), optimizer={"kind": kind}, train={"precision": "bf16"})
    codes = ((4, store.num_factors, *store.grid), torch.int64)
    with on_a_gpu("fqgan.generator.task.token_batches", codes, ((4,), torch.int64)):
        with GPU.device:
            task = GeneratorTask(config, GPU, store, None)
        steps_on_a_gpu(task, config)


def test_a_classifiers_whole_step_stays_on_a_gpu(pictures: Path) -> None:
    config = ClassifierRunConfig(data=DataConfig(source=str(pictures)))
    config = replace(config, model=replace(config.model, image_size=32, num_classes=3))
    source = open_source(str(pictures))
    with on_a_gpu(PICTURES, ((2, 3, 32, 32), torch.uint8), ((2,), torch.int64)):
        with GPU.device:
            task = ClassifierTask(config, GPU, source, None)
        steps_on_a_gpu(task, config)
