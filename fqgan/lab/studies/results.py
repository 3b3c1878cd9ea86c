"""What the rows of a study scored, whether they may be compared, and what their orderings are worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fqgan.base.errors import UserError
from fqgan.base.schema import changes
from fqgan.config import GeneratorRunConfig, TokenizerRunConfig
from fqgan.lab.studies.jobs import Job, data_of, point_of, store_of
from fqgan.lab.studies.measurements import OneProtocol, scores_of
from fqgan.lab.studies.plan import Ordering, Study, ancestry
from fqgan.lab.studies.tables import markdown
from fqgan.models.find import CARRIED, model_config
from fqgan.tokenizer.protocol import Layout

Numbers = dict[tuple[str, int], dict[str, float]]
"""(line, seed) -> metric -> value."""
PERCEPTUAL, PACKAGED = "perceptual", "efficientnet-lite0"
DRAWN = ("psnr", "fid/", "frechet/")
"""How the metrics begin that figures show, and that decide on orderings."""
MARK = "†"
"""Of a network that is a teacher, the perceptual loss or the discriminator's backbone of a row: its distance is
contaminated."""


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


Verdict = Literal["holds", "fails", "open"]


@dataclass(frozen=True)
class Judgement:
    """What paired differences say of a claim."""

    verdict: Verdict
    mean: float
    """Of the differences; above 0 where they speak for the claim."""
    error: float
    """Standard error of the mean; NaN for fewer than two."""


def judge(differences: Sequence[float]) -> Judgement:
    """Judge the differences of the seeds, above 0 where a seed speaks for the claim.

    It holds only if their sign agrees in all seeds and their mean exceeds twice its standard error; it fails if that is
    true of the opposite sign; else, and with fewer than two seeds, it is open. ValueError for none.
    """
    if not differences:
        raise ValueError("a judgement needs at least one difference")
    mean, error = mean_and_error(differences)
    verdict: Verdict = "open"
    if len(differences) > 1 and abs(mean) > 2 * error:
        if all(difference > 0 for difference in differences):
            verdict = "holds"
        elif all(difference < 0 for difference in differences):
            verdict = "fails"
    return Judgement(verdict, mean, error)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, NaN for a single value."""
    return statistics.fmean(values), spread(values) / math.sqrt(len(values))


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; NaN for a single value, or where one is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values)


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
            for network in job.protocol.networks:
                scores |= scores_of(protocol.read(job.measured(line, network), network), network)
            numbers[line.name, job.seed] = scores
    return numbers


_LENGTHS = {"train.steps", "train.epochs", "train.batch"}
_OF_CODES = ("tokenizer", "codes", "labels")
"""In which token stores of the same images may differ, where rows declare that they take others. Labels are compared
by themselves: their sums are those of shards, of which one store may have more."""


def check_alike(study: Study, jobs: Sequence[Job]) -> None:
    """`UserError` where rows have seen, or would see, other images or other numbers of them than they declare."""
    firsts: dict[int, Job] = {}
    for job in jobs:
        other = firsts.setdefault(job.seed, job)
        # compared with the first row: differences from it lie on the way to a common parent
        rows = (*ancestry(study, job.row), *ancestry(study, other.row))
        declared = {key for row in rows for key in row.changes}
        whose = f"row {job.row}, seed {job.seed}"
        if job.trained and other.trained and job.fractions[-1] == other.fractions[-1] and not declared & _LENGTHS:
            own, theirs = (point_of(each, each.fractions[-1])["images_seen"] for each in (job, other))
            if own != theirs:
                raise UserError(
                    f"{whose} has seen {own:,} images, row {other.row} {theirs:,}: declare it, or train both alike"
                )
        if study.kind == "tokenizer" and declared & {"data.source", "data"}:
            continue
        of_codes = study.kind == "generator" and "data" in declared
        before, after = (
            {k: v for k, v in _seen(each).items() if not of_codes or k not in _OF_CODES} for each in (other, job)
        )
        difference = changes(before, after)
        if of_codes and not difference and not np.array_equal(_labels(other), _labels(job)):
            difference = "other labels"
        if difference:
            raise UserError(
                f"{whose} has other data than row {other.row} ({difference}): "
                + ("give both the codes of the same images, in the same crops" if of_codes else "declare it")
            )


def _seen(job: Job) -> dict[str, Any]:
    """Fingerprint of the data that a row was trained on, or would be."""
    return point_of(job, job.fractions[-1])["data"] if job.trained else data_of(job.config)


def _labels(job: Job) -> npt.NDArray[np.int64]:
    assert isinstance(job.config, GeneratorRunConfig), "tokenizers learn from images"
    return store_of(job.config).labels


