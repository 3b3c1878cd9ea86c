"""Draws the k codes of a position of each row from the backbone's vectors: head, guidance, given codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fqgan.generator.draw import draw, draw_each
from fqgan.generator.rows import Draws, Given, Rule, Step
from fqgan.generator.step import Product

if TYPE_CHECKING:
    from fqgan.generator.model import FAR


class PositionDraw:
    """A generator's head, prepared for up to `rows` rows, and what `batch` images are drawn with at all positions.

    Guidance acts on the vectors in front of the output matrices: these are linear, so that half of the products gives
    the guided logits.
    """

    def __init__(self, generator: FAR, batch: int, rows: int, positions: int, compiled: bool):
        head, dtype, k = generator.head, generator.sampling_dtype, generator.config.num_factors
        device = generator.class_embedding.weight.device
        self._rounds = generator.config.rounds
        self._head = head.stepper(rows, dtype, compiled)
        self._outputs = [Product.of(output, dtype) for output in head.outputs]
        self._codes_of = [table.weight.detach().to(dtype) for table in generator.code_embeddings]  # pyright: ignore
        self._unknown = None if head.unknown is None else head.unknown.weight.detach().to(dtype)
        self._uniforms, self._scales = torch.zeros(2, positions, batch, k, device=device)
        self._given = torch.zeros(positions, batch, k, dtype=torch.int64, device=device)
        self._held = torch.zeros(positions, batch, k, dtype=torch.bool, device=device)
        self._settings = torch.zeros(3, batch, k, device=device)
        """Temperature, top-k and top-p, for static steps whose rows bring their own."""

    def begin(self, place: slice | Tensor, numbers: Tensor, rule: Rule, given: Given | None) -> None:
        """Images begin in some rows, with random numbers (positions, n, k)."""
        device = self._uniforms.device
        self._uniforms[:, place] = numbers.to(device)
        self._scales[:, place] = rule.scales[:, None].to(device)
        self._settings[:, place] = torch.tensor(rule.draws).T[:, None].to(device)
        self._held[:, place] = False
        if given:
            self._given[:, place], self._held[:, place] = given.codes.to(device), given.held.to(device)

    def __call__(self, step: Step, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Codes (n, k) of the backbone's vectors x of all rows, and their k embeddings (n, d)."""
        given, held, tables = self._given[step.at], self._held[step.at], self._codes_of
        if step.key.all_held:
            return given, [table[given[:, i]] for i, table in enumerate(tables)]
        known: dict[int, Tensor] = {}
        if step.key.some_held and self._unknown is not None:
            for i, (table, unknown) in enumerate(zip(tables, self._unknown, strict=True)):
                known[i] = _with_guided(torch.where(held[:, i, None], table[given[:, i]], unknown), step)
        numbers, scales = self._uniforms[step.at], self._scales[step.at]
        codes, embeddings = [*given.unbind(1)], [x] * len(tables)
        for turn, factors in enumerate(self._rounds):
            for i, vector in zip(factors, self._head(turn, x, known), strict=True):
                logits = self._outputs[i](_guided(vector, scales[:, i], step)).float()
                code = self._drawn(logits, numbers[:, i], i, step.draws)
                codes[i] = torch.where(held[:, i], given[:, i], code) if step.key.some_held else code
                embeddings[i] = tables[i][codes[i].clamp(max=len(tables[i]) - 1)]
            if turn + 1 < len(self._rounds):
                known |= {i: _with_guided(embeddings[i], step) for i in factors}
        return torch.stack(codes, 1), embeddings

    def _drawn(self, logits: Tensor, u: Tensor, i: int, draws: Draws) -> Tensor:
        if not draws:
            return draw_each(logits, u, *self._settings[:, :, i])
        if len(draws) == 1:
            return draw(logits, u, *draws[0][1][i])
        codes = torch.empty(len(u), dtype=torch.int64, device=u.device)
        for rows, settings in draws:
            codes[rows] = draw(logits[rows], u[rows], *settings[i])
        return codes


def _with_guided(x: Tensor, step: Step) -> Tensor:
    """x (n, d) of a step's rows, then of those that are guided once more."""
    return x if step.guided is None else torch.cat([x, x[step.guided]])


def _guided(vector: Tensor, scales: Tensor, step: Step) -> Tensor:
    """The vectors (n, width) of a step's rows, of which the guided ones go on from those of the null class behind them
    by their scales (n,)."""
    if step.guided is None:
        return vector
    n = len(scales)
    # lerp: u + scale * (c - u), and c itself at scale 1
    c, u = vector[:n].float(), vector[n:].float()
    guided = torch.lerp(u, c[step.guided], scales[step.guided, None].type_as(c)).to(vector.dtype)
    if len(u) == n:
        return guided
    vector = vector[:n].clone()
    vector[step.guided] = guided
    return vector
