"""The page's pictures and charts."""

from __future__ import annotations

from fqgan.lab.report.content import Numbers, Report
from fqgan.lab.report.figures import FACTOR_COLOURS, code_counts, curve, curve_with_baseline
from fqgan.lab.report.images import code_map, picture
from fqgan.lab.report.markup import Html, element, fixed, join, percent

MAPPED = 6
"""Images in the picture of code maps."""
_LOSSES = {
    "reconstruction": "pixel error in [−1, 1]",
    "perceptual": "deep features",
    "codebook": "pulls codes to features",
    "commitment": "pulls features to codes",
    "entropy": "low: each sure, all in use",
    "disentangle": "overlap of the factors",
    "representation": "predicts the teacher",
    "gan": "fooling the discriminator",
    "discriminator": "its own loss",
}


def pictures(report: Report) -> Html:
    """A column for each image; rows: original, reconstruction, baseline, each factor alone."""
    evidence = report.evidence
    rows = []
    for row in evidence.rows:
        cells = [element("div", element("b", row.label), element("small", row.note), class_="row-label")]
        for i, (name, image) in enumerate(zip(evidence.names, row.images, strict=True)):
            caption = element("figcaption", fixed(row.psnr[i], 1, "dB")) if row.psnr else None
            cells.append(element("figure", picture(image, f"{row.label} of {name or 'an image'}"), caption))
        rows.append(element("div", cells, class_="picture-row"))
    rows.append(_names_row(evidence.names))
    return picture_grid(rows, len(evidence.names))


def code_maps(report: Report) -> Html:
    """A few originals above the codes of each factor, one colour for each code."""
    evidence = report.evidence
    names = evidence.names[:MAPPED]
    cells = [element("div", element("b", "original"), class_="row-label")]
    cells += [
        element("figure", picture(image, name)) for name, image in zip(names, evidence.rows[0].images, strict=False)
    ]
    rows = [element("div", cells, class_="map-row")]
    for i, factor in enumerate(report.config.model.factors):
        label = [element("b", factor.name), element("small", f"{factor.codebook_size:,} codes")]
        cells = [element("div", label, class_="row-label")]
        for name, codes in zip(names, evidence.codes[:, i], strict=False):
            cells.append(element("figure", code_map(codes, factor.codebook_size, f"{factor.name} codes of {name}")))
        rows.append(element("div", cells, class_="map-row"))
    rows.append(_names_row(names))
    return picture_grid(rows, len(names), "maps")


def _names_row(names: list[str]) -> Html:
    cells = [element("div", class_="row-label"), *(element("div", name, class_="name") for name in names)]
    return element("div", cells, class_="name-row")


def picture_grid(rows: list[Html], columns: int, kind: str | None = None) -> Html:
    """Rows of a label and `columns` pictures each; narrow pages scroll."""
    grid = element("div", rows, class_=f"grid {kind or ''}".strip(), style=f"--columns:{columns}")
    return element("div", grid, class_="scroll")


def validation_charts(report: Report) -> Html | None:
    """PSNR, and the perceptual distance where it is the one that the baseline has too."""
    charts = [_validation_chart(report, "psnr_pooled", "Validation PSNR", "dB", 2)]
    if report.trained_on_the_judge:
        charts.append(_validation_chart(report, "perceptual", "Validation perceptual distance", "distance", 3))
    charts = [chart for chart in charts if chart]
    return element("div", charts, class_="charts wide") if charts else None


def _validation_chart(report: Report, key: str, title: str, unit: str, digits: int) -> Html | None:
    steps, values = series(report.stats, f"val_{key}")
    if not steps:
        return None
    baseline = report.baseline.get(key)
    alt = f"{title} over the training steps: {values[-1]:.{digits}f} at the last"
    note = f"last {fixed(values[-1], digits)}, baseline {fixed(baseline, digits)}"
    return chart(title, note, curve_with_baseline(steps, values, baseline, unit, alt))


def loss_charts(report: Report) -> Html | None:
    """Every loss term over the steps."""
    found = {key.removesuffix("_loss"): None for line in report.stats for key in line if key.endswith("_loss")}
    terms = [term for term in _LOSSES if term in found] + sorted(found.keys() - _LOSSES.keys())
    charts = []
    for term in terms:
        steps, values = series(report.stats, f"{term}_loss")
        if not steps:
            continue
        weight = _weight(report, term)
        title = "GAN" if term == "gan" else term.capitalize()
        image = curve(steps, values, f"{title} loss over the training steps: {values[-1]:.4g} at the last")
        charts.append(chart(title, _LOSSES.get(term, ""), image, f"weight {weight:g}" if weight is not None else ""))
    return join([element("h3", "Loss terms"), element("div", charts, class_="charts")]) if charts else None


def _weight(report: Report, term: str) -> float | None:
    if term == "gan":
        return report.config.discriminator.weight
    return getattr(report.config.loss, f"{term}_weight", None)


def series(stats: list[Numbers], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that have one."""
    points = [(line["step"], line[key]) for line in stats if key in line]
    return [step for step, _ in points], [value for _, value in points]


def usage_charts(report: Report) -> Html:
    """The sorted code counts of each factor."""
    charts = []
    uses = report.tokenizer["factors"]
    for i, (factor, counts) in enumerate(zip(report.config.model.factors, report.evidence.counts, strict=True)):
        use = uses[factor.name]
        used = int((counts > 0).sum())
        numbers = (
            f"{used:,} of {factor.codebook_size:,} codes used ({percent(use['usage'])}), "
            f"perplexity {use['perplexity']:,.1f}, {use['bits']:.2f} bits a position"
        )
        colour = FACTOR_COLOURS[i % len(FACTOR_COLOURS)]
        charts.append(chart(factor.name, numbers, code_counts(counts, f"{factor.name}: {numbers}", colour)))
    return element("div", charts, class_="charts wide")


def chart(title: str, note: str, image: Html, aside: str = "") -> Html:
    """A figure under its title, an aside and a note."""
    heading = element("div", element("b", title), element("small", aside))
    caption = element("figcaption", heading, element("small", note))
    return element("figure", caption, image, class_="chart")
