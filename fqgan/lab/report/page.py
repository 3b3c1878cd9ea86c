"""The page: its sections in order, and the words between them."""

from __future__ import annotations

import platform
import shlex
from importlib import metadata

from fqgan.lab.report.content import Report, training_seconds
from fqgan.lab.report.generation import generator_charts, generator_facts, sample_grid, sample_table
from fqgan.lab.report.markup import Html, document, duration, element, join, listed
from fqgan.lab.report.scores import cards, class_table, verdict
from fqgan.lab.report.sections import code_maps, loss_charts, pictures, usage_charts, validation_charts


def page(report: Report) -> str:
    """One HTML document that refers to nothing outside itself."""
    return document(f"fqgan: {report.preset} in {report.run}", _header(report), _sections(report))


def _header(report: Report) -> Html:
    model = report.config.model
    names = report.factor_names
    sizes = [factor.codebook_size for factor in model.factors]
    explanation = [
        "A visual tokenizer turns an image into a small grid of integers (codes) and back, so that a model which "
        "predicts the next integer can generate images. Each code stands for one entry of a learned codebook. "
    ]
    if len(names) > 1:
        combinations = 1
        for size in sizes:
            combinations *= size
        explanation += [
            element("b", "A factorized tokenizer splits the one huge codebook into several small ones"),
            f", each trained to carry different information. Here every patch of {report.patch} pixels gets one code "
            f"from each of {len(names)} codebooks ({listed(names)}): as many combinations as a codebook of "
            f"{combinations:,} entries, for the price of looking through {sum(sizes):,}.",
        ]
    else:
        explanation.append(
            f"Here every patch of {report.patch} pixels gets one of {sizes[0]:,} codes: one factor, which is the "
            "plain tokenizer that factorized ones are compared with."
        )
    return element(
        "header",
        element("p", "fqgan quickstart · ", report.preset, class_="kicker"),
        element("h1", f"An image tokenizer{' and generator' if report.generation else ''}, trained and measured"),
        element("p", explanation, class_="lead"),
        verdict(report),
    )


def _sections(report: Report) -> Html:
    images, several = report.evaluation["images"], len(report.factor_names) > 1
    alone = " The last rows decode one factor with all others set to zero: what it carries." if several else ""
    precision = " in bfloat16" if report.config.train.precision == "bf16" else ""
    return join(
        [
            _section("Results on held-out crops", None, cards(report), _facts(report)),
            _section(
                "What the codes keep",
                f"The middle held-out crop of each class, not picked by hand.{alone}",
                pictures(report),
            ),
            _section(
                "The codes themselves",
                "Each cell is one position of the token grid and each colour one code; the same colour in a row is the "
                "same code (or, rarely, one of a similar shade). Colours are arbitrary: alike ones mean nothing.",
                code_maps(report),
            ),
            _section(
                "Training",
                f"Means between log lines, over {report.steps:,} steps; loss terms before weighting. "
                f"Validation uses the held-out crops{precision}.",
                validation_charts(report),
                loss_charts(report),
            ),
            _section(
                "Use of the codebooks",
                f"How often each code occurs in {images:,} held-out crops. Perplexity is the number of evenly used "
                "codes that would carry as much information.",
                usage_charts(report),
            ),
            _section("Class by class", "Each class is one photograph.", class_table(report)),
            *_generation(report),
            _section("How far these numbers go", None, _caveats(report)),
            _section("What to do next", None, _next(report)),
        ]
    )


def _generation(report: Report) -> list[Html | None]:
    generation = report.generation
    if generation is None:
        return []
    return [
        _section(
            "Generated images",
            f"A model of {generation.parameters / 1e6:.1f} M parameters learned to write the codes of the training "
            "crops, position by position and factor by factor, given the class; the tokenizer makes images of them. "
            "The first samples of each class, not picked by hand.",
            sample_grid(generation),
        ),
        _section(
            "How good they are",
            f"Compared with {generation.evaluation['reference']}, on the packaged EfficientNet-Lite0's features. An "
            "image's class counts as recognised when the nearest class mean of real crops is that of its class.",
            sample_table(generation),
            generator_charts(generation),
        ),
    ]


def _section(title: str, intro: str | None, *content: Html | None) -> Html | None:
    """A section; none where there is nothing to show in it."""
    if not any(content):
        return None
    return element("section", element("h2", title), element("p", intro) if intro else None, content)


