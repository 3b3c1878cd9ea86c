"""Charts and pictures as addresses that carry their data.

Charts are SVG, one small figure each, so that the page can place them at any width.
"""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.tokenizer.pictures import to_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FACTOR_COLOURS = ("#2563eb", "#d97706", "#0f9d77", "#9333ea", "#dc2660", "#4b5563")
INK, MUTED, LINES = "#1b2536", "#5d6979", "#e3e7ee"
Points = tuple[Sequence[int], Sequence[float]]
"""Steps, and a value of each."""
SIDE = 224
"""Pixels of the longer side of a thumbnail, at most."""
_GOLDEN = 0.6180339887498949  # steps of the golden ratio never come back near a hue soon
_SHADES = ((0.55, 0.62), (0.75, 0.42), (0.45, 0.80))  # saturation and lightness
_SMALL, _WIDE = (2.7, 1.75), (4.6, 2.3)  # inches; the page scales them
_DASHED = (0, (4, 3))
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": "#b9c1cd",
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "grid.color": LINES,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "fqgan",  # the same page for the same run
}
_LEGEND: dict[Any, Any] = {
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": INK,
    "lines.markersize": 3.2,
}


def require_matplotlib() -> None:
    """`UserError` where charts cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("charts need matplotlib: pip install 'fqgan[report]'") from None


def curve(steps: Sequence[int], values: Sequence[float]) -> str:
    """One quantity over the training steps; logarithmic where it is positive and spans more than a decade."""
    with _figure(_SMALL) as (axes, finish):
        axes.plot(steps, values, color=FACTOR_COLOURS[0], marker=_marker(steps))
        if min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
        _step_axis(axes, steps)
        return finish()


def curve_with_baseline(steps: Sequence[int], values: Sequence[float], baseline: float | None, unit: str) -> str:
    """A validation metric over the training steps, and a dashed line where the baseline is."""
    with _figure(_WIDE) as (axes, finish):
        axes.plot(steps, values, color=FACTOR_COLOURS[0], marker="o", label="tokenizer")
        if baseline is not None:
            axes.axhline(baseline, color=INK, linewidth=1.2, linestyle=_DASHED, label="mean-colour baseline")
            # room for the line and the legend, whichever side of it the curve lies on
            axes.margins(y=0.12)
        _step_axis(axes, steps, unit)
        return finish()


def train_and_validation(train: Points, held_out: Points, unit: str, colour: str) -> str:
    """One quantity in training and on held-out data; the second may be empty."""
    with _figure(_WIDE) as (axes, finish):
        axes.plot(*train, color=colour, marker=_marker(train[0]), label="training")
        if held_out[0]:
            axes.plot(*held_out, color=INK, marker="o", linestyle=_DASHED, label="held out")
        _step_axis(axes, train[0], unit)
        return finish()


def code_counts(counts: npt.NDArray[np.int64], colour: str) -> str:
    """How often each code of a factor occurs, most frequent first, on a logarithmic scale."""
    sizes = np.sort(counts)[::-1]
    ranks, used = np.arange(1, len(sizes) + 1), int((sizes > 0).sum())
    even = sizes.sum() / len(sizes)
    with _figure(_WIDE) as (axes, finish):
        # a code that occurs once must still have a bar, so the bars start below 1
        axes.fill_between(ranks[:used], 0.5, sizes[:used], step="mid", color=colour, alpha=0.85, linewidth=0)
        if used < 0.8 * len(sizes):  # else there is no room for the words
            place = ((used + len(sizes)) / 2, 0.35)
            words = f"{len(sizes) - used:,} unused"
            axes.text(*place, words, transform=axes.get_xaxis_transform(), ha="center", color=MUTED)
        axes.axhline(even, color=INK, linewidth=1.1, linestyle=_DASHED, label="perfectly even use")
        axes.set(xlabel="code, most frequent first", ylabel="occurrences", yscale="log")
        axes.set(xlim=(0.5, len(sizes) + 0.5), ylim=(0.5, max(2.0, sizes[0], even) * 1.8))
        axes.xaxis.set_major_formatter(_plain)
        axes.yaxis.set_major_formatter(_plain)
        axes.legend(loc="upper right")
        return finish()


def _marker(steps: Sequence[int]) -> str:
    return "o" if len(steps) <= 12 else ""  # a single point would draw no line


def _step_axis(axes: Axes, steps: Sequence[int], unit: str = "") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlim=(0, max(steps) * 1.02), xlabel="step", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(_plain)
    if unit:
        axes.legend()


def _plain(value: float, _: float) -> str:
    return f"{value:,.0f}" if value >= 1 or not value else ""


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator[tuple[Axes, Any]]:
    """Axes in the house style, and a function that turns them into an address."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: no state, no display

    def finish() -> str:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        return _address(buffer, "svg+xml")

    with mpl.rc_context(STYLE | _LEGEND):
        figure = Figure(figsize=size, layout="constrained")
        yield figure.add_subplot(), finish


def picture(image: Tensor) -> str:
    """A (3, H, W) tensor in [-1, 1], at its own pixels: the style enlarges it without smoothing."""
    return _saved(to_image(image), "png", optimize=True)


def code_map(codes: Tensor, codebook_size: int) -> str:
    """Codes (h, w) of one factor as a picture of h x w pixels: equal codes have equal colours."""
    return _saved(Image.fromarray(palette(codebook_size)[codes.numpy()]), "png", optimize=True)


def thumbnail(image: Image.Image) -> str:
    """A picture of at most `SIDE` pixels on the longer side."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    return _saved(small, "jpeg", quality=88)


def palette(size: int) -> npt.NDArray[np.uint8]:
    """(size, 3): a fixed colour for each code; neighbouring numbers get unlike colours."""
    colours = []
    for index in range(size):
        saturation, lightness = _SHADES[index % len(_SHADES)]
        colours.append(colorsys.hls_to_rgb(index * _GOLDEN % 1, lightness, saturation))
    return np.round(np.array(colours) * 255).astype(np.uint8)


def _saved(image: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return _address(buffer, form)


def _address(buffer: io.BytesIO, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
