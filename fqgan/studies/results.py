"""What the rows of a study scored, whether they may be compared, and what their orderings are worth."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fqgan.config import TokenizerRunConfig
from fqgan.data.fingerprint import changes
from fqgan.errors import UserError
from fqgan.studies.jobs import Job, point_of
from fqgan.studies.judgement import Judgement, judge
from fqgan.studies.measured import OneProtocol, scores_of
from fqgan.studies.plan import Ordering, Study, ancestry

Numbers = dict[tuple[str, int], dict[str, float]]
"""(line, seed) -> metric -> value."""
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
    differ in images seen, data or data order without declaring it."""
    _check_alike(study, jobs)
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


def _check_alike(study: Study, jobs: Sequence[Job]) -> None:
    by_row = {(job.row, job.seed): job for job in jobs}
    for job in jobs:
        declared = {key for row in ancestry(study, job.row) for key in row.changes}
        # compared with the first row: differences from it lie on the way to a common parent
        other = next(each for each in jobs if each.seed == job.seed)
        declared |= {key for row in ancestry(study, other.row) for key in row.changes}
        own, theirs = (point_of(each, each.fractions[-1]) for each in (by_row[job.row, job.seed], other))
        whose = f"row {job.row}, seed {job.seed}"
        lengths = {"train.steps", "train.epochs", "train.batch"}
        same_fraction = job.fractions[-1] == other.fractions[-1]
        if own.images_seen != theirs.images_seen and same_fraction and not declared & lengths:
            raise UserError(
                f"{whose} has seen {own.images_seen:,} images, row {other.row} {theirs.images_seen:,}: declare it, or "
                "train both alike"
            )
        of_data = any(key.partition(".")[0] in ("data", "train") for key in declared)
        if not of_data and (told := changes(theirs.data, own.data)):
            raise UserError(f"{whose} was trained on other data than row {other.row} ({told}): declare it")


def contaminated(network: str, jobs: Sequence[Job]) -> bool:
    """Whether a network of `--features` teaches a row, or is its perceptual loss."""
    family = network.partition("@")[0].partition(":")[0]
    for job in jobs:
        if not isinstance(job.config, TokenizerRunConfig):
            # what a generator's tokenizer was trained with is not known for sure
            if family == "efficientnet-lite0":
                return True
            continue
        loss, factors = job.config.loss, job.config.model.factors
        taught = [factor.teacher.partition("@")[0].partition(":")[0] for factor in factors if factor.teacher]
        if family in taught or (loss.perceptual_weight and loss.perceptual.startswith(family)):
            return True
    return False


def columns(study: Study, jobs: Sequence[Job], networks: Mapping[str, str], numbers: Numbers) -> list[Column]:
    """The metrics that a study's table shows, those that are there."""
    marked = [label for label, network in networks.items() if contaminated(network, jobs)]
    return known_columns(networks, numbers.values(), marked)


def known_columns(
    networks: Iterable[str], scores: Iterable[Mapping[str, float]], marked: Collection[str] = ()
) -> list[Column]:
    """The metrics that tables show, as far as there are scores of them; those of the `marked` networks with `MARK`."""
    found = [Column("psnr", "PSNR (dB)", 2, 1), Column("ssim", "SSIM", 4, 1)]
    found.append(Column("perceptual", "perceptual distance", 4, -1))
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
