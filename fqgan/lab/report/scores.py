"""The headline numbers and the table of classes: the tokenizer against the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from fqgan.lab.report.content import Numbers, Report
from fqgan.lab.report.figures import FACTOR_COLOURS
from fqgan.lab.report.generation import outcome
from fqgan.lab.report.markup import Html, element, fixed, join, percent, signed


@dataclass(frozen=True)
class Metric:
    """How a score is shown and compared."""

    key: str
    title: str
    digits: int
    unit: str = ""
    higher_is_better: bool = False
    as_ratio: bool = False

    def value(self, scores: Numbers) -> float | None:
        """The score, if it was measured."""
        return scores.get(self.key)

    def shown(self, scores: Numbers) -> str:
        """The score with its unit."""
        return fixed(self.value(scores), self.digits, self.unit)

    def is_better(self, scores: Numbers, others: Numbers) -> bool | None:
        """Whether the first scores win; None where one is missing or they are equal."""
        ours, theirs = self.value(scores), self.value(others)
        if ours is None or theirs is None or ours == theirs:
            return None
        return (ours > theirs) == self.higher_is_better

    def comparison(self, scores: Numbers, others: Numbers) -> str:
        """`+1.2 dB`, `2.1× lower` or `equal`."""
        ours, theirs = self.value(scores), self.value(others)
        if ours is None or theirs is None:
            return ""
        if ours == theirs:
            return "equal"
        if not self.as_ratio or not ours or not theirs:
            return signed(ours - theirs, self.digits, self.unit)
        return f"{theirs / ours:.2f}× lower" if ours < theirs else f"{ours / theirs:.2f}× higher"


PSNR = Metric("psnr_pooled", "PSNR", 2, "dB", higher_is_better=True)
PERCEPTUAL = Metric("perceptual", "Perceptual distance", 3, as_ratio=True)
FRECHET = Metric("frechet_efficientnet", "Fréchet distance", 1, as_ratio=True)
SSIM = Metric("ssim", "SSIM", 3, higher_is_better=True)
_CARDS = (
    (PSNR, "pooled over all pixels; higher is better"),
    (PERCEPTUAL, "EfficientNet-Lite0 features; lower is better"),
    (FRECHET, "EfficientNet-Lite0 features, not FID; lower is better"),
    (SSIM, "structural similarity; higher is better"),
)


def verdict(report: Report) -> Html:
    """The result in a few sentences, whichever way it went."""
    ours, theirs = report.tokenizer, report.baseline
    wins = [metric.is_better(ours, theirs) for metric in (PSNR, PERCEPTUAL)]
    lost = [name for name in _classes(report) if _loses(report, name)]
    words = [
        "On held-out crops, against the baseline that paints every patch in its mean colour: PSNR ",
        element("strong", PSNR.comparison(ours, theirs)),
        ", perceptual distance ",
        element("strong", PERCEPTUAL.comparison(ours, theirs)),
        ".",
    ]
    if lost:
        words.append(f" The tokenizer has the lower PSNR in {len(lost)} of {len(_classes(report))} classes.")
    if report.generation:
        words.append(outcome(report.generation))
    if not all(wins):
        words.append(" A longer run may help: the last section says how.")
    mood = {(True, True): "better", (False, False): "worse"}.get(tuple(wins), "mixed")  # pyright: ignore
    return element("p", words, class_=f"verdict {mood}")


def cards(report: Report) -> Html:
    """The headline numbers."""
    scores = [_score_card(metric, note, report) for metric, note in _CARDS]
    return element("div", scores, _code_card(report), _usage_card(report), class_="cards")


def _score_card(metric: Metric, note: str, report: Report) -> Html | None:
    ours, theirs = report.tokenizer, report.baseline
    if metric.key not in ours:
        return None
    better = metric.is_better(ours, theirs)
    mood = {True: "better", False: "worse", None: "equal"}[better]
    badge = element("span", metric.comparison(ours, theirs), class_=f"badge {mood}")
    against = element("p", "baseline ", element("b", metric.shown(theirs)), " ", badge)
    return _card(metric.title, metric.shown(ours), against, note)


def _code_card(report: Report) -> Html:
    model, bits = report.config.model, report.bits_per_position
    raw = 24 * model.image_size**2
    against = element("p", element("b", f"{bits:g} bits"), f" per position, {model.grid}×{model.grid} positions")
    note = f"{report.bits_per_image:,.0f} bits an image: 1/{raw / report.bits_per_image:.0f} of its 8-bit pixels"
    return _card("Codes", report.codebooks, against, note)


def _usage_card(report: Report) -> Html:
    bars = []
    for i, (name, use) in enumerate(report.tokenizer["factors"].items()):
        colour = FACTOR_COLOURS[i % len(FACTOR_COLOURS)]
        fill = element("span", style=f"width:{100 * use['usage']:.1f}%;background:{colour}")
        row = [element("span", name), element("b", percent(use["usage"])), element("div", fill, class_="bar")]
        bars.append(element("div", row, class_="usage"))
    note = f"codes that occur at least once in {report.evaluation['images']:,} images"
    return element("div", element("h3", "Codebook usage"), bars, element("p", note, class_="note"), class_="card")


def _card(title: str, value: str, against: Html, note: str) -> Html:
    number = element("p", value, class_="value")
    return element("div", element("h3", title), number, against, element("p", note, class_="note"), class_="card")


def class_table(report: Report) -> Html | None:
    """PSNR and perceptual distance of each class; cells in which the tokenizer loses are marked."""
    if not _classes(report):
        return None
    metrics = [metric for metric in (PSNR, PERCEPTUAL) if metric.key in next(iter(report.baseline["classes"].values()))]
    groups = [element("th", f"{metric.title}{metric.unit and f' ({metric.unit})'}", colspan=3) for metric in metrics]
    columns = [element("th", name) for _ in metrics for name in ("tokenizer", "baseline", "difference")]
    head = join([element("tr", element("th", "class", rowspan=2), groups), element("tr", columns)])
    rows = [
        _class_row(name, metrics, scores, report.baseline["classes"][name]) for name, scores in _classes(report).items()
    ]
    everything = _class_row("all crops", metrics, report.tokenizer, report.baseline, "total")
    table = element("table", element("thead", head), element("tbody", rows, everything), class_="scores")
    return element("div", table, class_="scroll")


def _class_row(name: str, metrics: list[Metric], ours: Numbers, theirs: Numbers, row_class: str | None = None) -> Html:
    cells = []
    for metric in metrics:
        worse = metric.is_better(ours, theirs) is False
        difference = [metric.comparison(ours, theirs), element("span", " worse", class_="flag") if worse else None]
        mark = "worse" if worse else None
        cells += [
            element("td", fixed(metric.value(ours), metric.digits), class_=mark),
            element("td", fixed(metric.value(theirs), metric.digits)),
            element("td", difference, class_=mark),
        ]
    return element("tr", element("th", name, scope="row"), cells, class_=row_class)


def _classes(report: Report) -> dict[str, Numbers]:
    return report.tokenizer.get("classes", {})


def _loses(report: Report, name: str) -> bool:
    return PSNR.is_better(_classes(report)[name], report.baseline["classes"][name]) is False
