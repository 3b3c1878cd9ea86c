"""A tokenizer: its architecture, data, losses and training run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fqgan.base.errors import UserError
from fqgan.base.schema import without
from fqgan.config.data import DataConfig
from fqgan.config.discriminator import DiscriminatorConfig
from fqgan.config.factor import MOST_FACTORS, FactorConfig
from fqgan.config.latent import LatentConfig
from fqgan.config.ranges import check_ranges, setting
from fqgan.config.training import OptimizerConfig, TrainConfig, check_run


@dataclass(frozen=True)
class TokenizerConfig:
    """Architecture of a tokenizer. The defaults are the paper's dual tokenizer at 16x."""

    image_size: int = setting(256, least=1)
    """Side of the training images in pixels. A trained tokenizer takes images whose sides are any multiple of the
    downsampling factor."""
    stem: int = setting(1, least=1)
    """Space-to-depth factor in front of the encoder (and behind the decoder); 1: the paper's convolutional stem.
    Larger values trade detail for speed on small machines."""
    channels: int = setting(128, least=1)
    """Base width of the convolutional encoder and decoder."""
    channel_multipliers: tuple[int, ...] = setting((1, 1, 2, 2, 4), least=1, most=2**10)
    """Width of each resolution level, as a multiple of `channels`; every level but the last halves the resolution."""
    res_blocks: int = setting(2, least=1, most=1000)
    """Number of residual blocks in each level of the encoder; each level of the decoder has one more."""
    decoder_channels: int = 0
    """Base width of the decoder; 0: the encoder's. Parameters gain more in the decoder (GigaTok, Xiong et al. 2025)."""
    decoder_res_blocks: int = setting(0, most=1000)
    """Number of residual blocks in each level of the decoder, less one; 0: `res_blocks`."""
    attention: bool = True
    """Use self-attention at the lowest resolution, as VQGAN does."""
    attention_at: Literal["lowest", "middle"] = setting("lowest", rare=True)
    """Where `attention` is. lowest: after each residual block of the lowest resolution, and in the middle, between
    encoder or decoder and the code projections. middle: there alone, as in latent diffusion's vq-f4."""
    z_channels: int = setting(256, least=1)
    """Number of channels between the convolutional networks and the code projections."""
    dropout: float = setting(0.0, below=1)
    """Dropout rate in the residual blocks."""
    adapter_head_dim: int = setting(64, least=1)
    """Number of channels of each attention head in the adapters."""
    feature_head_depth: int = setting(3, least=1, most=1000)
    """Number of transformer blocks of a feature-prediction head."""
    feature_head_heads: int = setting(8, least=1)
    """Number of attention heads of a feature-prediction head."""
    feature_head_width: int = 0
    """Width of a feature-prediction head; 0: the teacher's dimension, as in the released models. With any other width,
    the head ends in a linear map to the teacher's dimension."""
    composition: Literal["factorized", "product", "residual"] = setting("factorized", rare=True)
    """How the factors share a position's features. factorized: each has an adapter of its own, and their vectors are
    concatenated (Eq. 4, 5). product: they split the channels of one projection (product quantization). residual: each
    quantizes what the ones before it left, and the vectors are summed (RQ-VAE, Lee et al. 2022)."""
    shared_codebook: bool = setting(False, rare=True)
    """Use one codebook for all factors of a residual composition, as RQ-VAE does."""
    codes_of: str = setting("", rare=True)
    """Fingerprint of the tokenizer whose codes these are, where `train.only` decoder has trained another decoder of
    them; training writes it, so that a generator takes both."""
    critic: str = setting("", rare=True)
    """Frozen network that judged the reconstructions in training (`discriminator.backbone`); training writes it, so
    that studies know which networks' distances flatter the tokenizer."""
    factors: tuple[FactorConfig, ...] = (
        FactorConfig("visual"),
        FactorConfig("semantic", teacher="clip:openai/clip-vit-large-patch14"),
    )

    @property
    def downsampling(self) -> int:
        """Pixels a side of one position."""
        return self.stem * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def decoder_shape(self) -> tuple[int, int]:
        """Base width and residual blocks of the decoder, the latter less one in each level."""
        return self.decoder_channels or self.channels, self.decoder_res_blocks or self.res_blocks

    @property
    def map_channels(self) -> int:
        """Channels of the widest map at full resolution."""
        return max(self.channels, self.decoder_shape[0])

    @property
    def grid(self) -> int:
        """Positions a side at `image_size`."""
        return self.image_size // self.downsampling

    def check(self) -> None:
        """Raise `UserError` for an architecture that cannot be built."""
        if not self.factors or not self.channel_multipliers:
            raise UserError("model.factors and model.channel_multipliers need at least one entry each")
        if len(self.factors) > MOST_FACTORS:
            raise UserError(f"model.factors has {len(self.factors)} entries, at most {MOST_FACTORS} make sense")
        check_ranges(self, "model.")
        if self.image_size % self.downsampling:
            raise UserError(
                f"model.image_size {self.image_size} is no multiple of the downsampling factor {self.downsampling}"
            )
        self._check_composition()
        names = [factor.name for factor in self.factors]
        if odd := [name for name in names if not name.isprintable() or not name.strip()]:
            raise UserError(f"a factor's name must be printable, got {odd[0]!r}")
        if len(set(names)) < len(names):
            raise UserError(f"factor names must differ, got {', '.join(names)}")
        for name in ("channels", "decoder_channels"):
            if any((channels := getattr(self, name)) * multiplier % 32 for multiplier in self.channel_multipliers):
                raise UserError(f"model.{name} {channels} times each multiplier must be a multiple of 32 (norm groups)")
        width = self.channels * self.channel_multipliers[-1]
        for factor in self.factors:
            factor.check()
            if factor.adapter_depth and width % self.adapter_head_dim:
                raise UserError(f"model.adapter_head_dim {self.adapter_head_dim} does not divide the width {width}")
            if factor.teacher and self.feature_head_width % self.feature_head_heads:
                raise UserError(
                    f"model.feature_head_heads {self.feature_head_heads} does not divide model.feature_head_width "
                    f"{self.feature_head_width}"
                )

    def _check_composition(self) -> None:
        first, *others = self.factors
        name = f"model.composition {self.composition}"
        if self.shared_codebook and self.composition != "residual":
            raise UserError(f"model.shared_codebook needs model.composition residual, not {self.composition}")
        if self.composition == "factorized":
            return
        if any(factor.adapter_depth != first.adapter_depth for factor in others):
            raise UserError(f"{name} has one adapter: give all factors the same adapter_depth")
        if self.composition == "product":
            return
        if any(factor.code_dim != first.code_dim for factor in others):
            raise UserError(f"{name} sums the factors' vectors: give all factors the same code_dim")
        if taught := [factor.name for factor in others if factor.teachers]:
            raise UserError(
                f"{name}: factor {taught[0]} holds what the ones before it left, which predicts no teacher: set its "
                'teachers to ""'
            )
        alike = {"name": "", "teacher": "", "teacher_dim": 0, "spatial_teacher": "", "spatial_teacher_dim": 0}
        if self.shared_codebook and any(replace(each, **alike) != replace(first, **alike) for each in others):
            raise UserError("model.shared_codebook needs factors of the same quantizer and sizes")


