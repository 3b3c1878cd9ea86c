"""The page's part on the generator: samples beside real crops, how far they are from them, its losses."""

from __future__ import annotations

from fqgan.lab.report.content import Generation, training_seconds
from fqgan.lab.report.figures import FACTOR_COLOURS, train_and_validation
from fqgan.lab.report.images import picture
from fqgan.lab.report.markup import Html, duration, element, fixed, percent
from fqgan.lab.report.sections import chart, picture_grid, series

_ROWS = {
    "samples": ("generated", "by class, from codes that the generator drew"),
    "untrained": ("untrained generator", "its first weights: every code equally likely"),
    "reconstructions": (
        "reconstructions",
        "real crops through the tokenizer and back: what the codes can show at best",
    ),
    "real": ("real", "other training crops, which overlap those of the reference"),
    "held_out": ("real, held out", "crops of the strips that no training saw"),
}


def sample_grid(generation: Generation) -> Html:
    """A row for each class: real crops, then samples."""
    rows = []
    for name, real, samples in zip(generation.names, generation.real, generation.samples, strict=True):
        cells = [element("div", element("b", name), class_="row-label")]
        cells += [element("figure", picture(image, f"real crop of {name}"), class_="real") for image in real]
        cells += [element("figure", picture(image, f"generated image of {name}")) for image in samples]
        rows.append(element("div", cells, class_="picture-row"))
    real, samples = len(generation.real[0]), len(generation.samples[0])
    cells = [
        element("div", class_="row-label"),
        element("div", "real", class_="name", style=f"grid-column:span {real}"),
        element("div", "generated", class_="name", style=f"grid-column:span {samples}"),
    ]
    rows.append(element("div", cells, class_="name-row"))
    return picture_grid(rows, real + samples, "samples")


def sample_table(generation: Generation) -> Html:
    """Frechet distance and class accuracy of each set of images."""
    columns = ("number", "Fréchet distance", "of the untrained", "class recognised")
    head = element("tr", element("th", "images", rowspan=1), [element("th", column) for column in columns])
    untrained = generation.evaluation["untrained"]["frechet_efficientnet"]
    rows = []
    for key, (name, note) in _ROWS.items():
        scores = generation.evaluation[key]
        distance = scores["frechet_efficientnet"]
        cells = (
            f"{scores['images']:,}",
            fixed(distance, 0),
            percent(distance / untrained),
            percent(scores["class_accuracy"]),
        )
        title = element("th", name, element("small", note), scope="row")
        rows.append(
            element("tr", title, [element("td", cell) for cell in cells], class_="total" if key == "samples" else None)
        )
    table = element("table", element("thead", head), element("tbody", rows), class_="scores")
    return element("div", table, class_="scroll")


def generator_charts(generation: Generation) -> Html:
    """Cross-entropy of each factor over the steps, of training and of held-out crops."""
    charts = []
    for i, name in enumerate(generation.factors):
        train, held_out = (series(generation.stats, f"{prefix}{name}_loss") for prefix in ("", "val_"))
        if not train[0]:
            continue
        colour = FACTOR_COLOURS[i % len(FACTOR_COLOURS)]
        note = f"training {fixed(train[1][-1], 3)} nats a code" + (
            f", held out {fixed(held_out[1][-1], 3)}" if held_out[0] else ""
        )
        charts.append(chart(name, note, train_and_validation(train, held_out, "nats", f"{name}: {note}", colour)))
    return element("div", charts, class_="charts wide")


def generator_facts(generation: Generation) -> dict[str, object]:
    """What was run."""
    config = generation.config
    model, train, sampling = config.model, config.train, generation.evaluation["sampling"]
    guidance = " and ".join(f"{scale:g}" for scale in sampling["cfg_scale"])
    time = duration(training_seconds(generation.stats))
    return {
        "Generator": f"{generation.preset}: {model.depth} blocks of width {model.width}, {model.head} head, "
        f"{generation.parameters / 1e6:.2f} M parameters",
        "Its training": f"{generation.steps:,} steps of {train.batch}, {time} (from the logged rates)",
        "Sampling": f"guidance {guidance}, temperature {sampling['temperature'][0]:g}",
    }


def outcome(generation: Generation) -> str:
    """The generator's result in a sentence."""
    scores = generation.evaluation
    nearer = scores["untrained"]["frechet_efficientnet"] / scores["samples"]["frechet_efficientnet"]
    recognised = percent(scores["samples"]["class_accuracy"])
    return (
        f" The generator's images show the class that was asked for in {recognised} of cases, and lie {nearer:.1f}× "
        "nearer to real crops than an untrained generator's."
    )
