"""The released files' tensor names from ours: one table of rules for tokenizers of any k, one for generators."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fqgan.base.errors import UserError

Rules = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class FactorNames:
    """What the released names of one factor's tensors contain."""

    adapter: str = ""
    suffix: str = ""
    head: str = ""
    """Feature-prediction head; empty: this factor cannot have one."""


@dataclass(frozen=True)
class Pair:
    """Tensors of ours that, put together along the first dimension, are the file's, put together."""

    ours: tuple[str, ...]
    released: tuple[str, ...]


# a factor's part: where its tensors are
_PARTS = {
    "adapter": "encoder.{names.adapter}.{rest}",
    "head": "{names.head}.{rest}",
    "norm": "encoder.norm_out{names.suffix}.{rest}",
    "conv": "encoder.conv_out{names.suffix}.{rest}",
    "projection": "quant_conv{names.suffix}.{rest}",
    "quantizer": "quantize{names.suffix}.embedding.weight",
}
# in adapters and heads
_TRANSFORMER: Rules = (
    (r"^positions\.table$", "positional_embedding"),
    (r"^class_token$", "class_embedding"),
    (r"^norm_in\.", "ln_pre."),
    (r"^norm_out\.", "ln_post."),
    (r"^blocks\.", "transformer."),
    (r"\.attention_norm\.", ".ln_1."),
    (r"\.mlp_norm\.", ".ln_2."),
    (r"\.qkv\.", ".attn.in_proj_"),
    (r"\.attention_out\.", ".attn.out_proj."),
    (r"\.mlp_in\.", ".mlp.c_fc."),
    (r"\.mlp_out\.", ".mlp.c_proj."),
)
# in encoder and decoder, after the levels have got their names
_CONVOLUTIONAL: Rules = (
    (r"^post_quant\.", "post_quant_conv."),
    (r"^(en|de)coder\.middle\.", r"\1coder.mid."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"(\.mid\.1|\.attn\.\d+)\.out\.", r"\1.proj_out."),
)
_GENERATOR: Rules = (
    (r"^class_embedding\.", "cls_embedding.embedding_table."),
    (r"^aggregate\.", "aggregation_layer."),
    (r"^head\.norm\.", "norm."),
    (r"^head\.blocks\.", "ar_head."),
    (r"^blocks\.", "layers."),
    (r"\.attention\.qkv\.", ".attention.wqkv."),
    (r"\.attention\.out\.", ".attention.wo."),
    (r"\.mlp_norm\.", ".ffn_norm."),
    (r"\.down\.", ".feed_forward.w2."),
    (r"\.gate_up\.", ".feed_forward.w1."),
)
# lists of the factors, which the files count from 1; a generator without aggregation has one factor and no number
_NUMBERED = {"code_embeddings": "tok_embeddings", "head.outputs": "output"}
# VQGAN's names from those of the tokenizers that came after it
_VQGAN: Rules = (
    (r"^(en|de)coder\.mid\.0\.", r"\1coder.mid.block_1."),
    (r"^(en|de)coder\.mid\.1\.", r"\1coder.mid.attn_1."),
    (r"^(en|de)coder\.mid\.2\.", r"\1coder.mid.block_2."),
    (r"^encoder\.conv_blocks\.", "encoder.down."),
    (r"^decoder\.conv_blocks\.", "decoder.up."),
    (r"\.res\.", ".block."),
)


def factor_names(k: int) -> tuple[FactorNames, ...]:
    """The released names of k factors; `UserError` above 3, for which there are none."""
    if k == 1:
        return (FactorNames(),)
    levels = {2: ("",), 3: ("mid", "high")}.get(k)
    if levels is None:
        raise UserError(f"the released layout has names for at most 3 factors, not for {k}")
    semantic = (
        FactorNames(
            adapter=f"semantic_head{level and '_' + level}.0",
            suffix=f"_sem{level and '_' + level}",
            head=f"{level}_sem_feat_pred" if level else "feat_pred_head",
        )
        for level in levels
    )
    return (FactorNames("visual_head.0", "_vis"), *semantic)


def tokenizer_pairs(names: Iterable[str], k: int, vqgan: bool = False) -> list[Pair]:
    """Where a tokenizer's tensors of these names are in a released file; `UserError` for a k without names.

    Args:
        vqgan: with the names of taming-transformers and latent diffusion.
    """
    factors, names = factor_names(k), list(names)
    levels = _Levels(names, vqgan)
    pairs = []
    for name in names:
        if name.endswith(".class_position"):
            continue  # the first row of the table below
        ours = (name,)
        if re.match(r"branches\.\d+\.head\.positions\.table$", name):
            ours = (name.replace("positions.table", "class_position"), name)
        released = _of_tokenizer(name, factors, levels)
        pairs.append(Pair(ours, (_renamed(released, _VQGAN) if vqgan else released,)))
    return pairs


def generator_pairs(names: Iterable[str]) -> list[Pair]:
    """Where a generator's tensors of these names are in a released file."""
    names = list(names)
    numbered = "aggregate.weight" in names
    pairs = []
    for name in names:
        released = _of_generator(name, numbered)
        halves = (released, released.replace(".w1.", ".w3.")) if ".gate_up." in name else (released,)
        pairs.append(Pair((name,), halves))
    return pairs


class _Levels:
    """What the names of resolution levels depend on."""

    def __init__(self, names: Iterable[str], vqgan: bool):
        levels = [found for name in names if (found := re.match(r"((?:en|de)coder\.levels\.(\d+)\.)\d+\.(\w+)", name))]
        self.attentive = {found[1] for found in levels if found[3] == "q"}
        """Prefixes of those with attention."""
        self.last = max((int(found[2]) for found in levels), default=0)
        self.backwards = vqgan
        """Whether the decoder's are counted from its output."""


def _of_tokenizer(name: str, factors: Sequence[FactorNames], levels: _Levels) -> str:
    if found := re.match(r"branches\.(\d+)\.(\w+)\.(.*)", name):
        names, part, rest = factors[int(found[1])], found[2], found[3]
        return _PARTS[part].format(
            names=names, rest=_renamed(rest, _TRANSFORMER) if part in ("adapter", "head") else rest
        )
    if found := re.match(r"(en|de)coder\.levels\.(\d+)\.(\d+)\.(\w+)(.*)", name):
        name = _in_level(found[1], int(found[2]), int(found[3]), found[4], found[5], levels)
    return _renamed(name, _CONVOLUTIONAL)


def _in_level(side: str, level: int, index: int, layer: str, rest: str, levels: _Levels) -> str:
    """A layer of a resolution level. Where there is attention, residual blocks and attention take turns in our lists;
    the files have a list of each."""
    home = f"{side}coder.conv_blocks.{levels.last - level if side == 'de' and levels.backwards else level}"
    if layer == "conv":
        return f"{home}.{'down' if side == 'en' else 'up'}sample.{layer}{rest}"
    attentive = f"{side}coder.levels.{level}." in levels.attentive
    kind = "attn" if layer in ("norm", "q", "k", "v", "out") else "res"
    return f"{home}.{kind}.{index // 2 if attentive else index}.{layer}{rest}"


def _of_generator(name: str, numbered: bool) -> str:
    for ours, theirs in _NUMBERED.items():
        if found := re.match(rf"{re.escape(ours)}\.(\d+)\.", name):
            return f"{theirs}{f'_{int(found[1]) + 1}' if numbered else ''}.{name[found.end() :]}"
    return _renamed(name, _GENERATOR)


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
