"""Images of a few classes by each factor's codes (Fig. 4, 6), and how pure they lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fqgan.base.classes import chosen_classes
from fqgan.base.errors import UserError
from fqgan.lab.studies.features import KINDS, Encoding, factors, images_of, load_models, name_of, pick, stem_of
from fqgan.lab.studies.figures import Panel, Series, write_scatter
from fqgan.lab.studies.measures import neighbour_purity, within_share
from fqgan.lab.studies.settings import FIGURE_CLASSES, TsneOptions
from fqgan.lab.studies.tables import Table

_POINT = {"mean": "the mean of its positions' vectors", "grid": "all of its positions' vectors"}


def tsne(options: TsneOptions) -> list[Path]:
    """Fig. 4 and 6: images of some classes as points of a plane, a chart for each factor's code embeddings; and how
    much the classes keep together, measured in the space of the embeddings itself. Returns the files, the table first.
    `UserError` for classes that are not there, and for too few images."""
    from sklearn.manifold import TSNE

    models = load_models(options)
    source = images_of(options)
    known = [int(label) for label in np.unique(source.labels) if label >= 0]
    if options.classes:
        count = max(len(source.classes), max(known, default=-1) + 1)
        classes = chosen_classes(options.classes, count, source.classes)
    else:
        wanted = options.num_classes or FIGURE_CLASSES[options.preset]
        if len(known) < wanted:
            raise UserError(
                f"{source.name} has {len(known)} class(es), not {wanted}: choose fewer with --num-classes, or --classes"
            )
        classes = sorted(np.random.default_rng(options.seed).choice(known, wanted, replace=False).tolist())
    encoding = Encoding(options, source, pick(source, options.limit, classes))
    rows, data, files = [], [], []
    shares: dict[str, float] = {}
    for name, tokenizer in models.items():
        features, panels = encoding.features(name, tokenizer), []
        count = len(features.labels)
        if count <= max(options.neighbours, options.perplexity):
            raise UserError(
                f"{count} images are too few for {options.neighbours} neighbours and perplexity "
                f"{options.perplexity:g}: take more images, or lower --neighbours and --perplexity"
            )
        present = list(dict.fromkeys(features.labels.tolist()))
        shares = {name_of(source, label): float((features.labels == label).mean()) for label in present}
        for i, factor in enumerate(factors(tokenizer)):
            for kind in KINDS:
                points = features.points(kind, i, options.points)
                purity = neighbour_purity(points, features.labels, options.neighbours)
                within = within_share(points, features.labels)
                rows.append([name, factor, kind, f"{purity:.1%}", f"{within:.3f}"])
                data.append([name, factor, kind, options.points, purity, within, count])
            plane = TSNE(perplexity=options.perplexity, init="pca", random_state=options.seed).fit_transform(
                features.points("discrete", i, options.points)
            )
            series = []
            for label in present:
                x, y = plane[features.labels == label].T
                series.append(Series(name_of(source, label), x.tolist(), [y.tolist()]))
            panels.append(Panel(factor, series))
        files += write_scatter(options.out, panels, stem_of("figure", name, models))
    chance = sum(share**2 for share in shares.values())
    purity_of = f"purity of {options.neighbours} neighbours ↑"
    head = ["model", "factor", "features", purity_of, "variance within classes ↓"]
    keys = ["model", "factor", "features", "points", "purity", "within_share", "images"]
    notes = (
        f"{data[0][-1]:,} images of {', '.join(shares)}; an image is {_POINT[options.points]}. Purity: share of the "
        f"nearest neighbours that are of a point's own class ({chance:.1%} by chance). Variance within classes: of the "
        "whole variance; the lower, the more compact the classes are. Both are measured on the features, not in the "
        "plane, whose distances mean little; the charts show the code embeddings."
    )
    table = Table("What the factors know of classes", head, rows, keys, data, notes)
    return [*table.write(options.out), *files]
