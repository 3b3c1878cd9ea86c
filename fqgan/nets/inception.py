"""The Inception network of FID (Heusel et al. 2017), sFID (Nash et al. 2021) and ADM's evaluator.

It is the TensorFlow graph of 2015-12-05 with 1008 classes as torch-fidelity and pytorch-fid ported it: torchvision's
Inception v3 but for three things. Average pools leave padding out, the pool of the last block takes the maximum, and
images come through TensorFlow 1's bilinear resize, which does not filter. The two ports' weights are one file.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.inception import BasicConv2d, Inception3

from fqgan.base.errors import UserError, in_one_line
from fqgan.base.files import file_sha256
from fqgan.models.hub import within
from fqgan.nets.weights import FrozenModule, read_weights

FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
"""The same weights as pytorch-fid and torch-fidelity call them."""
SHA256 = "6726825d"
"""How the file's sha256 begins."""
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILES[0]}"
PROBE_SECONDS = 5
SIZE = 299
POOLED_DIM, CLASSES = 2048, 1008
SPATIAL_CHANNELS, SPATIAL_DIM = 7, 7 * 17 * 17
"""sFID: the first channels of `mixed_6/conv`, at all positions."""


class InceptionOutput(NamedTuple):
    """What one pass gives."""

    pooled: Tensor
    """(b, 2048), `pool_3`."""
    spatial: Tensor
    """(b, 2023): at 17 x 17 positions, one after the other, the first 7 channels of `mixed_6/conv` (torchvision's
    Mixed_6d)."""
    logits: Tensor
    """(b, 1008) without the bias, as ADM and torch-fidelity take them for the Inception Score."""


class Inception(FrozenModule):
    """Frozen FID Inception.

    Args:
        weights: state dict in torchvision's names, as the ports' file has it.
    """

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        with torch.device("meta"):
            network = Inception3(num_classes=CLASSES, aux_logits=False, init_weights=False)
        own = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
        weights = {name: weight for name, weight in weights.items() if not name.endswith("num_batches_tracked")}
        if set(weights) != own:
            strange = min(own.symmetric_difference(weights))
            raise UserError(f"these are no weights of FID's Inception: {strange} is missing or not known")
        network.to_empty(device="cpu")
        try:
            network.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise UserError(f"these are no weights of FID's Inception: {in_one_line(error)}") from None
        self.network = network.eval()
        _fold(self.network)
        self.freeze()

    def forward(self, images: Tensor) -> InceptionOutput:
        """Images (b, 3, H, W), whole numbers from 0 to 255 of any type, of any size."""
        net = self.network
        x = net.maxpool2(net.Conv2d_4a_3x3(net.Conv2d_3b_1x1(self.stem(images))))
        for block in (net.Mixed_5b, net.Mixed_5c, net.Mixed_5d):
            x = _mixed(block, x, _average(x))
        x = net.Mixed_6a(x)
        for block in (net.Mixed_6b, net.Mixed_6c, net.Mixed_6d):
            x = _mixed(block, x, _average(x))
        # a block's first channels are those of its 1x1 convolution; in TensorFlow's order, as in ADM's mu_s, sigma_s
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = net.Mixed_7a(_mixed(net.Mixed_6e, x, _average(x)))
        x = _mixed(net.Mixed_7b, x, _average(x))
        x = _mixed(net.Mixed_7c, x, F.max_pool2d(x, 3, 1, 1))
        pooled = x.mean((2, 3))
        return InceptionOutput(pooled, spatial, pooled @ net.fc.weight.T)

    def stem(self, images: Tensor) -> Tensor:
        """(b, 64, 73, 73): the first convolutions; their average over positions is torch-fidelity's feature "64"."""
        net = self.network
        x = (resize_tf1(images.to(net.fc.weight.dtype), SIZE) - 128) / 128
        return net.maxpool1(net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(x))))

    @property
    def bias(self) -> Tensor:
        """(1008,): what added to `logits` gives those with the bias, the classes' scores."""
        return self.network.fc.bias


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _mixed(block: nn.Module, x: Tensor, pooled: Tensor) -> Tensor:
    """One of torchvision's blocks with stride 1, on a pool of our choice.

    Its convolutions are named after branches: `branch3x3dbl_2` follows `branch3x3dbl_1`, and those with letters stand
    side by side. Channels: 1x1, the branches in order, pool.
    """
    branches: dict[str, list[Tensor]] = {}
    before = x
    for name, convolution in block.named_children():
        if parts := re.fullmatch(r"(branch\w+)_\d([ab]?)", name):
            maps = branches.setdefault(parts[1], [x])
            if parts[2] == "b":
                maps.append(convolution(before))
            else:
                before, maps[:] = maps[0], [convolution(maps[0])]
    inner = itertools.chain(*branches.values())
    return torch.cat([block.branch1x1(x), *inner, block.branch_pool(pooled)], 1)  # pyright: ignore[reportCallIssue]


