"""Studies of trained tokenizers: what their factors hold (Fig. 3, 4 and 6), and how far they are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.data.sources import ImageSource
from fqgan.lab.studies.codes import KINDS, Features, name_of
from fqgan.lab.studies.figures import Panel, Series, write_dots, write_picture, write_scatter
from fqgan.lab.studies.structure import (
    linear_probe,
    mean_squared_cosine,
    mutual_information,
    neighbour_purity,
    within_share,
)
from fqgan.lab.studies.tables import comma_separated, file_stem, write_table
from fqgan.metrics.psnr import psnr
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.pictures import grid_of, reconstruction_rows, save_picture, to_image

Models = Mapping[str, FactorizedTokenizer]
"""Name in the tables -> tokenizer."""
Collect = Callable[[str, FactorizedTokenizer], Features]
"""The features of a named tokenizer on the study's images."""


def factors(tokenizer: FactorizedTokenizer) -> list[str]:
    """Their names."""
    return [factor.name for factor in tokenizer.config.factors]


def _stem(kind: str, name: str, models: Models) -> str:
    """Of a picture's files: the model's name is a part of it where there are several."""
    return kind if len(models) == 1 else f"{kind}-{file_stem(name)}"


@dataclass(frozen=True)
class Table:
    """What a study writes beside its pictures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    data_head: Sequence[str]
    data: Sequence[Sequence[object]]
    notes: str

    def write(self, folder: Path) -> list[Path]:
        """Markdown, CSV and LaTeX."""
        data = comma_separated(self.data_head, self.data)
        return write_table(folder, self.title, self.head, self.rows, self.notes, data)


def disentangle(
    models: Models, collect: Collect, permutations: int, seed: int, folder: Path
) -> tuple[Table, list[Path]]:
    """How far each pair of factors is apart: the mean squared cosine of Eq. 7, before and after quantization, and the
    mutual information of the codes."""
    rows, data, apart, informed = [], [], [], []
    for name, tokenizer in models.items():
        if tokenizer.num_factors < 2:
            raise UserError(f"{name} has one factor: there is nothing that it could be apart from")
        features, names = collect(name, tokenizer), factors(tokenizer)
        for i, j in combinations(range(tokenizer.num_factors), 2):
            cosines: list[float | str] = []
            for kind in KINDS:
                pair = features.vectors(kind, i), features.vectors(kind, j)
                cosines.append(mean_squared_cosine(*pair) if pair[0].shape == pair[1].shape else "")
            dims = tokenizer.config.factors[i].code_dim
            codes = features.codes[:, i].flatten(), features.codes[:, j].flatten()
            shared = mutual_information(*codes, permutations, seed)
            numbers = [shared.counted, shared.chance, shared.corrected, shared.smaller_entropy]
            of = [name, f"{names[i]}, {names[j]}"]
            data.append([*of, *cosines, 1 / dims, *numbers, len(codes[0])])
            shown = [f"{c:.4f}" if isinstance(c, float) else "–" for c in cosines]
            rows.append([*of, *shown, f"{1 / dims:.4f}", *(f"{n:.3f}" for n in numbers)])
            label = ": ".join(of)
            apart.append(Series(label, [0], [[c for c in cosines[1:] if isinstance(c, float)] or [math.nan]]))
            informed.append(Series(label, [0], [[shared.corrected]]))
    head = ["model", "factors", "cos² before", "cos² after quantization", "independent", "I (bits)"]
    head += ["I by chance", "I above chance", "at most"]
    keys = ["model", "factors", "cos2_continuous", "cos2_discrete", "cos2_independent", "mutual_information"]
    keys += ["chance", "corrected", "smaller_entropy", "positions"]
    notes = (
        "cos²: mean squared cosine of two factors' vectors at a position (Eq. 7), beside 1/d, which independent "
        "directions in d dimensions have; – where the dimensions differ. I: mutual information of the codes of a "
        "position, from the counts; by chance: of the codes of two positions drawn at random, which few positions push "
        "up as much; at most: the smaller of the two entropies."
    )
    panels = [Panel("cos² after quantization", apart), Panel("mutual information above chance (bits)", informed)]
    return Table("How far the factors are apart", head, rows, keys, data, notes), write_dots(folder, panels)


def probe(
    models: Models, collect: Collect, collect_test: Collect, pools: Sequence[str], classes: int, folder: Path
) -> tuple[Table, list[Path]]:
    """Accuracy of a linear classifier on each factor's features before and after quantization, and on all factors."""
    rows, data = [], []
    series: dict[tuple[str, str], list[Series]] = {(kind, pool): [] for pool in pools for kind in KINDS}
    groups: dict[str, int] = {}
    for name, tokenizer in models.items():
        train, test = collect(name, tokenizer), collect_test(name, tokenizer)
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
    files = write_dots(folder, panels)
    return Table("Linear probes of the factors", head, rows, keys, data, notes), files


