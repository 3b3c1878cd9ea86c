"""Codes from class labels, position by position: caches, guidance, random streams, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers, as_count, as_kind, as_labels, as_streams
from fqgan.base.printing import say
from fqgan.config import SamplingConfig
from fqgan.engine.speed import compile_problem
from fqgan.generator.draw import draw, guidance_scales, uniforms
from fqgan.generator.step import BlockStep, CachePosition, Product

if TYPE_CHECKING:
    from fqgan.generator.model import FAR

_BUCKET = 64  # positions: with static shapes, attention reads a multiple of it


class Sampler:
    """Draws codes from a generator's weights as they are now, `batch` images at a time.

    Caches, buffers and prepared weights (copies) are allocated here, once. Position after position, both halves of the
    batch (with the class, and with the null class for guidance) go on from the same guided code. Without guidance there
    is one half; after the last guided position the second is left out.

    Guidance acts on the vectors in front of the output matrices: these are linear, so that half of the products gives
    the guided logits.

    Args:
        generator: in eval mode, on the device to sample on.
        batch: images at a time.
        config: how to draw; `UserError` for what is impossible.
        static: steps of one shape with positions as tensors, captured as CUDA graphs on CUDA. None: there only.
        compiled: torch.compile the blocks; packed products, a CPU's, don't compile. None: on CUDA, where it works.

    In float32 on a CPU an image's codes depend on its label, seed and index alone. On a GPU, where a batch is always
    filled up, they hold at a fixed `batch`, whatever the neighbours.
    """

    def __init__(
        self,
        generator: FAR,
        batch: int,
        config: SamplingConfig,
        *,
        static: bool | None = None,
        compiled: bool | None = None,
    ):
        batch = as_count(batch, "batch", 1, 2**31 - 1)
        as_kind(config, SamplingConfig, "config")
        model = generator.config
        config.check(model.codebook_sizes)
        self.batch, self.config = batch, config
        self.positions, self.factors, self.grid = model.num_positions, model.num_factors, model.grid
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

        k = self.factors
        scales = guidance_scales(config, self.positions, k)
        self._scales = scales.to(device)
        # positions from here on need no guidance any more
        self.guided = max((t + 1 for t, row in enumerate(scales) if (row != 1).any()), default=0)
        rows = 2 * batch if self.guided else batch

        def each(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return values * k if len(values) == 1 else values

        draws = zip(each(config.temperature), each(config.top_k), each(config.top_p), strict=True)
        self._draws = [(float(temperature), int(top_k), float(top_p)) for temperature, top_k, top_p in draws]

        with torch.no_grad():
            self._rotary = generator.rotary(device)
            make = partial(BlockStep, rows=rows, positions=self.positions, dtype=dtype, compiled=self.compiled)
            self._blocks = [make(block) for block in generator.blocks]  # pyright: ignore
            self._head = generator.head.stepper(rows, dtype, self.compiled)
            self._sees_codes = generator.head.sees_codes
            self._outputs = [Product.of(output, dtype) for output in generator.head.outputs]
            self._classes = generator.class_embedding.weight.detach()
            self._codes_of = [table.weight.detach().to(dtype) for table in generator.code_embeddings]  # pyright: ignore
            self._aggregate = Product.of(generator.aggregate, dtype)
        self._input = torch.zeros(rows, model.width, dtype=dtype, device=device)
        self._uniforms = torch.zeros(self.positions, batch, k, device=device)
        self._codes = torch.zeros(self.positions, batch, k, dtype=torch.int64, device=device)
        self._now = torch.zeros(1, dtype=torch.int64, device=device)
        self._runs: dict[tuple[int, bool], Callable[[], object]] = {}
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    @torch.no_grad()
    def __call__(self, labels: Numbers, seed: int | Sequence[int] = 0, first_image: int = 0) -> Tensor:
        """Codes (n, k, h, w) int64 of n images, `batch` at a time; n may be 0.

        Args:
            labels: n classes, in a list, a tensor or an array; num_classes is the null class.
            seed: image i draws from the stream (seed, first_image + i); of several seeds, one for each image, from
                (seed[i], 0): the first image of that seed.
            first_image: index of the first image.

        Raises:
            UserError: labels that are no classes; seeds or indices that are no whole numbers from 0 to 2^64 - 1; logits
                that are not numbers.
        """
        labels = as_labels(labels, self.null_class)
        streams = as_streams(seed, first_image, len(labels))
        parts = [
            self._sample(labels[i : i + self.batch], streams[i : i + self.batch])
            for i in range(0, len(labels), self.batch)
        ]
        codes = torch.cat(parts) if parts else self._codes.new_zeros((0, self.positions, self.factors))
        return codes.transpose(1, 2).unflatten(2, self.grid).contiguous()

    def _sample(self, labels: Tensor, streams: list[tuple[int, int]]) -> Tensor:
        """Codes (n, positions, k) of up to `batch` images."""
        images = n = len(labels)
        numbers = torch.stack([uniforms(*stream, self.positions, self.factors) for stream in streams], 1)
        if self.static:
            n = self.batch  # rows that nobody asked for repeat the last label
            labels = torch.cat([labels, labels[-1:].expand(n - images)])
            for run in {self._key(t) for t in range(self.positions)} - self._runs.keys():
                self._runs[run] = self._prepared(*run)
        self._uniforms[:, :images] = numbers.to(self.device)
        both = torch.cat([labels, torch.full_like(labels, self.null_class)]) if self.guided else labels
        self._input[: len(both)] = self._classes[both.to(self.device)].to(self._input.dtype)
        self._now.zero_()
        for t in range(self.positions):
            if self.static:
                self._runs[self._key(t)]()
            else:
                self._step(CachePosition(t, t + 1), n, t < self.guided)
        codes = self._codes[:, :images].transpose(0, 1).clone()
        if (codes >= codes.new_tensor([len(table) for table in self._codes_of])).any():
            raise UserError(
                "the generator's logits are not numbers: its weights are spoilt, or bf16 is too narrow for it"
            )
        return codes

    def _step(self, place: CachePosition, n: int, guided: bool) -> None:
        """Draw one position's codes of n images into the buffer, and make the next position's input of them."""
        x = self._input[: 2 * n if guided else n]
        rotary = place.take(self._rotary)
        for block in self._blocks:
            x = block(x, rotary, place)
        numbers, scales = place.take(self._uniforms), place.take(self._scales)
        codes: list[Tensor] = []
        embeddings: list[Tensor] = []
        for i, output in enumerate(self._outputs):
            if i and self._sees_codes:
                x = torch.cat([embeddings[-1]] * 2) if guided else embeddings[-1]
            vector = self._head(i, x)
            if guided:
                # lerp: u + scale * (c - u), and c itself at scale 1
                c, u = vector.float().chunk(2)
                vector = torch.lerp(u, c, scales[i].type_as(c)).to(vector.dtype)
            codes.append(draw(output(vector).float(), numbers[:n, i], *self._draws[i]))
            table = self._codes_of[i]
            embeddings.append(table[codes[-1].clamp(max=len(table) - 1)])
        place.put(self._codes[:, :n], torch.stack(codes, 1))
        aggregated = self._aggregate(torch.cat(embeddings, 1))
        self._input[:n] = aggregated
        if guided:
            self._input[n : 2 * n] = aggregated

    def _key(self, t: int) -> tuple[int, bool]:
        """Which of the static steps is position t's: how many positions it reads, and whether it is guided."""
        return min(-(-(t + 1) // _BUCKET) * _BUCKET, self.positions), t < self.guided

    def _static_step(self, length: int, guided: bool) -> None:
        """The step at position `_now`, which it moves on. Every shape depends on the arguments alone."""
        seen = torch.arange(length, device=self.device) <= self._now
        mask = torch.zeros(length, dtype=self._input.dtype, device=self.device).masked_fill(~seen, -torch.inf)
        self._step(CachePosition(self._now, length, mask), self.batch, guided)
        self._now.add_(1)

    def _prepared(self, length: int, guided: bool) -> Callable[[], object]:
        """A static step; on CUDA replayed from a graph, without its launches."""
        step = partial(self._static_step, length, guided)
        if self.device.type != "cuda":
            return step
        # compilation, tuning and workspaces come before the capture, on a stream of its own as it asks for. Nothing in
        # a graph's memory outlives its replay, so all graphs share one pool; and what other threads do meanwhile must
        # not spoil the capture
        stream = self._stream = self._stream or torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._now.zero_()
                step()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        self._now.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            step()
        self._pool = graph.pool()
        return graph.replay
