"""FAR: a Llama backbone over the positions and a head over the factors (paper section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_codes, as_count, as_kind, as_labels
from fqgan.config import GeneratorConfig, SamplingConfig
from fqgan.generator.carrying import Carrying
from fqgan.generator.cross_entropy import Clusters, linear_cross_entropy, linear_log_likelihood
from fqgan.generator.heads import HEADS, Head
from fqgan.generator.sampler import Sampler
from fqgan.generator.tables import INITIAL_STD, SharedRows, make_embedding, standardised
from fqgan.generator.transformer import Block, Modulation, rotary_table
from fqgan.models.find import Source


class GeneratorLoss(NamedTuple):
    """What a training or validation pass says, each entry one of k scalars."""

    loss: list[Tensor]
    """What is learned, with gradient: the cross-entropy, plus `cluster_weight` times that of clusters."""
    cross_entropy: list[Tensor]
    """Nats a code."""
    accuracy: list[Tensor]
    """Share of codes whose logit is the largest."""
    clusters: list[Tensor]
    """Nats a code's cluster; 0 where no clusters are given."""


class FAR(Carrying):
    """Codes (b, k, h, w) of images and their class labels (b,) -> the codes' logits, for any number of factors k >= 1.

    The class, then the positions in raster order, are one causal sequence; position t sees the class and the positions
    before t, the head at t also the factors before its own.

    Args:
        config: the architecture, with nothing left open; `UserError` if it cannot be built. With 0 classes it is
            unconditional: the null class is the only one.
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__(config)
        config.check()
        if not (config.codebook_sizes and config.grid):
            raise UserError("model.codebook_sizes and model.grid must be set: a token store has them")
        d = config.width
        self.class_embedding = nn.Embedding(config.num_classes + 1, d)
        self.code_embeddings = nn.ModuleList(make_embedding(*table, d) for table in config.tables)
        self.target_embedding = nn.Embedding(config.num_positions, d) if config.target_positions else None
        self.aggregate = nn.Linear(config.num_factors * d, d) if config.aggregation else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, config.adaln) for _ in range(config.depth))
        self.head: Head = HEADS[config.head](config)
        self.apply(_initialize)
        for output in self.head.outputs:
            if isinstance(output, nn.Linear):
                nn.init.zeros_(output.weight)
        for module in self.modules():
            if isinstance(module, Modulation):
                module.reset()

    @torch.no_grad()
    def set_code_vectors(self, vectors: Sequence[Tensor]) -> None:
        """Take the vectors (K, D) of each factor's codes (`model.code_vectors`), standardised."""
        for own, *tables in zip(vectors, self.code_embeddings, self.head.outputs, strict=True):
            for table in tables:
                assert isinstance(table, SharedRows)
                table.vectors.copy_(standardised(own))

    @property
    def null_class(self) -> int:
        """Label of the unconditional class."""
        return self.config.num_classes

    def _adopt(self, source: Source, **options: Any) -> None:
        super()._adopt(source, **options)
        self.head.config = self.config

    def forward(self, codes: Numbers, labels: Numbers, orders: Tensor | None = None) -> list[Tensor]:
        """Teacher-forced logits: k tensors (b, h * w, codebook size), on the model's device.

        Args:
            codes: (b, k, h, w), whole numbers of any type, in a tensor or an array; b may be 0.
            labels: (b,), the same or a list, in [0, num_classes]; num_classes is the null class, and so is -1.
            orders: (b, h * w) int64, each image's positions in the order in which they are predicted: its t-th is
                predicted from the class and the t before it. None: raster order. The t-th logits are those of the t-th.

        Raises:
            UserError: shapes, codes or labels of another model.
        """
        codes, labels = self._inputs(codes, labels)
        vectors = self.head(*self._backbone(_in_order(codes, orders), labels, orders))
        outputs = zip(self.head.outputs, vectors, self.config.codebook_sizes, strict=True)
        return [output(x).view(-1, self.config.num_positions, size) for output, x, size in outputs]

    def loss(
        self,
        codes: Numbers,
        labels: Numbers,
        orders: Tensor | None = None,
        clusters: Sequence[Clusters] = (),
        cluster_weight: float = 0.0,
    ) -> GeneratorLoss:
        """Cross-entropy and accuracy of each factor, teacher-forced, without ever holding all logits.

        Codes, labels and orders as in `forward`; on a GPU their values are not looked at, which would make it wait. In
        training mode a share `class_dropout` of the labels becomes the null class, and the masked head hides random
        codes, of which alone the result is. `clusters`: of each factor's codes; they and their weight as in
        `linear_cross_entropy`.
        """
        codes, labels = self._inputs(codes, labels, values=False)
        if self.training and self.config.class_dropout:
            dropped = torch.rand(len(labels), device=labels.device) < self.config.class_dropout
            labels = labels.masked_fill(dropped, self.null_class)
        codes = _in_order(codes, orders)
        targets = codes.flatten(0, 1)
        state = self._backbone(codes, labels, orders)
        vectors, learned = self.head.learned(*state) if self.training else (self.head(*state), None)
        if learned is not None:
            targets = targets.where(learned, -1)
        result = GeneratorLoss([], [], [], [])  # a tuple, so that sharded training (FSDP2) finds the tensors in it
        for i, vector in enumerate(vectors):
            weight = self.head.outputs[i].weight
            own = clusters[i] if clusters else None
            found = linear_cross_entropy(
                vector,
                weight,  # pyright: ignore[reportArgumentType]
                targets[:, i],
                clusters=own,
                cluster_weight=cluster_weight,
            )
            for every, each in zip(result, found, strict=True):
                every.append(each)
        return result

    @torch.no_grad()
    def log_likelihood(self, codes: Numbers, labels: Numbers) -> Tensor:
        """(b, k, h, w) float32: the base-2 logarithm of each code's probability, given the class and all codes before
        it, so that minus an image's sum is what it takes to write its codes down, in bits. "Before" is as sampling has
        it: a code sees those of earlier positions and, in its position, of earlier rounds (`config.rounds`).

        Codes, labels and errors as in `forward`. Without dropout, whatever the mode, and without ever holding all
        logits.
        """
        codes, labels = self._inputs(codes, labels)
        training = self.training
        self.eval()
        try:
            vectors = self.head(*self._backbone(_in_order(codes), labels))
        finally:
            self.train(training)
        targets = _in_order(codes).flatten(0, 1)
        found = [
            linear_log_likelihood(vector, self.head.outputs[i].weight, targets[:, i])  # pyright: ignore
            for i, vector in enumerate(vectors)
        ]
        by_position = torch.stack(found, 1).view(len(codes), self.config.num_positions, len(found))
        return by_position.transpose(1, 2).reshape(codes.shape) / math.log(2)

    def set_head_rounds(self, rounds: int) -> FAR:
        """Rounds in which a masked head predicts a position's factors from now on, in sampling and in likelihoods (0:
        one for each); the generator. `UserError` for another head, or more rounds than factors."""
        config = replace(self.config, head_rounds=as_count(rounds, "head_rounds"))
        config.check()
        self.config = self.head.config = config
        return self

    @property
    def sampling_dtype(self) -> torch.dtype:
        """What samplers compute in, as `precision` says: bf16 for half the memory traffic. Weights and teacher-forced
        passes stay as they are."""
        return torch.bfloat16 if self.precision == "bf16" else self.class_embedding.weight.dtype

    def sampler(self, batch: int, **options: Any) -> Sampler:
        """A `Sampler` of the weights as they are now, for `batch` images at a time.

        Args:
            options: fields of `SamplingConfig`, each for all factors or, as a list, one for each; `grid`, `static`,
                `compiled`.

        Raises:
            UserError: unknown options, or impossible values.
        """
        switches = {name: options.pop(name) for name in ("grid", "static", "compiled") if name in options}
        config = SamplingConfig.of(**options).resolved(conditional=self.config.num_classes > 0)
        return Sampler(self, batch, config, **switches)

    def generate(
        self,
        labels: Numbers | None = None,
        cfg_scale: float | Sequence[float] = 2.0,
        temperature: float | Sequence[float] = 1.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        seed: int | Sequence[int] = 0,
        *,
        num: int | None = None,
        first_image: int = 0,
        batch: int = 32,
        given: Numbers | None = None,
        mask: Numbers | None = None,
        **options: Any,
    ) -> Tensor:
        """Codes (n, k, h, w) int64 of n images of the classes `labels`.

        Each call prepares the weights anew; `sampler` does so once for many calls.

        Args:
            labels: (n,) whole numbers from 0 to num_classes (the null class, as is -1), in a list, a tensor or an
                array.
            num: in place of labels, n: that many images of the null class, as an unconditional generator makes them.
            cfg_scale, temperature, top_k, top_p, other options: as in `SamplingConfig`; several values: one a factor.
            seed, first_image: of the random streams, as in `Sampler`.
            batch: images at a time.
            given, mask: codes (n, k, h, w) that are taken as they stand where the mask is true, as in `Sampler`.
            grid: height and width in positions, if not the generator's.

        Raises:
            UserError: impossible settings, labels or given codes.
        """
        if (labels is None) == (num is None):
            raise UserError("labels must be given, or else num: how many images of no class")
        if labels is None:
            labels = [self.null_class] * as_count(num, "num", most=2**31 - 1)
        labels, batch = as_labels(labels, self.null_class), as_count(batch, "batch", 1)
        settings = {"cfg_scale": cfg_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p, **options}
        return self.sampler(max(1, min(batch, len(labels))), **settings)(
            labels, seed, first_image, given=given, mask=mask
        )

    def embed(self, codes: Tensor) -> list[Tensor]:
        """Embeddings of each factor's codes (..., k): k tensors (..., d)."""
        return [table(codes[..., i]) for i, table in enumerate(self.code_embeddings)]

    def check_grid(self, grid: Sequence[int] | None) -> tuple[int, int]:
        """A grid to sample at, height and width in positions; None: the one that the generator was trained at.

        `UserError` for what is no grid, and for another one where rotary rows are those of the released models.
        """
        own = self.config.grid[0], self.config.grid[1]
        if grid is None:
            return own
        if len(grid) != 2:
            raise UserError(f"a grid is a height and a width in positions, got {len(grid)} number(s)")
        height, width = (as_count(each, "grid", 1, 2**15) for each in grid)
        if self.config.target_positions and (height, width) != own:
            raise UserError(
                f"a generator with model.target_positions samples at its own grid of {own[0]} x {own[1]} positions "
                "alone: its embeddings are those of these positions"
            )
        if self.config.legacy and (height, width) != own:
            raise UserError(
                f"a generator with model.legacy samples at its own grid of {own[0]} x {own[1]} positions alone: its "
                "rotary rows of the class and of the head's first position are zero"
            )
        return height, width

    def rotary(self, device: torch.device, grid: tuple[int, int] | None = None, orders: Tensor | None = None) -> Tensor:
        """Rotary rows of the input sequence: the class and all positions but the last, (h * w, hd / 2, 2); with orders
        (b, h * w) those of each image, (b, 1, h * w, hd / 2, 2)."""
        c = self.config
        grid = grid or (c.grid[0], c.grid[1])
        table = rotary_table(grid, c.width // c.heads, c.rope_base, c.legacy, device)
        if orders is None:
            return table[: grid[0] * grid[1]]
        return table[F.pad(1 + orders[:, :-1], (1, 0))][:, None]

    def _backbone(self, codes: Tensor, labels: Tensor, orders: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """What the head takes, of all positions of all images: the backbone's vectors (b * h * w, d) and the codes' k
        embeddings of the same shape; codes (b, h * w, k) in the orders."""
        embeddings = self.embed(codes)
        inputs = self.aggregate(torch.cat([e[:, :-1] for e in embeddings], -1))
        condition = self.class_embedding(labels)
        x = torch.cat([condition[:, None], inputs], 1)
        if x.dtype == torch.bfloat16 and torch.is_autocast_enabled(
            x.device.type
        ):  # the sum through the blocks: sharded embeddings are bf16 then
            x = x.float()
        if self.target_embedding is not None:
            weight = self.target_embedding.weight
            x = x + (weight if orders is None else weight[orders]).type_as(x)
        x = F.dropout(x, self.config.dropout, self.training)
        rotary = self.rotary(x.device, orders=orders)
        more = (condition.type_as(x),) if self.config.adaln else ()
        for block in self.blocks:
            x = block(x, rotary, *more)
        return x.flatten(0, 1), [e.flatten(0, 1) for e in embeddings]

    def _inputs(self, codes: Numbers, labels: Numbers, values: bool = True) -> tuple[Tensor, Tensor]:
        """Codes (b, k, h, w) and labels (b,), int64 on the model's device, of what a user gave for them."""
        device = self.class_embedding.weight.device
        codes = as_codes(codes, self.config.codebook_sizes, device, grid=self.config.grid, values=values)
        return codes, as_labels(labels, self.null_class, device, length=len(codes), values=values)


def _in_order(codes: Tensor, orders: Tensor | None = None) -> Tensor:
    """Codes (b, h * w, k) of codes (b, k, h, w), in raster order or others (b, h * w)."""
    codes = codes.flatten(2).transpose(1, 2)
    return codes if orders is None else codes.take_along_dim(orders[:, :, None], 1)


def _initialize(module: nn.Module) -> None:
    """Normal weights and zero biases."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def load_generator(
    path: str | Path,
    device: str | torch.device = "cpu",
    weights: str = "auto",
    precision: str = "float32",
    tokenizer: str | Path | None = None,
    with_tokenizer: bool = True,
    grid: Sequence[int] | None = None,
) -> FAR:
    """A generator in eval mode, with its tokenizer and the names of its classes.

    Args:
        path: a run folder (its newest whole checkpoint), one of its checkpoints, an exported folder, a released file of
            FAR or LlamaGen (class-conditional), `hf:org/name[@revision]` or `hf:org/name/file.pt[@revision]`.
        weights: `auto` (the moving average where there is one), `ema` or `raw`.
        device: as of `load_tokenizer`, for both models.
        precision: `float32`, or `bf16` for speed: that of sampling, and of its tokenizer.
        tokenizer: another place to take the tokenizer from, as in `load_tokenizer`; None: the one that the generator
            carries, if it does. None carries a tokenizer of others: it must be named here.
        with_tokenizer: False leaves it out.
        grid: height and width of the token grid in positions, for a released file that does not say; None: the
            tokenizer's, else that of 256 pixels at 16x.

    Raises:
        UserError: nothing there, truncated files, files of something else, or a tokenizer of other codes; no such
            device, weights or precision.
    """
    options = {"tokenizer": tokenizer, "with_tokenizer": with_tokenizer, "grid": grid}
    return FAR.from_pretrained(path, device, weights, precision, **options)


def save_generator(generator: FAR, folder: str | Path) -> Path:
    """Export a generator: `config.json`, `model.safetensors` and, if it carries one, `tokenizer/`: all that
    `load_generator` needs. `UserError` where it cannot be written."""
    as_kind(generator, FAR, "generator")
    return generator.export(folder)