def _fold(network: nn.Module) -> None:
    """Batch norms into the convolutions before them: the same function up to round-off, in less time."""
    for module in network.modules():
        if isinstance(module, BasicConv2d):
            module.conv = fuse_conv_bn_eval(module.conv.double(), module.bn.double()).float()
            module.bn = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]


def resize_tf1(images: Tensor, size: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear` to (b, c, size, size): pixel i takes its value at i * old / new, between the two
    nearest, without a filter even where the image shrinks. Widths first, as there."""
    for dim in (3, 2):
        length = images.shape[dim]
        if length != size:
            places = torch.arange(size, dtype=images.dtype, device=images.device) * (length / size)
            low = places.long()
            fraction = (places - low).view(-1, *[1] * (3 - dim))
            high = (low + 1).clamp(max=length - 1)
            lower = images.index_select(dim, low)
            images = lower + (images.index_select(dim, high) - lower) * fraction
    return images


def load_inception(file: str = "") -> tuple[Inception, str, bool]:
    """The network, its weights' sha256, and whether they are FID's.

    Args:
        file: weights; they may be others than FID's. Empty: `$FQGAN_INCEPTION`, the file of either port in torch's hub
            cache, or a download to it, whose checksum must be right.

    Raises:
        UserError: no file, a damaged one, or one of another network.
    """
    path = Path(file).expanduser() if file else find_weights()
    if not path.is_file():
        raise UserError(f"the file {path} does not exist")
    digest = file_sha256(path)
    genuine = digest.startswith(SHA256)
    if not genuine and not file:
        raise UserError(f"{path} is damaged: its sha256 is {digest[:8]}..., not {SHA256}...; delete it or get it anew")
    try:
        return Inception(read_weights(path)), digest, genuine
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def find_weights() -> Path:
    """Where the weights are; they are downloaded where they are not. `UserError` if that fails."""
    if there := weights_on_disk():
        return there
    path = _cache() / FILES[0]
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise UserError(f"{_missing(path)}; downloads are turned off (HF_HUB_OFFLINE)")
    try:
        # the probe's name look-up would otherwise wait for half a minute where there is no network
        within(PROBE_SECONDS, lambda: urlopen(Request(URL, method="HEAD"), timeout=PROBE_SECONDS).close())
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256)
    except Exception as error:  # no network, a full disk, a wrong checksum: nothing is left behind
        raise UserError(f"{_missing(path)}; the download failed: {in_one_line(error)}") from None
    return path


def weights_on_disk() -> Path | None:
    """Where the weights are on this machine: the file that the environment names, which may be missing, or one in
    torch's hub cache; None: nowhere."""
    if named := os.environ.get("FQGAN_INCEPTION"):
        return Path(named).expanduser()
    return next((path for path in (_cache() / name for name in FILES) if path.is_file()), None)


def _cache() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")


def _missing(path: Path) -> str:
    return (
        f"Inception's weights are missing: put {FILES[0]} ({URL}) at {path}, name it with FQGAN_INCEPTION or "
        "--features inception=FILE, or measure offline with --features efficientnet-lite0"
    )
