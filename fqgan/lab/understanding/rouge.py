"""ROUGE-L (Lin 2004) of captions."""

from __future__ import annotations

from collections.abc import Sequence

from fqgan.lab.understanding.words import Words, check_pairs

BETA = 1.2
"""How much more recall counts than precision, as in COCO's evaluation."""


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """One score a picture in [0, 1]; the corpus scores their mean.

    (1 + b^2) P R / (R + b^2 P) with b = 1.2, of the longest common subsequence's share P of the caption and R of a
    reference, each the best over the references.

    Args:
        candidates: words of one caption a picture.
        references: words of each picture's captions. `UserError` where there are none, or an empty one.
    """
    check_pairs(candidates, references)
    scores = []
    for candidate, several in zip(candidates, references, strict=True):
        common = [_common(candidate, words) for words in several]
        precision = max(common) / len(candidate) if candidate else 0.0
        recall = max(shared / len(words) for shared, words in zip(common, several, strict=True))
        both = recall + BETA**2 * precision
        scores.append((1 + BETA**2) * precision * recall / both if both else 0.0)
    return scores


def _common(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for i, other in enumerate(b, 1):
            before, row[i] = row[i], before + 1 if word == other else max(row[i], row[i - 1])
    return row[-1]
