"""Everything that the page tells about a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle

from torch import Tensor

from fqgan.config import GeneratorRunConfig, TokenizerRunConfig
from fqgan.lab.report.evidence import Evidence
from fqgan.lab.report.figures import FACTOR_COLOURS, code_counts, curve, curve_with_baseline, train_and_validation
from fqgan.lab.report.numbers import PERCEPTUAL, PSNR, Numbers, duration, fixed, listed, percent

LOSSES = {
    "reconstruction": "pixel error in [−1, 1]",
    "perceptual": "deep features",
    "codebook": "pulls codes to features",
    "commitment": "pulls features to codes",
    "entropy": "low: each sure, all in use",
    "disentangle": "overlap of the factors",
    "representation": "predicts the teacher",
    "spatial": "predicts the teacher's map",
    "independence": "dependence of the factors",
    "gan": "fooling the discriminator",
    "discriminator": "its own loss",
}
"""The terms in the order of the page, and what each is."""


@dataclass(frozen=True)
class Generation:
    """A generator on the tokenizer's codes, its pictures and their scores."""

    preset: str
    run: str
    """The run folder."""
    config: GeneratorRunConfig
    parameters: int
    steps: int
    """Optimizer steps behind the weights."""
    stats: list[Numbers]
    """The lines of its stats.jsonl."""
    factors: list[str]
    names: list[str]
    """The classes."""
    real: list[Tensor]
    """Of each class: real crops (n, 3, H, W) in [-1, 1]."""
    samples: list[Tensor]
    """Of each class: generated images (m, 3, H, W), not clipped."""
    evaluation: Numbers
    """Scores of the `samples`, of an `untrained` generator's, of `reconstructions`, `real` and `held_out` crops; empty
    in training."""


@dataclass(frozen=True)
class Report:
    """A run, its evaluation and its pictures; while the command is `doing` something, what there is of them."""

    preset: str
    run: str
    """The run folder."""
    config: TokenizerRunConfig
    parameters: int
    training_parameters: int
    """Those of the `parameters` that only training uses: the feature-prediction heads."""
    device: str
    steps: int
    """Optimizer steps behind the weights."""
    steps_before: int
    """Those of them that were done before this command."""
    evaluation: Numbers
    """`eval.json`: `images`, and the scores of the `tokenizer` and the `baseline`; empty until they are measured."""
    stats: list[Numbers]
    """The lines of stats.jsonl."""
    evidence: Evidence
    generation: Generation | None = None
    command: str = ""
    """As it was typed, where it was."""
    command_seconds: float = 0.0
    """Wall time of this command."""
    doing: str = ""
    """What the command is at; empty once it has finished."""

    @property
    def tokenizer(self) -> Numbers:
        """Scores of the tokenizer."""
        return self.evaluation.get("tokenizer", {})

    @property
    def baseline(self) -> Numbers:
        """Scores of the mean-colour baseline."""
        return self.evaluation.get("baseline", {})

    @property
    def verdict(self) -> str:
        """`better` or `worse` than the baseline in both of the scores that lead the page, or `mixed`."""
        found = {metric.verdict(self.tokenizer, self.baseline) for metric in (PSNR, PERCEPTUAL)}
        return found.pop() if len(found) == 1 else "mixed"

    @property
    def classes(self) -> list[tuple[str, tuple[Numbers, Numbers]]]:
        """Scores of the tokenizer and of the baseline in each class."""
        theirs = self.baseline.get("classes", {})
        return [(name, (ours, theirs[name])) for name, ours in self.tokenizer.get("classes", {}).items()]

    @property
    def lost_classes(self) -> int:
        """In how many of them the tokenizer has the lower PSNR."""
        return sum(PSNR.verdict(ours, theirs) == "worse" for _, (ours, theirs) in self.classes)

    @property
    def factor_names(self) -> list[str]:
        """The factors, in order."""
        return [factor.name for factor in self.config.model.factors]

    @property
    def codebook_sizes(self) -> list[int]:
        """Codes of each factor."""
        return [factor.codebook_size for factor in self.config.model.factors]

    @property
    def combinations(self) -> int:
        """What one position can say."""
        return math.prod(self.codebook_sizes)

    @property
    def codebooks(self) -> str:
        """`2 × 1,024`, or `1,024 + 512` where the sizes differ."""
        sizes = self.codebook_sizes
        return f"{len(sizes)} × {sizes[0]:,}" if len(set(sizes)) == 1 else " + ".join(f"{size:,}" for size in sizes)

    @property
    def patch(self) -> str:
        """Pixels of one position, as `8×8`."""
        return f"{self.config.model.downsampling}×{self.config.model.downsampling}"

    @property
    def bits_per_position(self) -> float:
        """What the codes of one position take at most."""
        return sum(map(math.log2, self.codebook_sizes))

    @property
    def trained_on_the_judge(self) -> bool:
        """Whether training minimised the very perceptual distance that the page reports."""
        return self.config.loss.perceptual == "efficientnet-lite0" and self.config.loss.perceptual_weight > 0

    @property
    def roles_of_the_judge(self) -> list[str]:
        """What the network behind the distances was in training."""
        factors = self.config.model.factors
        taught = [f.name for f in factors if any(name.startswith("efficientnet-lite0") for name in f.teachers)]
        teacher = f"the teacher of the {listed(taught)} factor{'s' if len(taught) > 1 else ''}"
        judged = self.config.discriminator.network.startswith("efficientnet-lite0")
        roles = {"the perceptual loss": self.trained_on_the_judge, teacher: taught, "the discriminator's eye": judged}
        return [role for role, held in roles.items() if held]


