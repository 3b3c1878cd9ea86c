"""Model cards: what a README.md on the hub says about a model, filled from its config and its eval.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fqgan.base.schema import is_number
from fqgan.config import FactorConfig, GeneratorConfig, TokenizerConfig

_LABELS = {
    "psnr": "PSNR, mean over images (dB)",
    "psnr_pooled": "PSNR, pooled over pixels (dB)",
    "ssim": "SSIM",
    "perceptual": "perceptual distance (EfficientNet-Lite0)",
    "frechet_efficientnet": "Frechet distance (EfficientNet-Lite0, not FID)",
    "frechet": "Frechet distance (not FID)",
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
}
_CONDITIONS = ("images", "size", "unreadable")  # of an evaluation: numbers, but no results
_TASKS = {"tokenizer": "image-feature-extraction", "generator": "unconditional-image-generation"}


_COMPOSED = {
    "product": " The factors split the channels of one projection (product quantization).",
    "residual": " Each factor quantizes what the ones before it left; the vectors are summed (residual quantization).",
}


def model_card(
    config: TokenizerConfig | GeneratorConfig, parameters: int, facts: Mapping[str, Any], scores: Mapping[str, Any]
) -> str:
    """The text of a card, with the hub's metadata in front.

    Args:
        parameters: number of them.
        facts: `fingerprint`; where known `origin`, and of a generator `label_names`, `tokenizer` and, of a
            tokenizer of others, `tokenizer_address`.
        scores: eval.json.
    """
    kind, about = ("tokenizer", _tokenizer) if isinstance(config, TokenizerConfig) else ("generator", _generator)
    parts = [
        f"---\n{_metadata(kind, scores)}\n---",
        *about(config, facts),  # pyright: ignore[reportArgumentType]
        *_measured(kind, scores),
        f"{parameters:,} parameters. Fingerprint `{facts['fingerprint']}`."
        + (f" {facts['steps']:,} training steps." if facts.get("steps") else "")
        + (f" Converted from {facts['origin']}." if facts.get("origin") else ""),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(kind: str, scores: Mapping[str, Any]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    images, data, size = _measured_on(scores)
    known: dict[str, Any] = {"images": images, "size": size}
    arguments = {name: value for name, value in known.items() if value}
    data, results = data or "images", []
    for name, value in results_in(scores).items():
        metric, label = _metric(name, kind, scores)
        results.append(
            EvalResult(_TASKS[kind], data, data, metric, value, dataset_args=arguments or None, metric_name=label)
        )
    named: dict[str, Any] = {"eval_results": results, "model_name": f"fqgan {kind}"} if results else {}
    return ModelCardData(library_name="fqgan", tags=["fqgan", f"image-{kind}"], **named).to_yaml()


def results_in(scores: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of an evaluation, without its conditions."""
    return {
        name: value
        for name, value in scores.get("metrics", scores).items()
        if is_number(value) and name not in _CONDITIONS and math.isfinite(value)
    }


def _measured_on(scores: Mapping[str, Any]) -> tuple[int, str, int]:
    """Of an evaluation: how many images, of which data (a generator's: against which reference), of how many pixels;
    nothing where it does not say."""
    protocol = scores.get("protocol", scores)
    count = scores.get("images", (protocol.get("samples") or {}).get("count"))
    data = Path(str(scores.get("data") or scores.get("reference") or "")).name
    size = protocol.get("size")
    return count if isinstance(count, int) else 0, data, size if isinstance(size, int) else 0


def _metric(name: str, kind: str, scores: Mapping[str, Any]) -> tuple[str, str]:
    """A metric's type on the hub, and its name for people."""
    if name == "perceptual" and scores.get("protocol", scores).get("perceptual") == "lpips-vgg":
        return "lpips", "LPIPS (VGG)"
    if name == "fid" and kind == "tokenizer":
        return name, "FID of reconstructions (rFID)"
    return name, _LABELS.get(name, name.replace("_", " "))


def _measured(kind: str, scores: Mapping[str, Any]) -> list[str]:
    results = results_in(scores)
    if not results:
        return []
    images, data, size = _measured_on(scores)
    conditions = [f"{images:,} images" if images else "images"]
    if data:
        conditions.append(f"{'of' if kind == 'tokenizer' else 'against'} {data}")
    if size:
        conditions.append(f"at {size} pixels")
    if network := scores.get("protocol", scores).get("features"):
        conditions.append(f"with the features of {network['network']}")
    rows = [(_metric(name, kind, scores)[1], f"{value:.4g}") for name, value in results.items()]
    return [f"Measured on {' '.join(conditions)}:", _table(("metric", "value"), rows)]