def contaminated(network: str, jobs: Sequence[Job]) -> bool:
    """Whether a network of `--features` teaches a row, or is its perceptual loss or its discriminator's backbone; of
    generators' rows, their tokenizers."""
    for job in jobs:
        if isinstance(job.config, TokenizerRunConfig):
            loss, judge = job.config.loss, job.config.discriminator.network
            if family(network) in {family(loss.perceptual) if loss.perceptual_weight else "", family(judge)}:
                return True
            if is_teacher(network, job.config.model):
                return True
        elif may_have_taught(network, [model_config(job.point(job.fractions[-1]) / CARRIED, "tokenizer")]):
            return True
    return False


def may_have_taught(network: str, tokenizers: Iterable[Layout]) -> bool:
    """Whether a network of `--features` taught or judged one of some tokenizers. Which perceptual loss they were
    trained with their files don't say: it may have been the packaged network."""
    return family(network) == PACKAGED or any(is_teacher(network, each) for each in tokenizers)


def is_teacher(network: str, tokenizer: Layout) -> bool:
    """Whether a network of `--features` is a teacher of a tokenizer, or judged it: the same one, or one of its kind."""
    names = [getattr(tokenizer, "critic", ""), *(name for factor in tokenizer.factors for name in factor.teachers)]
    return family(network) in map(family, names)


def family(network: str) -> str:
    """What a network's name has in common with those of its kind: all of CLIP, all stages of the packaged one, one
    model of timm."""
    name = network.partition("@")[0]
    if name.startswith("timm:") and "efficientnet_lite0" in name:  # timm has the packaged weights too
        return PACKAGED
    return name.partition("=")[0] if name.startswith("timm:") else name.partition(":")[0]


def known_columns(
    networks: Iterable[str], scores: Iterable[Mapping[str, float]], marked: Collection[str] = ()
) -> list[Column]:
    """The metrics that tables show, as far as there are scores of them; those of the `marked` networks with `MARK`, and
    the perceptual distance if that is among them."""
    found = [Column("psnr", "PSNR (dB)", 2, 1), Column("ssim", "SSIM", 4, 1)]
    found.append(Column(PERCEPTUAL, "perceptual distance" + (f" {MARK}" if PERCEPTUAL in marked else ""), 4, -1))
    known = {key for each in scores for key in each}
    for label in networks:
        mark = f" {MARK}" if label in marked else ""
        of = "" if f"fid/{label}" in known else f", {label}"  # FID's own network needs no name
        for key, name, digits, sign in (
            *(("fid", "FID", 2, -1), ("frechet", "Frechet distance", 2, -1)),
            *(("inception_score", "IS", 1, 1), ("precision", "precision", 3, 1), ("recall", "recall", 3, 1)),
        ):
            found.append(Column(f"{key}/{label}", name + of + mark, digits, sign))
    found.append(Column("usage", "usage", 1, 0))
    return [column for column in found if column.key in known]


def cell(column: Column, values: Sequence[float]) -> str:
    """Mean and, of several seeds, standard deviation."""
    mean = column.text(sum(values) / len(values))
    return f"{mean} ± {column.text(spread(values))}" if len(values) > 1 else mean


def orderings_text(orderings: Sequence[Ordering], numbers: Numbers, deciding: Sequence[Column]) -> list[str]:
    """Paragraphs of Markdown: every ordering, judged by each metric in the seeds in which both of its lines were
    measured; none without one."""
    rows = []
    for ordering in orderings:
        for column in deciding:
            pairs = [
                column.sign * (numbers[ordering.better, seed][column.key] - numbers[ordering.worse, seed][column.key])
                for line, seed in sorted(numbers)
                if line == ordering.better and (ordering.worse, seed) in numbers
            ]
            if pairs:
                found, digits = judge(pairs), column.digits
                error = f"{found.error:.{digits + 1}f}" if len(pairs) > 1 else "–"
                each = " ".join(f"{difference:+.{digits}f}" for difference in pairs)
                mean = f"{found.mean:+.{digits + 1}f}"
                rows.append([ordering.claim, column.label, mean, error, each, found.verdict])
    if not rows:
        return []
    head = ["ordering", "by", "mean difference", "its standard error", "each seed", "verdict"]
    return [
        f"## Orderings\n\nA difference above 0 speaks for the claim.\n\n{markdown(head, rows)}",
        "An ordering holds only if its sign agrees in all seeds and the mean of the paired differences exceeds "
        "twice its standard error; it fails if that is true of the opposite sign; else it is open.",
    ]
