"""The generator's training task: teacher-forced cross-entropy on a token store."""

from __future__ import annotations

import copy
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.base.files import making_folder
from fqgan.base.printing import say
from fqgan.base.spread import spread_evenly
from fqgan.config import GeneratorRunConfig
from fqgan.data.loader import check_ranks, token_batches
from fqgan.data.tokens import TokenStore
from fqgan.engine import sharding
from fqgan.engine.devices import exact_device, upload
from fqgan.engine.distributed import World, all_reduce_sum, from_main
from fqgan.engine.optim import make_optimizer
from fqgan.engine.run import RunFolder
from fqgan.engine.session import deterministic_mode, session, train
from fqgan.engine.sizes import check_training, micro_batch, share_of, total_steps
from fqgan.engine.speed import autocast, compile_parts
from fqgan.engine.stops import Agreed
from fqgan.engine.task import Phase, Task, Terms, Watch
from fqgan.generator.clusters import code_clusters
from fqgan.generator.cross_entropy import Clusters
from fqgan.generator.initial import initial
from fqgan.generator.model import FAR, GeneratorLoss
from fqgan.generator.pictures import labelled_rows
from fqgan.generator.sampler import Sampler
from fqgan.generator.transformer import Block
from fqgan.models.find import CARRIED
from fqgan.tokenizer.foreign import is_foreign
from fqgan.tokenizer.load import load_matching_tokenizer, load_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.pictures import save_picture
from fqgan.tokenizer.protocol import Tokenizer


@dataclass
class Batch:
    """Codes (b, k, h, w) and labels (b,)."""

    codes: Tensor
    labels: Tensor


class LossFace(nn.Module):
    """A generator whose forward pass is its loss: what DDP wraps, since gradients are summed after `forward` only."""

    def __init__(self, generator: nn.Module, clusters: Sequence[Clusters] = (), cluster_weight: float = 0.0):
        super().__init__()
        self.generator, self.clusters, self.cluster_weight = generator, clusters, cluster_weight

    def forward(self, codes: Tensor, labels: Tensor, orders: Tensor | None = None) -> GeneratorLoss:
        """As `FAR.loss`."""
        return self.generator.loss(codes, labels, orders, self.clusters, self.cluster_weight)  # pyright: ignore[reportCallIssue]


