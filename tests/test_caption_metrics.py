"""CIDEr-D, BLEU-4 and ROUGE-L against recorded numbers, and the words that they compare."""

from __future__ import annotations

import math
import random

import pytest

from fqgan.base.errors import UserError
from fqgan.lab.understanding import words as words_module
from fqgan.lab.understanding.scores import bleu_4, cider_d, rouge_l
from fqgan.lab.understanding.words import Words, chosen_splitter, java_tokenizer, split_captions, split_words

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


# mean CIDEr-D, mean ROUGE-L and BLEU-4, by code of our own that was equal to pycocoevalcap's
RECORDED = (
    (0.7731804506326516, 0.4701537940394714, 0.3719973535910499),
    (2.5713717832596528, 0.6430672154630118, 0.5470800045951828),
    (2.363502410310662, 0.7193103185234143, 0.6576425854319131),
    (2.349550327905829, 0.6616492594811562, 0.522065701293206),
    (1.9224428554024595, 0.6823807233048594, 0.5082492664443464),
    (1.6478061944028757, 0.5549483206614046, 0.5553734934815885),
    (2.325411158489342, 0.6939349138319646, 0.49855015111633744),
    (1.4839188260354872, 0.4539747208414534, 0.4380041958642655),
)


@pytest.mark.parametrize("seed", range(8))
def test_scores_of_random_captions_are_the_recorded_ones(seed: int) -> None:
    rng = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(rng.choice([5, 40]))]

    def caption(shortest: int = 1) -> Words:
        return tuple(rng.choices(vocabulary, k=rng.randint(shortest, 14)))

    references = [[caption() for _ in range(rng.randint(1, 6))] for _ in range(30)]
    # some are right, some empty
    candidates = [rng.choice([caption(0), caption(), rng.choice(several)]) for several in references]
    means = [sum(metric(candidates, references)) / 30 for metric in (cider_d, rouge_l)]
    assert [*means, bleu_4(candidates, references)] == pytest.approx(RECORDED[seed], abs=1e-6)


def test_scores_of_captions_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    references = [[split_words(caption) for caption in several] for several in PEOPLE]
    candidates = [split_words(caption) for caption in MACHINE]
    scores = cider_d(candidates, references)
    assert scores == pytest.approx([0.752098585, 1.546690285, 0.234659727, 0.193400019], abs=1e-6)
    assert rouge_l(candidates, references) == pytest.approx([0.611222445, 0.677777778, 0.419243986, 0.273542601])
    assert bleu_4(candidates, references) == pytest.approx(4.106295378e-05)
    perfect = [several[0] for several in references]
    assert cider_d(perfect, references) == pytest.approx([2.131434189, 2.572144223, 3.803908559, 3.713183598])
    assert capsys.readouterr() == ("", "")


def test_no_words_and_a_single_picture_score_nothing() -> None:
    references = [[("a", "dog"), ("dogs",)]]
    assert cider_d([("a", "dog")], references) == cider_d([()], references) == rouge_l([()], references) == [0]
    assert bleu_4([()], references) == pytest.approx(0, abs=1e-6)


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fqgan.nets.weights.find_spec", lambda name: None)
    for metric in (cider_d, bleu_4, rouge_l):
        with pytest.raises(UserError, match=r"pycocoevalcap, which is not installed: pip install 'fqgan\[underst"):
            metric([("a",)], [[("a",)]])


def test_a_caption_that_equals_its_only_reference_scores_ten() -> None:
    references = [[split_words(several[0])] for several in PEOPLE]
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
    assert " ".join(split_words(caption)) == words


@pytest.mark.skipif(not java_tokenizer(), reason="needs Java")
def test_captions_go_to_javas_tokenizer_and_come_back_in_their_order() -> None:
    captions = [caption for several in PEOPLE for caption in several] + ["", "two\nlines ,", "naïve café"]
    captions += [caption for caption, _ in TREEBANK]
    assert split_captions(captions) == [split_words(caption) for caption in captions]


def test_without_java_the_words_are_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module.shutil, "which", lambda name: None)
    assert chosen_splitter("auto") == "python"
    assert split_captions(["A dog ."]) == [("a", "dog")]
    with pytest.raises(UserError, match="needs Java"):
        split_captions(["A dog ."], "java")
