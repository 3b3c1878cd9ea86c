"""Large codes as several sub-codes: what a generator learns in place of an output for each of 2^16 codes or more."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.base.inputs import Numbers
from fqgan.config import FactorConfig, ForeignConfig
from fqgan.config.factor import MOST_FACTORS
from fqgan.models.hub import SPLIT
from fqgan.tokenizer.foreign import ForeignTokenizer
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.protocol import needed_codes


class SplitTokenizer(ForeignTokenizer):
    """A tokenizer each of whose codes is written as digits of at most `size` values (Open-MAGVIT2, Luo et al. 2024,
    section 3.2: a token of 2^18 values as two sub-tokens).

    Each digit is a factor of its own, the highest first; what is encoded and decoded stays the same. Where the codes'
    vectors are known, codes are counted in an order in which near vectors stand together (`near_order`), so that the
    first digit says roughly where a vector lies and the others where exactly.

    Args:
        address: `split:SIZE:TOKENIZER`.
        tokenizer: what is at the address TOKENIZER.
        size: most values of a digit. Factors of no more codes stay as they are.

    Raises:
        UserError: a tokenizer without codes; codes that `size` does not divide; too many factors.
    """

    def __init__(self, address: str, tokenizer: FactorizedTokenizer | ForeignTokenizer, size: int):
        nn.Module.__init__(self)
        self.address, self.inner, self.size = address, tokenizer, size
        self.device, self.precision, self.chosen = tokenizer.device, tokenizer.precision, tokenizer.chosen
        digits = [_digits(codes, size, address) for codes in needed_codes(tokenizer, address)]
        self.codebook_sizes = tuple(each for factor in digits for each in factor)
        if len(self.codebook_sizes) > MOST_FACTORS:
            raise UserError(f"{address} would make {len(self.codebook_sizes)} factors, more than {MOST_FACTORS}")
        self._digits, self._orders = digits, [_order(tokenizer, i, len(sizes) > 1) for i, sizes in enumerate(digits)]
        self._places = [order.argsort() for order in self._orders]
        layout, factors = tokenizer.config, list[FactorConfig]()
        for factor, sizes in zip(layout.factors, digits, strict=True):
            names = [factor.name] if len(sizes) == 1 else [f"{factor.name} {i}" for i in range(len(sizes))]
            factors += [FactorConfig(name, each, 0, 0) for name, each in zip(names, sizes, strict=True)]
        kind = type(tokenizer).__name__
        self.config = ForeignConfig(
            address, layout.image_size, layout.downsampling, tuple(factors), kind, map_channels=layout.map_channels
        )

    def encode(self, images: Numbers, *, values: bool = True) -> Tensor:
        """Sub-codes (b, k', H/f, W/f) int64 of images (b, 3, H, W)."""
        found = list[Tensor]()
        codes = self.inner.encode(images, values=values)
        for own, sizes, places in zip(codes.unbind(1), self._digits, self._places, strict=True):
            rest, digits = places[own], list[Tensor]()
            for size in reversed(sizes):
                digits.append(rest % size)
                rest = rest // size
            found += reversed(digits)
        return torch.stack(found, 1)

    def decode(self, codes: Numbers, keep: Any = None, *, values: bool = True) -> Tensor:
        """Images (b, 3, H, W), not clipped, of sub-codes (b, k', h, w). `UserError` where factors are
        asked for alone."""
        self._refuse_alone(keep)
        digits, found = list(self.check_codes(codes).unbind(1)), list[Tensor]()
        for sizes, order in zip(self._digits, self._orders, strict=True):
            place = torch.zeros_like(digits[0])
            for size in sizes:
                place = place * size + digits.pop(0)
            found.append(order[place])
        return self.inner.decode(torch.stack(found, 1), values=values)

    def fingerprint(self) -> str:
        """64 hex digits that only the same weights, digits and order of the codes share."""
        text = f"{self.inner.fingerprint()} {self._digits}".encode()
        return hashlib.sha256(text + b"".join(order.cpu().numpy().tobytes() for order in self._orders)).hexdigest()


def near_order(vectors: np.ndarray) -> np.ndarray:
    """Numbers of (K, D) vectors in an order in which near ones stand together: they are halved at the median of the
    axis in which they vary most, and each half again, as long as halves are equal (a balanced k-d tree)."""
    order, groups = np.arange(len(vectors))[None], vectors[None].astype(np.float64)
    while groups.shape[1] > 1:
        # rounded: axes that vary alike must not be told apart by the last bit, which machines compute differently
        axes = np.round(groups.var(1), 9).argmax(1)
        along = np.take_along_axis(groups, axes[:, None, None], 2)[:, :, 0]
        ranks = along.argsort(1, kind="stable")
        order, groups = np.take_along_axis(order, ranks, 1), np.take_along_axis(groups, ranks[:, :, None], 1)
        if groups.shape[1] % 2:
            break
        order, groups = order.reshape(2 * len(order), -1), groups.reshape(2 * len(groups), -1, groups.shape[2])
    return order.reshape(-1)


def split_address(address: str) -> tuple[int, str]:
    """Size and tokenizer of `split:SIZE:TOKENIZER`; `UserError` for another form."""
    size, _, inner = address.removeprefix(SPLIT).partition(":")
    if not size.isdecimal() or int(size) < 2 or not inner:
        raise UserError(
            f"{address} is no address: split:SIZE:TOKENIZER, with a size of at least 2, for example "
            "split:256:runs/tokenizer"
        )
    return int(size), inner


def _digits(codes: int, size: int, address: str) -> tuple[int, ...]:
    """Values of each digit of numbers below `codes`, the highest first."""
    digits, rest = list[int](), codes
    while rest > size:
        if rest % size:
            raise UserError(f"{address}: {codes} codes cannot be split by {size}, which does not divide {rest}")
        digits.append(size)
        rest //= size
    return (rest, *digits) if rest > 1 or not digits else tuple(digits)


def _order(tokenizer: FactorizedTokenizer | ForeignTokenizer, factor: int, split: bool) -> Tensor:
    """(K,) codes of a factor as they are counted."""
    if not split or not isinstance(tokenizer, FactorizedTokenizer):  # others have no vectors that are known
        return torch.arange(tokenizer.codebook_sizes[factor], device=tokenizer.device)
    # in float64, which tells near values apart alike on all machines
    quantizer = copy.deepcopy(tokenizer.quantizers[factor]).double()
    with torch.no_grad():
        vectors = quantizer.vectors(tokenizer.device)
    return torch.from_numpy(near_order(vectors.cpu().numpy())).to(tokenizer.device)
