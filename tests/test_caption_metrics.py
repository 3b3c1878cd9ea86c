"""CIDEr-D, BLEU-4 and ROUGE-L against COCO's own code, and the words that they compare."""

from __future__ import annotations

import contextlib
import io
import math
import random
from collections.abc import Sequence

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from fqgan.base.errors import UserError
from fqgan.lab.understanding import words as words_module
from fqgan.lab.understanding.bleu import bleu_4
from fqgan.lab.understanding.cider import cider_d
from fqgan.lab.understanding.rouge import rouge_l
from fqgan.lab.understanding.words import Words, choose, java_tokenizer, tokenize, tokenized

PEOPLE = (
    (
        "Two children are building a sandcastle near the water .",
        "A boy and a girl dig in the sand .",
        "Kids play at the beach with plastic shovels and a red bucket .",
        "Two kids on a beach , building something out of sand .",
        "The boy's bucket is red .",
    ),
    (
        "A cyclist isn't wearing a helmet as she crosses the bridge .",
        "A woman rides her bicycle over an old bridge .",
        "a woman on a bike",
        "Someone is riding a bicycle over a river .",
    ),
    ("A grey cat sleeps on a windowsill .", "The cat is asleep in the sun .", "A cat , sleeping ."),
    (
        "A man in a T-shirt sells fruit at a market stall .",
        "The market has many oranges , apples and lemons .",
        "A fruit seller waits for customers at his stall .",
    ),
)
MACHINE = ("A boy is playing in the sand .", "a woman is riding a bike over the bridge", "A dog sleeps .", "a man")


def theirs(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]]
) -> tuple[list[float], float, list[float]]:
    result = {i: [" ".join(words)] for i, words in enumerate(candidates)}
    truth = {i: [" ".join(words) for words in several] for i, several in enumerate(references)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu = Bleu(4).compute_score(truth, result)[0][3]
    return list(Cider().compute_score(truth, result)[1]), bleu, list(Rouge().compute_score(truth, result)[1])


def compare(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    cider, bleu, rouge = theirs(candidates, references)
    ours = cider_d(candidates, references)
    assert ours == pytest.approx(cider, abs=1e-6)
    assert bleu_4(candidates, references) == pytest.approx(bleu, abs=1e-6)
    assert rouge_l(candidates, references) == pytest.approx(rouge, abs=1e-6)
    return ours


@pytest.mark.parametrize("seed", range(8))
def test_scores_of_random_captions_are_those_of_cocos_code(seed: int) -> None:
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(rng.choice([5, 40]))]

    def caption(shortest: int = 1) -> Words:
        return tuple(rng.choices(vocabulary, k=rng.randint(shortest, 14)))

    references = [[caption() for _ in range(rng.randint(1, 6))] for _ in range(30)]
    # some are right, some empty
    candidates = [rng.choice([caption(0), caption(), rng.choice(several)]) for several in references]
    compare(candidates, references)


def test_scores_of_captions_as_people_write_them_are_those_of_cocos_code() -> None:
    references = [[tokenize(caption) for caption in several] for several in PEOPLE]
    scores = compare([tokenize(caption) for caption in MACHINE], references)
    assert max(scores) > 0.5 > min(scores)
    perfect = [several[0] for several in references]
    assert min(compare(perfect, references)) > max(scores)


def test_a_caption_that_equals_its_only_reference_scores_ten() -> None:
    references = [[tokenize(several[0])] for several in PEOPLE]
    assert cider_d([several[0] for several in references], references) == pytest.approx([10] * 4)
    assert rouge_l([several[0] for several in references], references) == pytest.approx([1] * 4)
    assert bleu_4([several[0] for several in references], references) == pytest.approx(1)


def test_a_words_weight_comes_from_the_references() -> None:
    """One common word: the cosine in closed form, 1-grams only since no pair of words is shared."""
    references = [[("dog", "runs")], [("cat", "runs")], [("cat", "sits")]]
    rare, common = math.log(3 / 1), math.log(3 / 2)
    expected = 10 / 4 * rare**2 / (math.hypot(rare, common) * math.hypot(rare, math.log(3)))
    assert cider_d([("dog", "flies"), ("x",), ("y",)], references)[0] == pytest.approx(expected)


def test_pictures_without_references_are_no_input() -> None:
    for candidates, references in (([("a",)], [[]]), ([("a",)], [[()]]), ([], []), ([("a",)], [])):
        for metric in (cider_d, bleu_4, rouge_l):
            with pytest.raises(ValueError):
                metric(candidates, references)


TREEBANK = (
    ("A man's dog isn't running ; it can't !", "a man 's dog is n't running it ca n't"),
    ("The dogs' bowls (two of them)", "the dogs bowls -lrb- two of them -rrb-"),
    ('A T-shirt-clad boy -- age 5 -- wearing "blue"', "a t-shirt-clad boy age 5 wearing blue"),
    ("Gonna jump ... at 10:30 a.m. on 1,000.50 dollars", "gon na jump at 10:30 a.m. on 1,000.50 dollars"),
    ("Mr. Smith's U.S. flag costs $5 , 50% off", "mr. smith 's u.s. flag costs $ 5 50 % off"),
    ("cannot , an 80's style child 's seat .", "can not an 80 's style child 's seat"),
    ("The cat sits,now a red/white jersey #23", "the cat sits now a red/white jersey # 23"),
    ("It’s o'clock — “quoted”", "it 's o'clock quoted"),
    ("what ?! no !! wow ?", "what ?! no !! wow"),
    (" . . . , - ", ""),
)


@pytest.mark.parametrize(("caption", "words"), TREEBANK)
def test_words_are_those_of_the_treebank(caption: str, words: str) -> None:
    assert " ".join(tokenize(caption)) == words


@pytest.mark.skipif(not java_tokenizer(), reason="needs Java")
def test_captions_go_to_javas_tokenizer_and_come_back_in_their_order() -> None:
    captions = [caption for several in PEOPLE for caption in several] + ["", "two\nlines ,", "naïve café"]
    captions += [caption for caption, _ in TREEBANK]
    assert tokenized(captions) == [tokenize(caption) for caption in captions]


def test_without_java_the_words_are_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module.shutil, "which", lambda name: None)
    assert choose("auto") == "python"
    assert tokenized(["A dog ."]) == [("a", "dog")]
    with pytest.raises(UserError, match="needs Java"):
        tokenized(["A dog ."], "java")
