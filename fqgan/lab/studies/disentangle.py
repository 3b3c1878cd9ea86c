"""How far the factors of tokenizers are apart."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

from fqgan.base.errors import UserError
from fqgan.lab.studies.features import KINDS, Encoding, factors, images_of, load_models, pick
from fqgan.lab.studies.figures import Panel, Series, write_dots
from fqgan.lab.studies.measures import mean_squared_cosine
from fqgan.lab.studies.settings import DisentangleOptions
from fqgan.lab.studies.tables import Table
from fqgan.metrics.information import mutual_information


def disentangle(options: DisentangleOptions) -> list[Path]:
    """How far each pair of factors is apart: the mean squared cosine of Eq. 7, before and after quantization, and the
    mutual information of the codes. Returns the files, the table first."""
    models = load_models(options)
    source = images_of(options)
    encoding = Encoding(options, source, pick(source, options.limit))
    rows, data, apart, informed = [], [], [], []
    for name, tokenizer in models.items():
        if tokenizer.num_factors < 2:
            raise UserError(f"{name} has one factor: there is nothing that it could be apart from")
        features, names = encoding.features(name, tokenizer), factors(tokenizer)
        for i, j in combinations(range(tokenizer.num_factors), 2):
            cosines: list[float | str] = []
            for kind in KINDS:
                pair = features.vectors(kind, i), features.vectors(kind, j)
                cosines.append(mean_squared_cosine(*pair) if pair[0].shape == pair[1].shape else "")
            dims = tokenizer.config.factors[i].code_dim
            codes = features.codes[:, i].flatten(), features.codes[:, j].flatten()
            shared = mutual_information(*codes, options.permutations, options.seed)
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
    table = Table("How far the factors are apart", head, rows, keys, data, notes)
    return [*table.write(options.out), *write_dots(options.out, panels)]