@dataclass(frozen=True)
class Chart:
    """A chart and the words around it."""

    title: str
    note: str
    image: str
    alt: str
    aside: str = ""


def validation_charts(report: Report) -> list[Chart]:
    """PSNR, and the perceptual distance where it is the one that the baseline has too."""
    charts = []
    for metric in (PSNR, PERCEPTUAL) if report.trained_on_the_judge else (PSNR,):
        steps, values = series(report.stats, f"val_{metric.key}")
        if steps:
            title, baseline = f"{metric.title} in validation", report.baseline.get(metric.key)
            note = f"last {fixed(values[-1], metric.digits)}"
            note += "" if baseline is None else f", baseline {fixed(baseline, metric.digits)}"
            alt = f"{title} over the training steps: {values[-1]:.{metric.digits}f} at the last"
            image = curve_with_baseline(steps, values, baseline, metric.unit or "distance")
            charts.append(Chart(title, note, image, alt))
    return charts


def loss_charts(report: Report) -> list[Chart]:
    """Every loss term over the steps."""
    found = {key.removesuffix("_loss") for line in report.stats for key in line if key.endswith("_loss")}
    charts = []
    for term in [*(term for term in LOSSES if term in found), *sorted(found - LOSSES.keys())]:
        steps, values = series(report.stats, f"{term}_loss")
        gan = term == "gan"
        weight = report.config.discriminator.weight if gan else getattr(report.config.loss, f"{term}_weight", None)
        title = "GAN" if gan else term.capitalize()
        alt = f"{title} loss over the training steps: {values[-1]:.4g} at the last"
        aside = "" if weight is None else f"weight {weight:g}"
        charts.append(Chart(title, LOSSES.get(term, ""), curve(steps, values), alt, aside))
    return charts


def usage_charts(report: Report) -> list[Chart]:
    """The sorted code counts of each factor."""
    charts = []
    for name, counts, colour in zip(report.factor_names, report.evidence.counts, cycle(FACTOR_COLOURS), strict=False):
        use = report.tokenizer["factors"][name]
        note = (
            f"{(counts > 0).sum():,} of {len(counts):,} codes used ({percent(use['usage'])}), "
            f"perplexity {use['perplexity']:,.1f}, {use['bits']:.2f} bits a position"
        )
        charts.append(Chart(name, note, code_counts(counts, colour), f"{name}: {note}"))
    return charts


def generator_charts(generation: Generation) -> list[Chart]:
    """Cross-entropy of each factor over the steps, of training and of held-out crops."""
    charts = []
    for name, colour in zip(generation.factors, cycle(FACTOR_COLOURS), strict=False):
        train, held_out = (series(generation.stats, f"{prefix}{name}_loss") for prefix in ("", "val_"))
        if train[0]:
            note = f"training {fixed(train[1][-1], 3)} nats a code"
            note += f", held out {fixed(held_out[1][-1], 3)}" if held_out[0] else ""
            image = train_and_validation(train, held_out, "nats", colour)
            charts.append(Chart(name, note, image, f"{name}: {note}"))
    return charts


def series(stats: list[Numbers], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that have one."""
    lines = [line for line in stats if key in line]
    return [line["step"] for line in lines], [line[key] for line in lines]


def training_seconds(stats: list[Numbers]) -> float:
    """Seconds behind the logged steps, validations included.

    From the logged rates, so it holds however often the run was interrupted: work that was lost is not counted.
    """
    seconds, seen = 0.0, 0
    for line in stats:
        if line["images_per_second"] > 0:
            seconds += (line["images_seen"] - seen) / line["images_per_second"]
        seen = line["images_seen"]
    return seconds


def summary(report: Report) -> str:
    """The result in a few aligned lines."""
    ours, theirs = report.tokenizer, report.baseline
    training = f"{report.steps:,} steps in {duration(training_seconds(report.stats))}"
    rows = {"time": f"{duration(report.command_seconds)} for this command; training in all: {training}"}
    for name, metric in (("PSNR (pooled)", PSNR), ("perceptual distance", PERCEPTUAL)):
        rows[name] = f"{metric.shown(ours)}, baseline {metric.shown(theirs)} ({metric.comparison(ours, theirs)})"
    if report.generation:
        samples, untrained = (report.generation.evaluation[name] for name in ("samples", "untrained"))
        rows["generated images"] = (
            f"class recognised in {percent(samples['class_accuracy'])}, Frechet distance to real crops "
            f"{samples['frechet_efficientnet'] / untrained['frechet_efficientnet']:.2f} of an untrained generator's"
        )
    rows["codebook usage"] = ", ".join(f"{name} {percent(use['usage'])}" for name, use in ours["factors"].items())
    return "\n".join(f"  {name:<21}{value}" for name, value in rows.items())
