"""Pooled features of the models in timm."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fqgan.base.errors import UserError, in_one_line
from fqgan.base.schema import did_you_mean
from fqgan.nets.features import NetworkTeacher, held
from fqgan.nets.weights import converted, hub_folder, require, weights_in


def load_timm(name: str, model: str, size: int, precision: str, device: torch.device) -> NetworkTeacher:
    """The teacher of a timm model: its pooled feature before the classifier, with its own normalisation.

    Args:
        model: `resnet18`, `resnet18.a1_in1k` with the tag of its weights, or `resnet18=FILE` with the weights of a
            file (safetensors, or torch's) instead of those of the hub.
        size: pixels a side; 0: the size that the model was trained at.
    """
    architecture, config, file = _parsed(model)
    weights = _weights(Path(file).expanduser() if file else _hub_file(architecture, config))
    size = size or config.input_size[-1]
    network = _build(architecture, config, weights, size)
    return _teacher(name, architecture, config, network, size, precision, device)


def blank_timm(name: str, model: str, size: int, precision: str, device: torch.device) -> NetworkTeacher:
    """As `load_timm`, with random weights; no file is read."""
    architecture, config, _ = _parsed(model)
    size = size or config.input_size[-1]
    # timm asks for values of tensors while it builds, and fake ones have none
    with unset_fake_temporarily() as fake, torch.device("meta") if fake else nullcontext():
        network = _create(architecture, config, size, pretrained=False)
    if fake:
        converted(network, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    return _teacher(name, architecture, config, network, size, precision, device)


def _parsed(model: str) -> tuple[str, Any, str]:
    """The architecture, timm's config of it, and the file of weights, if one is named."""
    require("timm")
    import timm

    architecture, _, file = model.partition("=")
    try:
        config = timm.get_pretrained_cfg(architecture)
    except RuntimeError:  # a tag that the model does not have
        config = None
    if config is None:
        raise UserError(f"timm has no model {architecture!r}{_nearest(architecture)}")
    return architecture, config, file


def _teacher(
    name: str, architecture: str, config: Any, network: nn.Module, size: int, precision: str, device: torch.device
) -> NetworkTeacher:
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", (1,))[0]
    if size % patch or not size:
        raise UserError(f"the size {size} is no multiple of the model's patches of {patch} pixels")
    network = held(network, precision, device).eval()
    try:
        with torch.no_grad():
            feature = _read(network, torch.zeros(1, 3, size, size, dtype=next(network.parameters()).dtype))
    except Exception as error:
        raise UserError(f"timm's {architecture} gives no feature at {size} pixels: {in_one_line(error)}") from error
    dim = feature.shape[1]
    return NetworkTeacher(name, network, _without_map, _read_depths, dim, size, config.mean, config.std, has_map=False)


def _without_map(network: nn.Module, pixels: Tensor) -> tuple[Tensor, None]:
    return _read(network, pixels), None


def _read(network: nn.Module, pixels: Tensor) -> Tensor:
    features: Any = network
    return features.forward_head(features.forward_features(pixels), pre_logits=True)


def _read_depths(network: Any, pixels: Tensor) -> list[Tensor]:
    """What timm's intermediates are: of a ViT the tokens of each block, of a convolutional network each stage."""
    if not hasattr(network, "forward_intermediates"):
        raise UserError(f"timm's {type(network).__name__} gives no features of several depths")
    return network.forward_intermediates(pixels, intermediates_only=True)


def _nearest(architecture: str) -> str:
    import timm

    base, _, tag = architecture.partition(".")
    if tag and timm.is_model(base):
        return did_you_mean(architecture, timm.list_pretrained(f"{base}.*"))
    return did_you_mean(base, timm.list_models())


def _hub_file(architecture: str, config: Any) -> Path:
    """The weights of a model on the hub: safetensors where there are any."""
    if not config.hf_hub_id:
        raise UserError(f"timm has no weights of {architecture} on the hub; name a file: timm:{architecture}=FILE")
    other = config.hf_hub_filename or "pytorch_model.bin"
    safe = f"{other.removesuffix('.bin')}.safetensors" if config.hf_hub_filename else "model.safetensors"
    found = weights_in(hub_folder(config.hf_hub_id, (safe, other)), (safe, other))
    assert found is not None, "hub_folder has looked"
    return found


def _weights(path: Path) -> dict[str, Any]:
    from timm.models import load_state_dict

    if not path.is_file():
        raise UserError(f"the file {path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats of pickles, where one line of ours says what is wrong
            return dict(load_state_dict(str(path), device="cpu", weights_only=True))
    except Exception as error:  # damaged and foreign files fail in many ways
        raise UserError(f"{path} is damaged or no file of weights: {in_one_line(error)}") from error


def _build(architecture: str, config: Any, weights: dict[str, Any], size: int) -> nn.Module:
    """The model without its classifier. All other weights must be there and fit."""
    classifiers = config.classifier if isinstance(config.classifier, tuple | list) else (config.classifier,)
    for classifier in classifiers:
        for last in ("weight", "bias"):
            weights.pop(f"{classifier}.{last}", None)
    # as many classes as the model, none, let timm load strictly
    overlay = {"state_dict": weights, "num_classes": 0, "label_offset": 0}
    try:
        network = _create(architecture, config, size, pretrained=True, pretrained_cfg_overlay=overlay)
    except Exception as error:
        raise UserError(
            f"timm's {architecture} at {size} pixels does not take these weights: {in_one_line(error)}"
        ) from error
    network.pretrained_cfg.pop("state_dict", None)  # a second copy
    return network


def _create(architecture: str, config: Any, size: int, **options: Any) -> Any:
    import timm

    sized = {"img_size": size} if config.fixed_input_size else {}
    return timm.create_model(architecture, num_classes=0, **sized, **options)
