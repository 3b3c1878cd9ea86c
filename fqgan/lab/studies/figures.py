"""Figures of a study, as PNG and PDF."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fqgan.base.files import make_folder, replacing
from fqgan.lab.report.figures import FACTOR_COLOURS, INK, MUTED, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL = (3.3, 2.5)
"""Inches of a chart."""
LABELS, WIDEST = 1.6, 38
"""Inches left for the names of rows, and their characters in a line."""
_LEGEND_INSIDE = 5  # lines whose names still leave room for the lines


@dataclass(frozen=True)
class Series:
    """A named quantity: at each x the values of all seeds."""

    label: str
    x: Sequence[float]
    values: Sequence[Sequence[float]]
    group: int = -1
    """Series of one group have one colour, in a chart of dots; -1: its own."""


@dataclass(frozen=True)
class Panel:
    """One chart."""

    title: str
    series: Sequence[Series]


def write_dots(folder: Path, panels: Sequence[Panel]) -> list[Path]:
    """A row a series, a dot a seed, a bar at the mean; the first series on top. Each series has one x."""
    rows = max(len(panel.series) for panel in panels)
    width = PANEL[0] + LABELS / len(panels)
    with figure(folder, len(panels), (width, 0.8 + 0.34 * rows)) as (axes, files):
        for place, panel in zip(axes, panels, strict=True):
            for i, series in enumerate(panel.series):
                group = i if series.group < 0 else series.group
                colour, values = FACTOR_COLOURS[group % len(FACTOR_COLOURS)], series.values[0]
                mean = sum(values) / len(values)
                place.plot(values, [i] * len(values), "o", color=colour, markersize=4, alpha=0.75)
                place.plot([mean, mean], [i - 0.3, i + 0.3], color=colour, linewidth=2)
            place.set_yticks(range(len(panel.series)), [_in_two_lines(series.label) for series in panel.series])
            place.set_ylim(len(panel.series) - 0.5, -0.5)
            place.set_xlabel(panel.title.replace(", ", ",\n", 1))  # as wide as its chart at most
            place.grid(axis="y", visible=False)
        for place in axes[1:]:
            place.set_yticklabels([])
    return files


def _in_two_lines(label: str) -> str:
    """At most: of longer ones, such as paths, the end."""
    return textwrap.fill(label if len(label) <= 2 * WIDEST else f"…{label[1 - 2 * WIDEST :]}", WIDEST)


def write_curves(folder: Path, panels: Sequence[Panel], x_label: str) -> list[Path]:
    """A line a series through the means of the seeds, a dot a seed."""
    with figure(folder, len(panels), PANEL) as (axes, files):
        for place, panel in zip(axes, panels, strict=True):
            for i, series in enumerate(panel.series):
                colour = FACTOR_COLOURS[i % len(FACTOR_COLOURS)]
                means = [sum(values) / len(values) for values in series.values]
                place.plot(series.x, means, color=colour, label=series.label, marker="o", markersize=3)
                for x, values in zip(series.x, series.values, strict=True):
                    place.plot([x] * len(values), values, "o", color=colour, markersize=2, alpha=0.5)
            place.set_ylabel(panel.title.replace(", ", ",\n", 1))
            place.set_xlabel(x_label)
            place.locator_params(axis="x", nbins=5)  # numbers of images are wide
        if max(len(panel.series) for panel in panels) > _LEGEND_INSIDE:
            axes[-1].legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
        else:
            axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    return files


def write_scatter(folder: Path, panels: Sequence[Panel], name: str = "figure") -> list[Path]:
    """Points of classes: of each series x and, as its first values, y. No scale: only who lies beside whom counts."""
    with figure(folder, len(panels), (PANEL[0], PANEL[0]), name) as (axes, files):
        for place, panel in zip(axes, panels, strict=True):
            for i, series in enumerate(panel.series):
                colour = FACTOR_COLOURS[i % len(FACTOR_COLOURS)]
                place.plot(
                    series.x, series.values[0], "o", color=colour, markersize=3, alpha=0.7, mew=0, label=series.label
                )
            place.set_xticks([])
            place.set_yticks([])
            place.set_title(panel.title, color=MUTED)
        axes[-1].legend(frameon=False, fontsize=8, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
    return files


def write_picture(file: Path, pixels: npt.NDArray[np.uint8]) -> Path:
    """A PDF of a picture (H, W, 3), pixel by pixel."""
    from matplotlib.figure import Figure

    height, width = pixels.shape[:2]
    whole = Figure(figsize=(width / 72, height / 72), dpi=72)
    whole.figimage(pixels, resize=True)
    make_folder(file.parent)
    with replacing(file) as temporary:
        whole.savefig(temporary, format="pdf", dpi=72, metadata={"CreationDate": None})
    return file


@contextmanager
def figure(
    folder: Path, charts: int, size: tuple[float, float], name: str = "figure"
) -> Iterator[tuple[list[Axes], list[Path]]]:
    """Axes of charts beside each other, and the files that they are written to in the end: `name`.png and .pdf."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: no state, no display

    files = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    # text of the PDF as text, and no date: the same file for the same numbers
    with mpl.rc_context({**STYLE, "pdf.fonttype": 42}):
        whole = Figure(figsize=(size[0] * charts, size[1]), layout="constrained")
        yield [whole.add_subplot(1, charts, i + 1) for i in range(charts)], files
        make_folder(folder)
        for file in files:
            options: dict[str, Any] = {"metadata": {"CreationDate": None}} if file.suffix == ".pdf" else {"dpi": 200}
            with replacing(file) as temporary:
                whole.savefig(temporary, format=file.suffix[1:], **options)
