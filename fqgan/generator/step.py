"""One position at a time: blocks whose weights are prepared for a few rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fqgan.engine.speed import allow_forms
from fqgan.generator.cache import KeyValueCache, Places
from fqgan.generator.tables import SharedOutput
from fqgan.generator.transformer import Block, modulated, rotate

_PACK_ROWS = 4
# plain products take other kernels for few rows; from here on, and at multiples of it, sums keep their order
_PLAIN_ROWS = 8


class Product:
    """x @ weight.T + bias for a few rows x, the weight laid out for it once, and what follows fused into it.

    On a CPU oneDNN's packed layout takes half the time of a plain product of four rows or less. Rows are independent to
    the bit there in float32, how many there are and in which order; plain products are padded to that end.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.packed = _can_pack(weight.device, dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS) if self.packed else weight
        self.pads = weight.device.type == "cpu" and not self.packed and dtype == torch.float32

    @classmethod
    def of(cls, linear: nn.Module, dtype: torch.dtype) -> Product:
        """A linear layer's."""
        assert isinstance(linear, nn.Linear | SharedOutput)
        return cls(linear.weight, getattr(linear, "bias", None), dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        return self._unary(x, "none") if self.packed else self._plain(x)

    def silu(self, x: Tensor) -> Tensor:
        """silu of the product."""
        return self._unary(x, "swish") if self.packed else F.silu(self._plain(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The product times `other`, element by element."""
        return self._binary(x, other, "mul") if self.packed else self._plain(x) * other

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The product plus `other`."""
        return self._binary(x, other, "add") if self.packed else self._plain(x) + other

    def _unary(self, x: Tensor, then: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], "")

    def _binary(self, x: Tensor, other: Tensor, then: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, then)

    def _plain(self, x: Tensor) -> Tensor:
        if not self.pads:
            return F.linear(x, self.weight, self.bias)
        return F.linear(F.pad(x, (0, 0, 0, -len(x) % _PLAIN_ROWS)), self.weight, self.bias)[: len(x)]


class Norm:
    """RMSNorm in the type of sampling; nothing where a model has none."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype):
        self.weight = norm.weight.detach().to(dtype) if isinstance(norm, nn.RMSNorm) else None
        self.eps = norm.eps if isinstance(norm, nn.RMSNorm) else None

    def __call__(self, x: Tensor) -> Tensor:
        return x if self.weight is None else F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class BlockStep:
    """What a `Block` does to a position of each row, (n, d) -> (n, d), for up to `rows` rows, whose positions 0, 1, ...
    come in turn.

    The caches are a few megabytes a row; the weights are copies of the block's, in the type of sampling. `compiled`
    steps go through torch.compile, once for all blocks of a shape; packed products don't compile. `whole`: as in
    `KeyValueCache`.
    """

    def __init__(
        self, block: Block, rows: int, positions: int, dtype: torch.dtype, compiled: bool = False, whole: bool = False
    ):
        self.compiled = compiled
        attention = block.attention
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.attention_norm, self.mlp_norm = (Norm(norm, dtype) for norm in (block.attention_norm, block.mlp_norm))
        self.q_norm, self.k_norm = Norm(attention.q_norm, dtype), Norm(attention.k_norm, dtype)
        self.qkv, self.out = (Product.of(linear, dtype) for linear in (attention.qkv, attention.out))
        # packed products take the gate's activation in; others are better off with one product for both halves
        halves = 2 if _can_pack(block.down.weight.device, dtype) else 1
        self.gate_up = [Product(half, None, dtype) for half in block.gate_up.weight.chunk(halves)]
        self.down = Product.of(block.down, dtype)
        self.cache = KeyValueCache(
            self.heads, self.kv_heads, self.head_dim, rows, positions, dtype, block.down.weight.device, whole
        )

    def __call__(self, x: Tensor, rotary: Tensor, places: Places, modulation: Tensor | None = None) -> Tensor:
        """`rotary`: the positions' rows of the table, (n, 1, hd / 2, 2) or, of one position, (hd / 2, 2).
        `modulation`: of each row, (n, 6, d), of a block that has one."""
        step = _compiled() if self.compiled else BlockStep.compute
        return step(self, x, rotary, places, modulation)

    def compute(self, x: Tensor, rotary: Tensor, places: Places, modulation: Tensor | None = None) -> Tensor:
        """The step itself."""
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        first, second = (None, None) if modulation is None else modulation.transpose(0, 1).split(3)
        h = _shifted(self.attention_norm(x), first)
        q, k, v = self.qkv(h).view(len(x), -1, self.head_dim).split(sizes, 1)
        q, k = rotate(self.q_norm(q), rotary), rotate(self.k_norm(k), rotary)
        x = _added(self.out, self.cache.attend(q, k, v, places).flatten(1), x, first)
        h = _shifted(self.mlp_norm(x), second)
        if len(self.gate_up) == 1:
            gate, up = self.gate_up[0](h).chunk(2, -1)
            return _added(self.down, F.silu(gate) * up, x, second)
        return _added(self.down, self.gate_up[1].times(h, self.gate_up[0].silu(h)), x, second)


def _shifted(x: Tensor, modulation: Tensor | None) -> Tensor:
    """x (n, d) under shift, scale and gate (3, n, d), if there are any."""
    return x if modulation is None else modulated(x, modulation[0], modulation[1])


def _added(product: Product, h: Tensor, x: Tensor, modulation: Tensor | None) -> Tensor:
    """x plus what the product makes of h, through the gate where there is one."""
    return product.plus(h, x) if modulation is None else torch.addcmul(x, modulation[2], product(h))


@lru_cache(maxsize=1)
def _compiled() -> Callable[[BlockStep, Tensor, Tensor, Places, Tensor | None], Tensor]:
    allow_forms()  # every length, batch and head position is a shape of its own
    return torch.compile(BlockStep.compute, dynamic=False, fullgraph=True)


@lru_cache(maxsize=8)
def _can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's packed products work here and give what plain ones give."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-1, 1, 4 * 64).view(4, 64).to(dtype)
    weight = torch.linspace(1, -1, 32 * 64).view(32, 64).to(dtype)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
        own = torch.ops.mkldnn._linear_pointwise.binary(x, x[:, :32].contiguous(), packed, None, "add")
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.allclose(own, F.linear(x, weight) + x[:, :32], rtol=0.05, atol=0.05)
