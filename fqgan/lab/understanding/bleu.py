"""BLEU-4 (Papineni et al. 2002) of a set of captions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from fqgan.lab.understanding.words import Words, check_pairs, ngrams

_MOST = 4
# COCO's evaluation adds these to numerators and denominators: no logarithm of 0
_TINY, _SMALL = 1e-15, 1e-9


def bleu_4(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Geometric mean of the precisions of n-grams, n = 1 to 4, over all captions, times a penalty on short ones.

    An n-gram counts as often as it occurs in one of the picture's references; the penalty is exp(1 - r / c) where the
    captions' length c is below r, the sum of the references' lengths nearest to each caption's (the shorter of two).

    Args:
        candidates: words of one caption a picture.
        references: words of each picture's captions. `UserError` where there are none, or an empty one.

    Returns:
        A number in [0, 1]; not a mean over captions.
    """
    check_pairs(candidates, references)
    right, guessed = [0] * _MOST, [0] * _MOST
    length = nearest = 0
    for candidate, several in zip(candidates, references, strict=True):
        length += len(candidate)
        nearest += min((abs(len(words) - len(candidate)), len(words)) for words in several)[1]
        most: Counter[Words] = Counter()
        for words in several:
            most |= ngrams(words, _MOST)
        for gram, count in ngrams(candidate, _MOST).items():
            right[len(gram) - 1] += min(count, most[gram])
            guessed[len(gram) - 1] += count
    product = math.prod((r + _TINY) / (g + _SMALL) for r, g in zip(right, guessed, strict=True))
    ratio = (length + _TINY) / (nearest + _SMALL)
    return product ** (1 / _MOST) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)