@dataclass(frozen=True)
class LossConfig:
    """Weights of Eq. 2 and Eq. 8, and the form of each term."""

    CHANGEABLE = True

    reconstruction: Literal["l1", "l2"] = "l2"
    """Pixel loss, computed on images in [-1, 1]."""
    reconstruction_weight: float = 1.0
    """Weight of the pixel loss."""
    perceptual: Literal["lpips-vgg", "efficientnet-lite0", "none"] = "lpips-vgg"
    """Perceptual distance: LPIPS on VGG-16, or the distance on the packaged EfficientNet's stages (offline)."""
    perceptual_weight: float = 1.0
    """Weight of the perceptual distance."""
    codebook_weight: float = 1.0
    """Weight of the codebook loss, which moves codes toward features (Eq. 2)."""
    commitment_weight: float = 0.25
    """Weight of the commitment loss, which moves features toward their codes (Eq. 2)."""
    entropy_weight: float = 0.03
    """Weight of the entropy loss: sure choices at each position, all codes used over the batch."""
    entropy_temperature: float = setting(0.01, positive=True)
    """Temperature tau of the soft assignment softmax(-d / tau)."""
    disentangle_weight: float = 0.1
    """Weight of the disentanglement loss: lambda_1 of Eq. 8. Its gradient reaches the adapters and the encoder, but not
    the codebooks."""
    independence_weight: float = 0.0
    """Weight of the factors' dependence at a position, measured by kernels (HSIC, Gretton et al. 2005, normalised). It
    is 0 if no factor tells anything about another, which Eq. 7's right angle does not ensure."""
    representation_weight: float = 0.5
    """Weight of the representation loss: lambda_2 of Eq. 8. It multiplies the sum over the factors that have a
    teacher."""
    representation: Literal["infonce", "cosine"] = "infonce"
    """Loss between the predicted features and the teacher's: InfoNCE over the images of all ranks, or 1 - cosine
    similarity of each image's pair of features, which needs no negatives and so suits small batches."""
    representation_temperature: float = setting(1.0, positive=True)
    """Temperature of InfoNCE; the released models use none (1). It has no effect on `cosine`."""
    spatial_weight: float = 0.5
    """Weight of the spatial alignment, 1 - cosine similarity of predicted and teacher's map, mean over positions. It
    multiplies the sum over the factors that have a `spatial_teacher`."""

    @classmethod
    def from_older(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Version 0.1 had `disentangle_codebooks`."""
        return without(data, disentangle_codebooks=False)


@dataclass(frozen=True)
class QuantizerConfig:
    """How the codebooks learn. Nothing of the architecture: a trained tokenizer does not depend on it."""

    gradient: Literal["straight-through", "rotation"] = "straight-through"
    """How the gradient passes the quantizer. straight-through: unchanged. rotation: rotated as the feature is rotated
    onto its code (the rotation trick, Fifty et al. 2024)."""
    ema_decay: float = setting(0.0, below=1)
    """Decay per step of the moving average of features that each code follows (van den Oord et al. 2017); 0: codes
    learn by gradient."""
    restart_after: int = 0
    """Number of optimizer steps after which an unused code is replaced by a feature of the current step; 0: never."""
    kmeans_iterations: int = 0
    """Number of k-means iterations that set the codes before the first step, on at least 8 features for each code; 0:
    codes start at random."""


@dataclass(frozen=True)
class TokenizerTrainConfig(TrainConfig):
    """A tokenizer's training run."""

    channels_last: Literal["auto", "on", "off"] = "auto"
    """Use the channels-last memory layout in the convolutional networks; auto: on with CUDA, and on a CPU for large
    feature maps."""
    only: Literal["all", "decoder"] = setting("all", changeable=False)
    """What learns. decoder: the decoder alone, from the tokenizer `init`; encoder, adapters and quantizers stay as they
    are, and with them all codes. Only losses that compare images count then."""
    activation_checkpointing: Literal["none", "transformer", "all"] = "none"
    """Which blocks the backward pass computes again, which saves memory and gives the same gradients. transformer: the
    blocks of adapters and feature heads, for a few percent more time. all: the convolutional blocks, too, for about a
    quarter more time."""


@dataclass(frozen=True)
class TokenizerRunConfig:
    """A tokenizer training run. The defaults are the paper's recipe (section 4.1, reference B)."""

    init: str = ""
    """Tokenizer whose weights the run starts from, together with its discriminator's weights if it has one: a run, a
    checkpoint, an export, a released file or hf:org/name. Empty: random weights."""
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TokenizerTrainConfig = field(default_factory=TokenizerTrainConfig)

    def fixed_since(self, old: TokenizerRunConfig) -> set[str]:
        """What a resumed run may usually change, and must not where it was begun with the settings `old`."""
        fixed: set[str] = set()
        if not (old.discriminator.weight and self.discriminator.weight):  # with 0 there is no discriminator
            fixed.add("discriminator.weight")
        if self.discriminator.lecam_weight:  # LeCam's averages start with it
            fixed.add("discriminator.start")
        return fixed

    def check(self) -> None:
        """Raise `UserError` for settings that contradict each other."""
        self.model.check()
        check_run(self)
        dims = {factor.code_dim for factor in self.model.factors}
        if self.loss.disentangle_weight and len(dims) > 1:
            raise UserError("loss.disentangle_weight needs factors of one code_dim (Eq. 7): set it to 0 or align them")
        if self.init and self.quantizer.kmeans_iterations:
            raise UserError("quantizer.kmeans_iterations would overwrite the codebooks of --init: set it to 0")
        if not 0 < self.data.crop_min <= self.data.crop_max <= 1:
            raise UserError("data.crop_min and data.crop_max must satisfy 0 < crop_min <= crop_max <= 1")
        if not self.loss.representation_weight and any(factor.teacher for factor in self.model.factors):
            raise UserError('loss.representation_weight 0 would leave a feature head untrained: set its teacher to ""')
        if not self.loss.spatial_weight and any(factor.spatial_teacher for factor in self.model.factors):
            raise UserError('loss.spatial_weight 0 would leave a spatial head untrained: set its spatial_teacher to ""')
        self.latent.check(self.model.factors)
        self._check_decoder_only()
        self.discriminator.check(self.model.image_size)
        if self.discriminator.adaptive and not (self.loss.reconstruction_weight or self.loss.perceptual_weight):
            raise UserError("discriminator.adaptive needs loss.reconstruction_weight or loss.perceptual_weight above 0")

    def _check_decoder_only(self) -> None:
        if self.train.only == "all":
            if self.latent.codes:
                raise UserError("latent.codes are for a decoder that learns alone: set train.only to decoder")
            return
        if not self.init:
            raise UserError("train.only decoder needs --init: the trained tokenizer whose codes it learns to decode")
        options = ("ema_decay", "restart_after", "kmeans_iterations")
        if option := next((name for name in options if getattr(self.quantizer, name)), ""):
            raise UserError(f"quantizer.{option} changes codes, and train.only decoder leaves them alone: set it to 0")
        data = self.data
        if self.latent.codes and (data.crop_min < 1 or data.crop_max < 1 or data.flip or data.turn or data.jitter):
            options = "--data.crop-min 1 --data.crop-max 1 --data.no-flip --data.no-turn --data.jitter 0"
            raise UserError(f"latent.codes are those of centre crops, which training must take too: {options}")
