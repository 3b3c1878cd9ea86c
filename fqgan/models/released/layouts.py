"""Which model a released file holds, read off names and shapes, and its tensors as ours and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.config import FactorConfig, GeneratorConfig, TokenizerConfig, teacher_dim
from fqgan.models.released.files import RAW_ENTRIES
from fqgan.models.released.names import FactorNames, Pair, factor_names, generator_pairs, tokenizer_pairs

Config = TokenizerConfig | GeneratorConfig
Tensors = Mapping[str, Tensor]

HEAD_CHANNELS = 64  # channels of an attention head, of adapters and generators: not in names or shapes
_HEADS = {3200: 32}  # width -> heads of the one model with others, LlamaGen's of 3 billion parameters
IMAGE_SIZE = 256  # where neither a positional table nor the file's arguments tell
DOWNSAMPLING = 16  # of the tokenizer behind a generator's codes, where the file's arguments don't tell
USED_CODES = 65536  # length of the buffers `codebook_used`

EUCLIDEAN = "vq-euclidean"
"""The quantizer of VQGAN and latent diffusion: nothing is normalised."""

_NOT_RELEASED = "is no released FQGAN, FAR, LlamaGen or VQGAN model"
_BUFFER = ".codebook_used"
_CLASSES = "cls_embedding.embedding_table.weight"
# what the names of other models contain, and what these are
_OTHERS = {
    r"decoder\.up_blocks\.": "an autoencoder of diffusers: name its folder, diffusers:FOLDER",
    r"quantize\.embed\.": "a VQGAN with the Gumbel quantizer, which fqgan does not have",
    r"encoder\.down\.0\.block\.": "a continuous autoencoder of latent diffusion, which has no codes: diffusers "
    "converts it and fqgan takes the result, diffusers:FOLDER",
    r"cls_embedding\.(cap_proj|uncond)": "LlamaGen's generator from text; fqgan's are class-conditional",
    r"transformer\.(tok_emb|pos_emb|blocks)": "a transformer of taming-transformers, without its VQGAN",
    r"(model\.)?diffusion_model\.": "the network of a diffusion model, without its autoencoder",
    r"(model\.)?(embed_tokens|layers\.0\.self_attn)\.": "a language model",
    r"layers\.0\.attention\.wqkv": "a generator of LlamaGen's kind, without its classes",
}
# the teachers of the released models by the dimension of their class token
_TEACHERS = {
    1024: "clip:openai/clip-vit-large-patch14",
    768: "clip:openai/clip-vit-base-patch16",
    384: "dinov2:facebook/dinov2-small",
}
_FACTORS = {1: ("visual",), 2: ("visual", "semantic"), 3: ("visual", "mid", "high")}
# fields that change no output, or are compared before: the files don't have them
_FREE = re.compile(
    r"(class_)?dropout|factors\.\d+\.(name|(spatial_)?teacher(_dim)?)|adapter_head_dim|feature_head_\w+|kv_heads|mlp_multiple"
)


class _Shapes:
    """Names and shapes of a file's tensors."""

    def __init__(self, tensors: Tensors, where: str):
        self.tensors, self.where = tensors, where

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def of(self, name: str, dims: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there, with this many dimensions."""
        if name not in self.tensors:
            raise UserError(f"{self.where} {_NOT_RELEASED}: it has no tensor {name}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dims:
            raise UserError(f"{self.where}: tensor {name} has shape {shape}, it should have {dims} dimension(s)")
        return shape

    def count(self, pattern: str) -> int:
        """How many numbers stand where `pattern` has its group."""
        return len({found[1] for name in self.tensors if (found := re.match(pattern, name))})


def recognise(tensors: Tensors, args: Mapping[str, Any], where: str) -> Config:
    """The architecture of the model in a file; `UserError` names what doesn't fit.

    Args:
        tensors: by their released names, without prefixes of wrappers.
        args: the training arguments in the file, for what names and shapes don't tell.
    """
    shapes = _Shapes(tensors, where)
    quantized = any(re.match(r"quantize\w*\.embedding\.weight$", name) for name in tensors)
    if "tok_embeddings_1.weight" in tensors or {"tok_embeddings.weight", _CLASSES} <= tensors.keys():
        config: Config = _generator(shapes, args)
    elif "encoder.conv_in.weight" in tensors and "decoder.conv_in.weight" in tensors and quantized:
        config = _tokenizer(shapes, args)
    else:
        names = ", ".join(list(tensors)[:3]) or "nothing"
        names += ", ..." if len(tensors) > 3 else ""
        looks = next((what for pattern, what in _OTHERS.items() if any(re.match(pattern, n) for n in tensors)), "")
        raise UserError(
            f"{where} {_NOT_RELEASED}: it " + (f"looks like {looks} ({names})" if looks else f"holds {names}")
        )
    try:
        config.check()
    except UserError as error:
        raise UserError(f"{where}: its shapes make no model: {error}") from None
    return config


def to_ours(tensors: Tensors, config: Config, template: Tensors, where: str) -> dict[str, Tensor]:
    """A file's tensors under our names; parts of larger tensors are views.

    Args:
        template: our model's tensors, for their names and shapes.

    Raises:
        UserError: a tensor that is missing, unknown or of another shape; names the first ones.
    """
    pairs = _pairs(config, template)
    known = {name for pair in pairs for name in pair.released}
    unknown = [name for name in tensors if name not in known and not name.endswith(_BUFFER)]
    missing = [name for pair in pairs for name in pair.released if name not in tensors]
    if unknown or missing:
        # missing ones follow from unknown ones more often than not
        what, names = ("does not belong there", unknown) if unknown else ("is missing", missing)
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UserError(f"{where} {_NOT_RELEASED}: {listed} {what}")
    result: dict[str, Tensor] = {}
    for pair in pairs:
        rows = [template[name].shape[0] for name in pair.ours]
        wanted = (sum(rows) // len(pair.released), *template[pair.ours[0]].shape[1:])
        for name in pair.released:
            if tuple(tensors[name].shape) != wanted:
                raise UserError(
                    f"{where}: tensor {name} has shape {tuple(tensors[name].shape)}, by its other tensors it should "
                    f"have {wanted}"
                )
        parts = [tensors[name] for name in pair.released]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        result.update(zip(pair.ours, whole.split(rows), strict=True))
    return result


def to_released(tensors: Tensors, config: Config) -> dict[str, Tensor]:
    """Our tensors under the released names, with the buffers that the released models expect.

    `UserError` for a model that this layout cannot express: whoever reads it would compute something else.
    """
    _check_expressible(config)
    result: dict[str, Tensor] = {}
    for pair in _pairs(config, tensors):
        parts = [tensors[name] for name in pair.ours]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        result.update(zip(pair.released, whole.chunk(len(pair.released)), strict=True))
    if isinstance(config, TokenizerConfig) and not _is_vqgan(config):
        for names in factor_names(len(config.factors)):
            result[f"quantize{names.suffix}{_BUFFER}"] = torch.zeros(USED_CODES)
    _check_reads_back(result, config)
    return result


def raw_entry_of(config: Config) -> str:
    """What a file of a model calls its weights."""
    return RAW_ENTRIES[1 if isinstance(config, TokenizerConfig) and _is_vqgan(config) else 0]


def tells_grid(args: Mapping[str, Any]) -> bool:
    """Whether a generator's training arguments say how large its token grid is."""
    return bool(_number(args, "image_size", 0))


def arguments_of(config: Config) -> dict[str, int]:
    """What of an architecture the released names and shapes don't tell, for the arguments in a file."""
    if isinstance(config, TokenizerConfig):
        return {"image_size": config.image_size, "downsample_size": config.downsampling}
    return {"image_size": config.grid[0] * DOWNSAMPLING, "downsample_size": DOWNSAMPLING}


def _pairs(config: Config, names: Iterable[str]) -> list[Pair]:
    if isinstance(config, TokenizerConfig):
        return tokenizer_pairs(names, len(config.factors), _is_vqgan(config))
    return generator_pairs(names)


def _is_vqgan(config: TokenizerConfig) -> bool:
    """Whether its file has the names of taming-transformers and latent diffusion."""
    return config.factors[0].quantizer == EUCLIDEAN


def _tokenizer(shapes: _Shapes, args: Mapping[str, Any]) -> TokenizerConfig:
    vqgan = "encoder.down.0.block.0.conv2.weight" in shapes
    level, block = ("down", "block") if vqgan else ("conv_blocks", "res")
    factors = factor_names(shapes.count(r"quantize(\w*)\.embedding\.weight$"))
    codebooks = [shapes.of(f"quantize{names.suffix}.embedding.weight", 2) for names in factors]
    levels = shapes.count(rf"encoder\.{level}\.(\d+)\.")
    widths = [shapes.of(f"encoder.{level}.{i}.{block}.0.conv2.weight", 4)[0] for i in range(levels)]
    attentive = f"encoder.{level}.{levels - 1}.attn.0.norm.weight" in shapes
    channels = shapes.of("encoder.conv_in.weight", 4)[0]
    if not channels or any(width % channels for width in widths):
        raise UserError(f"{shapes.where}: widths {widths} are no multiples of the first one, {channels}")
    config = TokenizerConfig(
        channels=channels,
        channel_multipliers=tuple(width // channels for width in widths),
        res_blocks=shapes.count(rf"encoder\.{level}\.0\.{block}\.(\d+)\."),
        attention_at="lowest" if attentive or not vqgan else "middle",
        z_channels=shapes.of(f"encoder.conv_out{factors[0].suffix}.weight", 4)[0],
        adapter_head_dim=HEAD_CHANNELS,
        feature_head_depth=max(
            [shapes.count(rf"{names.head}\.transformer\.(\d+)\.") for names in factors if _has_head(names, shapes)],
            default=TokenizerConfig.feature_head_depth,
        ),
        factors=tuple(
            _factor(names, name, codebook, shapes)
            for names, name, codebook in zip(factors, _FACTORS[len(factors)], codebooks, strict=True)
        ),
    )
    if vqgan:
        config = replace(config, factors=tuple(replace(factor, quantizer=EUCLIDEAN) for factor in config.factors))
    return replace(config, image_size=_image_size(shapes, factors, config.downsampling, args))


def _has_head(names: FactorNames, shapes: _Shapes) -> bool:
    return bool(names.head) and f"{names.head}.class_embedding" in shapes


def _factor(names: FactorNames, name: str, codebook: tuple[int, ...], shapes: _Shapes) -> FactorConfig:
    depth = shapes.count(rf"encoder\.{re.escape(names.adapter)}\.transformer\.(\d+)\.") if names.adapter else 0
    factor = FactorConfig(name, *codebook, adapter_depth=depth)
    if not _has_head(names, shapes):
        return factor
    dim = shapes.of(f"{names.head}.class_embedding", 2)[1]
    return replace(factor, teacher=_TEACHERS.get(dim, "unknown"), teacher_dim=dim)


def _image_size(shapes: _Shapes, factors: tuple[FactorNames, ...], downsampling: int, args: Mapping[str, Any]) -> int:
    """Pixels a side, from the positional table if there is one."""
    table = f"encoder.{factors[0].adapter}.positional_embedding"
    if not factors[0].adapter:
        return _number(args, "image_size", IMAGE_SIZE)
    rows = shapes.of(table, 2)[0]
    grid = round(rows**0.5)
    if grid * grid != rows:
        raise UserError(f"{shapes.where}: tensor {table} has {rows} rows, which is no square grid")
    return grid * downsampling


def _generator(shapes: _Shapes, args: Mapping[str, Any]) -> GeneratorConfig:
    aggregation = "tok_embeddings.weight" not in shapes  # LlamaGen's have no number, and neither layer nor head more
    k = shapes.count(r"tok_embeddings_(\d+)\.weight$") if aggregation else 1
    factor_names(k)
    tables = [f"tok_embeddings_{i + 1}.weight" for i in range(k)] if aggregation else ["tok_embeddings.weight"]
    sizes = tuple(shapes.of(name, 2)[0] for name in tables)
    rows, width = shapes.of(_CLASSES, 2)
    side = _number(args, "image_size", IMAGE_SIZE) // _number(args, "downsample_size", DOWNSAMPLING)
    config = GeneratorConfig(
        codebook_sizes=sizes,
        grid=(side, side),
        num_classes=rows - 1,
        width=width,
        depth=shapes.count(r"layers\.(\d+)\."),
        heads=_heads(width),
        aggregation=aggregation,
        head="ar" if aggregation else "linear",
        head_depth=shapes.count(r"ar_head\.(\d+)\.") if aggregation else GeneratorConfig.head_depth,
        legacy=True,
    )
    hidden = shapes.of("layers.0.feed_forward.w1.weight", 2)[0]
    # any other width than the released models' is a multiple of itself
    return config if config.mlp_width == hidden else replace(config, mlp_multiple=hidden)


def _heads(width: int) -> int:
    return _HEADS.get(width, max(1, width // HEAD_CHANNELS))


def _number(args: Mapping[str, Any], name: str, default: int) -> int:
    """A positive integer of the arguments, if it is one."""
    value = args.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def _check_expressible(config: Config) -> None:
    """`UserError` for what the released names cannot say."""
    fixed: dict[str, Any]
    if isinstance(config, GeneratorConfig):
        factor_names(config.num_factors)
        if not config.legacy:
            raise UserError(
                "the released layout has no proper rotary rows, only those of model.legacy: its readers would compute "
                "other logits from these weights"
            )
        head = "ar" if config.aggregation else "linear"
        fixed = {"head": head, "qk_norm": False, "heads": _heads(config.width)}
        if config.kv_heads:
            fixed["kv_heads"] = config.heads
    else:
        names = factor_names(len(config.factors))
        fixed = {"stem": 1, "attention": True, "composition": TokenizerConfig.composition}
        fixed |= {"decoder_channels": 0, "decoder_res_blocks": 0}
        if not _is_vqgan(config):
            fixed["attention_at"] = TokenizerConfig.attention_at
        for i, (each, factor) in enumerate(zip(names, config.factors, strict=True)):
            if bool(factor.adapter_depth) != bool(each.adapter):
                rule = "needs an adapter" if each.adapter else "has no adapter"
                raise UserError(f"in the released layout factor {factor.name} of {len(names)} {rule}")
            if factor.adapter_depth:
                fixed["adapter_head_dim"] = HEAD_CHANNELS
            known = EUCLIDEAN if len(names) == 1 and _is_vqgan(config) else FactorConfig.quantizer
            if factor.quantizer != known:
                raise UserError(_cannot(f"factors.{i}.quantizer", factor.quantizer, known))
            if factor.spatial_teacher:
                raise UserError(f"the released layout has no spatial head for factor {factor.name}")
            if factor.teacher:
                if not each.head:
                    raise UserError(f"the released layout has no feature-prediction head for factor {factor.name}")
                fixed["feature_head_heads"] = TokenizerConfig.feature_head_heads
                if config.feature_head_width not in (0, teacher_dim(factor)):
                    fixed["feature_head_width"] = teacher_dim(factor)
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise UserError(_cannot(name, getattr(config, name), value))


def _check_reads_back(tensors: Tensors, config: Config) -> None:
    """`UserError` where whoever reads these tensors would take them for another architecture."""
    other = recognise(tensors, arguments_of(config), "the converted model")
    for name, (own, read) in schema.diff(config, other).items():
        if not _FREE.fullmatch(name):
            raise UserError(_cannot(name, own, read))


def _cannot(name: str, own: Any, fixed: Any) -> str:
    return f"the released layout cannot express model.{name} {own}: it stands for {fixed}"
