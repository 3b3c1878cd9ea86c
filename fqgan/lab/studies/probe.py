"""How well a linear classifier reads classes off each factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fqgan.base.errors import UserError
from fqgan.data.fingerprint import content_sha256
from fqgan.data.sources import ImageSource
from fqgan.lab.studies.features import KINDS, POOLS, Encoding, factors, images_of, load_models, pick
from fqgan.lab.studies.figures import Panel, Series, write_dots
from fqgan.lab.studies.measures import linear_probe
from fqgan.lab.studies.settings import ProbeOptions
from fqgan.lab.studies.tables import Table


def probe(options: ProbeOptions) -> list[Path]:
    """Accuracy of a linear classifier on each factor's features before and after quantization, and on all factors.
    Returns the files, the table first. `UserError` for images without labels, and for those to test on that are those
    to fit on or have other classes."""
    models = load_models(options)
    source, test = images_of(options), images_of(options, options.test, "validation")
    for each in (source, test):
        if (each.labels < 0).any():
            raise UserError(f"{each.name} has images without a label: a probe needs one of each")
    if _same(source, test):
        raise UserError(
            f"--test {options.test} holds the images to fit on: name others"
            if options.test
            else f"{options.data} has no validation split: name images to test on with --test"
            if options.split == "train"
            else "--split validation takes the images to test on: name others with --test"
        )
    if source.classes and test.classes and source.classes != test.classes:
        raise UserError(f"{source.name} and {test.name} have other classes: a probe needs the same, in one order")
    to_fit = Encoding(options, source, pick(source, options.limit))
    to_test = Encoding(options, test, pick(test, options.test_limit), "test images,")
    pools = POOLS if options.points == "both" else (options.points,)
    classes = len(source.classes) or int(source.labels.max()) + 1
    rows, data = [], []
    series: dict[tuple[str, str], list[Series]] = {(kind, pool): [] for pool in pools for kind in KINDS}
    groups: dict[str, int] = {}
    for name, tokenizer in models.items():
        train, test = to_fit.features(name, tokenizer), to_test.features(name, tokenizer)
        chosen = [(label, [i]) for i, label in enumerate(factors(tokenizer))]
        if len(chosen) > 1:
            chosen.append(("all", list(range(len(chosen)))))
        for label, members in chosen:
            for kind in KINDS:
                cells = []
                for pool in pools:
                    points, others = (
                        np.concatenate([side.points(kind, i, pool) for i in members], 1) for side in (train, test)
                    )
                    found = linear_probe(points, train.labels, others, test.labels)
                    cells.append(f"{found.accuracy:.1%} ± {found.error:.1%}")
                    numbers = [found.accuracy, found.error, found.penalty, len(train.labels), len(test.labels)]
                    data.append([name, label, kind, pool, *numbers])
                    series[kind, pool].append(
                        Series(f"{name}: {label}", [0], [[found.accuracy]], groups.setdefault(label, len(groups)))
                    )
                rows.append([name, label, kind, *cells])
    names = {"mean": "mean over positions", "grid": "all positions"}
    head = ["model", "factor", "features", *(names[pool] for pool in pools)]
    keys = ["model", "factor", "features", "points", "accuracy", "error", "penalty", "train_images", "test_images"]
    notes = (
        f"Logistic regression on standardised features, {data[0][-2]:,} images to fit and {data[0][-1]:,} to test; its "
        f"L2 penalty is chosen on a fifth of the first. ±: standard error, of the number of test images alone. Chance "
        f"is {1 / classes:.1%} for {classes} classes of one size."
    )
    panels = [Panel(f"accuracy of {kind} features, {names[pool]}", each) for (kind, pool), each in series.items()]
    table = Table("Linear probes of the factors", head, rows, keys, data, notes)
    return [*table.write(options.out), *write_dots(options.out, panels)]


def _same(a: ImageSource, b: ImageSource) -> bool:
    """Whether two sources hold the same pictures. What lies under other names is taken for others."""
    return len(a) == len(b) and list(a.names()) == list(b.names()) and content_sha256(a) == content_sha256(b)
