"""What a tokenizer's codes tell of each other, and what becomes of pictures when some of them are wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fqgan.base.progress import image_bar
from fqgan.config import SourceOptions
from fqgan.config.evaluation import CodesEvaluation
from fqgan.data.sources import announce, open_source
from fqgan.data.transforms import normalize
from fqgan.engine.devices import exact_device
from fqgan.engine.distributed import World, all_reduce_sum, from_main
from fqgan.evaluation.collect import CentreCrops, FeatureCollector, LeftUnmeasured
from fqgan.evaluation.protocol import Evaluation, Rows, features_protocol, full_protocol
from fqgan.evaluation.scores import set_scores
from fqgan.evaluation.sets import content_of, describe
from fqgan.generator.draw import uniforms
from fqgan.metrics.information import code_statistics
from fqgan.nets.measuring import load_network
from fqgan.nets.perceptual import load_perceptual
from fqgan.tokenizer.load import load_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.protocol import Tokenizer, needed_codes
from fqgan.tokenizer.validation import Distance, Scores

Change = tuple[str, float]
"""By which codes (`none`, `any`, `near`), and which share of them."""
_SCORES = ("psnr", "perceptual", "fid", "frechet")


def evaluate_codes(settings: CodesEvaluation, world: World) -> Evaluation:
    """Statistics of a tokenizer's codes, and its reconstructions as more and more codes are replaced, once by any other
    code and once by one of the nearest; called by all ranks.

    A code is replaced with the probability `share`, drawn from the image's own random stream, so that what is replaced
    at one share is also replaced at a larger one, and numbers do not depend on batches and ranks.

    Returns:
        `metrics`: the fields of `CodeStatistics`; the scores `psnr`, `perceptual`, `fid` (`frechet` on other networks
        than FID's) of whole reconstructions; and each of these once more as `psnr any 0.1` and so on. Its content has
        them as a list under `robustness`.

    Raises:
        UserError: no such model, data or network; a tokenizer without codes; sizes that do not fit.
    """
    settings.check()
    device = world.device
    tokenizer = load_tokenizer(settings.checkpoint, device, settings.weights, settings.precision)
    sizes = needed_codes(tokenizer, settings.checkpoint)
    size = settings.size or tokenizer.config.image_size
    tokenizer.check_size(size, size)
    source = open_source(settings.data, settings.split, SourceOptions.of(settings))
    if world.is_main:
        announce(source, size)
    network, perceptual = load_network(settings.features, device), load_perceptual(settings.perceptual)
    reading = CentreCrops(settings, size)
    indices = reading.indices(source)
    side, rows = size // tokenizer.config.downsampling, torch.tensor(indices)
    every = torch.zeros(len(indices), len(sizes), side, side, dtype=torch.int64)
    seen = torch.zeros(len(indices), dtype=torch.int64)
    collectors = partial(FeatureCollector, network, indices, settings.kept, device)
    disturbance = Disturbance(tokenizer, settings, collectors, perceptual.to(device) if perceptual else None)
    batches = reading.batches(source, world)
    with image_bar("evaluating", -(-len(indices) // world.size), shown=world.is_main) as advance:
        for raw, labels, own in batches:
            places = torch.searchsorted(rows, own)
            every[places], seen[places] = disturbance.update(raw, labels, own).cpu(), 1
            advance(len(raw))
    left_out = LeftUnmeasured.of(batches, source, world)
    place = exact_device(device)
    every, seen = (all_reduce_sum(part.to(place)).cpu() for part in (every, seen))
    found = disturbance.compute()
    data = describe(source, indices, left_out)
    data["content"] = from_main(lambda: content_of(source))
    if not world.is_main:
        return Evaluation()
    metrics = dict(vars(code_statistics(every[seen > 0], sizes)))
    for (kind, share), own in found.items():
        metrics |= {f"{name} {kind} {share:g}" if share else name: value for name, value in own.items()}
    made = {**features_protocol(network, size, settings), "perceptual": settings.perceptual}
    made |= {"precision": settings.precision, "seed": settings.seed, "near": settings.near}
    result = {
        "subject": "codes",
        "checkpoint": str(settings.checkpoint),
        "data": settings.data,
        "images": data["count"],
        "metrics": metrics,
        "robustness": [{"codes": kind, "share": share, **own} for (kind, share), own in found.items()],
        "protocol": full_protocol(made, settings.kept, device.type, data=data),
    }
    head = f"{settings.checkpoint} on {data['count']} images of {settings.data} at {size} pixels"
    few = len(every) * side**2 < 10 * max(sizes)
    warnings = ["positions are few for codebooks as large: what codes tell of each other is not to be trusted"] * few
    return Evaluation(result, head, _rows(result), warnings)


class Disturbance:
    """A tokenizer's reconstructions with whole codes, and with shares of them replaced.

    Args:
        collectors: makes a collector of a set's features.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        settings: CodesEvaluation,
        collectors: Callable[[], FeatureCollector],
        perceptual: Distance | None,
    ):
        self._tokenizer, self._settings, self._device = tokenizer, settings, tokenizer.device
        # a tokenizer of others has codes, and no vectors of which some are near
        self._kinds = ("any", "near") if isinstance(tokenizer, FactorizedTokenizer) else ("any",)
        changes = [("none", 0.0), *((kind, share) for kind in self._kinds for share in settings.shares)]
        self._real, self._fake = collectors(), {change: collectors() for change in changes}
        self._scores = {
            change: Scores(self._device, perceptual, (), (_ignored, fake.update)) for change, fake in self._fake.items()
        }

    @torch.inference_mode()
    def update(self, raw: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Take in uint8 images (b, 3, H, W) with labels and indices (b,); returns their codes (b, k, h, w)."""
        images, tokenizer, sizes = normalize(raw.to(self._device)), self._tokenizer, self._tokenizer.codebook_sizes
        codes = tokenizer.encode(images, values=False)
        k, h, w = codes.shape[1:]
        numbers = torch.stack([uniforms(self._settings.seed, int(i), h * w, 2 * k) for i in indices])
        which, by = numbers.transpose(1, 2).unflatten(2, (h, w)).to(codes.device).chunk(2, 1)
        others = {"none": codes, "any": any_other(codes, by, sizes)}
        if isinstance(tokenizer, FactorizedTokenizer):
            others["near"] = near_other(tokenizer, codes, indices, self._settings)
        self._real.update(raw, indices)
        for (kind, share), scores in self._scores.items():
            made = tokenizer.decode(torch.where(which < share, others[kind], codes), values=False)
            scores.update(images, made, labels, indices)
        return codes

    def compute(self) -> dict[Change, dict[str, float]]:
        """The scores of each change; called by all ranks."""
        real, found = self._real.compute(), {}
        for change, scores in self._scores.items():
            own = scores.compute() | set_scores(real, self._fake[change].compute(), self._real.network)
            found[change] = {name: own[name] for name in _SCORES if name in own}
        return found


def any_other(codes: Tensor, by: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """For codes (b, k, h, w) others, evenly drawn by numbers `by` in [0, 1); a codebook of one code has none."""
    size = codes.new_tensor(sizes).view(-1, 1, 1)
    steps = (by * (size - 1)).long().clamp(max=size - 2).clamp(min=-1) + 1  # by may round up
    return (codes + steps) % size


def near_other(tokenizer: FactorizedTokenizer, codes: Tensor, indices: Tensor, settings: CodesEvaluation) -> Tensor:
    """For codes (b, k, h, w) others of the nearest, the draws of each image from a seed of its own."""
    found, devices = torch.empty_like(codes), [codes.device] if codes.is_cuda else []
    with torch.random.fork_rng(devices):
        for own, index, out in zip(codes, indices.tolist(), found, strict=True):
            torch.manual_seed((settings.seed << 32) + index)
            for i, quantizer in enumerate(tokenizer.quantizers):
                neighbours = min(settings.near, quantizer.codebook_size - 1)
                out[i] = quantizer.near(own[i].flatten(), neighbours).view_as(own[i])  # pyright: ignore
    return found


def _ignored(images: Tensor, indices: Tensor) -> None:
    """Of originals, whose features one collector takes in for all."""


def _rows(result: dict[str, Any]) -> Rows:
    numbers = result["metrics"]
    rows = [
        ("entropy of a position's codes", f"{numbers['entropy']:.2f} bits"),
        ("  told by the codes to the left", f"{numbers['left']:.2f} bits above chance"),
        ("  told by the codes above", f"{numbers['upper']:.2f} bits above chance"),
        ("  told by the other factors", f"{numbers['other']:.2f} bits above chance"),
        ("usage", f"{numbers['usage']:.1%}"),
    ]
    for own in result["robustness"]:
        values = [f"PSNR {own['psnr']:.2f} dB"]
        values += [f"perceptual {own['perceptual']:.4f}"] if "perceptual" in own else []
        values += [f"{name} {own[key]:.2f}" for key, name in (("fid", "FID"), ("frechet", "Frechet")) if key in own]
        name = "reconstructions" if not own["share"] else f"  {own['share']:g} of the codes, {own['codes']} other"
        rows.append((name, ", ".join(values)))
    return rows
