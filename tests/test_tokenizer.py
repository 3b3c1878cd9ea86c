"""FactorizedTokenizer: any k, any size, the face."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config import FactorConfig, TokenizerConfig
from fqgan.tokenizer.load import load_tokenizer, save_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.pictures import reconstruction_grid, reconstruction_rows


def small(k: int, depth: int = 1, **changes: object) -> FactorizedTokenizer:
    torch.manual_seed(0)
    factors = tuple(FactorConfig(f"f{i}", 16 + i, 4 + i, depth) for i in range(k))
    config = TokenizerConfig(
        image_size=32,
        channels=32,
        channel_multipliers=(1, 2),
        res_blocks=1,
        z_channels=32,
        adapter_head_dim=32,
        factors=factors,
    )
    return FactorizedTokenizer(replace(config, **changes)).eval()  # pyright: ignore[reportArgumentType]


def images(size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("depth", [0, 1])
def test_face_for_any_k(k: int, depth: int) -> None:
    model = small(k, depth)
    codes = model.encode(images())
    assert codes.shape == (2, k, 16, 16) and codes.dtype == torch.int64
    for i, quantizer in enumerate(model.quantizers):
        assert codes[:, i].min() >= 0 and codes[:, i].max() < quantizer.codebook_size
    assert model.decode(codes).shape == (2, 3, 32, 32)
    features, vectors = model.features(images()), model.embed(codes)
    assert [f.shape for f in features] == [v.shape for v in vectors] == [(2, 4 + i, 16, 16) for i in range(k)]
    for feature, vector in zip(features, vectors, strict=True):
        torch.testing.assert_close(feature.norm(dim=1), torch.ones(2, 16, 16))
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(2, 16, 16))
    grid = reconstruction_grid(model, images())
    assert grid.shape[1] == (2 + (k if k > 1 else 0)) * 34 + 2


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("stem", "attention"), [(1, True), (2, True), (4, False)])
def test_no_pictures_pass_a_stem(stem: int, attention: bool, precision: str) -> None:
    """torch's pixel_unshuffle hands an empty batch back with its old shape."""
    model = small(2, stem=stem, attention=attention)
    f, output = model.config.downsampling, model(images()[:0], entropy=True)
    assert output.reconstruction.shape == (0, 3, 32, 32)
    assert [q.codes.shape for q in output.quantized] == [(0, 32 // f, 32 // f)] * 2
    model.set_precision(precision)
    codes = model.encode(images()[:0])
    assert codes.shape == (0, 2, 32 // f, 32 // f)
    assert [x.shape for x in model.features(images()[:0])] == [x.shape for x in model.embed(codes)]
    assert [row.shape for row in reconstruction_rows(model, codes)] == [(0, 3, 32, 32)] * 3
    with pytest.raises(UserError, match="a grid of no pictures"):
        reconstruction_grid(model, images()[:0])


def test_forward_is_encode_then_decode() -> None:
    model = small(2)
    output = model(images())
    codes = model.encode(images())
    assert torch.equal(torch.stack([q.codes for q in output.quantized], 1), codes)
    torch.testing.assert_close(output.reconstruction, model.decode(codes), rtol=1e-4, atol=1e-5)


def test_keep_sets_the_other_factors_to_zero() -> None:
    model = small(3)
    codes = model.encode(images())
    torch.testing.assert_close(model.decode(codes, keep=[0, 1, 2]), model.decode(codes))
    other = codes.clone()
    other[:, 1:] = 0  # what is not kept must not matter
    torch.testing.assert_close(model.decode(codes, keep=[0]), model.decode(other, keep=[0]))
    vectors = model.embed(codes)
    alone = torch.cat([vectors[0], torch.zeros_like(vectors[1]), torch.zeros_like(vectors[2])], 1)
    torch.testing.assert_close(model.decode(codes, keep=[0]), model.decoder(model.post_quant(alone)))
    with pytest.raises(UserError, match=r"factor 3, but the tokenizer has factors 0\.\.2"):
        model.decode(codes, keep=[3])


@pytest.mark.parametrize("size", [(48, 32), (16, 64), (64, 64)])
def test_any_size_that_is_a_multiple(size: tuple[int, int]) -> None:
    model = small(2)
    x = torch.rand(1, 3, *size) * 2 - 1
    codes = model.encode(x)
    assert codes.shape == (1, 2, size[0] // 2, size[1] // 2)
    assert model.decode(codes).shape == x.shape


def test_positions_are_interpolated() -> None:
    """A table that is linear in the row keeps its slope on a finer grid, and stays put on its own."""
    positions = small(2).branches[0].adapter.positions
    with torch.no_grad():
        positions.table.copy_(torch.arange(16.0).repeat_interleave(16)[:, None].expand(256, 64))
    assert torch.equal(positions(16, 16), positions.table)
    fine = positions(32, 16).view(32, 16, 64)
    assert fine[4:29, 8, 0].diff().mean().item() == pytest.approx(0.5, rel=1e-5)
    torch.testing.assert_close(fine, fine[:, :1].expand_as(fine))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 33, 32), "32x33 is no multiple of the tokenizer's downsampling factor 2"),
        ((3, 32, 32), r"images must be \(b, 3, H, W\)"),
        ((1, 1, 32, 32), r"images must be \(b, 3, H, W\)"),
    ],
)
def test_wrong_images(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(1).encode(torch.zeros(shape))


def test_wrong_codes() -> None:
    model = small(2)
    with pytest.raises(UserError, match=r"codes must be \(b, 2, h, w\)"):
        model.decode(torch.zeros(1, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(UserError, match=r"codes of factor 0 must lie in \[0, 16\)"):
        model.decode(torch.full((1, 2, 4, 4), 16))


@pytest.mark.parametrize("stem", [1, 2, 4])
def test_stem_keeps_the_shapes(stem: int) -> None:
    model = small(1, stem=stem)
    assert model.config.downsampling == 2 * stem
    assert model.decode(model.encode(images())).shape == (2, 3, 32, 32)


def test_stem_starts_without_a_checkerboard() -> None:
    """Pixels of a block start equal; differences drawn at random left a grid that minutes of training kept."""
    conv = small(1, stem=4).decoder.conv_out
    pixels = torch.nn.functional.pixel_shuffle(conv(torch.randn(1, 32, 4, 4)), 4).detach()
    blocks = pixels.unfold(2, 4, 4).unfold(3, 4, 4)
    torch.testing.assert_close(blocks, blocks[..., :1, :1].expand_as(blocks))
    assert not torch.allclose(blocks[:, :, 0], blocks[:, :, 1])


def test_a_decoder_of_its_own_size_leaves_the_rest_as_it_is(tmp_path: Path) -> None:
    """Encoder and branches are those of the plain model, the decoder is that of a model as wide and deep as it."""
    model = small(2, decoder_channels=64, decoder_res_blocks=3)
    shapes, plain, wide = (
        {name: tuple(tensor.shape) for name, tensor in each.state_dict().items()}
        for each in (model, small(2), small(2, channels=64, res_blocks=3))
    )
    decoder = {name for name in shapes if name.startswith("decoder.")}
    assert decoder == {name for name in wide if name.startswith("decoder.")}
    assert all(shapes[name] == wide[name] for name in decoder)
    assert shapes.keys() - decoder == {name for name in plain if not name.startswith("decoder.")}
    assert all(shapes[name] == plain[name] for name in shapes.keys() - decoder)
    output = model(images())
    torch.testing.assert_close(output.reconstruction, model.decode(model.encode(images())), rtol=1e-4, atol=1e-5)
    again = load_tokenizer(save_tokenizer(model, tmp_path / "wide"))
    assert again.config == model.config and torch.equal(again.encode(images()), model.encode(images()))


def test_a_decoder_as_large_as_the_encoder_is_the_same_model(tmp_path: Path) -> None:
    model = small(2)
    assert small(2, decoder_channels=32, decoder_res_blocks=1).fingerprint() == model.fingerprint()
    file = save_tokenizer(model, tmp_path / "older") / "config.json"
    content = json.loads(file.read_text())
    for name in ("decoder_channels", "decoder_res_blocks"):
        del content["model"][name]  # as older versions wrote it
    file.write_text(json.dumps(content))
    again = load_tokenizer(tmp_path / "older")
    assert again.config == model.config and again.fingerprint() == model.fingerprint()
