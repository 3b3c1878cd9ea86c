"""The released checkpoints' tensor names in ours, and the recipe that fills a model from names.

Provenance of the names, the recipe and the numbers in golden/: facts of the released FQGAN and LlamaGen tokenizer
files, computed in float32 on a CPU.
"""

from __future__ import annotations

import re
import zlib

import numpy as np
import torch
from torch import Tensor

from fqgan.generator.model import FAR
from fqgan.tokenizer.model import FactorizedTokenizer

# per factor: name of adapter, of norm/conv, of quantizer/projection, of the feature head
DUAL = (("visual_head.0", "_vis", "_vis", ""), ("semantic_head.0", "_sem", "_sem", "feat_pred_head"))
TRIPLE = (
    ("visual_head.0", "_vis", "_vis", ""),
    ("semantic_head_mid.0", "_sem_mid", "_sem_mid", "mid_sem_feat_pred"),
    ("semantic_head_high.0", "_sem_high", "_sem_high", "high_sem_feat_pred"),
)
SINGLE = (("", "", "", ""),)

_BLOCKS = [
    (r"positions\.table", "positional_embedding"),
    (r"norm_in", "ln_pre"),
    (r"norm_out", "ln_post"),
    (r"blocks\.", "transformer."),
    (r"attention_norm", "ln_1"),
    (r"mlp_norm", "ln_2"),
    (r"qkv\.", "attn.in_proj_"),
    (r"attention_out", "attn.out_proj"),
    (r"mlp_in", "mlp.c_fc"),
    (r"mlp_out", "mlp.c_proj"),
    (r"class_token", "class_embedding"),
]


def released_name(name: str, factors: tuple[tuple[str, str, str, str], ...], last_level: str) -> str:
    """The released name of one of our tensors; `last_level` is the encoder's lowest: 4 at 16x, 3 at 8x."""
    if match := re.match(r"branches\.(\d+)\.(\w+)\.?(.*)", name):
        adapter, suffix, quant, head = factors[int(match[1])]
        part, rest = match[2], match[3]
        if part in ("adapter", "head"):
            for ours, theirs in _BLOCKS:
                rest = re.sub(ours, theirs, rest)
            return f"encoder.{adapter}.{rest}" if part == "adapter" else f"{head}.{rest}"
        if part == "quantizer":
            return f"quantize{quant}.embedding.weight"
        return {"norm": f"encoder.norm_out{suffix}", "conv": f"encoder.conv_out{suffix}"}.get(
            part, f"quant_conv{quant}"
        ) + f".{rest}"
    name = name.replace("post_quant.", "post_quant_conv.").replace(".middle.", ".mid.")
    name = name.replace(".shortcut.", ".nin_shortcut.")
    if match := re.match(r"(encoder|decoder)\.levels\.(\d+)\.(\d+)\.(.*)", name):
        side, level, index, rest = match[1], match[2], int(match[3]), match[4]
        if rest.startswith("conv."):
            return f"{side}.conv_blocks.{level}.{'downsample' if side == 'encoder' else 'upsample'}.{rest}"
        lowest = level == ("0" if side == "decoder" else last_level)
        kind = "res" if re.match(r"(norm[12]|conv[12]|nin_shortcut)\.", rest) else "attn"
        number = index // 2 if lowest or kind == "attn" else index
        name = f"{side}.conv_blocks.{level}.{kind}.{number}.{rest}"
    return re.sub(r"(mid\.1|attn\.\d)\.out\.", r"\1.proj_out.", name)


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """The recipe's tensor for a released name."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    x = rng.standard_normal(size=shape, dtype=np.float32)
    if name.endswith("bias"):
        x = np.float32(0.1) * x
    elif len(shape) == 1:
        x = 1 + np.float32(0.1) * x
    else:
        x = x / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(x.astype(np.float32))


@torch.no_grad()
def fill(model: FactorizedTokenizer, factors: tuple[tuple[str, str, str, str], ...], last_level: str) -> None:
    """Fill a tokenizer by the recipe, through the released names."""
    for name, tensor in model.named_parameters():
        if name.endswith("class_position"):
            continue
        target = released_name(name, factors, last_level)
        if name.endswith("head.positions.table"):
            # the released table holds the class token's position first
            whole = filled(target, (tensor.shape[0] + 1, tensor.shape[1]))
            tensor.copy_(whole[1:])
            model.get_parameter(name.replace("positions.table", "class_position")).copy_(whole[:1])
        else:
            tensor.copy_(filled(target, tuple(tensor.shape)))


_FAR = [
    (r"class_embedding\.", "cls_embedding.embedding_table."),
    (r"code_embeddings\.(\d+)", r"tok_embeddings_<\1>"),
    (r"aggregate\.", "aggregation_layer."),
    (r"head\.outputs\.(\d+)", r"output_<\1>"),
    (r"head\.norm", "norm"),
    (r"head\.blocks\.", "ar_head."),
    (r"^blocks\.", "layers."),
    (r"attention\.(qkv)", "attention.wqkv"),
    (r"attention\.out", "attention.wo"),
    (r"mlp_norm", "ffn_norm"),
    (r"\.down\.", ".feed_forward.w2."),
    (r"<(\d)>", lambda match: str(int(match[1]) + 1)),
]


@torch.no_grad()
def fill_far(model: FAR) -> None:
    """Fill a generator by the recipe, through the released names; SwiGLU's two halves have one each."""
    for name, tensor in model.named_parameters():
        target = name
        for ours, theirs in _FAR:
            target = re.sub(ours, theirs, target)
        halves = {target: tensor}
        if "gate_up" in name:
            halves = {
                target.replace("gate_up", f"feed_forward.{w}"): x
                for w, x in zip(("w1", "w3"), tensor.chunk(2), strict=True)
            }
        for half, part in halves.items():
            part.copy_(filled(half, tuple(part.shape)))


def reference_images() -> Tensor:
    """The recipe's two images, (2, 3, 256, 256) in [-1, 1]."""
    yy, xx = np.mgrid[0:256, 0:256].astype(np.float32) / 255
    rng = np.random.Generator(np.random.PCG64(1234))
    waves = np.stack([np.sin(6 * xx + 3 * yy), np.cos(5 * yy - 2 * xx), np.sin(20 * xx * yy)])
    image = np.clip(0.7 * waves + 0.2 * rng.standard_normal((3, 256, 256), dtype=np.float32), -1, 1)
    return torch.from_numpy(np.stack([image, image[:, ::-1, ::-1]]).astype(np.float32))
