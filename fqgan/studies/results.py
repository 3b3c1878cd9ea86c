"""What the rows of a study scored, whether they may be compared, and what their orderings are worth."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fqgan.checkpoints import tokenizer_config
from fqgan.config import TokenizerConfig, TokenizerRunConfig
from fqgan.data.fingerprint import changes
from fqgan.errors import UserError
from fqgan.sources import CARRIED
from fqgan.studies.jobs import Job, point_of
from fqgan.studies.judgement import Judgement, judge
from fqgan.studies.measured import OneProtocol, scores_of
from fqgan.studies.plan import Ordering, Study, ancestry

Numbers = dict[tuple[str, int], dict[str, float]]
"""(line, seed) -> metric -> value."""
PERCEPTUAL, PACKAGED = "perceptual", "efficientnet-lite0"
MARK = "†"
"""Of a network that is a teacher or the perceptual loss of a row: its distance is contaminated."""


@dataclass(frozen=True)
class Column:
    """A metric in a table."""

    key: str
    label: str
    digits: int
    sign: int
    """1: higher is better; -1: lower is; 0: neither."""

    @property
    def heading(self) -> str:
        """Its label with the direction that is better."""
        return self.label + {1: " ↑", -1: " ↓"}.get(self.sign, "")

    def text(self, value: float) -> str:
        """A value in its number of digits; of percents in percent."""
        if value is None or math.isnan(value):
            return "–"
        return f"{value:.{self.digits}%}" if self.key == "usage" else f"{value:.{self.digits}f}"


@dataclass(frozen=True)
class Judged:
    """An ordering, judged by one metric."""

    ordering: Ordering
    column: Column
    judgement: Judgement


def collect(study: Study, jobs: Sequence[Job]) -> Numbers:
    """The numbers of all measured lines. `UserError` where two of them were not measured under one protocol, or rows
    differ in images seen or data without declaring it."""
    check_alike(study, jobs)
    numbers: Numbers = {}
    # samples differ in what the lines declare, and in the seed
    protocol = OneProtocol(() if study.kind == "tokenizer" else ("samples",))
    for job in jobs:
        for line in job.lines:
            scores: dict[str, float] = {}
            for network in job.measuring.networks:
                scores |= scores_of(protocol.read(job.measured(line, network), network), network)
            numbers[line.name, job.seed] = scores
    return numbers


_LENGTHS = {"train.steps", "train.epochs", "train.batch"}
_OF_CODES = ("tokenizer", "codes")
"""In which token stores of the same images may differ, where rows declare that they take others."""


def check_alike(study: Study, jobs: Sequence[Job]) -> None:
    """`UserError` where rows that are trained have seen other images, or other numbers of them, than they declare."""
    firsts: dict[int, Job] = {}
    for job in (job for job in jobs if job.trained):
        other = firsts.setdefault(job.seed, job)
        # compared with the first row: differences from it lie on the way to a common parent
        rows = (*ancestry(study, job.row), *ancestry(study, other.row))
        declared = {key for row in rows for key in row.changes}
        own, theirs = (point_of(each, each.fractions[-1]) for each in (job, other))
        whose = f"row {job.row}, seed {job.seed}"
        same_fraction = job.fractions[-1] == other.fractions[-1]
        if own.images_seen != theirs.images_seen and same_fraction and not declared & _LENGTHS:
            raise UserError(
                f"{whose} has seen {own.images_seen:,} images, row {other.row} {theirs.images_seen:,}: declare it, or "
                "train both alike"
            )
        if declared & {"data.source", "data"} and study.kind == "tokenizer":
            continue
        left_out = _OF_CODES if declared & {"data", "tokenizer"} else ()
        before, after = ({k: v for k, v in each.data.items() if k not in left_out} for each in (theirs, own))
        if told := changes(before, after):
            raise UserError(f"{whose} was trained on other data than row {other.row} ({told}): declare it")


def contaminated(network: str, jobs: Sequence[Job]) -> bool:
    """Whether a network of `--features` teaches a row, or is its perceptual loss. What the tokenizers of generators
    were trained with besides their teachers is not known for sure: the packaged network is suspected."""
    for job in jobs:
        point = job.point(job.fractions[-1])
        if isinstance(job.config, TokenizerRunConfig):
            loss, model = job.config.loss, job.config.model
            if loss.perceptual_weight and family(network) == family(loss.perceptual):
                return True
        else:
            if family(network) == PACKAGED:
                return True
            model = tokenizer_config(point / CARRIED)
        if taught(network, model):
            return True
    return False


def taught(network: str, tokenizer: TokenizerConfig) -> bool:
    """Whether a network of `--features` is a teacher of a tokenizer: the same one, or one of its kind."""
    return family(network) in {family(factor.teacher) for factor in tokenizer.factors if factor.teacher}


def family(network: str) -> str:
    """What a network's name has in common with those of its kind: all of CLIP, all stages of the packaged one, one
    model of timm."""
    name = network.partition("@")[0]
    return name.partition("=")[0] if name.startswith("timm:") else name.partition(":")[0]


def columns(study: Study, jobs: Sequence[Job], networks: Mapping[str, str], numbers: Numbers) -> list[Column]:
    """The metrics that a study's table shows, those that are there."""
    marked = [label for label, network in networks.items() if contaminated(network, jobs)]
    if study.kind == "tokenizer":
        marked.append(PERCEPTUAL)  # measured with the rows' own loss
    return known_columns(networks, numbers.values(), marked)


def known_columns(
    networks: Iterable[str], scores: Iterable[Mapping[str, float]], marked: Collection[str] = ()
) -> list[Column]:
    """The metrics that tables show, as far as there are scores of them; those of the `marked` networks with `MARK`, and
    the perceptual distance if that is among them."""
    found = [Column("psnr", "PSNR (dB)", 2, 1), Column("ssim", "SSIM", 4, 1)]
    found.append(Column(PERCEPTUAL, "perceptual distance" + (f" {MARK}" if PERCEPTUAL in marked else ""), 4, -1))
    for label in networks:
        mark = f" {MARK}" if label in marked else ""
        of = "" if label.startswith("inception") else f", {label}"
        for key, name, digits, sign in (
            *(("fid", "FID", 2, -1), ("frechet", "Frechet distance", 2, -1)),
            *(("inception_score", "IS", 1, 1), ("precision", "precision", 3, 1), ("recall", "recall", 3, 1)),
        ):
            found.append(Column(f"{key}/{label}", name + of + mark, digits, sign))
    found.append(Column("usage", "usage", 1, 0))
    known = {key for each in scores for key in each}
    return [column for column in found if column.key in known]


def judged(orderings: Sequence[Ordering], numbers: Numbers, shown: Sequence[Column]) -> list[Judged]:
    """Every ordering by each metric; the seeds in which both lines were measured are paired."""
    found = []
    for ordering in orderings:
        for column in shown:
            pairs = [
                column.sign * (numbers[ordering.better, seed][column.key] - numbers[ordering.worse, seed][column.key])
                for line, seed in sorted(numbers)
                if line == ordering.better and (ordering.worse, seed) in numbers
            ]
            if pairs:
                found.append(Judged(ordering, column, judge(pairs)))
    return found
