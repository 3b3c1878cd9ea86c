"""A generator: its architecture, how it samples, and its training run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from fqgan.base.errors import UserError
from fqgan.config.ranges import check_ranges, setting
from fqgan.config.sampling import SamplingConfig
from fqgan.config.training import OptimizerConfig, TrainConfig, check_run

_LEVERS = (
    "head_rounds",
    "factor_order",
    "adaln",
    "target_positions",
    "code_vectors",
)  # settings that the released models don't know, and no file of theirs can hold


@dataclass(frozen=True)
class GeneratorConfig:
    """Architecture of FAR (paper section 3.3). The defaults are FAR-Base (Table 7)."""

    codebook_sizes: tuple[int, ...] = setting((), least=1, most=2**24)
    """Number of codes of each of the k factors. Empty: taken from the token store."""
    grid: tuple[int, ...] = setting((), least=1)
    """Height and width of the token grid, in positions. Empty: taken from the token store."""
    num_classes: int = setting(0, most=2**24)
    """Number of classes, without the null class of classifier-free guidance. 0: taken from the token store; where that
    has no labels, the null class is the only one."""
    width: int = setting(1024, least=1)
    """Width d of the backbone and of the auto-regressive head."""
    depth: int = setting(24, least=1, most=1000)
    """Number of transformer blocks of the backbone."""
    heads: int = setting(16, least=1)
    """Number of attention heads, in the backbone and in the auto-regressive head."""
    kv_heads: int = 0
    """Number of key and value heads (grouped-query attention); 0: as many as `heads`."""
    qk_norm: bool = False
    """Apply RMSNorm to the queries and keys of each attention head."""
    adaln: bool = setting(False, rare=True)
    """Let the class, beside its token, also scale and shift what the backbone's blocks normalise, and scale what they
    add (adaLN-zero, DiT, Peebles & Xie 2022): 6 `width`^2 more parameters a block."""
    target_positions: bool = setting(False, rare=True)
    """Add to each input a learned embedding of the position whose codes are predicted from it, as other orders than
    raster need it (RAR, Yu et al. 2024)."""
    code_vectors: bool = setting(False, rare=True)
    """Add to the input and output rows of each code a learned linear map of its vector in the tokenizer, so that near
    codes share what is learned (inputs as in RQ-Transformer, Lee et al. 2022)."""
    code_dims: tuple[int, ...] = setting((), least=1, rare=True)
    """Dimensions of these vectors. Empty: taken from the token store."""
    mlp_multiple: int = setting(256, least=1, most=2**24)
    """The hidden width of SwiGLU is 8/3 `width`, rounded up to a multiple of this number."""
    aggregation: bool = setting(True, rare=True)
    """Map the k embeddings of a position, concatenated, to the backbone's input by a linear layer. Without it, which
    takes a single factor, the embedding is the input, as in LlamaGen."""
    head: Literal["ar", "mlp", "linear", "masked"] = "ar"
    """What predicts the k codes of a position (Table 4): the factorized auto-regressive head, k two-layer
    classifiers, or k linear ones. Or a masked head, which predicts several factors at once in a few rounds (MaskGIT,
    Chang et al. 2022, within a position)."""
    head_depth: int = setting(3, least=1, most=1000)
    """Number of transformer blocks of the auto-regressive head, or of residual layers of the masked one."""
    head_rounds: int = setting(0, rare=True)
    """Number of rounds in which the masked head predicts the factors of a position, the last ones with the most
    factors, which are independent within a round; training does not depend on it. 0: a round for each factor."""
    factor_order: tuple[int, ...] = setting((), rare=True)
    """Order in which the auto-regressive or the masked head predicts the factors of a position, by their numbers: 1 0
    predicts the second one first, a semantic one, say. Empty: as they stand (paper section 3.3)."""
    norm_eps: float = setting(1e-5, positive=True)
    rope_base: float = setting(10_000.0, positive=True)
    """Base of the rotary frequencies (RoPE)."""
    dropout: float = setting(0.1, below=1)
    """Dropout rate on token embeddings and on the outputs of attention and MLP."""
    class_dropout: float = setting(0.1, below=1)
    """Share of training samples whose class is replaced by the null class."""
    legacy: bool = False
    """Compute as the released models do: their rotary rows are zero for the class position and for the head's first
    position, so that the queries and keys of these two positions are zero."""

    @property
    def num_factors(self) -> int:
        """k."""
        return len(self.codebook_sizes)

    @property
    def tables(self) -> list[tuple[int, int]]:
        """Of each factor: number of codes, and dimension of the vectors by which they share rows, or 0."""
        return list(zip(self.codebook_sizes, self.code_dims or [0] * self.num_factors, strict=True))

    @property
    def order(self) -> tuple[int, ...]:
        """Numbers of the factors in the order in which the head predicts them."""
        return self.factor_order or tuple(range(self.num_factors))

    @property
    def rounds(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the factors that the head predicts at once, round by round: later rounds see the codes of the
        earlier ones."""
        k, order = self.num_factors, self.order
        count = {"ar": k, "masked": self.head_rounds or k}.get(self.head, 1)
        return tuple(order[k * r // count : k * (r + 1) // count] for r in range(count))

    @property
    def num_positions(self) -> int:
        """Positions of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def mlp_width(self) -> int:
        """Hidden width of SwiGLU."""
        return -(-(8 * self.width // 3) // self.mlp_multiple) * self.mlp_multiple

    def resolved(
        self, codebook_sizes: tuple[int, ...], grid: tuple[int, ...], num_classes: int, code_dims: tuple[int, ...] = ()
    ) -> GeneratorConfig:
        """With what a token store says in place of what is left open; `UserError` where the two disagree. Without
        classes the generator is unconditional: it knows the null class only."""
        code_dims = code_dims if self.code_vectors else ()
        if self.code_vectors and not all(code_dims or (0,)):
            raise UserError(
                "model.code_vectors needs vectors of the codes, which a tokenizer by address lacks: add "
                "--model.no-code-vectors"
            )
        known = {"codebook_sizes": codebook_sizes, "grid": grid, "code_dims": code_dims}
        for name, given in known.items():
            if (own := getattr(self, name)) and own != given:
                values = " ".join(map(str, given))
                raise UserError(
                    f"model.{name} is {' '.join(map(str, own))}, but the token store has {values}: leave it out, or "
                    f"extract codes with the tokenizer that belongs to it"
                )
        if self.num_classes and not num_classes:
            raise UserError(f"model.num_classes is {self.num_classes}, but the token store has no labels: leave it out")
        if self.num_classes and self.num_classes < num_classes:
            raise UserError(f"model.num_classes is {self.num_classes}, but the token store has {num_classes} classes")
        classes = self.num_classes or num_classes
        return replace(self, **{name: tuple(given) for name, given in known.items()}, num_classes=classes)

    def check(self) -> None:
        """Raise `UserError` for an architecture that cannot be built. What is left open passes."""
        check_ranges(self, "model.")
        if len(self.grid) not in (0, 2):
            raise UserError(f"model.grid must be a height and a width, got {len(self.grid)} number(s)")
        if self.width % self.heads or self.width // self.heads % 4:
            raise UserError(
                f"model.width {self.width} must be model.heads {self.heads} times a multiple of 4 (rotary positions)"
            )
        if not self.aggregation and self.num_factors > 1:
            raise UserError(
                f"model.aggregation is needed with {self.num_factors} factors: their embeddings make one input"
            )
        if self.factor_order and self.head not in ("ar", "masked"):
            raise UserError(
                f"model.factor_order is for model.head ar or masked: head {self.head} predicts all factors at once"
            )
        k = self.num_factors or len(self.factor_order)
        if self.head_rounds and self.head != "masked":
            raise UserError(f"model.head_rounds is for model.head masked, and this is {self.head}: drop one")
        if k and self.head_rounds > k:
            raise UserError(f"model.head_rounds must be at most the number of factors, {k}, got {self.head_rounds}")
        if self.factor_order and sorted(self.factor_order) != list(range(k)):
            given = " ".join(map(str, self.factor_order))
            raise UserError(f"model.factor_order must name each of the factors 0 to {k - 1} once, got {given}")
        if self.legacy and (own := [name for name in _LEVERS if getattr(self, name)]):
            raise UserError(f"model.legacy computes as the released models do, which have no model.{own[0]}: drop one")
        if self.kv_heads and self.heads % self.kv_heads:
            raise UserError(f"model.kv_heads {self.kv_heads} does not divide model.heads {self.heads}")


@dataclass(frozen=True)
class GeneratorTrainConfig(TrainConfig):
    """A generator's training run."""

    epochs: float = 300
    """Number of passes over the images of the store, with one crop of each image per pass; converted to steps when
    training starts."""
    ema_decay: float = setting(0.9999, below=1, changeable=False)
    activation_checkpointing: bool = False
    """Compute the blocks again in the backward pass: the same gradients with less memory, for about a third more
    time."""
    fsdp: bool = False
    """Spread weights, gradients and optimizer state over the ranks (FSDP2) instead of copying them to each rank
    (DDP)."""
    random_order: tuple[float, ...] = setting((0.0, 0.0), rare=True, changeable=False)
    """Order annealing (RAR, Yu et al. 2024), as two fractions of the run: until the first every image is learned in a
    random order of its positions; from there the share of such images falls linearly, to none at the second. Sampling
    is in raster order. 0 0: raster order throughout. It needs `model.target_positions`."""
    cluster_weight: float = setting(0.0, rare=True, changeable=False)
    """Weight of a cross-entropy over clusters of codes beside that over codes: of the sum of the probabilities of all
    codes in the cluster of the right one, so that a near code is a smaller mistake than a far one (IAR, Hu et al.
    2025). It needs a tokenizer of this package, for the vectors of the codes. 0: none."""
    clusters: tuple[int, ...] = setting((64,), least=1, rare=True, changeable=False)
    """Number of clusters, by k-means of the codes' vectors: one for all factors, or one for each."""
    sample_images: int = setting(16, least=1, most=2**16)
    """Number of images in a sample grid."""

    def random_share(self, progress: float) -> float:
        """Share of the images in a random order at `progress` in [0, 1] of the run."""
        start, end = self.random_order
        return 1.0 if progress < start else max(0.0, (end - progress) / (end - start)) if end > start else 0.0


@dataclass(frozen=True)
class GeneratorRunConfig:
    """A generator's training run. The defaults are the paper's recipe (section 4.1)."""

    data: str = setting("", changeable=True)
    """Token store to train on (`fqgan extract` makes one)."""
    validation: str = setting("", changeable=True)
    """Token store of held-out images; empty: no validation."""
    init: str = ""
    """Generator whose weights the run starts from: a run, a checkpoint, an export, a released file or hf:org/name.
    Empty: random weights."""
    tokenizer: str = setting("", changeable=True)
    """Tokenizer that the codes belong to; empty: the one that the store carries. A store carries no tokenizer of
    others: py:module:function and diffusers:FOLDER_OR_ID are named here, and run for the sample grids."""
    unconditional: bool = False
    """Train without classes: every image counts as one of the null class. A store without labels is always trained
    like this."""
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the sample grids are drawn."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.05))
    train: GeneratorTrainConfig = field(default_factory=GeneratorTrainConfig)

    def resolved(
        self, codebook_sizes: tuple[int, ...], grid: tuple[int, ...], num_classes: int, code_dims: tuple[int, ...] = ()
    ) -> GeneratorRunConfig:
        """With what a token store says in place of what is left open, `unconditional` among it; `UserError` where the
        two disagree, and for sample grids that cannot be drawn."""
        model = self.model.resolved(codebook_sizes, grid, 0 if self.unconditional else num_classes, code_dims)
        self.sampling.check(codebook_sizes)
        sampling = self.sampling.resolved(conditional=model.num_classes > 0)
        return replace(self, model=model, sampling=sampling, unconditional=not model.num_classes)

    def check(self) -> None:
        """Raise `UserError` for settings that contradict each other."""
        self.model.check()
        check_run(self)
        bounds = self.train.random_order
        if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
            given = " ".join(f"{each:g}" for each in bounds)
            raise UserError(f"train.random_order must be two fractions 0 <= from <= to <= 1 of the run, got {given}")
        if bounds[1] and not self.model.target_positions:
            raise UserError(
                "train.random_order leaves open which position comes next: add --model.target-positions, which tells it"
            )
        if self.unconditional and self.model.num_classes:
            raise UserError(f"--unconditional leaves no classes, but model.num_classes is {self.model.num_classes}")
        if self.train.fsdp and self.optimizer.kind == "muon":
            raise UserError("optimizer.kind muon needs whole matrices: use adam with train.fsdp, or no train.fsdp")
