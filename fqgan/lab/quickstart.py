"""A small tokenizer and a generator on the packaged photographs: trained, measured, and shown on one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import write_text
from fqgan.base.folder import ResumableFolder
from fqgan.base.printing import say, say_lines
from fqgan.base.ranks import ranks
from fqgan.config import GeneratorRunConfig, SamplingConfig, TokenizerRunConfig, presets
from fqgan.config.quickstart import GENERATOR, TOKENIZER, QuickstartSettings
from fqgan.config.verbs import ExtractionSettings
from fqgan.data.loader import EvaluationSet, evaluation_batches
from fqgan.data.sources import ImageSource
from fqgan.data.sources.photos import PhotoSource
from fqgan.data.token_manifest import MANIFEST
from fqgan.data.tokens import TokenStore
from fqgan.data.transforms import normalize, to_uint8
from fqgan.engine import checkpoint
from fqgan.engine.devices import device_name
from fqgan.engine.distributed import World
from fqgan.engine.run import read_stats
from fqgan.engine.session import running
from fqgan.engine.sizes import num_parameters
from fqgan.engine.speed import fast_precision
from fqgan.evaluation.collect import FeatureCollector
from fqgan.generator.model import FAR, load_generator
from fqgan.generator.sampler import Sampler
from fqgan.generator.task import train_generator
from fqgan.lab.report.content import Generation, Report, summary
from fqgan.lab.report.evidence import Evidence, gather, pictured, sample_indices
from fqgan.lab.report.figures import require_matplotlib
from fqgan.lab.report.growing import GrowingPage
from fqgan.metrics.class_means import NearestClassMean
from fqgan.metrics.frechet import FeatureStatistics, Gaussian, frechet_distance
from fqgan.nets.measuring import FeatureNetwork, load_network
from fqgan.nets.perceptual import EfficientNetDistance
from fqgan.tokenizer.branch import FeaturePredictionHead
from fqgan.tokenizer.extraction import extract
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.protocol import Tokenizer
from fqgan.tokenizer.task import train_tokenizer
from fqgan.tokenizer.validation import Batches, Scores, evaluate_mean_colour, score_reconstructions

SAMPLES = 400
"""Generated images of each class that are measured."""
REFERENCE = 2000
"""Real crops that everything is compared with, at most."""
SHOWN_REAL, SHOWN_SAMPLES = 4, 6
"""Pictures of each class on the page."""
BATCH = 100
"""Images at a time."""
Labelled = tuple[Tensor, Tensor]
"""Images (n, 3, H, W) uint8 and their classes (n,)."""


@dataclass(frozen=True)
class QuickstartResult:
    """A finished quickstart."""

    evaluation: dict[str, Any]
    """Scores of the `tokenizer`, of the `baseline` that paints mean colours, and of the `generator`."""
    evaluation_file: Path
    """eval.json, which holds them."""
    page: Path
    """One HTML file that needs nothing else."""
    summary: str
    """The result in a few aligned lines."""


def quickstart(settings: QuickstartSettings, command: str = "") -> QuickstartResult:
    """Train a tokenizer and a generator under `settings.run`, measure both, and write the page, which is there from the
    first pictures on and grows. The same call goes on with what was interrupted.

    Args:
        command: how it was called, for the page.

    Raises:
        UserError: before anything is trained, for a package that is missing and for a folder that is in use or holds
            something else; later, for codes of another tokenizer.
        SystemExit: after Ctrl-C or SIGTERM; the same call goes on.
    """
    growing = GrowingPage(settings.run / "report.html", command)
    settings.check()
    if ranks().size > 1:
        raise UserError(
            f"fqgan quickstart runs as one process: for several, torchrun fqgan train-tokenizer {TOKENIZER} ..."
        )
    known = (settings.run / "tokenizer").is_dir
    folder = ResumableFolder(settings.run, kind="folder of the quickstart", option="--run", known=known)
    folder.check_own()
    require_matplotlib()
    held_out = PhotoSource("validation")
    evaluation_file = settings.run / "eval.json"
    with running(settings.device) as world:
        # pictures as they are: enlarged to the network's own 224 pixels they would take twelve times as long
        network = load_network(f"efficientnet-lite0@{presets.get(TOKENIZER).model.image_size}", world.device)
        folder.take()
        try:
            report = _train_and_measure(settings, held_out, network, world, growing)
            write_text(evaluation_file, json.dumps(schema.finite(report.evaluation), indent=2) + "\n")
            _say(6, f"drawing the report {growing.path}")
            report = growing.write(report)
        finally:
            folder.abandon()
    return QuickstartResult(report.evaluation, evaluation_file, growing.path, summary(report))


def _train_and_measure(
    settings: QuickstartSettings, held_out: PhotoSource, network: FeatureNetwork, world: World, growing: GrowingPage
) -> Report:
    """Steps 1 to 5."""
    device, precision = world.device, fast_precision(world.device)
    run, tokens, generator_run = (settings.run / name for name in ("tokenizer", "tokens", "generator"))
    steps_before = _steps(run)
    _say(1, f"training tokenizer {TOKENIZER} in {run} (Ctrl-C saves; the same command resumes)")
    train: dict[str, Any] = {"device": settings.device, "precision": precision}
    first = presets.trial(presets.get(TOKENIZER), settings.steps, **train)
    shown = sample_indices(held_out.labels, len(held_out.classes))

    def told(tokenizer: FactorizedTokenizer, steps: int, evidence: Evidence, evaluation: dict[str, Any]) -> Report:
        heads = [module for module in tokenizer.modules() if isinstance(module, FeaturePredictionHead)]
        return Report(
            preset=TOKENIZER,
            run=str(run),
            config=schema.load(TokenizerRunConfig, run / "config.json"),
            parameters=num_parameters(tokenizer),
            training_parameters=sum(map(num_parameters, heads)),
            device=device_name(device),
            steps=steps,
            steps_before=steps_before,
            evaluation=evaluation,
            stats=read_stats(run),
            evidence=evidence,
        )

    def learning(model: nn.Module, step: int) -> Report:
        assert isinstance(model, FactorizedTokenizer)
        doing = f"training the tokenizer, step {step:,} of {first.train.steps:,}"
        return replace(told(model, step, pictured(model, held_out, shown, device), {}), doing=doing)

    train_tokenizer(first, run, growing.watch(learning, first.train.steps))
    tokenizer = FactorizedTokenizer.from_pretrained(run, device)
    _say(2, f"evaluating the tokenizer and the mean-colour baseline on {len(held_out)} held-out crops")
    evaluation = {
        "checkpoint": str(checkpoint.latest(run / "checkpoints")),
        "weights": "moving-average" if first.train.ema_decay else "raw",
        **score_tokenizer(tokenizer, held_out, network, device),
    }
    report = told(tokenizer, _steps(run), gather(tokenizer, held_out, device, BATCH), evaluation)
    second = presets.trial(presets.get_generator(GENERATOR), settings.generator_steps, **train)
    if _steps(generator_run) < second.train.steps:  # else a page that is finished stays until the next one is
        growing.write(replace(report, doing="encoding crops, from which the generator will learn"))
    _say(3, f"encoding the training crops into {tokens}")
    crops = PhotoSource("train", 2 * settings.images)
    for source in (crops, held_out):
        store = tokens / source.split
        if (store / MANIFEST).exists() and TokenStore.open(store).tokenizer_fingerprint != tokenizer.fingerprint():
            raise UserError(
                f"{store} holds the codes of the tokenizer before it was trained on: delete {tokens} and "
                f"{generator_run}, or choose another --run"
            )
        options = ExtractionSettings(checkpoint=run, data="photos", out=store, precision=precision, workers=1)
        say_lines(extract(options, world, source).summary)
        say(store)
    _say(4, f"training generator {GENERATOR} in {generator_run}")
    stores = {"data": str(tokens / crops.split), "validation": str(tokens / held_out.split)}
    real = shown_crops(crops, tokenizer.config.image_size)

    @torch.inference_mode()
    def writing(model: nn.Module, step: int) -> Report:
        assert isinstance(model, FAR)
        labels = torch.arange(len(real)).repeat(SHOWN_SAMPLES)
        codes = Sampler(model, len(labels), second.sampling, static=False, compiled=False)(labels)
        drawn = [tokenizer.decode(codes[label :: len(real)]) for label in range(len(real))]
        generation = _generation(generator_run, model, tokenizer, crops.classes, step, real, drawn, {})
        doing = f"training the generator, step {step:,} of {second.train.steps:,}"
        return replace(report, doing=doing, generation=generation)

    train_generator(replace(second, **stores), generator_run, growing.watch(writing, second.train.steps))
    _say(5, "generating images of every class, and comparing them with real ones")
    generation = score_generator(generator_run, crops, held_out, network, device, settings.images or SAMPLES)

    return replace(report, evaluation={**evaluation, "generator": generation.evaluation}, generation=generation)


def score_tokenizer(
    tokenizer: FactorizedTokenizer, source: ImageSource, network: FeatureNetwork, device: torch.device
) -> dict[str, Any]:
    """Scores of a tokenizer and of the mean-colour `baseline`, overall and of each class.

    `frechet_efficientnet` compares 8-bit pixels, as files hold them, on the features of `network`: it is not FID.
    """
    size, patch = tokenizer.config.image_size, tokenizer.config.downsampling
    distance = EfficientNetDistance().to(device)

    def scored(score: Callable[[Batches, Scores], dict[str, Any]]) -> dict[str, Any]:
        originals, copies = (FeatureCollector(network, range(len(source)), 0, device) for _ in range(2))
        scores = Scores(device, distance, source.classes, (originals.update, copies.update))
        numbers = score(evaluation_batches(source, size=size, batch=BATCH), scores)
        numbers["frechet_efficientnet"] = frechet_distance(copies.compute().pooled, originals.compute().pooled)
        return numbers

    return {
        "data": source.name,
        "size": size,
        "images": len(source),
        "tokenizer": scored(lambda batches, scores: score_reconstructions(tokenizer, batches, scores, device)),
        "baseline": {
            "description": f"mean colour of each patch of {patch} x {patch} pixels, not quantized",
            **scored(lambda batches, scores: evaluate_mean_colour(patch, batches, scores, device)),
        },
    }


def score_generator(
    run: Path, crops: ImageSource, held_out: ImageSource, network: FeatureNetwork, device: torch.device, images: int
) -> Generation:
    """Generate images of every class with the generator of a run, and compare them, and others for scale, with real
    crops.

    Args:
        crops: of the training.
        images: to generate of each class.
    """
    config = schema.load(GeneratorRunConfig, run / "config.json")
    generator = load_generator(run, device, precision=config.train.precision)
    tokenizer, classes = generator.tokenizer, len(generator.label_names)
    torch.manual_seed(0)
    with torch.device(device):
        untrained = FAR(generator.config).eval().set_precision(config.train.precision)
    labels = torch.arange(classes).repeat(images)
    chosen, size = _reference(crops), tokenizer.config.image_size
    reference, real = (_read(crops, indices, size) for indices in (chosen, chosen + 1))

    @torch.inference_mode()
    def pictures(make: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        return torch.cat([to_uint8(make(part)).cpu() for part in given.split(BATCH)])

    def drawn(model: FAR, sampling: SamplingConfig) -> Tensor:
        return pictures(tokenizer.decode, Sampler(model, BATCH, sampling)(labels))

    samples = drawn(generator, config.sampling)
    sets = {
        "samples": (samples, labels),
        "untrained": (drawn(untrained, SamplingConfig(cfg_scale=(1.0,))), labels),
        "reconstructions": (pictures(lambda part: tokenizer.decode(tokenizer.encode(part)), real[0]), real[1]),
        "real": real,
        "held_out": _read(held_out, np.arange(len(held_out)), size),
    }
    evaluation = {
        "reference": f"{len(chosen)} training crops of {size} pixels",
        "sampling": config.sampling.values,
        **score_sets(sets, reference, network, classes, device),
    }
    shown = [normalize(samples[label::classes][:SHOWN_SAMPLES]) for label in range(classes)]
    real_crops, names = shown_crops(crops, size), generator.label_names
    return _generation(run, generator, tokenizer, names, _steps(run), real_crops, shown, evaluation)


def _generation(
    run: Path,
    generator: FAR,
    tokenizer: Tokenizer,
    names: Sequence[str],
    steps: int,
    real: list[Tensor],
    samples: list[Tensor],
    evaluation: dict[str, Any],
) -> Generation:
    """What the page tells of a generator after `steps` steps of its run."""
    return Generation(
        preset=GENERATOR,
        run=str(run),
        config=schema.load(GeneratorRunConfig, run / "config.json"),
        parameters=num_parameters(generator),
        steps=steps,
        stats=read_stats(run),
        factors=[factor.name for factor in tokenizer.config.factors],
        names=list(names),
        real=real,
        samples=samples,
        evaluation=evaluation,
    )


def _reference(crops: ImageSource) -> npt.NDArray[np.int64]:
    """The crops that all others are compared with: every other one at most, so that real ones stand between those."""
    count = min(REFERENCE, len(crops) // 2)
    return np.arange(count) * len(crops) // count


def shown_crops(crops: ImageSource, size: int) -> list[Tensor]:
    """Of each class, evenly spaced crops of the reference (n, 3, size, size) in [-1, 1]."""
    chosen, spread = _reference(crops), np.arange(1, 2 * SHOWN_REAL, 2)
    of_classes = [chosen[crops.labels[chosen] == label] for label in range(len(crops.classes))]
    return [normalize(_read(crops, own[spread * len(own) // (2 * SHOWN_REAL)], size)[0]) for own in of_classes]


def score_sets(
    sets: Mapping[str, Labelled], reference: Labelled, network: FeatureNetwork, classes: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Of each set: `images` (their number), `frechet_efficientnet` to the reference (not FID), and `class_accuracy`,
    the share of images whose nearest class mean of the reference is that of their class. Pixels are of 8 bits."""

    def measured(images: Tensor) -> tuple[Tensor, Gaussian]:
        features = torch.cat([network(part.to(device)).pooled for part in images.split(BATCH)])
        statistics = FeatureStatistics(network.dim, device)
        statistics.update(features)
        return features, statistics.compute()

    features, real = measured(reference[0])
    means = NearestClassMean(classes, network.dim, device)
    means.fit(features, reference[1])
    scores = {}
    for name, (images, labels) in sets.items():
        features, found = measured(images)
        hits = means.predict(features).cpu() == labels
        distance, accuracy = frechet_distance(found, real), int(hits.sum()) / len(images)
        scores[name] = {"images": len(images), "frechet_efficientnet": distance, "class_accuracy": accuracy}
    return scores


def _read(source: ImageSource, indices: npt.NDArray[np.int64], size: int) -> Labelled:
    crops = EvaluationSet(source, size)
    return torch.stack([crops[i][0] for i in indices.tolist()]), torch.from_numpy(source.labels[indices])


def _steps(run: Path) -> int:
    """Optimizer steps behind a run's newest checkpoint."""
    newest = checkpoint.latest(run / "checkpoints")
    return checkpoint.step_of(newest) if newest else 0


def _say(step: int, text: str) -> None:
    say(f"[{step}/6] {text}")
