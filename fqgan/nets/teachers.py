"""Teachers: frozen vision models whose features the factors learn to predict (paper section 3.2.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.config import FactorConfig
from fqgan.nets.efficientnet import POOLED_DIM, STAGE_CHANNELS, EfficientNetLite0, load_efficientnet_lite0
from fqgan.nets.features import Teacher
from fqgan.nets.timm_teacher import load_timm
from fqgan.nets.transformers_teacher import load_transformer

OFFLINE = "efficientnet-lite0"
VITS = ("clip", "dinov2")
FORMS = (
    f"{OFFLINE}, {OFFLINE}:stage3, clip:ID_OR_FOLDER, dinov2:ID_OR_FOLDER, timm:NAME, timm:NAME=FILE, "
    "each with @SIZE for another input size"
)
_LARGEST = 4096


class EfficientNetTeacher(Teacher):
    """The packaged EfficientNet-Lite0: its pooled feature, or the average over positions of one stage's map.

    Args:
        stage: 1 to 5 (16, 24, 40, 112 and 320 dimensions, from local to semantic); 0: the pooled feature.
        network: None: the packaged one.
    """

    def __init__(self, name: str = OFFLINE, size: int = 224, stage: int = 0, network: EfficientNetLite0 | None = None):
        super().__init__(name, STAGE_CHANNELS[stage - 1] if stage else POOLED_DIM, size)
        self.network = network or load_efficientnet_lite0()
        self.stage = stage
        self.freeze()

    def features(self, images: Tensor) -> Tensor:
        return self.feature_map(images).mean((2, 3)) if self.stage else self.network.pooled(images)

    def feature_map(self, images: Tensor) -> Tensor:
        return self.network.stages(images)[self.stage - 1] if self.stage else self.network.last(images)

    def depths(self, images: Tensor) -> list[Tensor]:
        return self.network.stages(images)


def load_teachers(
    factors: Sequence[FactorConfig], precision: str = "float32", device: torch.device | None = None
) -> dict[str, Teacher]:
    """The teachers of a model's factors by name, each once. Problems raise `UserError` that names the option."""
    teachers: dict[str, Teacher] = {}
    for (i, factor), field in product(enumerate(factors), ("teacher", "spatial_teacher")):
        name, option = getattr(factor, field), f"--model.factors.{i}.{field.replace('_', '-')}"
        if not name:
            continue
        family = name.partition(":")[0]
        try:
            if name not in teachers:
                teachers[name] = load_teacher(name, precision, device)
            if field == "spatial_teacher" and not teachers[name].has_map:
                raise UserError(f"the teacher {name} has no map of features")
        except UserError as error:
            folder = f"give a folder on disk with {option} {family}:/path/to/folder, or " if family in VITS else ""
            offline = f"train offline with {option} {OFFLINE}"
            raise UserError(f"factor {factor.name}: {error}; {folder}{offline}") from error
    return teachers


def load_backbone(
    name: str, teachers: dict[str, Teacher], precision: str = "float32", device: torch.device | None = None
) -> dict[str, Teacher]:
    """The teachers with the frozen network of a discriminator, which may be one of them; empty name: none. Problems
    raise `UserError` that names the option."""
    if not name or name in teachers:
        return teachers
    try:
        return teachers | {name: load_teacher(name, precision, device)}
    except UserError as error:
        raise UserError(f"{error}; judge offline with --discriminator.backbone {OFFLINE}") from error


def load_teacher(name: str, precision: str = "float32", device: torch.device | None = None) -> Teacher:
    """The teacher of a name, on the CPU at first. Its random draws leave the global generator alone.

    Names, each with `@SIZE` at its end for another input size in pixels, which bounds the compute:

    - `efficientnet-lite0` (packaged, offline), and `efficientnet-lite0:stage1` to `:stage5` for a stage's map;
    - `clip:` and `dinov2:` with a folder in the format of transformers or a hub id;
    - `timm:NAME` with weights from the hub, `timm:NAME=FILE` with weights from a file.

    Args:
        precision: `bf16` holds the weights of networks other than the packaged one in bf16, but not where that is
            slower (`held`).
        device: where the teacher is going to run; None: a CPU.

    Raises:
        UserError: for unknown names, sizes that do not fit, and missing packages, folders and files; within about two
            seconds where there is no network.
    """
    return make_teacher(name, precision, device, EfficientNetTeacher, load_transformer, load_timm)


def make_teacher(
    name: str,
    precision: str,
    device: torch.device | None,
    offline: Callable[[str, int, int], Teacher],
    transformer: Callable[[str, str, str, int, str, torch.device], Teacher],
    timm: Callable[[str, str, int, str, torch.device], Teacher],
) -> Teacher:
    """As `load_teacher`, whatever makes the networks: `offline` as `EfficientNetTeacher`, `transformer` as
    `load_transformer`, `timm` as `load_timm`."""
    parts = re.fullmatch(r"([^:@]+)(?::(.+?))?(?:@(\d{1,9}))?", name)
    family, model, size = (parts[1], parts[2] or "", int(parts[3] or 0)) if parts else ("", "", 0)
    device = device or torch.device("cpu")
    try:
        if size > _LARGEST:
            raise UserError(f"the input must have at most {_LARGEST:,} pixels a side")
        with torch.random.fork_rng(devices=[]):
            if family == OFFLINE:
                return offline(name, _size(size), _stage(model))
            if family in VITS and model:
                return transformer(name, family, model, size, precision, device)
            if family == "timm" and model:
                return timm(name, model, size, precision, device)
    except UserError as error:
        raise UserError(f"teacher {name!r}: {error}") from error
    raise UserError(f"unknown teacher {name!r}{did_you_mean(name, (OFFLINE, *VITS, 'timm'))}; known: {FORMS}")


def _size(size: int) -> int:
    if 0 < size < 32:
        raise UserError("the input must be at least 32 pixels a side")
    return size or 224


def _stage(text: str) -> int:
    stage = re.fullmatch(r"stage([1-5])", text)
    if text and not stage:
        raise UserError(f"{OFFLINE} has stage1 to stage5, not {text!r}")
    return int(stage[1]) if stage else 0
