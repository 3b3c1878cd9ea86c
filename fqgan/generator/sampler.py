"""Codes from class labels, position by position: caches, guidance, random streams, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_count, as_kind, as_labels, as_streams
from fqgan.base.printing import say
from fqgan.config import SamplingConfig
from fqgan.engine.speed import Graphs, compile_problem
from fqgan.generator.cache import Places, Span, in_steps
from fqgan.generator.draw import check_drawn, uniforms
from fqgan.generator.position import PositionDraw
from fqgan.generator.rows import ALL, Draw, Given, Key, Rule, Slots, Step, index, spans
from fqgan.generator.step import BlockStep, Product

if TYPE_CHECKING:
    from fqgan.generator.model import FAR


class Sampler:
    """Draws codes from a generator's weights as they are now, `batch` images at a time.

    Caches, buffers and prepared weights (copies) are allocated here, once. Each image has a row, and where it is guided
    a second one for the null class; both go on from the same guided code. After its last guided position the second is
    left out. Rows stand at positions of their own: `join` starts images beside others that are under way, and `step`
    moves all of them on by a position. Calling the sampler does both.

    Args:
        generator: in eval mode, on the device to sample on.
        batch: images at a time.
        config: how to draw; None: whoever joins says it. `UserError` for what is impossible.
        grid: height and width in positions; None: the generator's. Rotary positions go on beyond it; `UserError` for
            a generator with `legacy`.
        static: steps of one shape with positions as tensors, captured as CUDA graphs on CUDA. None: there only.
        compiled: torch.compile the blocks; packed products, a CPU's, don't compile. None: on CUDA, where it works.

    In float32 on a CPU an image's codes depend on its label, seed, index, settings and given codes alone, whoever its
    neighbours are and wherever they stand. On a GPU, where a batch is always filled up, they hold at a fixed `batch`.
    """

    def __init__(
        self,
        generator: FAR,
        batch: int,
        config: SamplingConfig | None,
        *,
        grid: Sequence[int] | None = None,
        static: bool | None = None,
        compiled: bool | None = None,
    ):
        batch = as_count(batch, "batch", 1, 2**31 - 1)
        model = generator.config
        self.batch, self.sizes = batch, model.codebook_sizes
        self.grid = generator.check_grid(grid)
        self.positions, self.factors = self.grid[0] * self.grid[1], model.num_factors
        self.null_class = generator.null_class
        device, dtype = generator.class_embedding.weight.device, generator.sampling_dtype
        self.device = device
        self.static = device.type == "cuda" if static is None else static
        if compiled is None and self.static and device.type == "cuda":
            problem = compile_problem(device)
            if problem:
                say(f"fqgan: warning: sampling is slower than it could be, {problem}", error=True)
            compiled = not problem
        self.compiled = bool(compiled)

        # a server is asked for the same again and again
        self._rule_of = lru_cache(256)(partial(Rule.of, positions=self.positions, factors=self.factors))
        self.rule = None if config is None else self._rule(config)
        rows = batch if self.rule and not self.rule.guided else 2 * batch
        self.slots = Slots(batch, self.positions)
        with torch.no_grad():
            self._rotary = generator.rotary(device, self.grid)
            sizes = (rows, self.positions, dtype, self.compiled, self.static)
            self._blocks = [BlockStep(block, *sizes) for block in generator.blocks]  # pyright: ignore
            self._draw = PositionDraw(generator, batch, rows, self.positions, self.compiled)
            self._classes = generator.class_embedding.weight.detach()
            targets = generator.target_embedding
            self._targets = None if targets is None else F.pad(targets.weight.detach(), (0, 0, 0, 1)).to(dtype)
            """Of the position that comes next, and nothing behind the last."""
            aggregate = generator.aggregate
            self._aggregate = Product.of(aggregate, dtype) if model.aggregation else aggregate
        self._input = torch.zeros(rows, model.width, dtype=dtype, device=device)
        self._modulations = self._input.new_zeros(rows, model.depth, 6, model.width) if model.adaln else None
        """What each row's class does to the blocks."""
        self._modulate = [Product.of(block.modulation.linear, dtype) for block in generator.blocks if model.adaln]  # pyright: ignore
        self._codes = torch.zeros(self.positions, batch, self.factors, dtype=torch.int64, device=device)
        self._now = torch.zeros(batch, dtype=torch.int64, device=device)
        self._every = torch.arange(rows, device=device)
        self._runs: dict[Key, Callable[[], object]] = {}
        self._graphs = Graphs(device)

    def __call__(
        self,
        labels: Numbers,
        seed: int | Sequence[int] = 0,
        first_image: int = 0,
        *,
        given: Numbers | None = None,
        mask: Numbers | None = None,
    ) -> Tensor:
        """Codes (n, k, h, w) int64 of n images, `batch` at a time; n may be 0.

        Args:
            labels: n classes, in a list, a tensor or an array; num_classes is the null class.
            seed: image i draws from the stream (seed, first_image + i); of several seeds, one for each image, from
                (seed[i], 0): the first image of that seed.
            first_image: index of the first image.
            given, mask: codes (n, k, h, w) that are taken as they stand where the mask is true: any of them, and what
                comes later sees them; a masked head shows them to all factors of the position. Both may be of shapes
                that repeat to it. The random numbers of the others are those that they have without.

        Raises:
            UserError: labels that are no classes; seeds or indices that are no whole numbers from 0 to 2^64 - 1; given
                codes that are none; images under way, or logits that are not numbers.
        """
        if self.slots.active:
            raise UserError("images that joined are still under way: let them finish, or make another sampler")
        labels = as_labels(labels, self.null_class)
        streams = as_streams(seed, first_image, len(labels))
        kept = self._as_given(given, mask, len(labels))
        parts = []
        for start in range(0, len(labels), self.batch):
            images = slice(start, start + self.batch)
            self._begin(labels[images], streams[images], self.rule, kept and kept.part(images))
            done: list[int] = []
            while not done:
                done, codes = self.step()
                parts += [codes] * bool(done)
        return (
            check_drawn(torch.cat(parts), self.sizes) if parts else self._codes.new_zeros((0, self.factors, *self.grid))
        )

    def join(
        self,
        labels: Numbers,
        seed: int | Sequence[int] = 0,
        first_image: int = 0,
        config: SamplingConfig | None = None,
        *,
        given: Numbers | None = None,
        mask: Numbers | None = None,
    ) -> list[int]:
        """Start images beside those that are under way; returns the rows that they take, of which `free` are left.

        Args:
            config: how to draw; None: as the sampler does. Others as in `__call__`.

        Raises:
            UserError: as `__call__`; more images than rows are free; no config here and none of the sampler's, or two.
        """
        labels = as_labels(labels, self.null_class)
        if (config is None) == (self.rule is None):
            raise UserError(
                "a sampler without a config takes one from whoever joins, and a sampler with one takes none"
            )
        rule = self.rule if config is None else self._rule(config)
        if len(labels) > self.free:
            raise UserError(f"{len(labels)} images cannot join: {self.free} of {self.batch} rows are free")
        streams = as_streams(seed, first_image, len(labels))
        return self._begin(labels, streams, rule, self._as_given(given, mask, len(labels)))

    @property
    def free(self) -> int:
        """Rows that nobody has taken."""
        return len(self.slots.free)

    def leave(self, rows: Sequence[int]) -> None:
        """Give up images that are under way."""
        for row in rows:
            self._forget_spoilt([row], self._codes[: max(0, int(self.slots.at[row])), [row]])
        self.slots.at[list(rows)] = -1

    def so_far(self, row: int) -> Tensor:
        """Codes (k, t) of the t positions that an image under way has."""
        return self._codes[: max(0, int(self.slots.at[row])), row].T

    @torch.no_grad()
    def step(self) -> tuple[list[int], Tensor]:
        """Move all images on by a position. Returns the rows that are done, which are free now, and their codes
        (m, k, h, w); a code as large as its codebook stands for logits that were not numbers (`check_drawn`)."""
        active = self.slots.active
        if active:
            guided = self.slots.needs_guidance(active)
            if self.static:
                key = self._key(active, guided)
                if key not in self._runs:
                    self._runs[key] = self._prepared(key)
                self._runs[key]()
            else:
                self._dynamic_step(active, guided)
        done = self.slots.advance(active) if active else []
        codes = self._codes[:, index(done, self.device) if done else slice(0)]
        if done:
            self._forget_spoilt(done, codes)
        return done, codes.permute(1, 2, 0).unflatten(2, self.grid).clone(memory_format=torch.contiguous_format)

    def _forget_spoilt(self, slots: Sequence[int], codes: Tensor) -> None:
        """Clear the caches of rows, with codes (t, n, k), whose logits were not numbers: what masks hide of earlier
        images must be finite, or the next image in the same row is spoilt, too."""
        spoilt = (codes >= codes.new_tensor(self.sizes)).any(2).any(0).tolist()
        rows = [slot for slot, each in zip(slots, spoilt, strict=True) if each]
        if rows:
            halves = range(0, len(self._input), self.batch)
            for block in self._blocks:
                block.cache.forget(torch.tensor([half + row for half in halves for row in rows], device=self.device))

    def _rule(self, config: SamplingConfig) -> Rule:
        as_kind(config, SamplingConfig, "config")
        config.check(self.sizes)
        return self._rule_of(config)

    def _as_given(self, given: Numbers | None, mask: Numbers | None, n: int) -> Given | None:
        if (given is None) != (mask is None):
            raise UserError("given and mask belong together: codes, and which of them are taken")
        return None if given is None or mask is None else Given.of(given, mask, self.sizes, self.grid, n)

    @torch.no_grad()
    def _begin(
        self, labels: Tensor, streams: list[tuple[int, int]], rule: Rule | None, given: Given | None
    ) -> list[int]:
        slots = self.slots.free[: len(labels)]
        if not slots:
            return slots
        assert rule
        self.slots.take(slots, rule, given)
        place = index(slots, self.device)
        numbers = torch.stack([uniforms(*stream, self.positions, self.factors) for stream in streams], 1)
        self._draw.begin(place, numbers, rule, given)
        self._now[place] = 0
        both = (labels, torch.full_like(labels, self.null_class))[: len(self._input) // self.batch]
        for half, classes in zip(self._input.unflatten(0, (-1, self.batch)), both, strict=True):
            half[place] = self._classes[classes.to(self.device)].to(half.dtype)
            if self._targets is not None:
                half[place] += self._targets[0]
        if self._modulations is not None:
            for half, classes in zip(self._modulations.unflatten(0, (-1, self.batch)), both, strict=True):
                condition = F.silu(self._classes[classes.to(self.device)]).to(half.dtype)
                made = [product(condition).unflatten(1, (6, -1)) for product in self._modulate]
                half[place] = torch.stack(made, 1)
        return slots

    def _dynamic_step(self, active: list[int], guided: list[int]) -> None:
        """A step of the rows that are under way."""
        at, batch = self.slots.at, self.batch
        standing = at[[*active, *guided]].tolist()
        places = spans([*active, *(batch + slot for slot in guided)], standing, self._blocks[0].cache)
        rows = index(active, self.device)
        which = None
        if guided:
            whole = len(guided) == len(active)
            which = ALL if whole else index([active.index(slot) for slot in guided], self.device)
        place: tuple[Any, Any] = standing[0], rows
        rotary = self._rotary[standing[0]]
        if len(set(standing)) > 1:
            place = torch.tensor(standing[: len(active)], device=self.device), torch.tensor(active, device=self.device)
            rotary = self._rotary[standing][:, None]
        groups: dict[tuple[Draw, ...], list[int]] = {}
        for row, slot in enumerate(active):
            rule = self.slots.rules[slot]
            assert rule
            groups.setdefault(rule.draws, []).append(row)
        draws = [(index(own, self.device), settings) for settings, own in groups.items()]
        key = Key(0, bool(guided), *self.slots.how_held(active))
        self._step(Step(rows, which, place, draws, key), rotary, places)

    def _key(self, active: list[int], guided: list[int]) -> Key:
        """Which of the static steps: how many positions it reads, whether any row is guided, and what is given."""
        furthest = int(self.slots.at[active].max()) + 1
        return Key(in_steps(furthest, self.positions), bool(guided), *self.slots.how_held(active))

    def _static_step(self, key: Key) -> None:
        """The step of all rows at positions `_now`, which it moves on. Every shape depends on the key alone."""
        now = self._now.repeat(2) if key.guided else self._now
        seen = torch.arange(key.length, device=self.device) <= now[:, None]
        mask = torch.zeros(seen.shape, dtype=self._input.dtype, device=self.device).masked_fill(~seen, -torch.inf)
        every = self._every[: self.batch]
        draws = [(slice(None), self.rule.draws)] if self.rule else []
        step = Step(slice(0, self.batch), ALL if key.guided else None, (self._now, every), draws, key)
        rows = slice(0, len(now))
        self._step(step, self._rotary[now][:, None], (Span(rows, rows, (self._every[rows], now), key.length, mask),))
        self._now.add_(1).clamp_(max=self.positions - 1)  # rows that are done, or nobody's, stay where they are

    def _step(self, step: Step, rotary: Tensor, places: Places) -> None:
        """Draw one position's codes of the rows into the buffer, and make their next input of them."""
        halves = self._input.view(-1, self.batch, self._input.shape[1])
        x, modulations = self._taken(self._input, step), [None] * len(self._blocks)
        if self._modulations is not None:
            modulations = self._taken(self._modulations, step).unbind(1)
        for block, modulation in zip(self._blocks, modulations, strict=True):
            x = block(x, rotary, places, modulation)
        self._codes[step.at], embeddings = self._draw(step, x)
        aggregated = self._aggregate(torch.cat(embeddings, 1))
        if self._targets is not None:
            aggregated = aggregated + self._targets[1:][step.at[0]]
        halves[0][step.rows] = aggregated
        if step.guided is not None:
            halves[1][step.rows] = aggregated

    def _taken(self, buffer: Tensor, step: Step) -> Tensor:
        """What a buffer (rows, ...) holds of the rows of a step."""
        halves = buffer.unflatten(0, (-1, self.batch))
        own = halves[0][step.rows]
        if step.guided is None:
            return own
        both = isinstance(step.rows, slice) and len(own) == self.batch and step.guided is ALL
        return buffer if both else torch.cat([own, halves[1][step.rows][step.guided]])

    def _prepared(self, key: Key) -> Callable[[], object]:
        """A static step; on CUDA replayed from a graph, without its launches."""
        step = partial(self._static_step, key)
        if self.device.type != "cuda":
            return step
        # images may be under way: what trial runs write is put back
        return self._graphs.captured(step, (self._input, self._codes, self._now))
