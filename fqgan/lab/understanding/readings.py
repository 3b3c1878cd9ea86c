"""The rows of Table 6: what a language model reads of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fqgan.base.errors import UserError
from fqgan.config import ProjectorConfig, TokenizerConfig
from fqgan.lab.studies.plan import Ordering

# CIDEr in the paper's table, for two factors
_PAPER = {
    ("continuous", (0,)): 3.67,
    ("continuous", (1,)): 7.15,
    ("continuous", (0, 1)): 10.28,
    ("discrete", (0,)): 2.22,
    ("discrete", (1,)): 7.40,
    ("discrete", (0, 1)): 7.37,
}


@dataclass(frozen=True)
class Reading:
    """A row of the table."""

    name: str
    feature: str
    """What tables call it."""
    factors: str
    """The same of its factors; – where it has none."""
    model: ProjectorConfig
    paper: float | None = None
    """CIDEr in Table 6."""

    @property
    def label(self) -> str:
        """Feature and factors."""
        return f"{self.feature}, {self.factors}" if self.factors != "–" else self.feature


def readings_of(
    tokenizer: TokenizerConfig, base: ProjectorConfig, subsets: Sequence[tuple[int, ...]] = ()
) -> list[Reading]:
    """A blind baseline, continuous and discrete features of subsets of the factors, and the packaged network.

    Args:
        base: projector and prompt of all rows.
        subsets: of the factors, `UserError` for an unknown one; none: each by itself, and all together.
    """
    k = len(tokenizer.factors)
    chosen = list(subsets) or [*((i,) for i in range(k)), *([tuple(range(k))] if k > 1 else [])]
    for factors in chosen:
        for factor in factors:
            if factor >= k:
                raise UserError(f"--factors names factor {factor}, but the tokenizer has factors 0 to {k - 1}")
    readings = [Reading("blind", "None (blind)", "–", replace(base, feature="blind", factors=()))]
    for feature in ("continuous", "discrete"):
        for factors in chosen:
            name = f"{feature}-{'+'.join(map(str, factors))}"
            model = replace(base, feature=feature, factors=factors)
            paper = _PAPER.get((feature, factors)) if k == 2 else None
            readings.append(Reading(name, feature.capitalize(), _codebooks(tokenizer, factors), model, paper))
    readings.append(Reading("network", "EfficientNet-Lite0", "–", replace(base, feature="network", factors=())))
    return readings


def orderings_of(readings: Sequence[Reading]) -> list[Ordering]:
    """Every row over the blind one, the network over every row, all factors over each, later ones over the first, and
    continuous over discrete."""
    by_name = {reading.name: reading for reading in readings}
    read = [reading for reading in readings if reading.name not in ("blind", "network")]
    pairs = [("network", "blind"), *((each.name, "blind") for each in read), *(("network", each.name) for each in read)]
    for each in read:
        for other in read:
            one, two = each.model, other.model
            more_factors = set(one.factors) > set(two.factors)
            later_factor = len(one.factors) == len(two.factors) == 1 and two.factors < one.factors
            if one.feature == two.feature and (more_factors or later_factor):
                pairs.append((each.name, other.name))
            if one.factors == two.factors and (one.feature, two.feature) == ("continuous", "discrete"):
                pairs.append((each.name, other.name))
    return [Ordering(f"{by_name[a].label} over {by_name[b].label}", a, b) for a, b in pairs if {a, b} <= by_name.keys()]


def _codebooks(tokenizer: TokenizerConfig, factors: tuple[int, ...]) -> str:
    k = len(tokenizer.factors)
    if len(factors) == k > 1:
        return "Both" if k == 2 else "All"
    named = " + ".join(str(i + 1) for i in factors)
    return f"Codebook {named} ({', '.join(tokenizer.factors[i].name for i in factors)})"
