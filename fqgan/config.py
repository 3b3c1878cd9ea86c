"""Everything that can be set, as frozen dataclasses. No torch here, so that the command line starts fast."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from fqgan.errors import UserError
from fqgan.schema import flatten

# Class-token (or pooled) feature dimensions of the teachers that presets name, so that a model can be built
# without loading its teachers.
TEACHER_DIMS = {
    "efficientnet-lite0": 1280,
    "clip:openai/clip-vit-large-patch14": 1024,
    "clip:openai/clip-vit-base-patch16": 768,
    "dinov2:facebook/dinov2-small": 384,
}


@dataclass(frozen=True)
class FactorConfig:
    """One factor: a sub-codebook with its adapter (paper section 3.2)."""

    name: str = "visual"
    """Name in logs, reports and metrics; unique within a model."""
    codebook_size: int = 16384
    """Number of codes K."""
    code_dim: int = 8
    """Dimension D of a code."""
    adapter_depth: int = 6
    """Transformer blocks of the adapter F_i (Eq. 4); 0: no adapter, the factor reads the encoder directly."""
    teacher: str = ""
    """Frozen vision model whose class token this factor predicts (section 3.2.2); empty: none."""
    teacher_dim: int = 0
    """Dimension of the teacher's feature; 0: looked up, or asked of the teacher when training starts."""


def teacher_dim(factor: FactorConfig) -> int:
    """Feature dimension of a factor's teacher; `UserError` when it is neither given nor known."""
    dim = factor.teacher_dim or TEACHER_DIMS.get(factor.teacher.partition("@")[0], 0)
    if not dim:
        raise UserError(
            f"factor {factor.name}: the dimension of teacher {factor.teacher!r} is not known: set teacher_dim"
        )
    return dim


