"""The scores of one set against another, and how they are called."""

from __future__ import annotations

from typing import Any

from fqgan.base.errors import UserError
from fqgan.base.progress import image_bar
from fqgan.engine.distributed import World
from fqgan.evaluation.collect import FeatureSet
from fqgan.evaluation.protocol import Rows
from fqgan.metrics.blocks import Advance, nothing
from fqgan.metrics.frechet import Gaussian, frechet_distance
from fqgan.metrics.kernel import kernel_distance
from fqgan.metrics.neighbours import K, precision_recall
from fqgan.nets.measuring import FeatureNetwork

FEW = 10_000
"""Below that many samples a warning names the bias of a Frechet distance."""
_FEWEST = 5
"""Features of each set that the metrics of pairs need."""


def set_scores(
    reference: FeatureSet, samples: FeatureSet, network: FeatureNetwork, advance: Advance = nothing
) -> dict[str, float]:
    """All scores that the two sets allow.

    `fid`, `sfid`, `inception_score` and `inception_score_std` on FID's Inception with its weights; the same under the
    names `frechet`, `frechet_spatial`, `score` and `score_std` on any other network. `fid_half` (`frechet_half`) takes
    every second sample only: the difference is a measure of the bias. `kernel_distance` with `kernel_distance_error`,
    `precision`, `recall`, `density`, `coverage` where features are kept of both. `advance` is called
    with the rows done, `pair_rows` in all.
    """
    names = ("fid", "fid_half", "sfid") if network.genuine else ("frechet", "frechet_half", "frechet_spatial")
    pairs = (
        (samples.pooled, reference.pooled),
        (samples.half, reference.pooled),
        (samples.spatial, reference.spatial),
    )
    scores = {
        name: _frechet(a, b) for name, (a, b) in zip(names, pairs, strict=True) if a is not None and b is not None
    }
    if samples.score is not None:
        prefix = "inception_score" if network.genuine else "score"
        scores |= {prefix: samples.score["score"], f"{prefix}_std": samples.score["score_std"]}
    if pair_rows(reference, samples):
        assert reference.features is not None and samples.features is not None
        scores |= kernel_distance(reference.features, samples.features, advance=advance)
        scores |= precision_recall(reference.features, samples.features, K, advance=advance)
    return scores


def compare_features(
    reference: FeatureSet, samples: FeatureSet, network: FeatureNetwork, world: World
) -> tuple[dict[str, float], list[str]]:
    """Scores and warnings, on the main rank; the others get nothing."""
    if not world.is_main:
        return {}, []
    rows = pair_rows(reference, samples)
    with image_bar("comparing pairs", rows, shown=bool(rows)) as advance:
        return set_scores(reference, samples, network, advance), warnings_of(reference, samples, network)


def pair_rows(reference: FeatureSet, samples: FeatureSet) -> int:
    """Rows of pairs that `set_scores` works through; 0 where too few features are kept."""
    if reference.features is None or samples.features is None:
        return 0
    n, m = len(reference.features), len(samples.features)
    return 2 * (n + m + n) if min(n, m) >= _FEWEST else 0


def _frechet(a: Gaussian, b: Gaussian) -> float:
    try:
        return frechet_distance(a, b)
    except ValueError as error:
        raise UserError(str(error)) from None


def warnings_of(reference: FeatureSet, samples: FeatureSet, network: FeatureNetwork) -> list[str]:
    """What to know before these scores are believed."""
    warnings = []
    count, name = samples.pooled.count, "FID" if network.genuine else "Frechet distance"
    if count and count < FEW:
        warnings.append(
            f"{count:,} samples: the {name} is biased upwards, the more so the fewer they are (compare it with its "
            "value at half of them), and comparable at equal counts only; the kernel distance is unbiased"
        )
    for side, each in (("samples", samples), ("reference images", reference)):
        if 0 < each.pooled.count <= network.dim:
            warnings.append(
                f"{each.pooled.count:,} {side} span fewer than the {network.dim:,} dimensions of the features: their "
                "covariance is not of full rank"
            )
    if not pair_rows(reference, samples):
        reason = "a set of statistics without features" if None in (reference.features, samples.features) else "too few"
        warnings.append(f"no kernel distance, precision, recall, density and coverage: {reason}")
    return warnings


_FORMS = {
    "fid": ("{r}FID", "{:.3f}"),
    "fid_half": ("{r}FID at half the samples", "{:.3f}"),
    "sfid": ("{r}sFID", "{:.3f}"),
    "inception_score": ("Inception Score", "{:.3f} +- {:.3f}"),
    "frechet": ("Frechet distance{other}", "{:.4g}"),
    "frechet_half": ("  at half the samples", "{:.4g}"),
    "frechet_spatial": ("Frechet distance of spatial features", "{:.4g}"),
    "score": ("score ({network})", "{:.3f} +- {:.3f}"),
    "kernel_distance": ("kernel distance ({network})", "{:.4g} +- {:.2g}"),
    "precision": ("precision", "{:.4f}"),
    "recall": ("recall", "{:.4f}"),
    "density": ("density", "{:.4f}"),
    "coverage": ("coverage", "{:.4f}"),
}
"""Each score's name and value in a table; a score may have a `_std` or an `_error` beside it."""


def depends_on_network(name: str) -> bool:
    """Whether a metric is one of `set_scores`, which compare a network's features."""
    return name.removesuffix("_std").removesuffix("_error") in _FORMS


def rows_of(scores: dict[str, Any], network: str, reconstruction: bool = False) -> Rows:
    """The scores of `set_scores` as a table's names and values."""
    words = {
        "r": "r" if reconstruction else "",
        "other": "" if "fid" in scores else f" ({network}, not FID)",
        "network": network,
    }
    rows = []
    for name, (label, form) in _FORMS.items():
        if name in scores:
            spread = scores.get(f"{name}_std", scores.get(f"{name}_error"))
            rows.append((label.format(**words), form.format(scores[name], spread)))
    return rows
