"""A tokenizer's discriminator and what holds it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fqgan.base.errors import UserError
from fqgan.config.ranges import setting


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The adversarial term of Eq. 2."""

    CHANGEABLE = True

    start: int = 20_000
    """Optimizer step at which the discriminator and the GAN loss become active."""
    weight: float = 0.5
    """Weight of the GAN loss in the tokenizer's objective; 0: no discriminator is built."""
    warmup_steps: int = 0
    """Number of steps after `start` in which `weight` rises linearly from 0."""
    adaptive: bool = False
    """Multiply `weight` by VQGAN's adaptive weight: the ratio of the image losses' gradient to the GAN loss's gradient,
    both taken at the reconstruction."""
    kind: Literal["patchgan", "stylegan", "frozen"] = setting("patchgan", changeable=False)
    """What the discriminator judges: overlapping patches (PatchGAN), whole images (StyleGAN2's residual discriminator),
    or the features of a frozen network at several depths (frozen: StyleGAN-T's, Sauer et al. 2023)."""
    backbone: str = setting("", changeable=False)
    """Frozen network of the kind `frozen`, named as a factor's `teacher`: efficientnet-lite0 works offline;
    dinov2:ID_OR_FOLDER, clip:ID_OR_FOLDER and timm:NAME need weights. @SIZE sets the input size in pixels, and with it
    the cost. Checkpoints hold its name and not its weights."""
    depths: tuple[int, ...] = setting((), least=1, changeable=False)
    """Stages or blocks of the backbone, counted from 1, behind which a head judges the features; empty: up to five,
    equally spaced, the last one among them."""
    augment: tuple[Literal["colour", "translation", "cutout"], ...] = setting((), changeable=False)
    """What changes each image and each reconstruction at random before any discriminator sees it (DiffAug, Zhao et al.
    2020): brightness, saturation and contrast; a shift by up to an eighth of the side; a square of half the side set to
    grey. Empty: nothing."""
    loss: Literal["hinge", "vanilla", "non-saturating"] = "hinge"
    """Loss of the discriminator: hinge, or binary cross-entropy (vanilla and non-saturating). The tokenizer minimises
    the negative logits, or with `non-saturating` the softplus of the negative logits."""
    channels: int = setting(64, least=1, changeable=False)
    """Base width. The width doubles each time the resolution is halved, up to eight times the base. Of the kind
    `frozen` the width of each head (the paper's 384)."""
    layers: int = setting(3, least=1, changeable=False)
    """Number of strided layers of the PatchGAN, including the first one."""
    norm: Literal["batch", "group"] = setting("batch", changeable=False)
    """Normalisation in the PatchGAN and in the heads of `frozen`. `batch` mixes the images of a rank's micro-batch, in
    the gradient of R1, too; of `frozen` at most eight of them."""
    lecam_weight: float = setting(0.0, changeable=False)
    """Weight of LeCam regularisation in the discriminator's objective; 0: no LeCam."""
    lecam_decay: float = setting(0.999, below=1)
    """Decay per step of LeCam's moving averages of the logits."""
    r1_weight: float = 0.0
    """gamma of the R1 gradient penalty gamma/2 |grad D(real)|^2 in the discriminator's objective; 0: no penalty."""
    r1_every: int = setting(16, least=1)
    """Number of steps from one R1 penalty to the next; each penalty is multiplied by this number."""

    @property
    def network(self) -> str:
        """Name of the frozen network that judges; empty where there is none."""
        return self.backbone if self.weight and self.kind == "frozen" else ""

    def check(self, image_size: int) -> None:
        """Raise `UserError` for settings that contradict each other or the image size."""
        if not self.weight:
            extras = ("adaptive", "warmup_steps", "lecam_weight", "r1_weight", "augment")
            if extra := next((name for name in extras if getattr(self, name)), ""):
                raise UserError(f"discriminator.{extra} needs a discriminator: set discriminator.weight above 0")
        if self.kind == "frozen":
            self._check_frozen()
            return
        if extra := next((name for name in ("backbone", "depths") if getattr(self, name)), ""):
            raise UserError(f"discriminator.{extra} needs discriminator.kind frozen, not {self.kind}")
        if self.kind == "patchgan":
            if self.norm == "group" and self.channels % 16:
                raise UserError(f"discriminator.channels {self.channels} must be a multiple of 16 with group norm")
            if self.weight and image_size < 3 * 2**self.layers:
                raise UserError(f"discriminator.layers {self.layers} is too deep for model.image_size {image_size}")
            return
        if (self.norm, self.layers) != (DiscriminatorConfig.norm, DiscriminatorConfig.layers):
            raise UserError(
                "discriminator.norm and discriminator.layers are the PatchGAN's: leave them at their defaults"
            )
        if image_size < 32 or image_size % 2 ** (image_size.bit_length() - 3):
            raise UserError(
                f"discriminator.kind stylegan needs an image size of at least 32 that is 4, 5, 6 or 7 times a power of "
                f"two, got model.image_size {image_size}"
            )

    def _check_frozen(self) -> None:
        if not self.backbone:
            raise UserError("discriminator.kind frozen needs a discriminator.backbone, such as efficientnet-lite0")
        if self.layers != DiscriminatorConfig.layers:
            raise UserError("discriminator.layers are the PatchGAN's: discriminator.depths chooses those of a backbone")
        if self.r1_weight:
            raise UserError(
                "discriminator.r1_weight is not for discriminator.kind frozen: spectral norm bounds its heads, and not "
                "every backbone can be differentiated twice; set it to 0"
            )
        if self.norm == "group" and self.channels % 32:
            raise UserError(f"discriminator.channels {self.channels} must be a multiple of 32 with group norm")