@dataclass(frozen=True)
class TokenizerConfig:
    """Architecture of a tokenizer. The defaults are the paper's dual tokenizer at 16x."""

    image_size: int = 256
    """Pixels a side at training. Any other multiple of the downsampling factor works at inference."""
    stem: int = 1
    """Space-to-depth factor in front of the encoder (and behind the decoder); 1: the paper's convolutional stem.
    Larger values trade detail for speed on small machines."""
    channels: int = 128
    """Base width of the convolutional encoder and decoder."""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each resolution level over `channels`; every level but the last halves the resolution."""
    res_blocks: int = 2
    """Residual blocks of an encoder level; the decoder has one more."""
    attention: bool = True
    """Self-attention at the lowest resolution, as VQGAN has it."""
    z_channels: int = 256
    """Width between the convolutional networks and the code projections."""
    dropout: float = 0.0
    """Dropout in the residual blocks."""
    adapter_head_dim: int = 64
    """Channels of an attention head in the adapters."""
    feature_head_depth: int = 3
    """Transformer blocks of a feature-prediction head."""
    feature_head_heads: int = 8
    """Attention heads of a feature-prediction head."""
    feature_head_width: int = 0
    """Width of a feature-prediction head; 0: the teacher's dimension, as in the released models. Any other width
    ends in a linear map to the teacher's dimension."""
    factors: tuple[FactorConfig, ...] = (
        FactorConfig("visual"),
        FactorConfig("semantic", teacher="clip:openai/clip-vit-large-patch14"),
    )

    @property
    def downsampling(self) -> int:
        """Pixels a side of one position."""
        return self.stem * 2 ** (len(self.channel_multipliers) - 1)

    @property
    def grid(self) -> int:
        """Positions a side at `image_size`."""
        return self.image_size // self.downsampling

    def check(self) -> None:
        """Raise `UserError` for an architecture that cannot be built."""
        if not self.factors or not self.channel_multipliers:
            raise UserError("model.factors and model.channel_multipliers need at least one entry each")
        _check_ranges(self, "model.")
        if self.image_size % self.downsampling:
            raise UserError(
                f"model.image_size {self.image_size} is no multiple of the downsampling factor {self.downsampling}"
            )
        names = [factor.name for factor in self.factors]
        if len(set(names)) < len(names):
            raise UserError(f"factor names must differ, got {', '.join(names)}")
        if any(self.channels * multiplier % 32 for multiplier in self.channel_multipliers):
            raise UserError(
                f"model.channels {self.channels} times each multiplier must be a multiple of 32 (norm groups)"
            )
        width = self.channels * self.channel_multipliers[-1]
        for factor in self.factors:
            if factor.adapter_depth and width % self.adapter_head_dim:
                raise UserError(f"model.adapter_head_dim {self.adapter_head_dim} does not divide the width {width}")
            if factor.teacher and self.feature_head_width % self.feature_head_heads:
                raise UserError(
                    f"model.feature_head_heads {self.feature_head_heads} does not divide model.feature_head_width "
                    f"{self.feature_head_width}"
                )


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and how they are cut."""

    source: str = ""
    """`photos` (the packaged photographs), `cifar10` or `cifar100` (as torchvision keeps them), an image folder, or
    parquet files or WebDataset tars: a file, a folder of them, a glob, or a range such as `train-{0000..0099}.tar`."""
    validation: str = ""
    """The same for validation; empty: the held-out regions of `photos`, CIFAR's test split, else no validation."""
    crop_min: float = 0.8
    """ADM random crop: smallest crop as a fraction of the resized shorter side."""
    crop_max: float = 1.0
    """ADM random crop: largest crop as a fraction of the resized shorter side; 1 and 1: centre crop."""
    flip: bool = True
    """Mirror half of the images."""
    upscale: bool = False
    """Enlarge images whose shorter side is below model.image_size; otherwise they are refused."""
    max_unreadable: float = 0.01
    """Share of pictures that may be unreadable: each is named in a warning and another takes its place; more than that
    (and more than ten) end the run. 0: the first one does."""
    workers: int = 4
    """Loader processes of each rank; 0: load in the training process."""
    window: int = 16
    """Blocks of a sequential source (row groups, spans of a tar) that are shuffled together, over all lanes."""
    lanes: int = 1
    """Lanes of the sample order. Where it is a multiple of the ranks, every rank reads blocks of its own, which spares
    shared storage; the order depends on it, but not on the ranks. 1: all ranks read all blocks."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of Eq. 2 and Eq. 8, and the form of each term."""

    reconstruction: Literal["l1", "l2"] = "l2"
    """Pixel loss, in the [-1, 1] range."""
    reconstruction_weight: float = 1.0
    perceptual: Literal["lpips-vgg", "efficientnet-lite0", "none"] = "lpips-vgg"
    """Perceptual distance: LPIPS on VGG-16, or the distance on the packaged EfficientNet's stages (offline)."""
    perceptual_weight: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.03
    entropy_temperature: float = 0.01
    """Temperature tau of the soft assignment softmax(-d / tau)."""
    disentangle_weight: float = 0.1
    """lambda_1 of Eq. 8."""
    disentangle_codebooks: bool = False
    """Let the gradient of Eq. 7 reach the codebooks; in the released models it reaches adapters and encoder only."""
    representation_weight: float = 0.5
    """lambda_2 of Eq. 8."""
    representation_temperature: float = 1.0
    """Temperature of InfoNCE; the released models use none (1)."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The adversarial term of Eq. 2."""

    start: int = 20_000
    """Optimizer step from which discriminator and GAN loss are active."""
    weight: float = 0.5
    """Weight of the GAN loss in the generator's objective; 0: no discriminator is built."""
    channels: int = 64
    """Base width of the PatchGAN."""
    layers: int = 3
    """Strided layers of the PatchGAN after its first."""
    norm: Literal["batch", "group"] = "batch"


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam and its schedule, in optimizer steps."""

    lr: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.95
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    final_lr: float = 0.0
    """Where the cosine ends, as a fraction of `lr`."""
    clip: float = 1.0
    """Largest gradient norm (of generator and discriminator each); 0: no clipping."""


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch, precision and bookkeeping of a training run."""

    batch: int = 256
    """Images of one optimizer step over all ranks."""
    micro_batch: int = 0
    """Images of a rank at a time; 0: batch / ranks. batch must be a multiple of micro_batch * ranks."""
    epochs: float = 40
    """Passes over the data; converted to steps once."""
    steps: int = 0
    """Optimizer steps; 0: from `epochs`."""
    precision: Literal["bf16", "float32"] = "bf16"
    """Autocast of the networks; quantizer and losses are float32 always."""
    ema_decay: float = 0.0
    """Decay of the weights' moving average a step; 0: none."""
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    deterministic: bool = False
    """Deterministic kernels on a GPU, for bit-exact resume there."""
    log_every: int = 50
    """Steps between lines of stats.jsonl."""
    image_every: int = 1000
    """Steps between pictures of reconstructions; 0: none."""
    validate_every: int = 5000
    """Steps between validations; 0: none."""
    validation_images: int = 2048
    """Images of one validation at most."""
    checkpoint_every: int = 5000
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = 2
    """Checkpoints kept."""
    wandb: str = ""
    """Project to log to on Weights & Biases (needs the package wandb); empty: none."""


