"""What changes a codebook beside gradient descent: a k-means start, EMA codes, restarts of dead codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fqgan.engine.devices import upload
from fqgan.engine.distributed import all_reduce_min, all_reduce_sum, broadcast, gather_rows
from fqgan.tokenizer.quantizers.base import Quantized, as_rows
from fqgan.tokenizer.quantizers.nearest import nearest_codes

FEATURES_PER_CODE = 8  # that a k-means start collects at least

_SHORTEST = 1e-5  # a sum that has decayed further keeps its code, so that it never drowns in rounding
_CHECKS = 10  # times within `restart_after` steps that dead codes are looked for
_TAG = 0xC0DE  # keeps these uses of (seed, factor, step) apart from others; not 0, which pads short keys


class CodebookKeeper:
    """EMA codes and restarts of dead codes for one codebook (K, D), over all ranks.

    Call `observe` after every forward pass of a training step and `after_step` after its update, on every rank. None
    of it waits for a GPU. What must outlive a step is in `state`, outside of the quantizer's own state dict.

    EMA codes (van den Oord et al. 2017, appendix A.1): m <- decay m + (1 - decay) (sum of the features of this step's
    positions with that code), n likewise of their number, and the code is m / n. On the unit sphere it is m / |m|: any
    divisor cancels in the direction. At the start m is the code and n is 1. The codebook takes no gradient then.

    Restarts: a code that no position has used for `restart_after` optimizer steps becomes a feature of the current
    step, each feature at most once a step, drawn by (seed, step) from all ranks' features. Its gradient moments
    become 0. Dead codes are looked for ten times within `restart_after` steps, so they may wait a tenth longer.

    Args:
        optimizer: holds the moments of the codebook's gradient.
        ema_decay: in [0, 1); 0: codes learn by gradient.
        restart_after: optimizer steps; 0: never.
        seed: of the run, and the factor's index.
        interleaved: as `in_order` has it.
        unit_length: whether features and codes are of unit length.
    """

    def __init__(
        self,
        codebook: nn.Parameter,
        optimizer: torch.optim.Optimizer,
        *,
        ema_decay: float = 0.0,
        restart_after: int = 0,
        seed: tuple[int, int] = (0, 0),
        interleaved: bool = False,
        unit_length: bool = True,
    ):
        self.codebook, self.optimizer, self.unit_length = codebook, optimizer, unit_length
        self.ema_decay, self.restart_after, self.seed = ema_decay, restart_after, seed
        self.interleaved = interleaved
        if ema_decay:
            codebook.requires_grad_(False)
            self._averages = with_count(codebook.detach(), unit_length).clone()
            self._sums = torch.zeros_like(self._averages)
        if restart_after:
            self._ages = torch.zeros(len(codebook), dtype=torch.int64, device=codebook.device)
            self._used = torch.zeros_like(self._ages, dtype=torch.bool)
            self._restarted = self._ages.new_zeros(1)
            self._rows: list[Tensor] = []

    @torch.no_grad()
    def start(self, rows: Tensor, iterations: int, advance: Callable[[], None] = lambda: None) -> None:
        """Set the codes to the centres of (N, D) features, the same on all ranks, N at least K."""
        generator = _generator(*self.seed)
        centres = kmeans(rows, len(self.codebook), iterations, generator, advance, unit_length=self.unit_length)
        self._set(with_count(broadcast(centres), self.unit_length))  # ranks may sum in another order

    @torch.no_grad()
    def observe(self, quantized: Quantized, step: int) -> None:
        """Take note of a forward pass in optimizer step `step` (from 0)."""
        codes, rows = quantized.codes.flatten(), as_rows(quantized.features.detach())
        if self.ema_decay:
            self._sums.index_add_(0, codes, with_count(rows, self.unit_length))
        if self.restart_after:
            self._used.index_fill_(0, codes, True)
            if self._looks(step):
                self._rows.append(rows.unflatten(0, (len(quantized.codes), -1)))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Change the codebook as the step's features want it."""
        if self.ema_decay:
            self._averages.lerp_(all_reduce_sum(self._sums), 1 - self.ema_decay)
            small = divisor(self._averages, self.unit_length) < _SHORTEST
            kept = _SHORTEST * with_count(self.codebook, self.unit_length)
            self._set(torch.where(small, kept, self._averages))
            self._sums.zero_()
        if self.restart_after:
            self._ages = torch.where(self._used, 0, self._ages + 1)
            self._used.zero_()
            if self._looks(step):
                self._restart(step)
                self._rows.clear()

    def restarted(self) -> dict[str, int]:
        """`restarted`, the codes restarted since the last call, where there are restarts; waits for a GPU."""
        if not self.restart_after:
            return {}
        count = int(self._restarted)
        self._restarted.zero_()
        return {"restarted": count}

    def state(self) -> dict[str, Tensor]:
        """Tensors that are the same on all ranks; called by all of them between steps."""
        state = {"averages": self._averages} if self.ema_decay else {}
        if self.restart_after:
            state |= {"ages": all_reduce_min(self._ages), "restarted": self._restarted}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        for name, tensor in state.items():
            getattr(self, f"_{name}").copy_(tensor)

    def _looks(self, step: int) -> bool:
        """Whether dead codes are looked for after this step."""
        return (step + 1) % max(1, self.restart_after // _CHECKS) == 0

    def _restart(self, step: int) -> None:
        """Dead codes, in order, become the features that a permutation puts first; a mask, as nothing may wait."""
        rows = in_order(self._rows, self.interleaved)
        order = torch.randperm(len(rows), generator=_generator(*self.seed, step))
        order = upload(order.pin_memory() if rows.is_cuda else order, rows.device)  # a copy from other memory waits
        dead = all_reduce_min(self._ages) >= self.restart_after  # each rank counts from its own last use
        place = dead.cumsum(0) - 1
        chosen = dead & (place < len(rows))
        features, column = rows[order[place.clamp(0, len(rows) - 1)]], chosen[:, None]
        self.codebook.copy_(torch.where(column, features, self.codebook))
        if self.ema_decay:
            self._averages.copy_(torch.where(column, with_count(features, self.unit_length), self._averages))
        for moment in self.optimizer.state.get(self.codebook, {}).values():
            if moment.shape == self.codebook.shape:
                moment.masked_fill_(column, 0)
        self._ages.masked_fill_(chosen, 0)
        self._restarted += chosen.sum()

    def _set(self, sums: Tensor) -> None:
        """The codes become the means, or the directions, of `sums` as `with_count` has them."""
        self.codebook.copy_(mean_of(sums, self.unit_length))
        if self.ema_decay:
            self._averages.copy_(sums)


def with_count(rows: Tensor, unit_length: bool) -> Tensor:
    """Rows (N, D) whose sums give a mean: with a column of ones for their number, or as they are on the unit sphere."""
    return rows if unit_length else torch.cat([rows, torch.ones_like(rows[:, :1])], 1)


def divisor(sums: Tensor, unit_length: bool) -> Tensor:
    """(K, 1) what a sum is divided by: the number of its rows, or its length on the unit sphere."""
    return sums.norm(dim=1, keepdim=True) if unit_length else sums[:, -1:]


def mean_of(sums: Tensor, unit_length: bool) -> Tensor:
    """(K, D) means, or directions, of sums of `with_count`."""
    return (sums if unit_length else sums[:, :-1]) / divisor(sums, unit_length)


@torch.no_grad()
def kmeans(
    rows: Tensor,
    num_centres: int,
    iterations: int,
    generator: torch.Generator,
    advance: Callable[[], None] = lambda: None,
    *,
    unit_length: bool = True,
) -> Tensor:
    """Centres (K, D) for `rows` (N, D), N >= K: by Lloyd's algorithm, or on the unit sphere (Dhillon and Modha 2001),
    where rows and centres are of unit length and the similarity is the dot product.

    Starts from K different rows; a centre that loses all of its rows stays where it is. Ends early once nothing moves;
    `advance` is called after each other one.
    """
    centres = rows[torch.randperm(len(rows), generator=generator)[:num_centres].to(rows.device)]
    counted = with_count(rows, unit_length)
    for _ in range(iterations):
        offset = None if unit_length else -centres.square().sum(1) / 2
        sums = counted.new_zeros(num_centres, counted.shape[1])
        sums.index_add_(0, nearest_codes(rows, centres, offset), counted)
        empty = divisor(sums, unit_length) < _SHORTEST
        moved = torch.where(empty, centres, mean_of(sums, unit_length))
        if torch.equal(moved, centres):
            break
        centres = moved
        advance()
    return centres


def in_order(parts: Sequence[Tensor], interleaved: bool) -> Tensor:
    """This rank's consecutive micro-batches (b, n, d), n rows an image -> the rows (N, d) of all ranks, in the order of
    the samples. `interleaved`: in a micro-batch the ranks hold every other image (several lanes), not runs of them."""
    gathered = gather_rows(torch.stack(list(parts))).unflatten(0, (-1, len(parts)))  # (ranks, parts, b, n, d)
    return gathered.permute(1, 2, 0, 3, 4).flatten(0, 3) if interleaved else gathered.transpose(0, 1).flatten(0, 3)


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence([*key, _TAG]).generate_state(1)[0]))
