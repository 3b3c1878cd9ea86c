"""Released files: recognised by names and shapes, the same numbers as the released models', and back without a loss."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released import GOLDEN, SMALL, check_reconstruction, keys, reference_images, small, tensors, write
from safetensors.torch import save_file
from torch import Tensor

import fqgan
from fqgan.base.errors import UserError
from fqgan.config import FactorConfig, GeneratorConfig, TokenizerConfig, presets
from fqgan.generator.model import FAR
from fqgan.models.released import layouts
from fqgan.tokenizer.losses import disentanglement_loss
from fqgan.tokenizer.model import FactorizedTokenizer

PRESETS = {
    "dual_ds16": "dual-ds16",
    "dual_ds8": "dual-ds8",
    "triple_ds16": "triple-ds16",
    "triple_ds8": "triple-ds8",
    "llamagen_ds16": "vqgan-ds16",
    "llamagen_ds8": "vqgan-ds8",
}
MODELS = [*PRESETS, "far_dual_B", "far_triple_B"]
Refused = Callable[..., str]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "suffixes"),
    [("llamagen_ds16", [""]), ("dual_ds16", ["_vis", "_sem"]), ("triple_ds8", ["_vis", "_sem_mid", "_sem_high"])],
)
@torch.no_grad()
def test_the_released_tokenizers_numbers(layout: str, suffixes: list[str], tmp_path: Path) -> None:
    """Codes, reconstruction, class tokens and disentanglement loss, from a file that the recipe filled."""
    golden = np.load(GOLDEN / f"tok_{layout}.npz")
    path = write(tmp_path / "released.pt", tensors(layout))
    model = fqgan.load_tokenizer(path)
    path.unlink()  # hundreds of MB, which the mapping holds until the model goes
    codes = model.encode(reference_images())
    expected = torch.stack([torch.from_numpy(golden[f"indices{s}"]).long() for s in suffixes], 1)
    assert (codes.flatten(2) == expected).float().mean() >= 0.999
    side = round(expected.shape[2] ** 0.5)
    given = expected.unflatten(2, (side, side))
    check_reconstruction(model.decode(given), golden, 2e-5)
    if len(suffixes) == 1:
        return
    vectors = model.embed(given)
    assert 0.1 * disentanglement_loss(vectors).item() == pytest.approx(golden["disentangle"].item(), rel=1e-5)
    for i, suffix in list(enumerate(suffixes))[1:]:
        predicted = model.branches[i].head(vectors[i])  # pyright: ignore
        torch.testing.assert_close(predicted, torch.from_numpy(golden[f"pred_cls{suffix}"]), rtol=1e-5, atol=1e-5)


def numbered(layout: str) -> dict[str, Tensor]:
    """A layout's tensors at their full shapes, each of one number of its own: nothing but names can tell them apart."""
    return {
        name: torch.zeros(shape) if name.endswith(".codebook_used") else torch.tensor(float(i + 1)).expand(shape)
        for i, (name, shape) in enumerate(keys()[layout].items())
    }


@pytest.mark.parametrize("layout", MODELS)
def test_every_layout_is_recognised_and_comes_back(layout: str) -> None:
    given = numbered(layout)
    config = layouts.recognise(given, {}, "the file")
    if isinstance(config, TokenizerConfig):
        wanted = presets.get(PRESETS[layout]).model
        # head widths are given; the presets look them up
        assert replace(config, factors=tuple(replace(f, teacher_dim=0) for f in config.factors)) == wanted
        cls = FactorizedTokenizer
    else:
        wanted = GeneratorConfig((16384,) * config.num_factors, (16, 16), 1000, legacy=True)
        assert config == wanted and config.num_factors == (2 if "dual" in layout else 3)
        cls = FAR
    with torch.device("meta"):
        template = cls(config).state_dict()  # pyright: ignore[reportArgumentType]
    ours = layouts.to_ours(given, config, template, "the file")
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in template.items()}
    again = layouts.to_released(ours, config)
    assert again.keys() == given.keys()
    assert [name for name, tensor in again.items() if not torch.equal(tensor, given[name])] == []


