"""The page of the quickstart, and that of captions."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reports import parse, tiny

from fqgan.config import GeneratorRunConfig, SamplingConfig, TokenizerRunConfig
from fqgan.lab.report.content import Generation, Report, training_seconds
from fqgan.lab.report.evidence import gather, sample_indices
from fqgan.lab.report.figures import SIDE, palette
from fqgan.lab.report.numbers import METRICS, PERCEPTUAL, PSNR, duration, fixed, listed, percent, signed
from fqgan.lab.report.render import Captioned, captions_page, page
from fqgan.tokenizer.model import FactorizedTokenizer

pytest.importorskip("matplotlib")

CLASSES = ("red <b>", "green & co", "blue")


class Crops:
    """Nine random pictures of three classes."""

    def __init__(self) -> None:
        self.name = "crops"
        self.classes: tuple[str, ...] = CLASSES
        self.labels = np.repeat(np.arange(3), 3)
        self.blocks = [9]

    def __len__(self) -> int:
        return 9

    def read(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        return Image.fromarray(pixels), int(self.labels[index])

    def describe(self, index: int) -> str:
        return f"crop {index}"

    def reserve(self, blocks: int) -> None:
        pass


def scores(psnr: float, perceptual: float, frechet: float) -> dict[str, Any]:
    classes = {name: {"psnr_pooled": psnr + i, "perceptual": perceptual} for i, name in enumerate(CLASSES)}
    common = {"psnr": psnr, "psnr_pooled": psnr, "ssim": 0.5, "perceptual": perceptual}
    return {**common, "frechet_efficientnet": frechet, "classes": classes}


def report(k: int = 2, **changes: Any) -> Report:
    """A report of an untrained tokenizer with made-up scores."""
    torch.manual_seed(0)
    model = FactorizedTokenizer(tiny(k)).eval()
    usage = {f"f{i}": {"usage": 0.625, "perplexity": 7.25, "bits": 2.86, "positions": 144} for i in range(k)}
    tokenizer = {**scores(21.37, 0.345, 123.4), "factors": usage}
    evaluation = {"weights": "raw", "images": 9, "tokenizer": tokenizer, "baseline": scores(19.12, 0.690, 246.8)}
    losses = {"reconstruction_loss": 0.5, "codebook_loss": 0.25, "entropy_loss": -1.5}
    stats: list[dict[str, Any]] = [
        {"step": step, "images_seen": 8 * step, "images_per_second": 4.0, **losses} for step in (10, 20)
    ]
    stats[-1] |= {"val_psnr_pooled": 20.5, "val_perceptual": 0.4}
    made = Report(
        preset="photos-dual",
        command="fqgan quickstart --run 'a & b'",
        run="runs/<script>alert(1)</script>",
        config=replace(TokenizerRunConfig(), model=tiny(k)),
        parameters=1_230_000,
        training_parameters=0,
        device="CPU, 1 thread",
        steps=20,
        steps_before=0,
        command_seconds=185,
        evaluation=evaluation,
        stats=stats,
        evidence=gather(model, Crops(), torch.device("cpu"), 4),
    )
    return replace(made, **changes)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_page_has_a_row_for_each_view(k: int) -> None:
    checker = parse(page(report(k)))
    assert checker.classes.count("picture-row") == 3 + (k if k > 1 else 0)
    assert checker.classes.count("map-row") == 1 + k
    assert checker.text.count(" alone") == (k if k > 1 else 0)


def generation() -> Generation:
    """A generator's part with made-up scores."""
    scores = {"images": 60, "frechet_efficientnet": 500.0, "class_accuracy": 0.625}
    sets = dict.fromkeys(("samples", "reconstructions", "real", "held_out"), scores)
    untrained = {**scores, "frechet_efficientnet": 2000.0}
    stats = [
        {"step": s, "images_seen": 8 * s, "images_per_second": 4.0, "f0_loss": 2.5, "f1_loss": 2.0} for s in (1, 2)
    ]
    stats[-1] |= {"val_f0_loss": 3.125}
    return Generation(
        preset="far-photos",
        run="runs/a & b",
        config=GeneratorRunConfig(data="tokens"),
        parameters=1_500_000,
        steps=2,
        stats=stats,
        factors=["f0", "f1"],
        names=list(CLASSES),
        real=[torch.zeros(4, 3, 32, 32)] * 3,
        samples=[torch.ones(6, 3, 32, 32)] * 3,
        evaluation={
            "reference": "9 training crops",
            "sampling": vars(SamplingConfig()),
            **sets,
            "untrained": untrained,
        },
    )


