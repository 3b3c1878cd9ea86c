"""Whether a device computes what the CPU computes: a tiny tokenizer and generator, on both."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fqgan.base.errors import in_one_line
from fqgan.config import FactorConfig, GeneratorRunConfig, SamplingConfig, TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.config.verbs import ExtractionSettings
from fqgan.data.sources.base import Request
from fqgan.data.sources.npz import NpzSource
from fqgan.data.tokens import TokenStore
from fqgan.data.transforms import normalize
from fqgan.engine.distributed import World
from fqgan.engine.run import RunFolder
from fqgan.engine.speed import has_bf16
from fqgan.engine.stops import StoppedError, in_words
from fqgan.engine.task import Task
from fqgan.engine.trainer import Trainer
from fqgan.generator.model import FAR
from fqgan.generator.sampler import Sampler
from fqgan.generator.task import GeneratorTask
from fqgan.lab.facts import without_home
from fqgan.tokenizer.extraction import extract
from fqgan.tokenizer.load import save_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.task import TokenizerTask

_CPU = torch.device("cpu")
_IMAGES, _SAMPLES, _SIDE, _STEPS = 8, 32, 32, 3
_TRAIN = {"batch": 4, "steps": _STEPS, "ema_decay": 0.0, "compile": False}
_TOKENIZER = child(
    TokenizerRunConfig(),
    model={
        "image_size": _SIDE,
        "stem": 2,
        "channels": 32,
        "channel_multipliers": (1, 2),
        "res_blocks": 1,
        "z_channels": 32,
        "adapter_head_dim": 32,
        "factors": (FactorConfig("visual", 64, 4, adapter_depth=1), FactorConfig("semantic", 32, 4, adapter_depth=1)),
    },
    data={"workers": 0},
    loss={"perceptual": "none", "perceptual_weight": 0.0},
    discriminator={"channels": 16, "layers": 2, "start": 0},
    train=_TRAIN,
)
# dropout would draw from each device's own random numbers
_GENERATOR = child(
    GeneratorRunConfig(),
    model={"width": 64, "depth": 2, "heads": 2, "head_depth": 1, "dropout": 0.0, "class_dropout": 0.0},
    train=_TRAIN,
)
_SAMPLING = SamplingConfig(cfg_scale=(2.0,), top_k=(16,))

TOLERANCES = {
    "float32": {"codes": 0.99, "pixels": 1e-3, "samples": 0.95, "tokenizer losses": 0.02, "generator losses": 1e-3},
    "bf16": {"codes": 0.9, "pixels": 0.1, "first samples": 0.7, "tokenizer losses": 0.2, "generator losses": 0.01},
}
"""Precision -> what is compared -> the least share of equal codes, the largest difference of pixels in [-1, 1], the
largest relative difference of a loss. Whatever differs in one sampled code changes all later ones of its image: in bf16
those of the first position alone are compared."""
_SHARES = ("codes", "samples", "first samples")


@dataclass(frozen=True)
class Comparison:
    """One result of a device beside the CPU's in float32."""

    device: str
    precision: str
    what: str
    """A key of `TOLERANCES`."""
    found: float | None
    """Share of equal codes, or largest difference; None where the device gave no numbers."""
    error: str = ""
    """What went wrong instead."""

    @property
    def tolerance(self) -> float:
        """The least share, or the largest difference."""
        return TOLERANCES[self.precision][self.what]

    @property
    def agrees(self) -> bool:
        """Whether it is within the tolerance."""
        if self.found is None:
            return False
        return self.found >= self.tolerance if self.what in _SHARES else self.found <= self.tolerance

    def __str__(self) -> str:
        where = f"{self.device} in {self.precision}: {self.what}"
        if self.found is None:
            return f"{where} failed: {self.error}"
        verb = "agree" if self.agrees else "DISAGREE"
        if self.what in _SHARES:
            return f"{where} {verb} with the CPU's, {self.found:.1%} equal (at least {self.tolerance:.0%})"
        kind = "difference" if self.what == "pixels" else "relative difference"
        return f"{where} {verb} with the CPU's, largest {kind} {self.found:.1e} (at most {self.tolerance:g})"


def compare(devices: list[torch.device]) -> Iterator[Comparison]:
    """The results of each device, in float32 and, where it has it, in bf16, beside those of the CPU in float32."""
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        trial = Trial(Path(folder))
        for device in devices:
            for precision in ("float32", "bf16") if has_bf16(device) else ("float32",):
                for what in TOLERANCES[precision]:
                    yield _beside(trial, device, precision, what)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Small networks on more threads than there are free cores take up to 100 times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _beside(trial: Trial, device: torch.device, precision: str, what: str) -> Comparison:
    wanted = trial.reference(what)
    # by default convolutions on CUDA round their input to 10 bits
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    here = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    try:
        with exact, here:
            own = trial.result(device, precision, what)
    except Exception as error:  # whatever a device and its driver raise
        cause = in_words(error.error or error if isinstance(error, StoppedError) else error)
        return Comparison(str(device), precision, what, None, without_home(in_one_line(cause)))
    if what in _SHARES:
        return Comparison(str(device), precision, what, (own == wanted).double().mean().item())
    if not own.isfinite().all():
        return Comparison(str(device), precision, what, None, "the results are not finite (NaN or infinite)")
    difference = (own - wanted).abs()
    if what != "pixels":
        difference /= wanted.abs().clamp(min=0.1)
    return Comparison(str(device), precision, what, difference.max().item())


