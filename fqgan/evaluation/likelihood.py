"""How well a generator predicts the codes of images: bits, where they lie, and the class that explains them best."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.files import make_folder, write_text
from fqgan.base.printing import say
from fqgan.base.progress import image_bar
from fqgan.config.evaluation import LikelihoodEvaluation
from fqgan.engine.devices import exact_device
from fqgan.engine.distributed import World, all_reduce_sum
from fqgan.engine.speed import autocast
from fqgan.evaluation.codes import Codes, labels_between, open_codes
from fqgan.evaluation.protocol import Evaluation, Rows, versions
from fqgan.generator.likelihood import bits_of, class_bits
from fqgan.generator.model import FAR
from fqgan.generator.pictures import captioned, heat_maps, labelled_rows
from fqgan.models.fingerprint import weights_fingerprint
from fqgan.tokenizer.pictures import save_picture

IMAGES, GRID, MAP = "images.csv", "worst-and-best.png", "map.png"
_TOP = 5


class Tally:
    """Bits of images, on all ranks and in any order; what other ranks have is zero here.

    Args:
        indices: of all images that will come, over all ranks, rising.
        grid: h and w.
    """

    def __init__(self, indices: Sequence[int], factors: int, grid: tuple[int, ...]):
        self.indices = torch.tensor(indices, dtype=torch.int64)
        count = len(indices)
        self.bits = torch.zeros(count, factors, dtype=torch.float64)
        self.seen, self.labels = (torch.zeros(count, dtype=torch.int64) for _ in range(2))
        self.guesses = torch.zeros(count, _TOP, dtype=torch.int64)
        self.map = torch.zeros(factors, *grid, dtype=torch.float64)

    def add(self, bits: Tensor, labels: Tensor, indices: Tensor, guesses: Tensor | None = None) -> None:
        """Bits (b, k, h, w) float64 of images with labels (b,) and, where they were classified, the likeliest classes
        (b, n), n at most 5."""
        rows = torch.searchsorted(self.indices, indices)
        self.bits[rows], self.labels[rows], self.seen[rows] = bits.sum((2, 3)), labels, 1
        self.map += bits.sum(0)
        if guesses is not None:
            self.guesses[rows, : guesses.shape[1]] = guesses

    def gathered(self, device: torch.device) -> Found:
        """Over all ranks, without the images that nobody added; called by all ranks. `UserError` where none is left, or
        numbers are not finite."""
        place = exact_device(device)
        parts = (self.seen, self.bits, self.labels, self.guesses, self.map)
        seen, bits, labels, guesses, total = (all_reduce_sum(part.to(place)).cpu() for part in parts)
        there = seen > 0
        if not there.any():
            raise UserError("not one of the images can be read")
        if not bits.isfinite().all():
            raise UserError("the generator's likelihoods are not finite: its weights are spoilt, or bf16 is too narrow")
        return Found(self.indices[there], bits[there], labels[there], guesses[there], total / there.sum())


@dataclass(frozen=True)
class Found:
    """Bits of n images; CPU."""

    indices: Tensor
    """(n,) in the data set."""
    bits: Tensor
    """(n, k) float64."""
    labels: Tensor
    """(n,) of the generator's classes; -1: none."""
    guesses: Tensor
    """(n, 5), the likeliest classes, where images were classified."""
    map: Tensor
    """(k, h, w) float64: mean over images."""

    @property
    def of_images(self) -> Tensor:
        """(n,) float64, summed over factors."""
        return self.bits.sum(1)

    @property
    def worst_first(self) -> list[int]:
        """Rows by falling bits."""
        return self.of_images.argsort(descending=True, stable=True).tolist()