def test_page_shows_what_a_generator_does() -> None:
    checker = parse(page(report(generation=generation())))
    for piece in (
        "in 62.5 % of cases, and lie 4.0× nearer to real crops",
        "generated",
        "untrained generator",
        "25.0 %",
        "held out 3.125",
        "far-photos",
        "fqgan generate 'runs/a & b' --classes 'red <b>' --num 64 --out samples",
    ):
        assert piece in checker.text, piece
    without = parse(page(report()))
    assert len(checker.resources) == len(without.resources) + 3 * (4 + 6) + 2, "pictures, and a chart a factor"
    assert "Generated images" not in without.text


def test_an_unfinished_page_says_so_and_loads_itself_again_until_it_is_whole() -> None:
    """Before anything is measured it shows pictures and curves, and of nothing else a number or a heading."""
    whole = report(generation=generation())
    pictures = replace(whole.evidence, counts=[])
    first = replace(whole, doing="step 3 of 9", evaluation={}, generation=None, evidence=pictures)
    drawing = replace(whole, doing="step 5 of 7", generation=replace(generation(), evaluation={}))
    pages = [page(each) for each in (first, drawing, whole)]
    assert ['<meta http-equiv="refresh"' in each for each in pages] == [True, True, False]
    text, later, end = (parse(each).text for each in pages)
    assert "Unfinished: step 3 of 9." in text and "Unfinished: step 5 of 7." in later and "Unfinished" not in end
    for words, where in {
        "What the codes keep": (True, True, True),
        "PSNR in validation": (True, True, True),
        "Results on held-out crops": (False, True, True),
        "Use of the codebooks": (False, True, True),
        "Training of the generator": (False, True, False),
        "How good they are": (False, False, True),
        "What to do next": (False, False, True),
    }.items():
        assert tuple(words in each for each in (text, later, end)) == where, words
    assert parse(pages[0]).classes.count("picture-row") == 5


def test_page_needs_nothing_outside_itself() -> None:
    document = page(report())
    resources = parse(document).resources
    assert resources
    assert all(re.match(r"data:image/(png|svg\+xml);base64,", resource) for resource in resources)
    assert "http" not in document.replace("data:image", "")
    assert "@import" not in document
    assert "url(" not in document


def test_page_tells_the_numbers() -> None:
    text = parse(page(report())).text
    for words in (
        "21.37 dB", "19.12 dB", "+2.25 dB", "0.345", "2.00× lower", "123.4", "246.8", "62.5 %", "perplexity 7.2",
        "2 × 16", "8 bits", "4×4 positions", "20 steps of 256 = 5,120 images seen",
        "3 min 05 s", "1.23 M", "256 entries",
    ):  # fmt: skip
        assert words in text, words
    assert "worse" not in text


def test_page_marks_where_the_tokenizer_loses() -> None:
    """A page that only praises is of no use."""
    losing = report()
    losing.tokenizer["classes"]["blue"]["psnr_pooled"] = 10.0
    checker = parse(page(losing))
    assert checker.text.count(" worse") == 1
    assert "lower PSNR in 1 of 3 classes" in checker.text
    losing.tokenizer.update(psnr_pooled=18.0, perceptual=0.8)
    assert {"verdict", "worse"} <= set(parse(page(losing)).classes)
    assert "−1.12 dB" in page(losing)


def test_text_is_escaped() -> None:
    document = page(report())
    assert "<script" not in document
    assert "red &lt;b&gt;" in document
    assert "red <b>" not in document
    assert "green & co" in parse(document).text
    quoted = report(generation=replace(generation(), names=["a \" onload='x'", *CLASSES[1:]]))
    alt = [value for value in parse(page(quoted)).alternatives if "onload" in value]
    assert alt == ["real crop of a \" onload='x'"] * 4 + ["generated image of a \" onload='x'"] * 6


def test_page_without_validation_scores_or_classes() -> None:
    bare = report(stats=[])
    for numbers in (bare.tokenizer, bare.baseline):
        del numbers["classes"], numbers["frechet_efficientnet"]
        numbers["perceptual"] = float("nan")
    checker = parse(page(bare))
    assert "PSNR in validation" not in checker.text
    assert "Class by class" not in checker.text
    assert "Training" in checker.text  # the fact, not the section
    assert "Means between log lines" not in checker.text


