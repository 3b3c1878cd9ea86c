"""Numbers as people read them, and the scores that are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

Numbers = dict[str, Any]
MISSING = "–"


def fixed(value: float | None, digits: int, unit: str = "") -> str:
    """`12.35 dB`; a dash where there is no finite number."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.{digits}f}{unit and ' '}{unit}".replace("-", "−")


def signed(value: float, digits: int, unit: str = "") -> str:
    """`fixed` with its sign."""
    return ("+" if math.isfinite(value) and value >= 0 else "") + fixed(value, digits, unit)


def percent(share: float) -> str:
    """`97.5 %`; never rounded up to 100 nor down to 0."""
    exact = share in (0, 1)
    return f"{100 * share:.0f} %" if exact else f"{min(max(100 * share, 0.1), 99.9):.1f} %"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


@dataclass(frozen=True)
class Metric:
    """How a score is shown and compared."""

    key: str
    title: str
    note: str
    digits: int
    unit: str = ""
    higher_is_better: bool = False

    def shown(self, scores: Numbers) -> str:
        """The score with its unit."""
        return fixed(scores.get(self.key), self.digits, self.unit)

    def verdict(self, scores: Numbers, others: Numbers) -> str:
        """Whether the first scores are `better` or `worse`; `equal` also where one is missing."""
        ours, theirs = scores.get(self.key), others.get(self.key)
        if ours is None or theirs is None or ours == theirs:
            return "equal"
        return "better" if (ours > theirs) == self.higher_is_better else "worse"

    def comparison(self, scores: Numbers, others: Numbers) -> str:
        """`+1.2 dB`, `2.1× lower` or `equal`; nothing where a score is missing."""
        ours, theirs = scores.get(self.key), others.get(self.key)
        if ours is None or theirs is None:
            return ""
        if ours == theirs:
            return "equal"
        if self.higher_is_better or not ours or not theirs:
            return signed(ours - theirs, self.digits, self.unit)
        return f"{theirs / ours:.2f}× lower" if ours < theirs else f"{ours / theirs:.2f}× higher"


PSNR = Metric("psnr_pooled", "PSNR", "pooled over all pixels", 2, "dB", higher_is_better=True)
PERCEPTUAL = Metric("perceptual", "Perceptual distance", "EfficientNet-Lite0 features", 3)
METRICS = (
    PSNR,
    PERCEPTUAL,
    Metric("frechet_efficientnet", "Fréchet distance", "EfficientNet-Lite0 features, not FID", 1),
    Metric("ssim", "SSIM", "structural similarity", 3, higher_is_better=True),
)