def evaluate_likelihood(settings: LikelihoodEvaluation, world: World, name: str = "") -> Evaluation:
    """The likelihood of images' codes under a generator; called by all ranks.

    Writes images.csv, worst-and-best.png and map.png into `settings.out`, if it names a folder.

    Args:
        name: what the result calls the generator; by default its path.

    Returns:
        `metrics`: `bits_per_image` with `bits_per_image_error` (standard error of the mean over images; none for one
        image), `bits_per_position`, `bits_per_dimension` (the codes' bits over pixels times channels),
        `uniform_bits_per_image`; of the zero-shot class `zero_shot_top1`, `zero_shot_top5` where there are more
        classes, each with `_error` and `_chance`. Its content has each factor's bits under `factors`, the images with
        the most and the fewest bits under `worst` and `best`, and the mean bits of each position under `map`.

    Raises:
        UserError: no such model or data, codes or classes that the generator does not know, and classes asked for where
            there are none.
    """
    settings.check()
    generator, data = open_codes(settings, world)
    table = labels_between(data, generator)
    _announce(settings, generator, data, table, world)
    tally = Tally(data.indices, generator.config.num_factors, generator.config.grid)
    with image_bar("evaluating", -(-len(data.indices) // world.size), shown=world.is_main) as advance:
        for codes, labels, indices in data.batches():
            labels = table[labels]
            with autocast(world.device, settings.precision):
                bits = bits_of(generator, codes, labels)
                guesses = _likeliest(generator, codes, settings.batch) if settings.zero_shot else None
            tally.add(bits, labels, indices, guesses)
            advance(len(codes))
    found = tally.gathered(world.device)
    side = data.protocol()
    if not world.is_main:
        return Evaluation()
    result = {
        "subject": "likelihood",
        "checkpoint": name or str(settings.checkpoint),
        "generator": weights_fingerprint(generator.state_dict()),
        "data": settings.data,
        "images": len(found.indices),
        **_numbers(found, generator, data, settings.zero_shot),
        "protocol": {
            "data": side,
            "size": data.size,
            "tokenizer": data.fingerprint,
            "classes": "given" if generator.config.num_classes and (table >= 0).any() else "none",
            "zero_shot": settings.zero_shot,
            "precision": settings.precision,
            "device": world.device.type,
            "versions": versions(),
        },
    }
    order = found.worst_first
    for kind, rows in (("worst", order), ("best", order[::-1])):
        result[kind] = [_entry(found, row, generator, data) for row in rows[: settings.shown]]
    if settings.out != Path():
        _write(settings, found, generator, data, result)
    return Evaluation(result, _heading(result), _rows(result, data), [])


def _likeliest(generator: FAR, codes: Tensor, batch: int) -> Tensor:
    """(b, 5) or fewer, the likeliest first; of equal ones the first."""
    return class_bits(generator, codes, batch).argsort(dim=1, stable=True)[:, :_TOP]


def _announce(settings: LikelihoodEvaluation, generator: FAR, data: Codes, table: Tensor, world: World) -> None:
    """What is to be done; `UserError` on all ranks where images cannot be classified."""
    classes, count = generator.config.num_classes, len(data.indices)
    if settings.zero_shot and classes < 2:
        raise UserError(f"--zero-shot needs classes to choose from, and this generator has {classes or 'none'}")
    if settings.zero_shot and not (table >= 0).any():
        raise UserError(f"--zero-shot needs labels to compare with, and {data.name} has none")
    if not world.is_main:
        return
    if classes and not (table >= 0).any():
        say(f"{data.name} has no labels: its codes' likelihoods are those under the null class")
    if settings.zero_shot:
        limited = f" of {data.count:,} (--images takes more)" if count < data.count and not settings.images else ""
        say(
            f"zero-shot class by likelihood: {count:,} images{limited}, each under {classes:,} classes: "
            f"{count * classes:,} forward passes of an image"
        )


def _numbers(found: Found, generator: FAR, data: Codes, zero_shot: bool) -> dict[str, Any]:
    """`metrics`, `factors` and `map`."""
    config, bits = generator.config, found.of_images
    mean, names = bits.mean().item(), data.factors
    metrics = {
        "bits_per_image": mean,
        **({"bits_per_image_error": (bits.std() / math.sqrt(len(bits))).item()} if len(bits) > 1 else {}),
        "bits_per_position": mean / config.num_positions,
        "bits_per_dimension": mean / (3 * data.size**2),
        "uniform_bits_per_image": config.num_positions * sum(map(math.log2, config.codebook_sizes)),
    }
    if zero_shot:
        metrics |= _accuracies(found, config.num_classes)
    factors = {
        name: {"bits_per_image": own, "bits_per_code": own / config.num_positions}
        for name, own in zip(names, found.bits.mean(0).tolist(), strict=True)
    }
    maps = dict(zip(names, found.map.tolist(), strict=True))
    return {"metrics": metrics, "factors": factors, "map": maps}


def _accuracies(found: Found, classes: int) -> dict[str, float]:
    """Of the labelled images."""
    labelled = found.labels >= 0
    hits = found.guesses[labelled] == found.labels[labelled, None]
    numbers: dict[str, float] = {"zero_shot_images": int(labelled.sum())}
    for top in (1, _TOP):
        if top < classes:
            share = hits[:, :top].any(1).double().mean().item()
            error = math.sqrt(share * (1 - share) / len(hits))
            key = f"zero_shot_top{top}"
            numbers |= {key: share, f"{key}_error": error, f"{key}_chance": top / classes}
    return numbers


def _class_name(label: int, generator: FAR) -> str:
    names = generator.label_names
    return "" if label < 0 else names[label] if label < len(names) else str(label)


def _entry(found: Found, row: int, generator: FAR, data: Codes) -> dict[str, Any]:
    """An image of the lists."""
    index = int(found.indices[row])
    label = _class_name(int(found.labels[row]), generator)
    return {"index": index, "name": data.describe(index), "class": label, "bits": found.bits[row].sum().item()}


def _write(settings: LikelihoodEvaluation, found: Found, generator: FAR, data: Codes, result: dict[str, Any]) -> None:
    """The list of all images, the picture of the worst and best, and the map."""
    make_folder(settings.out)
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    names = data.factors
    guess = ["likeliest class"] if settings.zero_shot else []
    table.writerow(["index", "name", "class", *guess, "bits", *(f"{name} bits" for name in names)])
    for row in found.worst_first:
        entry = _entry(found, row, generator, data)
        likeliest = [_class_name(int(found.guesses[row, 0]), generator)] if guess else []
        bits = [entry["bits"], *found.bits[row].tolist()]
        table.writerow([entry["index"], entry["name"], entry["class"], *likeliest, *(f"{each:.3f}" for each in bits)])
    write_text(settings.out / IMAGES, buffer.getvalue())
    rows = []
    for kind in ("worst", "best"):
        pictures = data.pictures([entry["index"] for entry in result[kind]])
        rows.append(captioned(pictures, [f"{entry['bits']:,.1f}" for entry in result[kind]]))
    save_picture(labelled_rows(rows, ["most bits", "fewest bits"]), settings.out / GRID)
    save_picture(heat_maps(found.map, names, "bits"), settings.out / MAP)
    for file in (IMAGES, GRID, MAP):
        say(settings.out / file)


def _heading(result: dict[str, Any]) -> str:
    under = {"given": "each under its class", "none": "under no class"}[result["protocol"]["classes"]]
    return f"{result['checkpoint']} on the codes of {result['images']:,} images of {result['data']}, {under}"


def _rows(result: dict[str, Any], data: Codes) -> Rows:
    """Of the table."""
    numbers = result["metrics"]
    spread = f" +- {numbers['bits_per_image_error']:.2g}" if "bits_per_image_error" in numbers else ""
    rows = [
        ("bits an image", f"{numbers['bits_per_image']:,.2f}{spread}"),
        ("  if all codes were equally likely", f"{numbers['uniform_bits_per_image']:,.2f}"),
    ]
    for name, own in result["factors"].items():
        rows.append((f"  factor {name}", f"{own['bits_per_image']:,.2f}, {own['bits_per_code']:.3f} a code"))
    side = data.size
    rows += [
        ("bits a position", f"{numbers['bits_per_position']:.3f}"),
        ("bits a dimension", f"{numbers['bits_per_dimension']:.5f} (of the codes, over {side} x {side} x 3 values)"),
    ]
    for top in (1, _TOP):
        key = f"zero_shot_top{top}"
        if key in numbers:
            text = f"{numbers[key]:.1%} +- {numbers[f'{key}_error']:.1%} of {numbers['zero_shot_images']:,} images"
            rows.append((f"zero-shot class, top {top}", f"{text} (by chance {numbers[f'{key}_chance']:.1%})"))
    return rows
