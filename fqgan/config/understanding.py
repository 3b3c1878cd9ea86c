"""Configuration of the study of understanding: a small language model, the projector into one, and the whole."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.config.data import Small
from fqgan.config.ranges import at_least, check_ranges, setting
from fqgan.config.training import OptimizerConfig, TrainConfig, check_run

Feature = Literal["continuous", "discrete", "network", "blind"]
"""What a language model reads of a picture: a tokenizer's features before quantization; its codes' embeddings; the
packaged EfficientNet's map; zeros."""
WordSplitter = Literal["auto", "java", "python"]
"""What cuts captions into words: Stanford's tokenizer where it is at hand, that one, or ours."""
IMAGE = "<image>"
"""Where a prompt has the picture."""
TINY = "tiny"
"""Names the small language model."""


@dataclass(frozen=True)
class LanguageConfig:
    """A small Phi (transformers) whose tokens are words."""

    width: int = setting(128, least=1)
    depth: int = setting(2, least=1, most=1000)
    """Blocks."""
    heads: int = setting(4, least=1)
    dropout: float = setting(0.1, below=1)
    min_count: int = 2
    """How often a word occurs in the captions, at least; rarer ones are unknown."""

    def check(self) -> None:
        """Raise `UserError` for a model that cannot be built."""
        check_ranges(self, "model.")
        if self.width % self.heads or self.width // self.heads % 4:
            raise UserError(
                f"model.width {self.width} must be a multiple of 4 times model.heads ({self.heads}), for the rotary "
                "positions"
            )


@dataclass(frozen=True)
class LanguageRunConfig:
    """The training of the small language model on captions. The defaults take minutes on a CPU core (LOG.md)."""

    model: LanguageConfig = field(default_factory=LanguageConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=2e-3, schedule="cosine", warmup_steps=50, weight_decay=0.1)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            batch=16,
            steps=800,
            precision="float32",
            log_every=50,
            image_every=0,
            validate_every=200,
            checkpoint_every=100,
            keep_last=1,
        )
    )

    def check(self) -> None:
        """Raise `UserError` for settings that contradict each other."""
        self.model.check()
        check_ranges(self)


@dataclass(frozen=True)
class ProjectorConfig:
    """What is read of a picture, and how it is brought into a language model."""

    feature: Feature = "continuous"
    factors: tuple[int, ...] = ()
    """Of `continuous` and `discrete`: those whose channels are joined at each position."""
    projector: Literal["mlp", "linear"] = "mlp"
    """mlp: two layers with a GELU between them, as in LLaVA 1.5."""
    prompt: str = f"{IMAGE}\n"
    """What stands before a caption."""


@dataclass(frozen=True)
class ProjectorRunConfig:
    """The training of a projector: LLaVA's first stage, with its rate and schedule."""

    model: ProjectorConfig = field(default_factory=ProjectorConfig)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-3, beta2=0.999, schedule="cosine", warmup_steps=20)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            batch=256, epochs=1, log_every=20, image_every=0, validate_every=0, checkpoint_every=100, keep_last=1
        )
    )

    def check(self) -> None:
        """Raise `UserError` for settings that contradict each other."""
        check_run(self)
        if self.model.prompt.count(IMAGE) != 1:
            raise UserError(f"the prompt must hold {IMAGE} once, got {self.model.prompt!r}")


TINY_PROJECTOR = ProjectorRunConfig(
    optimizer=OptimizerConfig(lr=2e-3, beta2=0.999, schedule="cosine", warmup_steps=20, weight_decay=0.05),
    train=replace(LanguageRunConfig().train, steps=600, validate_every=0),
)
"""For the small language model, on one CPU core."""


