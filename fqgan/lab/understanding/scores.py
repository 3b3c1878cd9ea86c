"""CIDEr-D, BLEU-4 and ROUGE-L of captions, as COCO's evaluation (pycocoevalcap) has them, of words that are split
already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fqgan.base.errors import UserError
from fqgan.config import WordSplitter
from fqgan.lab.understanding import EXTRA
from fqgan.lab.understanding.words import Words, split_captions
from fqgan.nets.weights import require


def require_scores() -> None:
    """`UserError` where pycocoevalcap is not installed. Does not import it."""
    require("pycocoevalcap", EXTRA)


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D (Vedantam et al. 2015) of each picture, from 0 to 10; a set of captions scores their mean.

    N-grams count more the fewer pictures have them. How many do comes from `references`, so that scores of different
    sets of pictures do not compare; of a single picture all are 0.

    Args:
        candidates: words of one caption a picture.
        references: words of each picture's captions. `UserError` where there are none, or an empty one.
    """
    pairs = _joined(candidates, references)
    from pycocoevalcap.cider.cider import Cider

    return Cider().compute_score(*pairs)[1].tolist()


def bleu_4(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """BLEU-4 (Papineni et al. 2002) of a set of captions, in [0, 1]; not a mean over captions. Arguments as of
    `cider_d`."""
    pairs = _joined(candidates, references)
    from pycocoevalcap.bleu.bleu import Bleu

    return Bleu(4).compute_score(*pairs, verbose=0)[0][3]


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """ROUGE-L (Lin 2004) of each picture, in [0, 1]; a set of captions scores their mean. Arguments as of `cider_d`."""
    pairs = _joined(candidates, references)
    from pycocoevalcap.rouge.rouge import Rouge

    return Rouge().compute_score(*pairs)[1].tolist()


def score(
    written: Sequence[str], references: Sequence[Sequence[str]], words: WordSplitter = "auto"
) -> tuple[dict[str, float], list[float]]:
    """`cider`, `bleu4` and `rouge` of captions, in [0, 10], [0, 1] and [0, 1], and CIDEr-D of each picture.

    `UserError` for references without a word.
    """
    texts = [*written, *(text for several in references for text in several)]
    split = iter(split_captions(texts, words))
    candidates = [next(split) for _ in written]
    pictures = [[own for _ in several if (own := next(split))] for several in references]
    if not all(pictures):
        empty = references[next(i for i, several in enumerate(pictures) if not several)]
        raise UserError(f"the captions of a picture hold no word: {' / '.join(empty)!r}")
    each, overlap = cider_d(candidates, pictures), rouge_l(candidates, pictures)
    metrics = {
        "cider": sum(each) / len(each),
        "bleu4": bleu_4(candidates, pictures),
        "rouge": sum(overlap) / len(overlap),
    }
    return metrics, each


def _joined(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> tuple[dict[int, Any], ...]:
    """References and candidates as pycocoevalcap takes them: picture -> texts, which it splits at blanks."""
    if any(isinstance(words, str) for words in (*candidates, *(words for several in references for words in several))):
        raise UserError("captions must be words, not texts: split_words makes them")
    if len(candidates) != len(references) or not candidates:
        raise UserError(f"{len(candidates)} candidates for {len(references)} sets of references")
    if not all(several and all(several) for several in references):
        raise UserError("every candidate needs references, none of them empty")
    require_scores()
    texts = {i: [" ".join(words) for words in several] for i, several in enumerate(references)}
    return texts, {i: [" ".join(words)] for i, words in enumerate(candidates)}