def _facts(report: Report) -> Html:
    """What was run."""
    import torch

    model, train = report.config.model, report.config.train
    seconds, size = training_seconds(report.stats), model.image_size
    if report.steps_before >= report.steps:
        this_command = "evaluation only, the run was already trained"
    elif report.steps_before:
        this_command = f"continued the run from step {report.steps_before:,}"
    else:
        this_command = "training, evaluation and this page"
    images = report.evaluation["images"]
    heads = (
        f", of which {report.training_parameters / 1e6:.2f} M (feature-prediction heads) serve training only"
        if report.training_parameters
        else ""
    )
    facts = {
        "Command": element("code", report.command),
        "Preset": f"{report.preset}: {size}×{size} pixels, factors {listed(report.factor_names)}",
        "Parameters": f"{report.parameters / 1e6:.2f} M{heads}",
        "Training": f"{report.steps:,} steps of {train.batch} = {report.steps * train.batch:,} images seen"
        + (f", {duration(seconds)} (from the logged rates)" if seconds else ""),
        "This command": f"{duration(report.command_seconds)} wall time: {this_command}",
        "Evaluated on": f"{images:,} held-out crops, {report.evaluation['weights']} weights, float32",
        "Device": report.device,
        "Versions": f"fqgan {metadata.version('fqgan')}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    if report.generation:
        facts |= generator_facts(report.generation)
    return element("dl", [[element("dt", name), element("dd", value)] for name, value in facts.items()], class_="facts")


def _caveats(report: Report) -> Html:
    bits, patch, images = report.bits_per_position, report.patch, report.evaluation["images"]
    size = report.config.model.image_size
    taught = [f.name for f in report.config.model.factors if f.teacher.startswith("efficientnet-lite0")]
    roles = ["the perceptual loss"] if report.trained_on_the_judge else []
    roles += [f"the teacher of the {listed(taught)} factor{'s' if len(taught) > 1 else ''}"] if taught else []
    judge = "The perceptual distance and the Fréchet distance are measured on the packaged EfficientNet-Lite0"
    if roles:
        judge += (
            f", the network that was also {listed(roles)} in training. "
            "That flatters the tokenizer over a baseline that was never fitted to this network."
        )
    else:
        judge += ", which had no part in training."
    points = [
        judge,
        f"The baseline keeps each patch's exact mean colour: at least 24 bits for {patch} pixels. "
        f"The tokenizer spends {bits:g} bits on them.",
        "The data are crops of ten photographs. Held-out crops come from a strip of the same photographs that training "
        "never saw: new content of known scenes, not new scenes. They overlap one another, so there are fewer "
        "independent images than crops.",
        f"The Fréchet distance compares {images:,} crops in 1,280 dimensions: too few for an unbiased value. "
        "Compare it within this page only; it is not FID.",
        f"At {size} pixels and on this data, no number here compares with one of the paper's.",
        "One seed. The last step is reported; no checkpoint was chosen by its validation score.",
    ]
    if report.generation:
        points.append(
            "The generator is compared with crops that it was trained on: it is to paint more of these photographs, "
            "and a model that had learned them by heart would score well. Held-out codes come from other parts of the "
            "photographs, so their cross-entropy rises early."
        )
    return element("ul", [element("li", point) for point in points])


def _next(report: Report) -> Html:
    run, preset = shlex.quote(report.run), report.preset
    longer = 2 * max(report.steps, 1000)
    several = "" if len(report.factor_names) < 2 else " more"
    commands = [
        ("Send a picture of your own through it", f"fqgan reconstruct {run} picture.jpg --out out"),
        ("Measure it on images of yours", f"fqgan evaluate tokenizer {run} --data your_folder --out eval-mine.json"),
        ("Train one on your images", f"fqgan train-tokenizer {preset} --data.source your_folder --run runs/mine"),
        (f"Train{several} factors", f"fqgan train-tokenizer {preset} --num-factors 3 --run runs/three"),
        *_next_generator(report),
        ("Train longer", f"fqgan train-tokenizer {preset} --train.steps {longer} --run runs/longer"),
    ]
    items = [
        element("li", element("span", what), element("pre", element("code", command))) for what, command in commands
    ]
    return element("ol", items, class_="next")


def _next_generator(report: Report) -> list[tuple[str, str]]:
    if report.generation is None:
        return []
    run, store = (shlex.quote(path) for path in (report.generation.run, report.generation.config.data))
    name = shlex.quote(report.generation.names[0])
    return [
        ("Generate images of a class", f"fqgan generate {run} --classes {name} --num 64 --out samples"),
        ("Train a larger generator", f"fqgan train-generator far-small --data {store} --run runs/far-small"),
    ]
