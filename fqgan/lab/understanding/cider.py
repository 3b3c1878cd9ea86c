"""CIDEr-D (Vedantam et al. 2015): how much a caption shares with what people wrote, rare words counting more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from fqgan.lab.understanding.words import Words, check_pairs, ngrams

SIGMA = 6.0
"""Words of the penalty on length."""
_MOST = 4


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """One score a picture, from 0 to 10; the corpus scores their mean. Papers give it times 100 or, as here, as it is.

    For n = 1 to 4, words and references are vectors of n-gram counts times log(N / df): df is the number of the N
    pictures whose references hold the n-gram, at least 1. A reference's similarity is sum(min(c, r) * r) / (|c| |r|)
    times exp(-(difference in length)^2 / (2 * 6^2)); the score is 10 times the mean over references and n. Document
    frequencies come from `references` themselves, as in COCO's evaluation, so that scores of different sets of pictures
    do not compare; of a single picture all are 0.

    Args:
        candidates: words of one caption a picture.
        references: words of each picture's captions. `UserError` where there are none, or an empty one.
    """
    check_pairs(candidates, references)
    counted = [[ngrams(reference, _MOST) for reference in several] for several in references]
    frequency = Counter(gram for several in counted for gram in set().union(*several))
    pictures = math.log(len(references))

    def vector(counts: Mapping[Words, int]) -> tuple[list[dict[Words, float]], list[float]]:
        """tf-idf by length of the n-gram, and the norms."""
        parts: list[dict[Words, float]] = [{} for _ in range(_MOST)]
        for gram, count in counts.items():
            parts[len(gram) - 1][gram] = count * (pictures - math.log(max(1, frequency[gram])))
        return parts, [math.sqrt(sum(value * value for value in part.values())) for part in parts]

    scores = []
    for candidate, several, counts in zip(candidates, references, counted, strict=True):
        own, own_norms = vector(ngrams(candidate, _MOST))
        total = 0.0
        for reference, grams in zip(several, counts, strict=True):
            theirs, norms = vector(grams)
            # COCO's evaluation takes the number of pairs of words for the length
            difference = max(0, len(candidate) - 1) - max(0, len(reference) - 1)
            for n in range(_MOST):
                shared = sum(min(value, theirs[n].get(g, 0.0)) * theirs[n].get(g, 0.0) for g, value in own[n].items())
                norm = own_norms[n] * norms[n]
                total += (shared / norm if norm else shared) * math.exp(-(difference**2) / (2 * SIGMA**2))
        scores.append(10 * total / _MOST / len(several))
    return scores