def test_gan_charts_appear_with_the_terms() -> None:
    with_gan = report()
    assert "<b>GAN</b>" not in page(with_gan)
    with_gan.stats[-1] |= {"gan_loss": 0.1, "discriminator_loss": 1.0}
    assert {"GAN", "Discriminator", "Entropy"} <= set(re.findall(r"<b>([^<]*)</b>", page(with_gan)))


def test_training_time_comes_from_the_rates() -> None:
    """A run that was resumed must not claim the time of its last part only."""
    lines = [
        {"images_seen": 100, "images_per_second": 10.0},
        {"images_seen": 200, "images_per_second": 50.0},
        {"images_seen": 220, "images_per_second": 0.0},
    ]
    assert training_seconds(lines) == 12.0
    resumed = parse(page(report(steps_before=10))).text
    assert "continued the run from step 10" in resumed
    assert "evaluation only" in parse(page(report(steps_before=20))).text


def test_samples_are_the_middle_of_each_class() -> None:
    assert sample_indices(np.repeat(np.arange(3), 3), 3) == [1, 4, 7]
    assert len(sample_indices(np.repeat(np.arange(40), 2), 40)) == 10
    assert sample_indices(np.full(5, -1), 0) == [0, 1, 2, 3, 4]


def test_counts_and_colours_of_codes() -> None:
    evidence = report().evidence
    assert [counts.sum() for counts in evidence.counts] == [9 * 4 * 4] * 2
    assert evidence.codes.shape == (3, 2, 4, 4)
    assert len(np.unique(palette(1024), axis=0)) > 900


def test_numbers_as_people_read_them() -> None:
    assert [duration(s) for s in (3.2, 59.6, 185, 7640)] == ["3 s", "1 min 00 s", "3 min 05 s", "2 h 07 min"]
    assert [percent(s) for s in (0, 0.0001, 0.5, 0.9999, 1)] == ["0 %", "0.1 %", "50.0 %", "99.9 %", "100 %"]
    assert [fixed(None, 2), fixed(float("inf"), 2, "dB"), fixed(-1.0, 1, "dB")] == ["–", "–", "−1.0 dB"]
    assert [signed(1.0, 1), signed(-1.0, 1), signed(float("nan"), 1)] == ["+1.0", "−1.0", "–"]
    assert [listed(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_scores_are_compared() -> None:
    """Where more is better by their difference, else by their ratio; never where one is missing."""
    for metric in METRICS:
        low, high = {metric.key: 1.0}, {metric.key: 2.0}
        higher_wins = metric.key in ("psnr_pooled", "ssim")
        assert metric.verdict(high, low) == ("better" if higher_wins else "worse")
        assert metric.verdict(low, high) == ("worse" if higher_wins else "better")
        assert (metric.verdict(low, low), metric.comparison(low, low)) == ("equal", "equal")
        assert (metric.verdict(low, {}), metric.comparison(low, {})) == ("equal", "")
    assert PSNR.comparison({"psnr_pooled": 1.0}, {"psnr_pooled": 2.5}) == "−1.50 dB"
    assert PERCEPTUAL.comparison({"perceptual": 2.0}, {"perceptual": 1.0}) == "2.00× higher"


def test_captions_page() -> None:
    """Captions are anybody's words: they are text, never markup."""
    captions = {"pixels <x>": ("a <script>cat</script>", 123.456), "codes": ("", float("nan"))}
    shown = Captioned(Image.new("RGB", (500, 300)), 'a "b" <i>.parquet', ["a cat & a <b>dog</b>"], captions)
    document = captions_page("Captions <&>", "Two & more.", [shown])
    checker = parse(document)
    assert document.count("<script") == document.count("<i>") == document.count("<b>") == 0
    for words in ("Captions <&>", "a <script>cat</script>", "123.5", "–", 'a "b" <i>.parquet', "a cat & a <b>dog</b>"):
        assert words in checker.text, words
    data = base64.b64decode(checker.resources[0].removeprefix("data:image/jpeg;base64,"))
    assert max(Image.open(io.BytesIO(data)).size) == SIDE
    assert captions_page("Captions <&>", "None.", []).count("<section") == 0
