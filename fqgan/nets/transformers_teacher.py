"""Class tokens of vision transformers in the format of the library transformers: CLIP and DINOv2."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError, in_one_line
from fqgan.base.schema import load_json
from fqgan.nets.features import NetworkTeacher, held
from fqgan.nets.weights import WEIGHTS, hub_folder, require, weights_in

# `model_type` of a config -> the class that holds its vision tower alone
CLASSES = {
    "clip": {"clip": "CLIPVisionModel", "clip_vision_model": "CLIPVisionModel"},
    "dinov2": {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"},
}
# mean and deviation of the pixels in [0, 1]: those of OpenAI's CLIP, and ImageNet's
NORMALISATION = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "dinov2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


def _shape(kind: str, width: int, depth: int, heads: int, patch: int, size: int, **others: Any) -> dict[str, Any]:
    """A vision tower's config.json, as far as it differs from its library's defaults."""
    shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "patch_size": patch}
    return {"model_type": kind, "image_size": size, **shape, **others}


def _dinov2(kind: str = "dinov2", infix: str = "", **others: Any) -> dict[str, dict[str, Any]]:
    """The four sizes of DINOv2; their positions are those of 518 pixels, whatever size they are given."""
    sizes = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "giant": (1536, 40, 24)}
    return {
        f"facebook/dinov2-{infix}{size}": _shape(kind, *shape, 14, 518, use_swiglu_ffn=size == "giant", **others)
        for size, shape in sizes.items()
    }


# hub ids whose networks `blank_transformer` makes without asking the hub
KNOWN = {
    "clip": {
        f"openai/clip-vit-{size}": _shape("clip_vision_model", *shape, intermediate_size=4 * shape[0])
        for size, shape in {
            "base-patch32": (768, 12, 12, 32, 224),
            "base-patch16": (768, 12, 12, 16, 224),
            "large-patch14": (1024, 24, 16, 14, 224),
            "large-patch14-336": (1024, 24, 16, 14, 336),
        }.items()
    },
    "dinov2": _dinov2() | _dinov2("dinov2_with_registers", "with-registers-", num_register_tokens=4),
}


def load_transformer(
    name: str, family: str, model: str, size: int, precision: str, device: torch.device
) -> NetworkTeacher:
    """The teacher of a folder or hub id: the last layer's class token after the final LayerNorm, not projected.

    That is `pooler_output`: 1024 dimensions for CLIP ViT-L/14, 768 for ViT-B/16, 384 for DINOv2-small. Its map are the
    last layer's patch tokens, CLIP's without a LayerNorm, as CLIP gives them to language models. Normalisation
    and input size are those of the folder's `preprocessor_config.json` if it has one, else the family's. Another
    size interpolates the positional embeddings.

    Args:
        family: `clip` or `dinov2`.
        size: pixels a side; 0: the model's own.
    """
    require("transformers")
    folder = _folder(model)
    config = _read_config(folder, family)
    network = _load(folder, CLASSES[family][config["model_type"]])
    return _teacher(name, family, network, _preprocessing(folder, family, config), size, precision, device)


def blank_transformer(
    name: str, family: str, model: str, size: int, precision: str, device: torch.device
) -> NetworkTeacher:
    """As `load_transformer`, with random weights: of a folder only its config is read, and of hub ids those of `KNOWN`
    can be had."""
    require("transformers")
    import transformers
    from transformers.initialization import no_init_weights

    folder = Path(model).expanduser()
    if folder.is_dir():
        config = _read_config(folder, family)
    elif model in KNOWN[family]:
        config = KNOWN[family][model]
    else:
        raise UserError(f"the shape of {model} is not known; known: {', '.join(KNOWN[family])}, and folders")
    cls = getattr(transformers, CLASSES[family][config["model_type"]])
    with no_init_weights():  # its truncated normal distribution asks for values, which not every device has
        network = cls(cls.config_class.from_dict(config.get("vision_config", config))).eval()
    network.apply(_randomize)
    return _teacher(name, family, network, _preprocessing(folder, family, config), size, precision, device)


@torch.no_grad()
def _randomize(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.copy_(torch.randn_like(parameter) * 0.02)


def _teacher(
    name: str,
    family: str,
    network: Any,
    preprocessing: tuple[list[float], list[float], int],
    size: int,
    precision: str,
    device: torch.device,
) -> NetworkTeacher:
    mean, std, own_size = preprocessing
    size, patch = size or own_size, network.config.patch_size
    if size % patch or not size:
        raise UserError(f"the size {size} is no multiple of the model's patches of {patch} pixels")
    read = _read_clip if family == "clip" else _read_dinov2
    dim = network.config.hidden_size
    return NetworkTeacher(name, held(network, precision, device), read, _read_depths, dim, size, mean, std)


def _read_clip(network: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    out = network(pixel_values=pixels, interpolate_pos_encoding=True)
    return out.pooler_output, _map(out.last_hidden_state[:, 1:])


def _read_dinov2(network: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    out = network(pixel_values=pixels)
    return out.pooler_output, _map(out.last_hidden_state[:, 1 + getattr(network.config, "num_register_tokens", 0) :])


def _read_depths(network: Any, pixels: Tensor) -> list[Tensor]:
    """Patch tokens behind each block."""
    options = {"interpolate_pos_encoding": True} if network.config.model_type.startswith("clip") else {}
    states = network(pixel_values=pixels, output_hidden_states=True, **options).hidden_states
    first = 1 + getattr(network.config, "num_register_tokens", 0)
    return [_map(state[:, first:]) for state in states[1:]]


def _map(patches: Tensor) -> Tensor:
    """Patch tokens (b, n * n, d) of square images -> (b, d, n, n)."""
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).unflatten(2, (side, side))


def _folder(model: str) -> Path:
    path = Path(model).expanduser()
    if not path.is_dir():
        if path.is_absolute() or path.exists() or model.startswith((".", "~")):
            raise UserError(f"{model} is no folder")
        return hub_folder(model)
    if not weights_in(path):
        raise UserError(f"the folder {model} holds no weights: {WEIGHTS[0]} is missing")
    return path


def _read_config(folder: Path, family: str) -> dict[str, Any]:
    """The config of a vision model, or of a CLIP model with two towers."""
    if not (folder / "config.json").is_file():
        raise UserError(f"the folder {folder} holds no config.json of transformers")
    config = load_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in CLASSES[family]:
        raise UserError(f"{folder} holds a model of type {kind!r}, not {' or '.join(CLASSES[family])}")
    return config


def _load(folder: Path, class_name: str) -> Any:
    """The vision tower in float32. Weights that are missing or do not fit raise `UserError`."""
    import transformers

    cls = getattr(transformers, class_name)
    try:
        with quiet():
            network, info = cls.from_pretrained(
                folder, local_files_only=True, weights_only=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # damaged and foreign files fail in many ways
        raise UserError(f"{folder} cannot be loaded: {in_one_line(error)}") from error
    # what is missing would be left at random; of what is left over, a text tower is normal
    if info["missing_keys"]:
        raise UserError(f"{folder} lacks {len(info['missing_keys'])} weights, such as {min(info['missing_keys'])}")
    return network


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar, no list of unused weights, such as a text tower's."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _preprocessing(folder: Path, family: str, config: dict[str, Any]) -> tuple[list[float], list[float], int]:
    """Mean, deviation and size that a model was trained with."""
    mean, std = NORMALISATION[family]
    size = config.get("vision_config", config).get("image_size", 224) if family == "clip" else 224
    own: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        own = load_json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        own = load_json(folder / "processor_config.json").get("image_processor", {})
    crop = own.get("crop_size", size)
    size = crop.get("height", size) if isinstance(crop, dict) else crop
    return own.get("image_mean", mean), own.get("image_std", std), size