@dataclass(frozen=True)
class TokenizerRunConfig:
    """A tokenizer training run. The defaults are the paper's recipe (section 4.1, reference B)."""

    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def check(self) -> None:
        """Raise `UserError` for settings that contradict each other."""
        self.model.check()
        _check_ranges(self)
        dims = {factor.code_dim for factor in self.model.factors}
        if self.loss.disentangle_weight and len(dims) > 1:
            raise UserError("loss.disentangle_weight needs factors of one code_dim (Eq. 7): set it to 0 or align them")
        if not 0 < self.data.crop_min <= self.data.crop_max <= 1:
            raise UserError("data.crop_min and data.crop_max must satisfy 0 < crop_min <= crop_max <= 1")
        if not self.loss.representation_weight and any(factor.teacher for factor in self.model.factors):
            raise UserError('loss.representation_weight 0 would leave a feature head untrained: set its teacher to ""')
        if not self.train.steps and not self.train.epochs:
            raise UserError("train.steps and train.epochs are both 0: set one of them")
        gan, size = self.discriminator, self.model.image_size
        if gan.norm == "group" and gan.channels % 16:
            raise UserError(f"discriminator.channels {gan.channels} must be a multiple of 16 with group norm")
        if gan.weight and size < 3 * 2**gan.layers:
            raise UserError(f"discriminator.layers {gan.layers} is too deep for model.image_size {size}")


# what numbers may be; all others must be at least 0
_AT_LEAST_1 = re.compile(
    r"model\.(image_size|stem|channels|channel_multipliers|res_blocks|z_channels|adapter_head_dim|feature_head_depth|"
    r"feature_head_heads|factors\.\d+\.(codebook_size|code_dim))|data\.(window|lanes)|discriminator\.(channels|layers)|"
    r"train\.(batch|log_every|checkpoint_every|keep_last)"
)
_ABOVE_0 = ("loss.entropy_temperature", "loss.representation_temperature", "optimizer.lr")
_BELOW_1 = ("data.max_unreadable", "model.dropout", "optimizer.beta1", "optimizer.beta2", "train.ema_decay")


def _check_ranges(config: Any, prefix: str = "") -> None:
    """`UserError` for the first number outside its range; infinity and not-a-number are outside every range."""
    for leaf, value in flatten(config).items():
        name = prefix + leaf
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, str):
                continue
            low, high = int(bool(_AT_LEAST_1.fullmatch(name))), 1 if name in _BELOW_1 else math.inf
            if not low <= number < high or (name in _ABOVE_0 and not number):
                rule = "above 0" if name in _ABOVE_0 else f"at least {low}" + (" and below 1" if high == 1 else "")
                raise UserError(f"{name} must be {rule}, got {number}")
