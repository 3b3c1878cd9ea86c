"""Table and figure of study learnability: what generators learned of each tokenizer's codes, and what ranks them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, linear_regression

from fqgan.lab.studies.figures import Panel, Series, write_curves, write_dots
from fqgan.lab.studies.results import Column, cell
from fqgan.lab.studies.settings import LearnabilityOptions
from fqgan.lab.studies.tables import Table, markdown

Codes = dict[str, float]
"""What `evaluate codes` tells of a tokenizer, by names for the table; not a number where it has no such number."""
FEWEST = 4
"""Tokenizers of which a rank correlation is told."""
_FEWEST_SIZES = 2
_BITS = ("entropy", "left", "upper", "other factors")


@dataclass(frozen=True)
class Learned:
    """A generator of one width on one tokenizer's codes: one number a seed each."""

    parameters: int
    bits: list[float]
    """Of a held-out image's codes."""
    unguided: list[float]
    guided: list[float]
    """At the best guidance scale."""
    scale: float
    """The best one, by the mean over the seeds."""


def write(
    options: LearnabilityOptions,
    learned: Mapping[tuple[str, int], Learned],
    codes: Mapping[str, Codes],
    column: Column,
) -> list[Path]:
    """Table and figure of what generators learned, and how it grows with their size and what ranks the tokenizers.

    Args:
        learned: (tokenizer, width) -> its generators.
        codes: tokenizer -> what its codes tell.
        column: of the distance.
    """
    label, rows, data = column.label, [], []
    for (name, width), each in learned.items():
        own = codes[name]
        rows.append(
            [
                name,
                str(width),
                f"{each.parameters / 1e6:.2f}M",
                *(cell(column, values) for values in (each.bits, each.unguided, each.guided)),
                f"{each.scale:g}",
                *(_shown(measure, value) for measure, value in own.items()),
            ]
        )
        data += [
            [name, width, each.parameters, seed, *values, each.scale, *own.values()]
            for seed, values in enumerate(zip(each.bits, each.unguided, each.guided, strict=True))
        ]
    head = ["tokenizer", "width", "parameters", "bits an image ↓", f"{label}, unguided ↓", f"{label}, guided ↓"]
    measures = list(next(iter(codes.values())))
    head += ["at scale", *(f"{each} (bits)" if each in _BITS else each for each in measures)]
    keys = ["tokenizer", "width", "parameters", "seed", "bits_per_image", "unguided", "guided", "scale"]
    keys += [each.replace(" ", "_") for each in measures]
    notes = (
        f"All generators were trained for {options.steps:,} steps of {options.train_batch} with the same pictures, "
        f"classes and seeds, in {options.train_precision}. Bits an image: of held-out images' codes under the "
        "generator. Entropy: of the codes of a "
        "position, summed over the factors; left, upper, other factors: what the code of the left or upper neighbour, "
        "or the other codes of the position, tell of a code, above chance, summed over the factors. They are counted, "
        "which needs many more positions than codes. Reconstruction, wrong, near: the same distance of reconstructions "
        f"from held-out images, of whole codes and with {options.share:.0%} of them replaced, by any or near ones."
    )
    notes += _over_sizes(options, learned, label) + _correlations(options, learned, codes)
    panels = [
        Panel(title, [_series(name, learned, options, field) for name in options.models])
        for title, field in (("bits an image", "bits"), (f"{label}, unguided", "unguided"))
    ]
    table = Table("Learnability of codes", head, rows, keys, data, notes)
    if len(options.widths) < _FEWEST_SIZES:
        return [*table.write(options.out), *write_dots(options.out, panels)]
    return [*table.write(options.out), *write_curves(options.out, panels, "parameters (million)")]


def _shown(measure: str, value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}" if measure == "usage" else f"{value:.2f}"


def _series(name: str, learned: Mapping[tuple[str, int], Learned], options: LearnabilityOptions, field: str) -> Series:
    own = [learned[name, width] for width in options.widths]
    return Series(name, [each.parameters / 1e6 for each in own], [getattr(each, field) for each in own])


def _over_sizes(options: LearnabilityOptions, learned: Mapping[tuple[str, int], Learned], label: str) -> str:
    """Least squares over all generators of a tokenizer: what twice the parameters are worth."""
    if len(options.widths) < _FEWEST_SIZES:
        return ""
    rows = []
    for name in options.models:
        own = [learned[name, width] for width in options.widths]
        doublings = [math.log2(each.parameters) for each in own for _ in each.bits]
        bits = [value for each in own for value in each.bits]
        logs = [math.log(value) for each in own for value in each.unguided]
        rows.append(
            [
                name,
                f"{linear_regression(doublings, bits).slope:+.1f}",
                f"{math.expm1(linear_regression(doublings, logs).slope):+.1%}",
            ]
        )
    head = ["tokenizer", "bits an image", f"{label}, unguided"]
    how = "Least squares over all generators of a tokenizer: bits, and the logarithm of the distance, by log2 of size."
    return f"\n\n## What twice the parameters change\n\n{how}\n\n{markdown(head, rows)}"


def _correlations(
    options: LearnabilityOptions,
    learned: Mapping[tuple[str, int], Learned],
    codes: Mapping[str, Codes],
) -> str:
    """How each cheap number ranks the tokenizers, against their unguided distance at the largest width."""
    if len(options.models) < FEWEST:
        return f" With fewer than {FEWEST} tokenizers no rank correlation is told."
    from scipy.stats import spearmanr  # slow to import

    def means(field: str, width: int) -> list[float]:
        found = [getattr(learned[name, width], field) for name in options.models]
        return [fmean(each) for each in found]

    widest = max(options.widths)
    cheap = {f"bits an image, width {width}": means("bits", width) for width in options.widths}
    cheap |= {
        f"distance unguided, width {width}": means("unguided", width) for width in options.widths if width < widest
    }
    for measure in next(iter(codes.values())):
        cheap[measure] = [own[measure] for own in codes.values()]
    target, rows = means("unguided", widest), []
    for measure, values in cheap.items():
        known = len(set(values)) > 1 and not any(map(math.isnan, values))
        rank = float(spearmanr(values, target).statistic) if known else math.nan  # pyright: ignore
        rows.append([measure, "–" if math.isnan(rank) else f"{rank:+.2f}"])
    head = ["measure", f"rank correlation with the unguided distance, width {widest}"]
    return f"\n\n## What ranks the tokenizers\n\n{markdown(head, rows)}"