@pytest.mark.parametrize("width", [128, 192])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_generators_of_other_sizes(k: int, width: int, tmp_path: Path) -> None:
    """Also one whose hidden width is not the released models' multiple of 256."""
    config = GeneratorConfig(
        tuple(range(30, 30 + k)), (4, 4), 5, width=width, depth=2, heads=width // 64, mlp_multiple=width, legacy=True
    )
    given = small(config)
    args = argparse.Namespace(image_size=64, downsample_size=16)
    model = fqgan.load_generator(write(tmp_path / "far.pt", given, args=args))
    assert model.config.grid == (4, 4) and model.config.mlp_width == config.mlp_width and model.config.legacy
    again = layouts.to_released(model.state_dict(), model.config)
    assert all(torch.equal(tensor, given[name]) for name, tensor in again.items())
    assert model(torch.zeros(1, k, 4, 4, dtype=torch.int64), torch.tensor([0]))[0].shape == (1, 16, 30)


@pytest.mark.parametrize("form", ["prefixes", "old format", "bare", "safetensors", "buffers"])
def test_forms_of_a_file(form: str, tmp_path: Path) -> None:
    given = small()
    expected = fqgan.load_tokenizer(write(tmp_path / "plain.pt", given)).fingerprint()
    path = tmp_path / "other.pt"
    match form:
        case "prefixes":
            write(path, {f"module._orig_mod.{name}": tensor for name, tensor in given.items()})
        case "old format":
            torch.save({"model": given}, path, _use_new_zipfile_serialization=False)
        case "bare":
            torch.save(given, path)
        case "safetensors":
            path = tmp_path / "other.safetensors"
            save_file(given, path)
        case "buffers":
            write(path, {name: tensor for name, tensor in given.items() if not name.endswith("codebook_used")})
    assert fqgan.load_tokenizer(path).fingerprint() == expected


def test_the_moving_average_is_preferred(tmp_path: Path) -> None:
    given = small()
    average = {name: tensor + 1 for name, tensor in given.items()}
    path = write(tmp_path / "both.pt", given, ema=average)
    name = "encoder.conv_in.weight"
    for weights, wanted in (("auto", average), ("ema", average), ("raw", given)):
        assert torch.equal(fqgan.load_tokenizer(path, weights=weights).encoder.conv_in.weight, wanted[name])
    with pytest.raises(UserError, match="has no moving average"):
        fqgan.load_tokenizer(write(tmp_path / "one.pt", given), weights="ema")


def test_a_file_without_feature_heads(tmp_path: Path) -> None:
    given = {name: tensor for name, tensor in small().items() if not name.startswith("feat_pred_head.")}
    model = fqgan.load_tokenizer(write(tmp_path / "no-head.pt", given))
    assert [factor.teacher for factor in model.config.factors] == ["", ""]
    whole = fqgan.load_tokenizer(write(tmp_path / "head.pt", small()))
    assert whole.config.factors[1].teacher_dim == 16
    assert model.fingerprint() == whole.fingerprint(), "heads don't count"
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(model.encode(images), whole.encode(images))