class Trial:
    """What every device computes, from the same weights, pictures, codes and random numbers.

    Args:
        folder: an empty one, for the pictures and their codes.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        blocks = np.random.default_rng(0).integers(0, 256, (_IMAGES, 8, 8, 3), np.uint8)
        pixels = blocks.repeat(_SIDE // 8, 1).repeat(_SIDE // 8, 2)
        np.savez(folder / "pictures.npz", arr_0=pixels, arr_1=np.arange(_IMAGES) % 2)
        self._source = NpzSource(folder / "pictures.npz", Request("pictures.npz"))
        self._images = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        tokenizer = self._tokenizer_on(_CPU, "float32")
        self._given = tokenizer.encode(self._images)
        save_tokenizer(tokenizer, folder / "tokenizer")
        settings = ExtractionSettings(checkpoint=folder / "tokenizer", data="", out=folder / "store", workers=0)
        with contextlib.redirect_stdout(io.StringIO()):
            extract(settings, World(0, 1, _CPU), self._source)
        self._store = TokenStore.open(str(folder / "store"))
        store = self._store
        self._shape = _GENERATOR.model.resolved(store.codebook_sizes, store.grid, store.num_classes)
        self._generator = _stirred(FAR(self._shape))
        self._references: dict[str, Tensor] = {}

    def reference(self, what: str) -> Tensor:
        """The result of the CPU in float32."""
        if what not in self._references:
            self._references[what] = self.result(_CPU, "float32", what)
        return self._references[what]

    def result(self, device: torch.device, precision: str, what: str) -> Tensor:
        """A key of `TOLERANCES` as a device computes it: a CPU tensor in float64 or int64."""
        compute: Any = {
            "codes": self._codes,
            "pixels": self._pixels,
            "samples": self._samples,
            "first samples": lambda *where: self._samples(*where)[:, :, 0, 0],
            "tokenizer losses": self._tokenizer_losses,
            "generator losses": self._generator_losses,
        }[what]
        result = compute(device, precision).detach().cpu()
        return result.double() if result.is_floating_point() else result

    def _tokenizer_on(self, device: torch.device, precision: str) -> FactorizedTokenizer:
        torch.manual_seed(0)
        return FactorizedTokenizer(_TOKENIZER.model).eval().to(device).set_precision(precision)

    def _codes(self, device: torch.device, precision: str) -> Tensor:
        return self._tokenizer_on(device, precision).encode(self._images)

    @torch.no_grad()
    def _pixels(self, device: torch.device, precision: str) -> Tensor:
        return self._tokenizer_on(device, precision).decode(self._given)

    def _samples(self, device: torch.device, precision: str) -> Tensor:
        generator = copy.deepcopy(self._generator).eval().to(device).set_precision(precision)
        # compiling would take a GPU longer than all else
        return Sampler(generator, _SAMPLES, _SAMPLING, compiled=False)([0, 1] * (_SAMPLES // 2))

    def _tokenizer_losses(self, device: torch.device, precision: Any) -> Tensor:
        config = replace(_TOKENIZER, train=replace(_TOKENIZER.train, precision=precision))
        return self._losses(config, TokenizerTask(config, World(0, 1, device), self._source, None, {}, None), device)

    def _generator_losses(self, device: torch.device, precision: Any) -> Tensor:
        train = replace(_GENERATOR.train, precision=precision)
        config = replace(_GENERATOR, train=train, model=self._shape)
        task = GeneratorTask(config, World(0, 1, device), self._store, None, self._generator)
        return self._losses(config, task, device)

    def _losses(self, config: Any, task: Task, device: torch.device) -> Tensor:
        """(steps, terms): those of a few steps of training. `StoppedError` where they are not finite."""
        run = RunFolder(self._folder / "run", config)
        trainer = Trainer(task, run, World(0, 1, device), _STEPS, config.train, config.optimizer)
        batches, rows = task.batches(0), []
        for step in range(_STEPS):
            trainer.optimize(step, batches)
            terms = {name: value.cpu() for name, value in trainer.window.items() if name.endswith("loss")}
            trainer.window = {}
            rows.append(torch.stack([terms[name] for name in sorted(terms)]))
        return torch.stack(rows)


@torch.no_grad()
def _stirred(generator: FAR) -> FAR:
    """With output matrices that are not zero, as they are before training: codes depend on the whole network."""
    random = torch.Generator().manual_seed(0)
    for parameter in generator.parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, 2 * parameter.shape[1] ** -0.5, generator=random)
    return generator
