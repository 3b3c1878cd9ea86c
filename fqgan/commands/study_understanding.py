"""`fqgan study understanding TOKENIZER --lm PATH_OR_ID --data CAPTIONS --out DIR`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say, say_lines
from fqgan.commands.arguments import parse
from fqgan.commands.runs import value_of
from fqgan.config import (
    IMAGE,
    TINY_PROJECTOR,
    LanguageRunConfig,
    OptimizerConfig,
    ProjectorConfig,
    ProjectorRunConfig,
    TrainConfig,
)
from fqgan.config.data import Small
from fqgan.config.ranges import at_least
from fqgan.models import hub

if TYPE_CHECKING:
    from fqgan.lab.understanding.captions import CaptionSet

PROG = "fqgan study understanding"
TINY = "tiny"
ABOUT = "Table 6: a frozen language model reads a tokenizer's features and codes, and writes captions."


@dataclass(frozen=True)
class Arguments:
    """Options of the command."""

    tokenizer: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENIZER")] = ""
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
    """Seeds of every row, counted from 0."""
    factors: tuple[str, ...] = ()
    """Subsets of the factors, such as 0 1 0+1; by default each by itself, and all together."""
    only: tuple[str, ...] = ()
    """Rows to train and show, such as blind continuous-0 discrete-0+1 network; all by default."""
    projector: Literal["mlp", "linear"] = "mlp"
    prompt: str = f"{IMAGE}\n"
    r"""What stands before a caption; it holds <image> once. \n is a line feed."""
    beams: int = 1
    """Of the search for captions; 1: greedy."""
    tokens: int = 32
    """Of a caption at most."""
    words: Literal["auto", "java", "python"] = "auto"
    """What cuts captions into words for the metrics: Stanford's tokenizer (needs Java and fqgan[understanding]), or the
    own one."""
    size: int = 0
    """Pixels a side of the pictures that the tokenizer reads; 0: as it was trained."""
    network_size: int = 224
    """The same, of the packaged network."""
    small: Small = "enlarge"
    """Pictures that are smaller than the tokenizer's size: enlarge them, or refuse the set (skip refuses it too)."""
    batch: int = 32
    """Pictures at a time, of features and captions."""
    workers: int = 1
    """Loader processes."""
    processes: int = 0
    """Rows at a time; 0: one for each GPU, or one."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    language: LanguageRunConfig = field(default_factory=LanguageRunConfig)
    """Of --lm tiny."""


def main(argv: list[str]) -> None:
    """Entry point."""
    base = TINY_PROJECTOR if value_of(argv, "--lm") == TINY else ProjectorRunConfig()
    arguments = parse(Arguments, argv, PROG, ABOUT, Arguments(optimizer=base.optimizer, train=base.train))
    model = ProjectorConfig(projector=arguments.projector, prompt=arguments.prompt.replace("\\n", "\n"))
    base = ProjectorRunConfig(model, arguments.optimizer, arguments.train)
    _check(arguments, base)
    tokenizer = str(hub.local(arguments.tokenizer))
    subsets = [_subset(text) for text in arguments.factors]
    files = _run(arguments, tokenizer, base, subsets)
    say_lines((arguments.out / "table.md").read_text())
    for file in files:
        say(file)


def _check(arguments: Arguments, base: ProjectorRunConfig) -> None:
    """`UserError` for what is missing or makes no sense, before anything slow is imported."""
    if not arguments.tokenizer:
        raise UserError(f"name a tokenizer first: {PROG} TOKENIZER --lm PATH_OR_ID --data CAPTIONS --out DIR")
    if not arguments.lm:
        raise UserError("--lm is missing: a folder or hub id of a causal language model, or tiny")
    if not arguments.data:
        raise UserError(
            "--data is missing: captioned pictures, such as parquet files with the columns image and caption"
        )
    if arguments.out == Path():
        raise UserError("--out is missing: the folder of this study, such as --out runs/understanding")
    check_output(arguments.out, folder=True)
    at_least(1, **{name: getattr(arguments, name) for name in ("seeds", "beams", "tokens", "batch", "network_size")})
    at_least(0, size=arguments.size, workers=arguments.workers, processes=arguments.processes)
    base.check()
    if arguments.lm == TINY:
        arguments.language.check()


def _subset(text: str) -> tuple[int, ...]:
    """`0+2` -> (0, 2)."""
    parts = text.split("+")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise UserError(f"--factors {text}: name subsets such as 0 1 0+1")
    return tuple(sorted(map(int, parts)))


def _run(arguments: Arguments, tokenizer: str, base: ProjectorRunConfig, subsets: list[tuple[int, ...]]) -> list[Path]:
    from fqgan.base.schema import did_you_mean
    from fqgan.lab.studies.workers import check_alone, spread
    from fqgan.lab.understanding import study
    from fqgan.lab.understanding.captions import knows_splits
    from fqgan.lab.understanding.report import report
    from fqgan.models.find import find

    check_alone()
    rows = study.rows_of(find(tokenizer, "tokenizer").config, base.model, subsets)
    known = [row.name for row in rows]
    for name in arguments.only:
        if name not in known:
            raise UserError(f"unknown row {name!r}{did_you_mean(name, known)} (rows: {', '.join(known)})")
    rows = [row for row in rows if not arguments.only or row.name in arguments.only]
    if not arguments.test and not knows_splits(arguments.data):
        raise UserError(f"--test is missing: {arguments.data} has no split of its own to measure on")
    setting = study.Setting(
        tokenizer=tokenizer,
        language=Path(arguments.lm),
        data=arguments.data,
        test=arguments.test or arguments.data,
        split=arguments.split,
        images=arguments.images,
        test_images=arguments.test_images,
        out=arguments.out,
        size=arguments.size,
        network_size=arguments.network_size,
        small=arguments.small,
        batch=arguments.batch,
        workers=arguments.workers,
        beams=arguments.beams,
        tokens=arguments.tokens,
        words=arguments.words,
    )
    captions = setting.training_set()
    setting.test_set()
    jobs = [
        study.Job(row, seed, replace(base, model=row.model, train=replace(base.train, seed=seed)), setting)
        for seed in range(arguments.seeds)
        for row in rows
    ]
    for job in jobs:
        study.check(job)
    setting = replace(setting, language=_language_model(arguments, captions))
    jobs = [replace(job, setting=setting) for job in jobs]
    study.prepare(setting, rows, base.train.device)
    gpus = study.gpus_for(base.train.device)
    spread(study.run, jobs, arguments.processes or max(1, gpus), gpus)
    return report(rows, jobs)


def _language_model(arguments: Arguments, captions: CaptionSet) -> Path:
    """Its folder; the small one is trained where it is missing."""
    from fqgan.base import schema
    from fqgan.lab.studies.plan import undeclared
    from fqgan.lab.understanding.language import find_language_model
    from fqgan.lab.understanding.tiny import train_language_model

    if arguments.lm != TINY:
        return find_language_model(arguments.lm)
    run = arguments.out / "lm"
    config = replace(arguments.language, train=replace(arguments.language.train, device=arguments.train.device))
    path = run / "config.json"
    if path.exists() and (told := undeclared(config, schema.load(LanguageRunConfig, path))):
        raise UserError(f"{run} was trained with other settings ({told}): choose another --out, or restore them")
    return train_language_model(config, captions, run)