def test_the_grid_without_a_positional_table(tmp_path: Path) -> None:
    config = replace(SMALL, factors=(FactorConfig("visual", 64, 4, 0),))
    given = small(config)
    for size, wanted in ((64, 64), (256, 256), (None, 256), ("x", 256)):
        path = write(tmp_path / "one.pt", given, args=argparse.Namespace(image_size=size))
        assert fqgan.load_tokenizer(path).config == replace(config, image_size=wanted)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(SMALL, stem=2, image_size=64), "cannot express model.stem 2: it stands for 1"),
        (replace(SMALL, decoder_channels=64), "cannot express model.decoder_channels 64: it stands for 0"),
        (replace(SMALL, decoder_res_blocks=2), "cannot express model.decoder_res_blocks 2: it stands for 0"),
        (replace(SMALL, attention=False), "cannot express model.attention False"),
        (replace(SMALL, adapter_head_dim=32), "cannot express model.adapter_head_dim 32: it stands for 64"),
        (replace(SMALL, feature_head_heads=4), "cannot express model.feature_head_heads 4: it stands for 8"),
        (replace(SMALL, feature_head_width=32), "cannot express model.feature_head_width 32: it stands for 16"),
        (replace(SMALL, factors=(FactorConfig("one", 8, 4, 1),)), "factor one of 1 has no adapter"),
        (
            replace(SMALL, factors=tuple(FactorConfig(name, 8, 4, 0) for name in "ab")),
            "factor a of 2 needs an adapter",
        ),
        (
            replace(SMALL, factors=tuple(FactorConfig(name, 8, 4, 1, "unknown", 16) for name in "ab")),
            "no feature-prediction head for factor a",
        ),
        (
            replace(SMALL, factors=(SMALL.factors[0], replace(SMALL.factors[1], spatial_teacher="efficientnet-lite0"))),
            "no spatial head for factor semantic",
        ),
        (replace(SMALL, factors=tuple(FactorConfig(name, 8, 4, 1) for name in "abcd")), "at most 3 factors, not for 4"),
        (GeneratorConfig((8, 8), (4, 4), 3, width=64, depth=1, heads=1), "has no proper rotary rows"),
        (GeneratorConfig((8, 8), (4, 4), 3, width=64, depth=1, heads=2, legacy=True), "model.heads 2: it stands for 1"),
        (GeneratorConfig((8, 8), (2, 4), 3, width=64, depth=1, heads=1, legacy=True), "model.grid (2, 4)"),
        (GeneratorConfig((8,) * 4, (4, 4), 3, width=64, depth=1, heads=1, legacy=True), "at most 3 factors"),
        (GeneratorConfig((8, 8), (4, 4), 3, width=64, depth=1, heads=1, legacy=True, head="mlp"), "model.head mlp"),
    ],
)
def test_what_the_layout_cannot_express_is_refused(config: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        small(config)
    assert message in str(error.value)


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in small().items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: {**small(), "encoder.mid.0.conv1.weight": torch.zeros(3, 3)}, "has shape (3, 3), by its other"),
        (lambda: {**small(), "encoder.conv_in.weight": torch.zeros(3)}, "it should have 4 dimension(s)"),
        (lambda: {**small(), "encoder.conv_in.weight": torch.zeros(0, 3, 3, 3)}, "no multiples of the first one, 0"),
        (lambda: {**small(), "lora.a": torch.zeros(3), "lora.b": torch.zeros(3)}, "lora.a, lora.b does not belong"),
        (lambda: without("decoder.norm_out.bias"), "decoder.norm_out.bias is missing"),
        (lambda: without("encoder.conv_in.weight"), "is no released FQGAN, FAR, LlamaGen or VQGAN model: it holds"),
        (lambda: without("quantize_sem.embedding.weight"), "it has no tensor quantize.embedding.weight"),
        (lambda: {"layers.0.attention.wqkv.weight": torch.zeros(3, 3), "tok_embeddings.weight": torch.zeros(2, 2)},
         "it looks like a generator of LlamaGen's kind, without its classes (layers.0.attention.wqkv.weight, tok_"),
        (lambda: {**small(), "encoder.conv_in.bias": torch.zeros(1).expand(10**9)}, "has fewer numbers behind it"),
        (lambda: {**small(), "module.encoder.conv_in.bias": torch.zeros(32)}, "encoder.conv_in.bias twice"),
        (lambda: {**small(), "encoder.conv_in.bias": 3}, "'encoder.conv_in.bias' is no tensor, but a int"),
        (dict, "`model` is empty"),
    ],
)  # fmt: skip
def test_foreign_files_are_refused(content: Any, message: str, tmp_path: Path, refused: Refused) -> None:
    path = write(tmp_path / "odd.pt", content())
    line = refused("reconstruct", path, "picture.png")
    assert "odd.pt" in line and message in line, line


class Hostile:
    """Runs a command where a pickle of it is opened carelessly."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["zip", "old format", "plain pickle"])
def test_a_hostile_pickle_is_refused_by_name_and_does_nothing(how: str, tmp_path: Path, refused: Refused) -> None:
    path, trace = tmp_path / "hostile.pt", tmp_path / "trace"
    content = {"model": small(), "args": Hostile(f"touch {trace}")}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(content["args"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    line = refused("convert", path, tmp_path / "out")
    assert "hostile.pt asks for posix.system when it is opened: refused, as that can run code" in line
    assert not trace.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", [0, 10, 0.5, 0.999])
def test_truncated_files_are_refused(part: float, tmp_path: Path, refused: Refused) -> None:
    path = write(tmp_path / "cut.pt", small())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part if part > 1 else part * len(whole))])
    assert "cut.pt is damaged or no file of torch weights" in refused("convert", path, tmp_path / "out")


def test_a_wrong_kind_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "tokenizer.pt", small())
    with pytest.raises(UserError, match=r"tokenizer\.pt holds a tokenizer, no generator"):
        fqgan.load_generator(path)