@dataclass(frozen=True)
class UnderstandingSettings:
    """The study of understanding (Table 6): which models and captions, and how they are trained and measured."""

    tokenizer: str = ""
    """A run, a checkpoint, an exported folder, a released file, or hf:org/name."""
    lm: str = ""
    """A causal language model of transformers, a folder or a hub id (microsoft/phi-2, say), or `tiny`: a small one
    trained here on the training captions alone."""
    data: str = ""
    """Captions to train on: parquet files with the columns image and caption, or annotations of Flickr30k or COCO
    (.json, .csv, .token, .txt)."""
    test: str = ""
    """Captions to measure on; by default the test split of --data."""
    split: Literal["test", "validation"] = "test"
    """What to measure on, where captions come in splits."""
    images: str = ""
    """Folder of the pictures of an annotation file; by default the folder of that file."""
    test_images: str = ""
    """The same, of --test; by default as --images."""
    out: Path = Path()
    """Folder of runs, table and page; the same command resumes, and finished rows are reused."""
    seeds: int = 3
    """Number of seeds of every row, counted from 0."""
    factors: tuple[str, ...] = ()
    """Subsets of the factors, such as 0 1 0+1; by default each by itself, and all together."""
    only: tuple[str, ...] = ()
    """Rows to train and show, such as blind continuous-0 discrete-0+1 network; all by default."""
    projector: Literal["mlp", "linear"] = "mlp"
    """Layers of the projector; mlp: two with a GELU between them, as in LLaVA 1.5. linear: one."""
    prompt: str = f"{IMAGE}\n"
    r"""What stands before a caption; it holds <image> once. \n is a line feed."""
    beams: int = 1
    """Of the search for captions; 1: greedy."""
    tokens: int = 32
    """Of a caption at most."""
    words: WordSplitter = "auto"
    """What cuts captions into words for the metrics: Stanford's tokenizer (needs Java), or the own one."""
    size: int = 0
    """Pixels a side of the pictures that the tokenizer reads; 0: as it was trained."""
    network_size: int = 224
    """The same, of the packaged network."""
    small: Small = "enlarge"
    """Pictures that are smaller than the tokenizer's size: enlarge them, or refuse the set (skip refuses it too)."""
    batch: int = 32
    """Pictures at a time, of features and captions."""
    workers: int = 1
    """Number of loader processes."""
    processes: int = 0
    """Number of rows that train at the same time; 0: one for each GPU, or one without GPUs."""
    optimizer: OptimizerConfig = field(default_factory=lambda: ProjectorRunConfig().optimizer)
    train: TrainConfig = field(default_factory=lambda: ProjectorRunConfig().train)
    language: LanguageRunConfig = field(default_factory=LanguageRunConfig)
    """Of --lm tiny."""

    @property
    def subsets(self) -> list[tuple[int, ...]]:
        """The factors of each of `factors`: `0+2` -> (0, 2)."""
        found = [text.split("+") for text in self.factors]
        for text, parts in zip(self.factors, found, strict=True):
            if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
                raise UserError(f"--factors {text}: name subsets such as 0 1 0+1")
        return [tuple(sorted(map(int, parts))) for parts in found]

    def check(self) -> None:
        """Raise `UserError` for what is missing or makes no sense."""
        if not self.tokenizer:
            raise UserError(
                "name a tokenizer first: fqgan study understanding TOKENIZER --lm PATH_OR_ID --data CAPTIONS --out DIR"
            )
        if not self.lm:
            raise UserError("--lm is missing: a folder or hub id of a causal language model, or tiny")
        if not self.data:
            raise UserError(
                "--data is missing: captioned pictures, such as parquet files with the columns image and caption"
            )
        if self.out == Path():
            raise UserError("--out is missing: the folder of this study, such as --out runs/understanding")
        check_output(self.out, folder=True)
        at_least(1, **{name: getattr(self, name) for name in ("seeds", "beams", "tokens", "batch", "network_size")})
        at_least(0, size=self.size, workers=self.workers, processes=self.processes)
        ProjectorRunConfig(ProjectorConfig(prompt=self.prompt), self.optimizer, self.train).check()
        if self.lm == TINY:
            self.language.check()
        _ = self.subsets