def _adapter(factor: FactorConfig, config: TokenizerConfig) -> str:
    """What the table says of a factor's adapter: of other compositions than the paper's all factors share one."""
    blocks = f"{factor.adapter_depth} block{'s' * (factor.adapter_depth != 1)}" if factor.adapter_depth else "none"
    shared = factor.adapter_depth and config.composition != TokenizerConfig.composition
    return f"{blocks}, shared ({config.composition})" if shared else blocks


def _tokenizer(config: TokenizerConfig, facts: Mapping[str, Any]) -> list[str]:
    k, grid = len(config.factors), config.grid
    rows = [
        (
            factor.name,
            factor.quantizer,
            f"{factor.codebook_size:,} x {factor.code_dim}",
            _adapter(factor, config),
            " ".join(f"`{name}`" for name in factor.teachers),
        )
        for factor in config.factors
    ]
    return [
        f"# Image tokenizer, {k} {'factor' if k == 1 else 'factors'}, {config.downsampling}x",
        f"A factorized visual tokenizer (FQGAN): {config.image_size} x {config.image_size} pixels become "
        f"{grid} x {grid} positions of {k} {'code' if k == 1 else 'codes'} each, and images again."
        + _COMPOSED.get(config.composition, ""),
        _table(("factor", "quantizer", "codes x dimensions", "adapter", "teacher"), rows),
        _usage(
            'tokenizer = fqgan.load_tokenizer("hf:org/name")  # or the path of a copy of this repository',
            f'codes = tokenizer.encode(fqgan.load_images(["picture.jpg"], size={config.image_size}))  # (b, k, h, w)',
            "images = tokenizer.decode(codes)  # (b, 3, H, W) in [-1, 1], not clipped",
        ),
    ]


def _generator(config: GeneratorConfig, facts: Mapping[str, Any]) -> list[str]:
    k, (h, w) = config.num_factors, config.grid
    sizes = " x ".join(f"{size:,}" for size in config.codebook_sizes)
    conditional = config.num_classes > 0
    classes = f"{config.num_classes:,} classes" if conditional else "no classes"
    drawn = "[0, 1, 2], cfg_scale=2.0" if conditional else "num=3"
    lines = [
        f"# {'Class-conditional' if conditional else 'Unconditional'} image generator, {k} "
        f"{'factor' if k == 1 else 'factors'}",
        f"A factorized auto-regressive generator (FAR): {classes}, {h} x {w} positions of {k} "
        f"{'code' if k == 1 else 'codes'} each ({sizes}). {config.depth} blocks of width {config.width} and "
        f"{config.heads} heads; head `{config.head}`"
        + (f" of {config.head_depth} blocks" if config.head in ("ar", "masked") else "")
        + (f" in {len(config.rounds)} rounds." if config.head == "masked" else "."),
    ]
    if config.legacy:
        lines.append(
            "`legacy`: as in the released models, the rotary rows of the class position and of the head's first "
            "position are zero."
        )
    carried, address = facts.get("tokenizer"), facts.get("tokenizer_address")
    about = f"It carries its tokenizer, fingerprint `{carried}`." if carried else "It comes without its tokenizer."
    if address:
        about = f"It comes without its tokenizer, `{address}`, fingerprint `{carried}`."
    source = '"hf:org/name"' + (f', tokenizer="{address}"' if address else "")
    lines += [
        about,
        _usage(
            f"generator = fqgan.load_generator({source})  # or the path of a copy of this repository",
            f"codes = generator.generate({drawn}, seed=0)  # (3, k, h, w)",
            "images = generator.tokenizer.decode(codes)  # (3, 3, H, W) in [-1, 1], not clipped",
        ),
    ]
    return lines


def _usage(*lines: str) -> str:
    code = "\n".join(("```python", "import fqgan", "", *lines, "```"))
    return (
        f"{code}\n\ntransformers' `AutoModel` does not load it: that would run a copy of the model's code from this "
        "repository (`trust_remote_code`). The weights are plain safetensors, the code is the package `fqgan`."
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
