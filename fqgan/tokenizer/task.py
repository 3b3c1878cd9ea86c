"""The tokenizer's training task: its two phases, meters, validation and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.base.progress import image_bar
from fqgan.config import TokenizerRunConfig
from fqgan.data.loader import check_ranks, evaluation_batches
from fqgan.data.picture_task import PictureTask
from fqgan.data.sources import ImageSource, announce, open_data
from fqgan.data.transforms import normalize
from fqgan.engine.distributed import World, all_reduce_sum
from fqgan.engine.optim import make_optimizer
from fqgan.engine.run import RunFolder
from fqgan.engine.session import session, train
from fqgan.engine.sizes import micro_batch, total_steps
from fqgan.engine.speed import autocast
from fqgan.engine.stops import Agreed
from fqgan.engine.task import Phase, Watch
from fqgan.metrics.usage import CodeUsage
from fqgan.nets.features import Teacher
from fqgan.nets.perceptual import PerceptualDistance, load_perceptual
from fqgan.nets.sharing import sharing
from fqgan.nets.teachers import load_backbone, load_teachers
from fqgan.tokenizer.adversary import Adversary
from fqgan.tokenizer.checks import announce_factors, check_memory, check_quantizers, with_teacher_dims
from fqgan.tokenizer.losses import tokenizer_loss
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.perturb import perturbation_at
from fqgan.tokenizer.pictures import reconstruction_grid, save_picture
from fqgan.tokenizer.posttraining import Decoded, StoredCodes, hold, numbered, without_codes
from fqgan.tokenizer.quantizers.base import Keeper, Quantized, Quantizer, as_rows
from fqgan.tokenizer.quantizers.keeper import FEATURES_PER_CODE, in_order
from fqgan.tokenizer.speed import compile_tokenizer, memory_format, recompute_activations
from fqgan.tokenizer.start import Start
from fqgan.tokenizer.validation import Scores, score_reconstructions

PICTURED = 8  # images in a picture of reconstructions


@dataclass
class Batch:
    """One micro-batch; the generator's phase leaves its reconstruction for the discriminator's."""

    images: Tensor
    codes: Tensor | None = None
    """(b, k, h, w), where others than the images' own are decoded."""
    reconstruction: Tensor | None = None


