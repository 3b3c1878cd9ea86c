"""The frozen networks of a training with random weights: what their shapes alone tell, such as memory and time.

Nothing is read but a folder's configs, and nothing is downloaded. Networks can be made on any device, as fake tensors
(`FakeTensorMode`) and on `meta`, where they cannot run, since autocast doesn't know it.
"""

from __future__ import annotations

import torch

from fqgan.config import TokenizerRunConfig
from fqgan.nets.efficientnet import EfficientNetLite0, architecture
from fqgan.nets.features import Teacher
from fqgan.nets.perceptual import LPIPS, EfficientNetDistance, PerceptualDistance, make_perceptual
from fqgan.nets.teachers import EfficientNetTeacher, make_teacher
from fqgan.nets.timm_teacher import blank_timm
from fqgan.nets.transformers_teacher import blank_transformer


def blank_networks(
    config: TokenizerRunConfig, device: torch.device | None = None
) -> tuple[PerceptualDistance | None, dict[str, Teacher]]:
    """The perceptual distance of a tokenizer's training (None without one) and its teachers and discriminator's
    backbone by name, as `load_perceptual`, `load_teachers` and `load_backbone` have them: all that use EfficientNet
    share one.

    Args:
        device: where they are going to run, as for `load_teachers`.
    """
    shared: list[EfficientNetLite0] = []
    loss = config.loss
    perceptual = blank_perceptual(loss.perceptual, shared) if loss.perceptual_weight else None
    teachers = (name for factor in config.model.factors for name in factor.teachers)
    names = dict.fromkeys(filter(None, (*teachers, config.discriminator.network)))
    return perceptual, {name: blank_teacher(name, config.train.precision, device, shared) for name in names}


def blank_perceptual(name: str, shared: list[EfficientNetLite0] | None = None) -> PerceptualDistance | None:
    """As `load_perceptual`, with random weights.

    Args:
        shared: holds the EfficientNet to use; where it is empty a new one is made and put there.
    """
    return make_perceptual(name, lambda: EfficientNetDistance(_efficientnet(shared)), lambda: LPIPS(None, None))


def blank_teacher(
    name: str,
    precision: str = "float32",
    device: torch.device | None = None,
    shared: list[EfficientNetLite0] | None = None,
) -> Teacher:
    """As `load_teacher`, with random weights. `UserError` that names the known ones for a hub id of another network.

    Args:
        shared: as for `blank_perceptual`.
    """

    def offline(name: str, size: int, stage: int) -> Teacher:
        return EfficientNetTeacher(name, size, stage, _efficientnet(shared))

    return make_teacher(name, precision, device, offline, blank_transformer, blank_timm)


def _efficientnet(shared: list[EfficientNetLite0] | None) -> EfficientNetLite0:
    shared = [] if shared is None else shared
    if not shared:
        shared.append(EfficientNetLite0(architecture()))
    return shared[0]
