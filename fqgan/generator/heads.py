"""What predicts the k codes of a position from the backbone's vector g_t (Table 4)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqgan.config import GeneratorConfig
from fqgan.generator.cache import together
from fqgan.generator.step import BlockStep, Norm, Product
from fqgan.generator.tables import make_output
from fqgan.generator.transformer import Block, RMSNorm, rotary_table

Stepper = Callable[[int, Tensor, Mapping[int, Tensor]], Sequence[Tensor]]
"""What `Head.stepper` gives."""


class Head(nn.Module):
    """k vectors of a position, each with its own output matrix: factor i's logits are `outputs[i](vectors[i])`."""

    def __init__(self, config: GeneratorConfig, width: int):
        super().__init__()
        self.config = config
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.outputs = nn.ModuleList(make_output(*table, width) for table in config.tables)
        self.unknown: nn.Embedding | None = None
        """What stands for each factor's embedding while its code is not known, in heads that need it."""

    @abstractmethod
    def forward(self, g: Tensor, embeddings: Sequence[Tensor]) -> list[Tensor]:
        """The k vectors, each (n, width).

        Args:
            g: (n, d), the backbone's vectors.
            embeddings: k tensors (n, d), of the codes that are to be predicted; that of a factor may only influence
                the vectors of the factors in later rounds (`config.rounds`).
        """

    @abstractmethod
    def stepper(self, rows: int, dtype: torch.dtype, compiled: bool) -> Stepper:
        """f(r, g, known): the vectors (n, width) of the factors of the r-th round, r = 0, 1, ... in turn, for n up to
        `rows` rows, from weights prepared in `dtype`. `known` has the embeddings (n, d) of all factors of earlier
        rounds; of other factors, where `unknown` is not None, those of codes that are given, and `unknown`'s for
        rows without. `compiled`: as in `BlockStep`."""

    def learned(self, g: Tensor, embeddings: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """The k vectors that training learns from, and which codes (n, k) it learns; None: all of them."""
        return self(g, embeddings), None

    def nonhidden_parameters(self) -> Iterable[nn.Parameter]:
        """The output matrices."""
        return self.outputs.parameters()


class LinearHead(Head):
    """k independent linear classifiers."""

    def __init__(self, config: GeneratorConfig):
        super().__init__(config, config.width)

    def forward(self, g: Tensor, embeddings: Sequence[Tensor]) -> list[Tensor]:
        return [self.norm(g)] * len(self.outputs)

    def stepper(self, rows: int, dtype: torch.dtype, compiled: bool) -> Stepper:
        norm = Norm(self.norm, dtype)
        return lambda r, g, known: [norm(g)] * len(self.outputs)


class MlpHead(Head):
    """k independent classifiers of two layers, of width 4d, with GELU between."""

    def __init__(self, config: GeneratorConfig):
        super().__init__(config, 4 * config.width)
        self.hidden = nn.ModuleList(nn.Linear(config.width, 4 * config.width) for _ in config.codebook_sizes)

    def forward(self, g: Tensor, embeddings: Sequence[Tensor]) -> list[Tensor]:
        g = self.norm(g)
        return [F.gelu(layer(g)) for layer in self.hidden]

    def stepper(self, rows: int, dtype: torch.dtype, compiled: bool) -> Stepper:
        norm, hidden = Norm(self.norm, dtype), [Product.of(layer, dtype) for layer in self.hidden]

        def step(r: int, g: Tensor, known: Mapping[int, Tensor]) -> list[Tensor]:
            g = norm(g)
            return [F.gelu(product(g)) for product in hidden]

        return step


class AutoregressiveHead(Head):
    """The factorized AR head: blocks over [g_t, e(z_1), ..., e(z_{k-1})], whose i-th output predicts z_i, the factors
    in `config.order`."""

    def __init__(self, config: GeneratorConfig):
        super().__init__(config, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.head_depth))

    def rotary(self, device: torch.device) -> Tensor:
        """Rotary rows (k, hd / 2, 2): g stands where the backbone has the class, the codes on the cells after it."""
        c = self.config
        h, w = c.grid
        # the released models take the rows of the token grid; a longer sequence than it needs a larger one
        grid = (max(h, -(-c.num_factors // w)), w)
        return rotary_table(grid, c.width // c.heads, c.rope_base, c.legacy, device)[: c.num_factors]

    def forward(self, g: Tensor, embeddings: Sequence[Tensor]) -> list[Tensor]:
        order = self.config.order
        x = torch.stack([g, *(embeddings[i] for i in order[:-1])], 1)
        rotary = self.rotary(g.device)
        for block in self.blocks:
            x = block(x, rotary)
        vectors = dict(zip(order, self.norm(x).unbind(1), strict=True))
        return [vectors[i] for i in range(len(order))]

    def stepper(self, rows: int, dtype: torch.dtype, compiled: bool) -> Stepper:
        norm, rotary = Norm(self.norm, dtype), self.rotary(self.norm.weight.device)
        blocks = [BlockStep(block, rows, len(rotary), dtype, compiled) for block in self.blocks]  # pyright: ignore

        def step(r: int, g: Tensor, known: Mapping[int, Tensor]) -> list[Tensor]:
            x = known[self.config.order[r - 1]] if r else g
            for block in blocks:
                x = block(x, rotary[r], together(len(x), r))
            return [norm(x)]

        return step


class Residual(nn.Module):
    """x plus two layers of its norm, of width 4d with GELU between. (n, d) -> (n, d)."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.up, self.down = nn.Linear(config.width, 4 * config.width), nn.Linear(4 * config.width, config.width)
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.down(F.gelu(self.up(self.norm(x)))), self.dropout, self.training)

    def step(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The same from weights prepared in `dtype`, for a few rows."""
        norm, up, down = Norm(self.norm, dtype), Product.of(self.up, dtype), Product.of(self.down, dtype)
        return lambda x: down.plus(F.gelu(up(norm(x))), x)


class MaskedHead(Head):
    """Residual layers over g_t and the k embeddings of a position, in place of which a learned vector stands
    where a code is not known: the factors of a round are predicted at once, from the codes of the rounds before
    (`config.rounds`).

    Training hides a random number of random factors, from one to all of them, and learns these (MaskGIT, Chang et al.
    2022, within a position), so that the weights are those of any rounds in any order. The order is fixed, not by
    confidence, so that codes have a probability: the product over rounds, within which factors are independent. Given
    codes are seen by all factors that are drawn.
    """

    def __init__(self, config: GeneratorConfig):
        super().__init__(config, config.width)
        d = config.width
        self.unknown = nn.Embedding(config.num_factors, d)
        self.mix = nn.Linear(config.num_factors * d, d)
        self.layers = nn.ModuleList(Residual(config) for _ in range(config.head_depth))

    def forward(self, g: Tensor, embeddings: Sequence[Tensor]) -> list[Tensor]:
        known = [row.expand_as(g) for row in self._unknown()]
        vectors = list(known)
        for factors in self.config.rounds:
            vector = self._vector(g, known)
            for i in factors:
                vectors[i], known[i] = vector, embeddings[i]
        return vectors

    def learned(self, g: Tensor, embeddings: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        k = len(embeddings)
        hidden = torch.rand(len(g), k, device=g.device).argsort(1) < torch.randint(
            1, k + 1, (len(g), 1), device=g.device
        )
        rows = zip(hidden.split(1, 1), self._unknown(), embeddings, strict=True)
        vector = self._vector(g, [torch.where(each, row, e) for each, row, e in rows])
        return [vector] * k, hidden

    def stepper(self, rows: int, dtype: torch.dtype, compiled: bool) -> Stepper:
        norm, mix = Norm(self.norm, dtype), Product.of(self.mix, dtype)
        layers = [layer.step(dtype) for layer in self.layers]  # pyright: ignore
        unknown, rounds = self._unknown().detach().to(dtype), self.config.rounds

        def step(r: int, g: Tensor, known: Mapping[int, Tensor]) -> list[Tensor]:
            x = mix.plus(
                torch.cat([known[i] if i in known else row.expand_as(g) for i, row in enumerate(unknown)], 1), g
            )
            for layer in layers:
                x = layer(x)
            return [norm(x)] * len(rounds[r])

        return step

    def _unknown(self) -> Tensor:
        assert self.unknown is not None
        return self.unknown.weight

    def _vector(self, g: Tensor, known: Sequence[Tensor]) -> Tensor:
        """(n, d) of the embeddings (n, d) of all factors, or what stands for them."""
        x = g + self.mix(torch.cat(list(known), 1))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


HEADS: dict[str, Callable[[GeneratorConfig], Head]] = {
    "linear": LinearHead,
    "mlp": MlpHead,
    "ar": AutoregressiveHead,
    "masked": MaskedHead,
}
