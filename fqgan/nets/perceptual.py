"""Perceptual distances between images: frozen networks, differentiable in both images.

All have the form of LPIPS (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric", Eq. 1): features of several stages, unit length at every position, weighted squared differences.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.nets.efficientnet import STAGE_CHANNELS, EfficientNetLite0, load_efficientnet_lite0
from fqgan.nets.weights import FrozenModule, read_weights

VGG_CHANNELS = (64, 128, 256, 512, 512)
VGG_STAGE_ENDS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 in torchvision's numbering
OFFLINE_OPTION = "--loss.perceptual efficientnet-lite0"


class PerceptualDistance(FrozenModule):
    """d(x, y) = sum_s sum_c w_sc mean_hw (x_schw - y_schw)^2 over unit-length features of the stages s.

    `weights` holds one (c,) tensor per stage. Subclasses give `features`. Under autocast the features are computed in
    its type, the normalisation and the differences in float32.
    """

    def __init__(self, weights: Iterable[Tensor]):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)

    def features(self, images: Tensor) -> list[Tensor]:
        """(b, 3, H, W) in [-1, 1] -> one (b, c, h, w) map per stage."""
        raise NotImplementedError

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two (b, 3, H, W) in [-1, 1] -> (b,) float32, at least 0."""
        stages = zip(self.weights, self.features(x), self.features(y), strict=True)
        with torch.autocast(x.device.type, enabled=False):
            return torch.stack([_stage_distance(*stage) for stage in stages]).sum(0)


def _stage_distance(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (_unit_length(x) - _unit_length(y)).square().mean((2, 3)) @ weight


def _unit_length(features: Tensor) -> Tensor:
    # epsilon under the root: its gradient stays finite where all channels are zero, as they can be after a ReLU
    features = features.float()
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-8)


class EfficientNetDistance(PerceptualDistance):
    """Distance on the five stages of the packaged EfficientNet-Lite0: LPIPS without learned weights, works offline.

    The squared differences are summed over channels, averaged over positions and averaged over the stages, which
    makes it lie in [0, 4]. Any image size leaves each stage at least one position, so all five count.

    Args:
        network: None: the packaged one.
    """

    def __init__(self, network: EfficientNetLite0 | None = None):
        super().__init__(torch.full((channels,), 1 / len(STAGE_CHANNELS)) for channels in STAGE_CHANNELS)
        self.network = network or load_efficientnet_lite0()
        self.freeze()

    def features(self, images: Tensor) -> list[Tensor]:
        return self.network.stages(images)


class LPIPS(PerceptualDistance):
    """LPIPS v0.1 on VGG-16 (richzhang/PerceptualSimilarity), with its scaling layer and learned weights.

    Args:
        vgg16: torchvision's ImageNet weights `vgg16-397923af.pth`; None: random ones.
        linear: the learned weights, as the package `lpips` has them; keys `lin0.model.1.weight` to
            `lin4.model.1.weight`. None: equal ones.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg16: Path | None, linear: Path | None):
        super().__init__(_read_linear(linear) if linear else (torch.full((c,), 1 / c) for c in VGG_CHANNELS))
        self.layers = _read_vgg16(vgg16) if vgg16 else _vgg16()
        # ImageNet's mean and deviation, carried over to the range [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.freeze()

    def features(self, images: Tensor) -> list[Tensor]:
        maps, activation = [], (images - self.shift) / self.scale
        for index, layer in enumerate(self.layers):
            activation = layer(activation)
            if index in VGG_STAGE_ENDS:
                maps.append(activation)
        return maps


def _read_linear(path: Path) -> list[Tensor]:
    weights = read_weights(path)
    try:
        return [weights[f"lin{i}.model.1.weight"].float().reshape(c) for i, c in enumerate(VGG_CHANNELS)]
    except (KeyError, RuntimeError):
        raise UserError(f"{path} does not hold the weights of LPIPS v0.1 for VGG-16 (lin0 to lin4)") from None


def _vgg16() -> nn.Sequential:
    return make_layers(cfgs["D"])[: VGG_STAGE_ENDS[-1] + 1]


def _read_vgg16(path: Path) -> nn.Sequential:
    with torch.device("meta"):  # the file's tensors become the parameters: no initialisation, no random numbers
        layers = _vgg16()
    prefix = "features."
    weights = {key.removeprefix(prefix): w for key, w in read_weights(path).items() if key.startswith(prefix)}
    try:
        layers.load_state_dict(weights, assign=True)
    except RuntimeError:
        raise UserError(f"{path} does not hold torchvision's VGG-16 weights") from None
    return layers


def lpips_files() -> tuple[Path, Path]:
    """The files of `lpips_paths`; missing ones raise `UserError`."""
    vgg16, linear = lpips_paths()
    missing = []
    if not vgg16.is_file():
        missing.append(f"{vgg16} (torchvision's vgg16-397923af.pth; or set FQGAN_VGG16)")
    if not linear.is_file():
        missing.append(f"{linear} (the package lpips: pip install 'fqgan[lpips]'; or set FQGAN_LPIPS)")
    if missing:
        without = f"{OFFLINE_OPTION} to train, --perceptual efficientnet-lite0 to evaluate"
        raise UserError(f"LPIPS needs {' and '.join(missing)}; without these files: {without}")
    return vgg16, linear


def lpips_paths() -> tuple[Path, Path]:
    """Where the VGG-16 and the LPIPS weights have to be; they are never downloaded.

    `$FQGAN_VGG16`, else torchvision's cache `<torch hub>/checkpoints/vgg16-397923af.pth`; and `$FQGAN_LPIPS`, else
    `weights/v0.1/vgg.pth` of the package `lpips`, none of whose code is run.
    """
    vgg16 = _from_environment("FQGAN_VGG16", Path(torch.hub.get_dir(), "checkpoints", "vgg16-397923af.pth"))
    package = find_spec("lpips")
    folder = Path(package.origin).parent if package and package.origin else Path("lpips")
    return vgg16, _from_environment("FQGAN_LPIPS", folder / "weights" / "v0.1" / "vgg.pth")


def _from_environment(variable: str, default: Path) -> Path:
    value = os.environ.get(variable)
    return Path(value).expanduser() if value else default


def load_perceptual(name: str) -> PerceptualDistance | None:
    """The distance of a config's `loss.perceptual`: `lpips-vgg`, `efficientnet-lite0`, or `none` (None)."""
    return make_perceptual(name, EfficientNetDistance, lambda: LPIPS(*lpips_files()))


def make_perceptual(
    name: str, efficientnet: Callable[[], PerceptualDistance], lpips: Callable[[], PerceptualDistance]
) -> PerceptualDistance | None:
    """As `load_perceptual`, whatever makes the networks."""
    if name == "none":
        return None
    if name == "efficientnet-lite0":
        return efficientnet()
    if name == "lpips-vgg":
        return lpips()
    known = ("lpips-vgg", "efficientnet-lite0", "none")
    raise UserError(f"unknown perceptual distance {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
