"""Whether an ordering of two lines stands, seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["holds", "fails", "open"]


@dataclass(frozen=True)
class Judgement:
    """What paired differences say of a claim."""

    verdict: Verdict
    mean: float
    """Of the differences; above 0 where they speak for the claim."""
    error: float
    """Standard error of the mean; NaN for fewer than two."""
    differences: tuple[float, ...]


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
    return Judgement(verdict, mean, error, tuple(differences))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, NaN for a single value."""
    return statistics.fmean(values), spread(values) / math.sqrt(len(values))


def spread(values: Sequence[float]) -> float:
    """Standard deviation of a sample; NaN for a single value, or where one is not finite."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values)