class GeneratorTask(Task):
    """One phase: the mean over factors of the cross-entropy, and with `train.cluster_weight` of that of clusters
    (`clusters`: of each factor's codes). `vectors`: of each factor's codes, (K, D), for
    `model.code_vectors`."""

    def __init__(
        self,
        config: GeneratorRunConfig,
        world: World,
        store: TokenStore,
        validation: TokenStore | None,
        init: FAR | None = None,
        clusters: Sequence[Clusters] = (),
        vectors: Sequence[Tensor] = (),
    ):
        self.clusters = [Clusters(each.of.to(world.device), each.members.to(world.device)) for each in clusters]
        self.config, self.world, self.store, self.validation = config, world, store, validation
        self.names = store.factor_names
        torch.manual_seed(config.train.seed)
        model = FAR(config.model)
        if vectors:
            model.set_code_vectors(vectors)
        if init:
            model.load_state_dict(init.state_dict())
        self.blocks = [module for module in model.modules() if isinstance(module, Block)]
        for block in self.blocks:
            block.recompute = config.train.activation_checkpointing
        if config.train.compile:
            compile_parts(self.blocks, world.device)
        model.to(world.device)
        # sharded modules cannot be copied
        self._average = copy.deepcopy(model) if config.train.ema_decay else None
        if config.train.fsdp:
            for module in filter(None, (model, self._average)):
                sharding.shard(module, Block, world.device, precision=config.train.precision, also=["loss"])
        optimizer = make_optimizer(model, config.optimizer)
        face = partial(LossFace, clusters=self.clusters, cluster_weight=config.train.cluster_weight)
        self.phases = [Phase("generator", model, optimizer, self._loss, face=face)]

    def average(self) -> nn.Module:
        assert self._average is not None
        return self._average

    def _loss(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Terms]:
        orders = self._orders(len(batch.labels))
        with autocast(self.world.device, self.config.train.precision):
            result: GeneratorLoss = network(batch.codes, batch.labels, orders)
        loss, terms = torch.stack(result.loss).mean(), self._by_factor(result)
        if self.clusters:
            terms = {"cluster_loss": torch.stack(result.clusters).mean(), **terms}
        return loss, {"loss": loss.detach(), **terms}

    def extra_state(self) -> dict[str, Tensor]:
        return {f"clusters.{i}": each.of for i, each in enumerate(self.clusters)}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        # in place: the phase's face has the same list
        self.clusters[:] = [Clusters.grouped(state[f"clusters.{i}"]) for i in range(len(self.clusters))]

    def progress(self) -> float:
        """Share of the run that is over, in [0, 1)."""
        return self.step / total_steps(self.config.train, len(self.store))

    def _orders(self, images: int) -> Tensor | None:
        """The orders in which images' positions are predicted (order annealing); None: raster, all of them."""
        train, device = self.config.train, self.world.device
        share = train.random_share(self.progress()) if any(train.random_order) else 0.0
        if not share:
            return None
        positions = self.config.model.num_positions
        raster = torch.arange(positions, device=device).expand(images, -1)
        mixed = torch.rand(images, positions, device=device).argsort(1)
        return torch.where(torch.rand(images, 1, device=device) < share, mixed, raster)

    def _by_factor(self, result: GeneratorLoss) -> Terms:
        """`<factor>_loss` in nats a code, `<factor>_accuracy`."""
        terms = {}
        for name, cross_entropy, accuracy in zip(self.names, result.cross_entropy, result.accuracy, strict=True):
            terms |= {f"{name}_loss": cross_entropy, f"{name}_accuracy": accuracy}
        return terms

    def batches(self, start_step: int) -> Iterator[Batch]:
        config = self.config.train
        for codes, labels in token_batches(self.store, seed=config.seed, **share_of(config, self.world, start_step)):
            yield self._placed(codes, labels)

    def _placed(self, codes: Tensor, labels: Tensor) -> Batch:
        """On the device; images without a label are of the null class, and all are where there is no other."""
        null = self.config.model.num_classes
        labels = labels.masked_fill(labels < 0, null) if null else torch.zeros_like(labels)
        if self.world.device.type == "cuda":
            codes, labels = codes.pin_memory(), labels.pin_memory()
        return Batch(*(upload(tensor, self.world.device) for tensor in (codes, labels)))

    def start(self, run: RunFolder, fresh: bool) -> None:
        if self.world.is_main:
            self._keep_tokenizer(run.folder(CARRIED))

    def _keep_tokenizer(self, folder: Path) -> None:
        """The tokenizer in the run's folder, as hard links where the disk allows it."""
        if folder.exists():
            return
        with making_folder(folder) as temporary:
            if self.config.tokenizer:
                _tokenizer_of(self.config, self.store).export(temporary)
                return
            for file in self.store.tokenizer_path.iterdir():
                try:
                    os.link(file.resolve(), temporary / file.name)
                except OSError:
                    shutil.copyfile(file, temporary / file.name)

    def data_fingerprint(self) -> dict[str, Any]:
        return self.store.data_fingerprint()

    def record(self) -> dict[str, Any]:
        store, address = self.store, self.store.tokenizer_address
        known = {"label_names": _names(self.config, store), "tokenizer": store.tokenizer_fingerprint}
        return known | ({"tokenizer_address": address} if address else {})

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Means over evenly spaced images, centre crops: `loss`, `<factor>_loss`, `<factor>_accuracy`, and
        `bits_per_image`, what it takes to write down an image's codes."""
        store, world = self.validation, self.world
        if store is None:
            return {}
        count = min(self.config.train.validation_images or len(store), len(store))
        share = spread_evenly(len(store), count, world.rank, world.size)
        size = micro_batch(self.config.train, world.size)
        network, terms, agreed = LossFace(model), {}, Agreed(iter(()))
        sums = torch.zeros(2 * len(self.names), dtype=torch.float64, device=exact_device(world.device))
        # sharded weights are put together by all ranks: each makes as many passes as the one with the largest share,
        # if need be with an image that does not count
        for start in range(0, math.ceil(count / world.size), size):
            indices = share[start : start + size]
            shown = indices or [0]
            try:
                taken = store.take(shown, [store.center_crop] * len(shown))
            except UserError as error:
                agreed.hold(error)
                shape = (len(shown), store.num_factors, *store.grid)
                indices, taken = [], (torch.zeros(shape, dtype=torch.int64), torch.zeros(len(shown), dtype=torch.int64))
            batch = self._placed(*taken)
            with autocast(world.device, self.config.train.precision):
                terms = self._by_factor(network(batch.codes, batch.labels))
            sums += len(indices) * torch.stack([*terms.values()]).to(sums.device).double()
        means = dict(zip(terms, (all_reduce_sum(sums) / count).tolist(), strict=True))
        agreed.check()
        nats = sum(means[f"{name}_loss"] for name in self.names)
        bits = nats * self.config.model.num_positions / math.log(2)
        return {"loss": nats / len(self.names), **means, "bits_per_image": bits}

    def picture(self, model: nn.Module, path: Path) -> None:
        """Samples of evenly spaced classes, a row a class, or of none, always from the same random numbers."""
        model = self._whole(model)
        if not self.world.is_main:
            return
        config = self.config
        rows = max(1, math.isqrt(config.train.sample_images))
        shown = min(rows, config.model.num_classes)
        classes = [i * config.model.num_classes // shown for i in range(shown)] or [-1] * rows
        columns = -(-config.train.sample_images // len(classes))
        labels = torch.tensor(classes).repeat_interleave(columns)
        assert isinstance(model, FAR)
        # eager: a picture now and then is not worth compiling
        model.set_precision(config.train.precision)
        sampler = Sampler(model, len(labels), config.sampling, static=False, compiled=False)
        home = config.tokenizer if is_foreign(config.tokenizer) else path.parent.parent / CARRIED
        tokenizer = load_tokenizer(home, self.world.device, precision=config.train.precision)
        # training does not depend on what is drawn; and the deterministic sum over a row of probabilities is refused by
        # some versions of torch, and takes memory by the square of the codebook in others
        with torch.inference_mode(), deterministic_mode(False):
            images = tokenizer.decode(sampler(labels, config.train.seed)).split(columns)
        known = self.store.label_names
        names = ["" if c < 0 else known[c] if c < len(known) else str(c) for c in classes]
        save_picture(labelled_rows(images, names), path)

    def _whole(self, model: nn.Module) -> nn.Module:
        """The model, in one piece on the main rank. All ranks take part."""
        if not sharding.sharded_parts(model):
            return model
        tensors = sharding.gathered(model.state_dict())
        if not self.world.is_main:
            return model
        with torch.device("meta"):
            copied = FAR(self.config.model)
        copied.load_state_dict(tensors, assign=True)
        return copied.to(self.world.device).eval()


def train_generator(config: GeneratorRunConfig, path: Path, watch: Watch | None = None) -> None:
    """Train, or go on training, the run in folder `path`. Bad settings and data raise `UserError` before it exists."""
    config.check()
    with session(config.train) as world:
        store = _open(config.data, world)
        validation = TokenStore.open(config.validation) if config.validation else None
        config = config.resolved(store.codebook_sizes, store.grid, store.num_classes, store.code_dims)
        model = config.model
        if validation:
            _check_validation(store, validation, conditional=model.num_classes > 0)
        with torch.device("meta"):
            shape = FAR(model)
        rows = model.num_positions * model.width * (1 if config.train.activation_checkpointing else model.depth)
        check_training(shape, config.optimizer, config.train, world, rows)
        run = RunFolder(path, config)
        clusters, vectors = from_main(lambda: _of_codes(config, store))
        if config.unconditional and world.is_main:
            why = f"{store.name} has {store.num_classes} classes, left aside" if store.num_classes else "there are none"
            say(f"without classes ({why}): an unconditional generator")
        init = initial(config, store, _names(config, store), world) if config.init and run.fresh else None
        task = GeneratorTask(config, world, store, validation, init, clusters, vectors)
        task.watch = watch
        train(task, run, world, len(store))


def _open(path: str, world: World) -> TokenStore:
    if not path:
        raise UserError("--data is missing: a token store, which fqgan extract makes")
    store = TokenStore.open(path)
    if store.manifest.options.redrawn:
        raise UserError(
            f"{store.name} is for the post-training of a decoder: a generator has drawn a part of its codes"
        )
    check_ranks(store, world.size)
    return store


def _names(config: GeneratorRunConfig, store: TokenStore) -> tuple[str, ...]:
    """Of the run's classes."""
    return () if config.unconditional else store.label_names


def _check_validation(store: TokenStore, validation: TokenStore, conditional: bool) -> None:
    """`UserError` for a validation store of other codes or other classes."""
    ours, theirs = store.manifest.options, validation.manifest.options
    if (ours.tokenizer, ours.codebook_sizes) != (theirs.tokenizer, theirs.codebook_sizes):
        raise UserError(
            f"{validation.name} was made with another tokenizer than {store.name}: extract it with the same"
        )
    if validation.grid != store.grid:
        theirs, ours = (" x ".join(map(str, each.grid)) for each in (validation, store))
        raise UserError(f"{validation.name} has {theirs} positions, {store.name} {ours}: extract it at the same size")
    others = validation.label_names != store.label_names or validation.num_classes > store.num_classes
    if conditional and others:
        raise UserError(f"{validation.name} has other classes than {store.name}: labels would mean other things")


def _of_codes(config: GeneratorRunConfig, store: TokenStore) -> tuple[list[Clusters], list[Tensor]]:
    """Clusters and vectors of each factor's codes, where they are needed. The tokenizer is looked at in any case."""
    tokenizer = _tokenizer_of(config, store)
    found = code_clusters(tokenizer, config.train.clusters, store.name) if config.train.cluster_weight else []
    clusters = [Clusters.grouped(each) for each in found]
    if not config.model.code_vectors:
        return clusters, []
    assert isinstance(tokenizer, FactorizedTokenizer), "others have no vectors, which `resolved` refuses"
    return clusters, tokenizer.code_vectors()


def _tokenizer_of(config: GeneratorRunConfig, store: TokenStore) -> Tokenizer:
    """The tokenizer of a run; `UserError` where the store was not made with it, or with one of others that is not
    named."""
    weights = "raw" if config.tokenizer and store.manifest.weights == "raw" else "auto"
    path = store.tokenizer_at(config.tokenizer)
    return load_matching_tokenizer(path, store.tokenizer_fingerprint, store.name, weights=weights)