class TokenizerTask(PictureTask[TokenizerRunConfig]):
    """Generator phase (Eq. 8) and, from its start step, discriminator phase."""

    shown = ("reconstruction_loss", "perceptual_loss", "val_psnr")

    def __init__(
        self,
        config: TokenizerRunConfig,
        world: World,
        source: ImageSource,
        validation: ImageSource | None,
        teachers: dict[str, Teacher],
        perceptual: PerceptualDistance | None,
        init: Start | None = None,
    ):
        super().__init__(config, world, source, validation)
        self.decoder_only = config.train.only == "decoder"
        self.loss = without_codes(config.loss) if self.decoder_only else config.loss
        self.stored = None
        if config.latent.codes:
            self.stored = StoredCodes(config.latent.codes, config.model, self.data_fingerprint(), config.data)
            self.source = numbered(source)
        self.teachers = {name: teacher.to(world.device) for name, teacher in teachers.items()}
        self.perceptual = perceptual.to(world.device) if perceptual else None
        torch.manual_seed(config.train.seed)
        options = config.quantizer
        self.model = FactorizedTokenizer(config.model, config.loss.entropy_temperature, options.gradient)
        if init:
            init.start(self.model)
        if self.decoder_only:
            hold(self.model)
        recompute_activations(self.model, config.train.activation_checkpointing)
        if config.train.compile:
            compile_tokenizer(self.model, world.device)
        self.phases = [Phase("tokenizer", self._place(self.model), self._optimizer(self.model), self._generator_loss)]
        self.keepers: dict[int, Keeper] = {}
        """By the index of their factor."""
        for i, branch in enumerate(self.model.branches):
            own: Quantizer | None = branch.quantizer  # pyright: ignore[reportAssignmentType]
            keeper = own and own.keeper(
                self.phases[0].optimizer, options, (config.train.seed, i), interleaved=config.data.lanes > 1
            )
            if keeper and not self.decoder_only:
                self.keepers[i] = keeper
        kept = ("ema_decay", "restart_after", "kmeans_iterations")
        if not self.keepers and (option := next((name for name in kept if getattr(options, name)), "")):
            raise UserError(f"quantizer.{option} needs a codebook, and no factor's quantizer has one: set it to 0")
        gan = config.discriminator
        self.adversary = Adversary(gan, config.model.image_size, self.teachers.get(gan.network)) if gan.weight else None
        if self.adversary:
            if init:
                init.start_discriminator(self.adversary.discriminator, note=print if world.is_main else None)
            module = self._place(self.adversary.discriminator)
            phase = Phase("discriminator", module, self._optimizer(module), self._discriminator_loss, gan.start)
            self.phases.append(phase)
        self.usage = [CodeUsage(q.codebook_size, world.device) for q in self.model.quantizers]
        self._quantized: list[list[Quantized]] = []
        """Of the step under way: what each factor made of each micro-batch."""

    def _place(self, module: nn.Module) -> nn.Module:
        return module.to(self.world.device).to(memory_format=self._memory_format)  # pyright: ignore[reportCallIssue]

    @property
    def _memory_format(self) -> torch.memory_format:
        return memory_format(self.config.train.channels_last, self.world.device, self.config.model)

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(module, self.config.optimizer)

    def _autocast(self) -> torch.autocast:
        return autocast(self.world.device, self.config.train.precision)

    def _generator_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, gan = self.loss, None
        progress = self.step / total_steps(self.config.train, len(self.source))
        redrawn = None if batch.codes is None else Decoded(batch.codes)
        change = redrawn or perturbation_at(self.config.latent, progress)
        if self.decoder_only:
            hold(self.model)  # each step calls train()
        with self._autocast(), sharing():
            output = network(batch.images, entropy=bool(loss.entropy_weight), change=change)
            targets, maps = self._targets(batch.images)
            distance = self.perceptual(output.reconstruction, batch.images) if self.perceptual else None
            if self.adversary and self.step >= self.config.discriminator.start:
                gan = self.adversary.generator_term(output.reconstruction, self.step)
        batch.reconstruction = output.reconstruction.detach()
        self._quantized.append([quantized.detached() for quantized in output.quantized])
        found = tokenizer_loss(output, batch.images, loss, perceptual=distance, targets=targets, maps=maps, gan=gan)
        if redrawn:
            found[1]["redrawn_share"] = redrawn.share(output.quantized)
        return found

    def _targets(self, images: Tensor) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Teacher features and spatial teachers' maps of each factor; a teacher that several share runs once."""
        factors = self.config.model.factors
        seen, mapped = ({getattr(each, field) for each in factors} for field in ("teacher", "spatial_teacher"))
        features = {name: teacher(images) for name, teacher in self.teachers.items() if name in seen}
        maps = {name: teacher.map(images) for name, teacher in self.teachers.items() if name in mapped}
        return [features.get(each.teacher) for each in factors], [maps.get(each.spatial_teacher) for each in factors]

    def _discriminator_loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.adversary and batch.reconstruction is not None, "the generator's phase comes first"
        with self._autocast():
            real, fake = network(*map(self.adversary.seen, (batch.images, batch.reconstruction)))
        return self.adversary.discriminator_loss(real, fake, batch.images, self.step)

    def batches(self, start_step: int) -> Iterator[Batch]:
        for raw, places in self.raw_batches(start_step):
            codes = self.stored and self.stored.of(places).to(self.world.device)
            yield Batch(normalize(raw).contiguous(memory_format=self._memory_format), codes)

    def start(self, run: RunFolder, fresh: bool) -> None:
        if fresh:
            self.start_codebooks()

    @torch.no_grad()
    def start_codebooks(self) -> None:
        """Set the codes by k-means on features of the first steps' images, in training's crops and micro-batches."""
        config, options = self.config, self.config.quantizer
        if not options.kmeans_iterations:
            return
        factors = config.model.factors
        features = FEATURES_PER_CODE * max(factors[i].codebook_size for i in self.keepers)
        steps = math.ceil(features / (config.train.batch * config.model.grid**2))
        micro_batches = steps * config.train.batch // (micro_batch(config.train, self.world.size) * self.world.size)
        if self.world.is_main:
            say(f"k-means on features of the first {steps * config.train.batch} images")
        self.model.eval()
        each = [[i] for i in self.keepers] if self.model.composition.in_turn else [list(self.keepers)]
        for group in each:
            parts: dict[int, list[Tensor]] = {i: [] for i in group}
            for batch in islice(self.batches(0), micro_batches):
                with self._autocast():
                    found = self.model.features(batch.images)
                for i, part in parts.items():
                    part.append(as_rows(found[i]).unflatten(0, (len(found[i]), -1)))
            for i, part in parts.items():
                label, iterations = f"k-means of factor {factors[i].name}", options.kmeans_iterations
                with image_bar(label, iterations, shown=self.world.is_main, unit="iterations") as advance:
                    self.keepers[i].start(in_order(part, config.data.lanes > 1), iterations, partial(advance, 1))

    def after_step(self) -> None:
        super().after_step()
        for part in self._quantized:
            for meter, quantized in zip(self.usage, part, strict=True):
                meter.update(quantized.codes)
            for i, quantized in enumerate(part):
                if keeper := self.keepers.get(0 if self.config.model.shared_codebook else i):
                    keeper.observe(quantized, self.step)
        self._quantized.clear()
        for keeper in self.keepers.values():
            keeper.after_step(self.step)
        if self.adversary:
            self.adversary.after_step(self.step)

    def abandon_step(self) -> None:
        self._quantized.clear()
        if self.adversary:
            self.adversary.abandon_step()

    def extra_state(self) -> dict[str, Tensor]:
        return {f"{i}/{name}": each for i, keeper in self.keepers.items() for name, each in keeper.state().items()}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        for i, keeper in self.keepers.items():
            prefix = f"{i}/"
            keeper.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def meters(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for i, (factor, meter) in enumerate(zip(self.config.model.factors, self.usage, strict=True)):
            numbers = meter.compute(all_reduce_sum)
            numbers = {name: numbers[name] for name in ("usage", "perplexity")}
            if i in self.keepers:
                numbers |= self.keepers[i].restarted()
            values |= {f"{factor.name}_{name}": number for name, number in numbers.items()}
            meter.reset()
        return values | self.unreadable.compute(all_reduce_sum)

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
        assert isinstance(model, FactorizedTokenizer)
        batches = self.validation_batches(self.validation)
        scores, agreed = Scores(self.world.device, self.perceptual), Agreed(batches)
        with self._autocast():
            numbers: dict[str, Any] = score_reconstructions(model, agreed, scores, self.world.device)
        agreed.check()
        factors = numbers.pop("factors")
        unreadable = all_reduce_sum(torch.tensor(batches.unreadable, device=self.world.device))
        usage = {f"{name}_usage": values["usage"] for name, values in factors.items()}
        return numbers | usage | {"unreadable": unreadable.item()}

    @torch.inference_mode()
    def picture(self, model: nn.Module, path: Path) -> None:
        if not self.world.is_main:
            return
        source = self.validation or self.source
        size = self.config.model.image_size
        for raw, _, _ in evaluation_batches(source, size=size, batch=PICTURED, limit=PICTURED):
            with self._autocast():
                save_picture(reconstruction_grid(model, normalize(raw.to(self.world.device))), path)


def train_tokenizer(config: TokenizerRunConfig, path: Path, watch: Watch | None = None) -> None:
    """Train, or go on training, the run in folder `path`. Bad settings and data raise `UserError` before it exists."""
    config.check()
    check_quantizers(config)
    with session(config.train) as world:
        if not config.data.source:
            raise UserError("--data.source is missing: photos, cifar10, a folder of images, parquet files or tars")
        source, validation = open_data(config.data)
        check_ranks(source, world.size)
        taught = () if config.train.only == "decoder" else config.model.factors
        teachers = load_teachers(taught, config.train.precision, world.device)
        teachers = load_backbone(config.discriminator.network, teachers, config.train.precision, world.device)
        config = with_teacher_dims(config, teachers)
        perceptual = load_perceptual(config.loss.perceptual) if config.loss.perceptual_weight else None
        check_memory(config, world)
        check_output(path, folder=True, option="--run", inputs=[config.data.source, config.data.validation])
        init = None
        if config.train.only == "decoder":  # whose codes they are is a part of the model
            init = Start.of(config.init, config.model)
            config = replace(config, model=replace(config.model, codes_of=init.codes_of))
            if world.is_main:
                say("only the decoder learns; of the losses, those that compare images count")
        run = RunFolder(path, config)
        if config.init:
            init = (init or Start.of(config.init, config.model)) if run.fresh else None
        if init and world.is_main:
            say(init.summary)
        if world.is_main:
            for each in filter(None, (source, validation)):
                announce(each, config.model.image_size)
            announce_factors(config.model)
        task = TokenizerTask(config, world, source, validation, teachers, perceptual, init)
        task.watch = watch
        train(task, run, world, len(source))