def tsne(
    models: Models,
    collect: Collect,
    source: ImageSource,
    folder: Path,
    *,
    pool: str,
    neighbours: int,
    perplexity: float,
    seed: int,
) -> tuple[Table, list[Path]]:
    """Fig. 4 and 6: images of some classes as points of a plane, a chart for each factor's code embeddings; and how
    much the classes keep together, measured in the space of the embeddings itself."""
    from sklearn.manifold import TSNE

    rows, data, files = [], [], []
    shares: dict[str, float] = {}
    for name, tokenizer in models.items():
        features, panels = collect(name, tokenizer), []
        count = len(features.labels)
        if count <= max(neighbours, perplexity):
            raise UserError(
                f"{count} images are too few for {neighbours} neighbours and perplexity {perplexity:g}: take more "
                "images, or lower --neighbours and --perplexity"
            )
        present = list(dict.fromkeys(features.labels.tolist()))
        shares = {name_of(source, label): float((features.labels == label).mean()) for label in present}
        for i, factor in enumerate(factors(tokenizer)):
            for kind in KINDS:
                points = features.points(kind, i, pool)
                purity = neighbour_purity(points, features.labels, neighbours)
                within = within_share(points, features.labels)
                rows.append([name, factor, kind, f"{purity:.1%}", f"{within:.3f}"])
                data.append([name, factor, kind, pool, purity, within, count])
            plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(
                features.points("discrete", i, pool)
            )
            series = []
            for label in present:
                x, y = plane[features.labels == label].T
                series.append(Series(name_of(source, label), x.tolist(), [y.tolist()]))
            panels.append(Panel(factor, series))
        files += write_scatter(folder, panels, _stem("figure", name, models))
    chance = sum(share**2 for share in shares.values())
    head = ["model", "factor", "features", f"purity of {neighbours} neighbours ↑", "variance within classes ↓"]
    keys = ["model", "factor", "features", "points", "purity", "within_share", "images"]
    notes = (
        f"{data[0][-1]:,} images of {', '.join(shares)}; an image is {_POINT[pool]}. Purity: share of the nearest "
        f"neighbours that are of a point's own class ({chance:.1%} by chance). Variance within classes: of the whole "
        "variance; the lower, the more compact the classes are. Both are measured on the features, not in the plane, "
        "whose distances mean little; the charts show the code embeddings."
    )
    return Table("What the factors know of classes", head, rows, keys, data, notes), files


_POINT = {"mean": "the mean of its positions' vectors", "grid": "all of its positions' vectors"}


@torch.inference_mode()
def views(
    models: Models, batches: Callable[[FactorizedTokenizer], Iterator[Tensor]], shown: Sequence[int], folder: Path
) -> tuple[Table, list[Path]]:
    """Fig. 3: pictures, their reconstructions, and what each factor makes of them alone; and the PSNR of each, and of
    the factors without it.

    Args:
        batches: gives images (b, 3, H, W) in [-1, 1].
        shown: which ones of these images, counted from 0, are drawn.
    """
    rows, data, files = [], [], []
    for name, tokenizer in models.items():
        k, names = tokenizer.num_factors, factors(tokenizer)
        kept = [("all factors", None)]
        if k > 1:
            kept += [(f"{names[i]} alone", [i]) for i in range(k)]
        if k > 2:
            kept += [(f"without {names[i]}", [j for j in range(k) if j != i]) for i in range(k)]
        sums, count, drawn = [0.0] * len(kept), 0, []
        for images in batches(tokenizer):
            codes = tokenizer.encode(images)
            for place, (_, keep) in enumerate(kept):
                sums[place] += psnr(images, tokenizer.decode(codes, keep)).clamp(max=100).sum().item()
            here = [i - count for i in shown if count <= i < count + len(images)]
            if here:
                drawn.append([images[here], *reconstruction_rows(tokenizer, codes[here])])
            count += len(images)
        if not drawn:
            raise UserError("not one picture of the data could be read")
        grid = grid_of([torch.cat(rows_) for rows_ in zip(*drawn, strict=True)])
        stem = _stem("views", name, models)
        save_picture(grid, folder / f"{stem}.png")
        files += [folder / f"{stem}.png", write_picture(folder / f"{stem}.pdf", np.asarray(to_image(grid)))]
        for (label, _), total in zip(kept, sums, strict=True):
            rows.append([name, label, f"{total / count:.2f}"])
            data.append([name, label, total / count, count])
    notes = (
        f"Mean over {data[0][-1]:,} images. A factor that is left out has embeddings of zero. Rows of the pictures: "
        "original, reconstruction, each factor alone."
    )
    table = Table(
        "What each factor draws", ["model", "from", "PSNR (dB)"], rows, ["model", "from", "psnr", "images"], data, notes
    )
    return table, files
