"""What every quantizer is: features in, `Quantized` out, codes and vectors of each other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from fqgan.config import FactorConfig, QuantizerConfig
from fqgan.tokenizer.quantizers.nearest import draw_near


@dataclass
class Quantized:
    """What a quantizer makes of features. Vectors are (b, d, h, w), of unit length over d for some quantizers."""

    codes: Tensor
    """(b, h, w) int64 in [0, K)."""
    features: Tensor
    """The input as it is compared with the codes: normalised for `vq`, bounded for `fsq`."""
    embeddings: Tensor
    """The codes' vectors, with gradient to the codebook where there is one that learns by gradient."""
    entropy_loss: Tensor
    """Mean entropy of the soft assignments minus the entropy of their mean; 0 unless asked for, and without one."""
    gradient: str = "straight-through"
    """How the gradient of `vectors` reaches the features: `straight-through`, or `rotation` (`rotate`), for vectors of
    unit length."""
    commits: bool = True
    """Whether features and codes are pulled to each other; False: both terms are 0 (FSQ)."""
    through_index: Tensor | None = None
    """The embeddings with another gradient than `gradient` says: to all codes and to the features (IBQ)."""

    def detached(self) -> Quantized:
        """The same without gradients, and without what they would keep in memory."""
        tensors = {name: getattr(self, name).detach() for name in ("features", "embeddings", "entropy_loss")}
        return replace(self, **tensors, through_index=None)

    @property
    def vectors(self) -> Tensor:
        """The embeddings, with gradient to the features, or to the features rotated onto their codes."""
        if self.through_index is not None:
            return self.through_index
        carried = self.features if self.gradient == "straight-through" else rotate(self.features, self.embeddings)
        return carried + (self.embeddings - carried).detach()

    @property
    def codebook_loss(self) -> Tensor:
        """Pulls the chosen codes to the features, mean over elements.

        With gradient through the index, the double loss of IBQ: both to each other through the index, too."""
        loss = F.mse_loss(self.embeddings, self.features.detach())
        return loss if self.through_index is None else loss + F.mse_loss(self.through_index, self.features)

    @property
    def commitment_loss(self) -> Tensor:
        """Pulls the features to their codes, mean over elements."""
        if not self.commits:
            return self.features.new_zeros(())
        return F.mse_loss(self.features, self.embeddings.detach())


class Keeper(Protocol):
    """What changes a quantizer beside gradient descent, over all ranks; all of them call each method."""

    def start(self, rows: Tensor, iterations: int, advance: Callable[[], None]) -> None:
        """Before the first step: k-means on features (N, D), the same on all ranks."""

    def observe(self, quantized: Quantized, step: int) -> None:
        """Take note of a forward pass in optimizer step `step` (from 0)."""

    def after_step(self, step: int) -> None:
        """Change the quantizer after the update of a step."""

    def restarted(self) -> dict[str, int]:
        """Numbers to log, since the last call."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint, the same on all ranks."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""


class Quantizer(nn.Module):
    """Features (b, D, h, w) -> codes (b, h, w) int64 in [0, K) and their vectors (b, D, h, w).

    A new one is a file with a subclass and a line in `fqgan.tokenizer.quantizers`. It computes in float32 whatever the
    autocast, holds no tensors but parameters and buffers that are saved (models are built on the meta device first),
    and its `build` raises `UserError` for sizes that it cannot have. `K` and `D` of those whose sizes follow from
    each other or from `levels` are set where `FactorConfig` is made.

    Args:
        codebook_size: K.
        code_dim: D.
        entropy_temperature: tau of the entropy loss; without effect where there is none.
        gradient: how the gradient passes, as `Quantized.gradient`.
    """

    unit_length: ClassVar[bool] = False
    """Whether features and vectors are of unit length, which the disentanglement loss (Eq. 7) and the rotation trick
    need."""
    residual: ClassVar[bool] = False
    """Whether what it leaves of a feature can be quantized again (`TokenizerConfig.composition`)."""

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        entropy_temperature: float = 0.01,
        gradient: str = "straight-through",
    ):
        super().__init__()
        self.codebook_size, self.code_dim = codebook_size, code_dim
        self.entropy_temperature, self.gradient = entropy_temperature, gradient
        self.build()

    def build(self) -> None:
        """Make parameters and buffers; `UserError` for sizes that it cannot have."""

    @classmethod
    def of(cls, factor: FactorConfig, entropy_temperature: float, gradient: str) -> Self:
        """The quantizer of a factor."""
        return cls(factor.codebook_size, factor.code_dim, entropy_temperature, gradient)

    def normalize(self, z: Tensor) -> Tensor:
        """(b, D, h, w) features in at least float32, of unit length over D where its vectors are."""
        z = full_precision(z)
        return F.normalize(z, dim=1) if self.unit_length else z

    @abstractmethod
    def forward(self, z: Tensor, entropy: bool = False) -> Quantized:
        """Quantize (b, D, h, w) features; `entropy` also computes the entropy loss."""

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """(b, D, h, w) vectors of (b, h, w) codes: those that `forward` decodes."""

    def vectors(self, device: torch.device) -> Tensor:
        """(K, D) vectors of all codes."""
        return as_rows(self.embed(torch.arange(self.codebook_size, device=device)[None, None]))

    def encode(self, z: Tensor) -> Tensor:
        """Codes (b, h, w) of (b, D, h, w) features."""
        return self(z).codes

    def near(self, codes: Tensor, neighbours: int) -> Tensor:
        """One of the nearest `neighbours` other codes for each of (N,) codes, by Euclidean distance of their vectors.

        Drawn from torch's generator, which training seeds by (seed, rank, step)."""
        return draw_near(codes, self.vectors(codes.device), neighbours)

    def keeper(
        self, optimizer: Optimizer, options: QuantizerConfig, seed: tuple[int, int], interleaved: bool
    ) -> Keeper | None:
        """Who changes it beside gradient descent; None: nobody, and `options` that ask for it have no effect here.

        Args:
            seed: of the run, and the factor's index.
            interleaved: whether the ranks hold every other image of a micro-batch, not runs of them.
        """
        return None

    def nonhidden_parameters(self) -> Iterable[nn.Parameter]:
        """All of them: rows of a table are no map between hidden features, and Muon must not make them orthogonal."""
        return self.parameters()


def as_rows(x: Tensor) -> Tensor:
    """(b, d, h, w) -> (b * h * w, d)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def rotate(features: Tensor, embeddings: Tensor) -> Tensor:
    """The rotation trick (Fifty et al. 2024, section 4.2): R x, where the constant R rotates features onto embeddings.

    Both (b, d, h, w), of unit length over d. The value is `embeddings` up to rounding, the gradient to `features` is
    R^T g. With features f, codes q and r = (f + q) / |f + q|, R = I - 2 r r^T + 2 q f^T is two reflections, of which
    only products with vectors are needed. Where q = -f no rotation is singled out: R = I - 2 f f^T there.
    """
    f, q = features.detach(), embeddings.detach()
    r = F.normalize(f + q, dim=1)
    return features - 2 * r * (r * features).sum(1, keepdim=True) + 2 * q * (f * features).sum(1, keepdim=True)


def full_precision(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()
