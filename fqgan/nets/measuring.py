"""Networks that measure images: what they see, what they give, and what a protocol has to say about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.base.files import file_sha256
from fqgan.base.schema import did_you_mean
from fqgan.classifier.model import load_classifier
from fqgan.data.transforms import normalize
from fqgan.models.fingerprint import weights_fingerprint
from fqgan.nets import inception
from fqgan.nets.features import Teacher, resize
from fqgan.nets.teachers import OFFLINE, VITS, EfficientNetTeacher, load_teacher

INCEPTION, CLASSIFIER = "inception", "classifier"
FORMS = (
    f"{INCEPTION}, {INCEPTION}=FILE, {OFFLINE}, clip:ID_OR_FOLDER, dinov2:ID_OR_FOLDER, timm:NAME, timm:NAME=FILE, "
    f"{CLASSIFIER}:RUN"
)


class Features(NamedTuple):
    """What a network says of a batch, all float32."""

    pooled: Tensor
    """(b, dim)."""
    spatial: Tensor | None
    """(b, spatial_dim): features with their positions, Inception alone has them."""
    logits: Tensor | None
    """(b, num_classes) of a network that classifies."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network, called with uint8 images (b, 3, H, W): metrics see what a picture file holds."""

    name: str
    dim: int
    spatial_dim: int
    """0: no spatial features."""
    num_classes: int
    """0: no logits."""
    weights: str
    """sha256 of the weights' file, or of the state dict where there are several files or none."""
    resize: str
    """How images come to the network's input size."""
    genuine: bool
    """Whether it is FID's Inception with FID's weights: then, and only then, its numbers are FID, sFID and IS."""
    module: nn.Module
    read: Callable[[Tensor], Features]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Features:
        """In float32 without TF32, whatever autocast is on. The last bits still depend on the machine."""
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with exact, torch.autocast(images.device.type, enabled=False):
            return self.read(images)

    def describe(self) -> dict[str, Any]:
        """For the protocol."""
        return {
            "network": self.name,
            "weights": self.weights,
            "resize": self.resize,
            "dim": self.dim,
            "dtype": "float32",
            "fid": self.genuine,
        }


def load_network(name: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network of a name, on a device. The forms are those of teachers (`fqgan.nets.teachers.load_teacher`) and

    - `inception`: FID's, from a local file, the cache or a download; `inception=FILE`: these weights;
    - `classifier:RUN`: a run of `fqgan train-classifier`.

    Raises:
        UserError: unknown names, and missing or damaged files and packages.
    """
    family, _, model = name.partition(":")
    kind, _, file = name.partition("=")
    if kind == INCEPTION and (file or "=" not in name):
        network = _inception(file)
    elif family == CLASSIFIER and model:
        network = _classifier(Path(model).expanduser())
    elif family.partition("@")[0] in (OFFLINE, *VITS, "timm"):
        network = _teacher(load_teacher(name, device=torch.device(device)))
    else:
        known = (INCEPTION, OFFLINE, *VITS, "timm", CLASSIFIER)
        raise UserError(f"unknown features {name!r}{did_you_mean(family, known)}; known: {FORMS}")
    network.module.to(device)
    return network


def _inception(file: str) -> FeatureNetwork:
    model, digest, genuine = inception.load_inception(file)
    return FeatureNetwork(
        name=INCEPTION if genuine else "inception with other weights",
        dim=inception.POOLED_DIM,
        spatial_dim=inception.SPATIAL_DIM,
        num_classes=inception.CLASSES,
        weights=digest,
        resize=f"TensorFlow 1 bilinear to {inception.SIZE}, not filtered",
        genuine=genuine,
        module=model,
        read=lambda images: Features(*model(images)),
    )


def _classifier(path: Path) -> FeatureNetwork:
    model = load_classifier(path).requires_grad_(False)
    size = model.config.image_size

    def read(images: Tensor) -> Features:
        pooled = model.features(resize(normalize(images), size))
        return Features(pooled, None, model.outputs(pooled))

    return FeatureNetwork(
        name=CLASSIFIER,
        dim=model.config.dim,
        spatial_dim=0,
        num_classes=model.config.num_classes,
        weights=weights_fingerprint(model.state_dict()),
        resize=_bicubic(size),
        genuine=False,
        module=model,
        read=read,
    )


def _teacher(teacher: Teacher) -> FeatureNetwork:
    outputs: Any = None
    if isinstance(teacher, EfficientNetTeacher):
        assert teacher.network.file, "the packaged one"
        weights = file_sha256(teacher.network.file)
        outputs = None if teacher.stage else teacher.network.network.get_classifier()
    else:
        weights = weights_fingerprint(teacher.state_dict())

    def read(images: Tensor) -> Features:
        pooled = teacher(normalize(images))
        return Features(pooled, None, outputs(pooled) if outputs is not None else None)

    return FeatureNetwork(
        name=teacher.name,
        dim=teacher.dim,
        spatial_dim=0,
        num_classes=outputs.out_features if outputs is not None else 0,
        weights=weights,
        resize=_bicubic(teacher.size),
        genuine=False,
        module=teacher,
        read=read,
    )


def _bicubic(size: int) -> str:
    return f"bicubic to {size}, antialiased"
