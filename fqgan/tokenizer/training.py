"""The tokenizer's training task: its two phases, meters, validation and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fqgan.config import TokenizerRunConfig
from fqgan.data.fingerprint import fingerprint
from fqgan.data.images import ImageSource, default_validation, open_source
from fqgan.data.loader import check_ranks, evaluation_batches, training_batches
from fqgan.data.transforms import normalize
from fqgan.data.unreadable import UnreadableMeter
from fqgan.engine import distributed
from fqgan.engine.distributed import World, all_reduce_sum
from fqgan.engine.run import RunFolder
from fqgan.engine.trainer import Phase, Task, Trainer, micro_batch, total_steps
from fqgan.errors import UserError
from fqgan.metrics.usage import CodeUsage
from fqgan.tokenizer.discriminator import PatchGAN, as_critic
from fqgan.tokenizer.evaluation import Scores, evaluate_tokenizer
from fqgan.tokenizer.losses import hinge_discriminator_loss, tokenizer_loss
from fqgan.tokenizer.model import FactorizedTokenizer, num_parameters
from fqgan.tokenizer.pictures import reconstruction_grid, save_picture
from fqgan.vision.perceptual import PerceptualDistance, load_perceptual
from fqgan.vision.teachers import Teacher, load_teacher

PICTURED = 8  # images in a picture of reconstructions


@dataclass
class Batch:
    """One micro-batch; the generator's phase leaves its reconstruction for the discriminator's."""

    images: Tensor
    reconstruction: Tensor | None = None


class TokenizerTask(Task):
    """Generator phase (Eq. 8) and, from its start step, discriminator phase."""

    def __init__(
        self,
        config: TokenizerRunConfig,
        world: World,
        source: ImageSource,
        validation: ImageSource | None,
        teachers: dict[str, Teacher],
        perceptual: PerceptualDistance | None,
    ):
        self.config, self.world, self.source, self.validation = config, world, source, validation
        self.teachers = {name: teacher.to(world.device) for name, teacher in teachers.items()}
        self.perceptual = perceptual.to(world.device) if perceptual else None
        torch.manual_seed(config.train.seed)
        self.model = FactorizedTokenizer(config.model, config.loss.entropy_temperature)
        self.phases = [Phase("tokenizer", self._place(self.model), self._adam(self.model), self._generator_loss)]
        self.discriminator: nn.Module | None = None
        gan = config.discriminator
        if gan.weight:
            self.discriminator = self._place(PatchGAN(gan.channels, gan.layers, gan.norm))
            adam = self._adam(self.discriminator)
            phase = Phase("discriminator", self.discriminator, adam, self._discriminator_loss, gan.start)
            self.phases.append(phase)
        self.usage = [CodeUsage(q.codebook_size, world.device) for q in self.model.quantizers]
        self._fingerprint = fingerprint(source)
        self.unreadable = UnreadableMeter(config.data.max_unreadable, world.device)

    def _place(self, module: nn.Module) -> nn.Module:
        return module.to(self.world.device).to(memory_format=self._memory_format)  # pyright: ignore[reportCallIssue]

    @property
    def _memory_format(self) -> torch.memory_format:
        """channels_last is what a GPU's convolutions want; on a CPU it makes GroupNorm ten times as slow."""
        return torch.channels_last if self.world.device.type == "cuda" else torch.contiguous_format

    def _adam(self, module: nn.Module) -> torch.optim.Optimizer:
        options = self.config.optimizer
        return torch.optim.Adam(module.parameters(), options.lr, (options.beta1, options.beta2), fused=True)

    def _autocast(self) -> torch.autocast:
        return autocast(self.world.device, self.config.train.precision)

    def _generator_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.config.loss
        logits = None
        with self._autocast():
            output = network(batch.images, entropy=bool(loss.entropy_weight))
            targets = self._targets(batch.images)
            distance = self.perceptual(output.reconstruction, batch.images) if self.perceptual else None
            if self.discriminator is not None and self.step >= self.config.discriminator.start:
                with as_critic(self.discriminator) as critic:
                    (logits,) = critic(output.reconstruction)
        batch.reconstruction = output.reconstruction.detach()
        for meter, quantized in zip(self.usage, output.quantized, strict=True):
            meter.update(quantized.codes)
        return tokenizer_loss(
            output,
            batch.images,
            loss,
            perceptual=distance,
            targets=targets,
            fake_logits=logits,
            gan_weight=self.config.discriminator.weight,
        )

    def _targets(self, images: Tensor) -> list[Tensor | None]:
        """Teacher features of each factor; a teacher that several factors share runs once."""
        features = {name: teacher(images) for name, teacher in self.teachers.items()}
        return [features.get(factor.teacher) for factor in self.config.model.factors]

    def _discriminator_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.reconstruction is not None, "the generator's phase comes first"
        with self._autocast():
            real, fake = network(batch.images, batch.reconstruction)
        loss = hinge_discriminator_loss(real, fake)
        terms = {"discriminator_loss": loss, "real_logits": real.float().mean(), "fake_logits": fake.float().mean()}
        return loss, {name: term.detach() for name, term in terms.items()}

    def batches(self, start_step: int) -> Iterator[Batch]:
        config = self.config
        loader = training_batches(
            self.source,
            config.data,
            size=config.model.image_size,
            seed=config.train.seed,
            batch=config.train.batch,
            micro_batch=micro_batch(config.train, self.world.size),
            rank=self.world.rank,
            world=self.world.size,
            start_step=start_step,
            pin_memory=self.world.device.type == "cuda",
        )
        for raw, _ in loader:
            self.unreadable.update(config.train.batch * (self.step - start_step + 1), loader.unreadable)
            images = normalize(raw.to(self.world.device, non_blocking=True))
            yield Batch(images.contiguous(memory_format=self._memory_format))

    def fingerprint(self) -> dict[str, Any]:
        return self._fingerprint

    def meters(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for factor, meter in zip(self.config.model.factors, self.usage, strict=True):
            numbers = meter.compute(all_reduce_sum)
            values |= {f"{factor.name}_{name}": numbers[name] for name in ("usage", "perplexity")}
            meter.reset()
        return values | self.unreadable.compute(all_reduce_sum)

    def check(self) -> None:
        self.unreadable.check()

    def meter_state(self) -> dict[str, Tensor]:
        meters = {f"usage{i}": meter.state() for i, meter in enumerate(self.usage)}
        return meters | {"unreadable": self.unreadable.state()}

    def load_meter_state(self, state: dict[str, Tensor]) -> None:
        for i, meter in enumerate(self.usage):
            meter.load_state(state[f"usage{i}"])
        if "unreadable" in state:  # not in checkpoints of version 0.1.0
            self.unreadable.load_state(state["unreadable"])

    def validate(self, model: nn.Module) -> dict[str, float]:
        if self.validation is None:
            return {}
        config = self.config
        batches = evaluation_batches(
            self.validation,
            size=config.model.image_size,
            batch=micro_batch(config.train, self.world.size),
            limit=config.train.validation_images,
            workers=config.data.workers,
            upscale=config.data.upscale,
            rank=self.world.rank,
            world=self.world.size,
        )
        scores = Scores(self.world.device, self.perceptual)
        with self._autocast():
            numbers: dict[str, Any] = evaluate_tokenizer(model, batches, scores, self.world.device)
        factors = numbers.pop("factors")
        unreadable = all_reduce_sum(torch.tensor(batches.unreadable, device=self.world.device))
        usage = {f"{name}_usage": values["usage"] for name, values in factors.items()}
        return numbers | usage | {"unreadable": unreadable.item()}

    @torch.inference_mode()
    def picture(self, model: nn.Module, path: Path) -> None:
        source = self.validation or self.source
        size, upscale = self.config.model.image_size, self.config.data.upscale
        for raw, _, _ in evaluation_batches(source, size=size, batch=PICTURED, limit=PICTURED, upscale=upscale):
            with self._autocast():
                save_picture(reconstruction_grid(model, normalize(raw.to(self.world.device))), path)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast, or none for `float32`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def train_tokenizer(config: TokenizerRunConfig, path: Path) -> None:
    """Train, or go on training, the run in folder `path`. Bad settings and data raise `UserError` before it exists."""
    config.check()
    world = distributed.start(config.train.device)
    try:
        _train(config, path, world)
    finally:
        distributed.stop()


def _train(config: TokenizerRunConfig, path: Path, world: World) -> None:
    if config.train.deterministic:
        torch.use_deterministic_algorithms(True)
    micro_batch(config.train, world.size)
    if not config.data.source:
        raise UserError("--data.source is missing: photos, cifar10, a folder of images, parquet files or tars")
    source = open_source(config.data.source)
    check_ranks(source, world.size)
    validation = _validation_source(config)
    teachers = {name: load_teacher(name) for name in dict.fromkeys(f.teacher for f in config.model.factors) if name}
    config = _with_teacher_dims(config, teachers)
    perceptual = load_perceptual(config.loss.perceptual) if config.loss.perceptual_weight else None
    run = RunFolder(path, config)
    resume = distributed.broadcast_object(run.open() if world.is_main else None)
    task = TokenizerTask(config, world, source, validation, teachers, perceptual)
    steps = total_steps(config.train, len(source))
    if world.is_main:
        epochs = steps * config.train.batch / len(source)
        print(
            f"{num_parameters(task.model) / 1e6:.1f} M parameters, {len(source)} images, {steps} steps of "
            f"{config.train.batch} ({epochs:.1f} epochs) on {world.size} x {world.device.type}, run {path}",
            flush=True,
        )
    try:
        Trainer(task, run, world, steps, config.train, config.optimizer).fit(resume)
    finally:
        run.close()


def _validation_source(config: TokenizerRunConfig) -> ImageSource | None:
    spec = config.data.validation or default_validation(config.data.source)
    return open_source(spec, "validation") if spec else None


def _with_teacher_dims(config: TokenizerRunConfig, teachers: dict[str, Teacher]) -> TokenizerRunConfig:
    """The config with each teacher's dimension written in, so that checkpoints load without the teacher."""
    factors = []
    for factor in config.model.factors:
        dim = teachers[factor.teacher].dim if factor.teacher else 0
        if factor.teacher_dim not in (0, dim):
            raise UserError(f"factor {factor.name}: teacher {factor.teacher} has {dim} dims, not {factor.teacher_dim}")
        factors.append(replace(factor, teacher_dim=dim))
    return replace(config, model=replace(config.model, factors=tuple(factors)))
