"""A factor of a tokenizer: its sub-codebook or other quantizer, its adapter and its teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fqgan.base.errors import UserError
from fqgan.config.ranges import setting

# Class-token (or pooled) feature dimensions of the teachers that presets name, so that a model can be built
# without loading its teachers.
TEACHER_DIMS = {
    "efficientnet-lite0": 1280,
    **{f"efficientnet-lite0:stage{i}": channels for i, channels in enumerate((16, 24, 40, 112, 320), 1)},
    "clip:openai/clip-vit-large-patch14": 1024,
    "clip:openai/clip-vit-base-patch16": 768,
    "dinov2:facebook/dinov2-small": 384,
}


MOST_FACTORS = 100
BINARY = ("lfq", "bsq")  # quantizers with a bit a channel
IMPLICIT = ("fsq", *BINARY)  # quantizers without a table
LARGEST_IMPLICIT = 2**18  # codes of a quantizer without a table


@dataclass(frozen=True)
class FactorConfig:
    """One factor: a sub-codebook with its adapter (paper section 3.2)."""

    name: str = "visual"
    """Name of the factor in logs, reports and metrics; it must be unique within a model."""
    codebook_size: int = setting(16384, least=1, most=2**24)
    """Number of codes K: of lfq and bsq a power of two; of fsq it follows from `levels`."""
    code_dim: int = setting(8, least=1)
    """Dimension D of a code; of lfq and bsq the number of bits of K, of fsq that of `levels`, whatever is given."""
    adapter_depth: int = setting(6, most=1000)
    """Number of transformer blocks of the adapter F_i (Eq. 4); 0: no adapter, so that the factor reads the encoder
    directly."""
    teacher: str = ""
    """Frozen vision model whose class token this factor predicts (section 3.2.2); empty: none. efficientnet-lite0 and
    efficientnet-lite0:stage1 to :stage5 work offline; clip:ID_OR_FOLDER, dinov2:ID_OR_FOLDER, timm:NAME and
    timm:NAME=FILE need weights. @SIZE at the end sets the input size in pixels: clip:/path/to/folder@112."""
    teacher_dim: int = 0
    """Dimension of the teacher's feature; 0: looked up in a table of known teachers, or read from the teacher when
    training starts."""
    quantizer: str = "vq"
    """What makes codes of features. vq: the nearest code on the unit sphere (Eq. 1), as in the released models.
    vq-euclidean: the nearest code without normalisation, as in VQGAN. simvq: a fixed table behind a linear map. fsq:
    levels of each channel. lfq and bsq: a bit a channel. ibq: index back-propagation."""
    levels: tuple[int, ...] = setting((), least=2, most=2**16, rare=True)
    """Number of levels of each channel of fsq, such as 8 8 8 6 5 for 15,360 codes of 5 dimensions."""
    spatial_teacher: str = ""
    """Frozen vision model to whose feature map this factor is aligned, position by position (REPA, Yu et al. 2024;
    VA-VAE, Yao et al. 2025); empty: none. Named as `teacher`: a stage of efficientnet-lite0, or the patch tokens of
    clip or dinov2; timm's have no map here."""
    spatial_teacher_dim: int = 0
    """Channels of that map; 0: as for `teacher_dim`."""

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the teachers that it has."""
        return tuple(name for name in (self.teacher, self.spatial_teacher) if name)

    def __post_init__(self) -> None:
        """Sizes that follow from others are what they must be, wherever they are read."""
        if self.quantizer == "fsq" and self.levels:
            object.__setattr__(self, "codebook_size", math.prod(self.levels))
            object.__setattr__(self, "code_dim", len(self.levels))
        elif self.quantizer in BINARY and isinstance(self.codebook_size, int):
            object.__setattr__(self, "code_dim", max(1, (self.codebook_size - 1).bit_length()))

    def describe(self) -> str:
        """Its quantizer and sizes, for a line."""
        levels = f" ({' x '.join(map(str, self.levels))} levels)" if self.levels else ""
        return f"{self.name}: {self.quantizer}{levels}, {self.codebook_size:,} codes of {self.code_dim} dimensions"

    def check(self) -> None:
        """Raise `UserError` for a factor that cannot be."""
        if self.levels and self.quantizer != "fsq":
            raise UserError(f"factor {self.name}: levels are those of fsq, and the quantizer is {self.quantizer}")
        if self.quantizer in IMPLICIT and self.codebook_size > LARGEST_IMPLICIT:
            raise UserError(
                f"factor {self.name}: {self.codebook_size:,} codes of {self.quantizer} are more than "
                f"{LARGEST_IMPLICIT:,}, too many for a generator's tables: split the bits over several factors with "
                "model.composition product"
            )


def teacher_dim(factor: FactorConfig, field: str = "teacher") -> int:
    """Feature dimension of a factor's `teacher` or `spatial_teacher`; `UserError` if it is neither given nor known."""
    name = getattr(factor, field)
    dim = getattr(factor, f"{field}_dim") or TEACHER_DIMS.get(name.partition("@")[0], 0)
    if not dim:
        raise UserError(f"factor {factor.name}: the dimension of teacher {name!r} is not known: set {field}_dim")
    return dim
