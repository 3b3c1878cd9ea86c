"""Numbers at the edge: the smallest temperatures, the largest guidance, pictures and models of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generators import tiny
from PIL import Image
from test_tokenizer import images, small

import fqgan
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.generator.draw import draw
from fqgan.tokenizer.backbone import Normalize


@pytest.mark.parametrize("temperature", [1e-45, 1e-300, 5e-324, 1e-21])
def test_temperatures_next_to_nothing_are_greedy(temperature: float) -> None:
    greedy = tiny().generate([0, 1, 2], temperature=0)
    assert torch.equal(tiny().generate([0, 1, 2], temperature=temperature), greedy)
    assert torch.equal(tiny().generate([0, 1, 2], temperature=temperature, top_k=3, top_p=0.5), greedy)


def test_draws_at_the_edge_are_codes() -> None:
    logits = torch.tensor([[3e4, -3e4, 2e4, 0.0], [1.0, 1.0, 1.0, 1.0]])
    for u in (0.0, 1 - 2.0**-24):
        for settings in ((2e-20, 0, 1.0), (1e6, 0, 1.0), (1.0, 0, 1e-300), (1.0, 1, 5e-324), (2e-20, 2, 1e-45)):
            found = draw(logits, torch.full((2,), u), *settings)
            assert 0 <= found.min() <= found.max() < 4
    assert draw(logits, torch.tensor([0.99, 0.99]), 1.0, 0, 1e-300)[0] == 0


def test_the_largest_guidance_gives_codes() -> None:
    for precision in ("float32", "bf16"):
        for temperature in (1.0, 1e-19, 0):
            found = tiny().set_precision(precision).generate([0, 1], cfg_scale=1e6, temperature=temperature)
            assert (found >= 0).all() and (found < torch.tensor([7, 11, 5]).view(3, 1, 1)).all()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_picture_of_one_position(precision: str, depth: int) -> None:
    """torch's GroupNorm refuses one value a channel, which 32 channels of one position are."""
    model = small(2, depth, channel_multipliers=(1, 1), attention=True).set_precision(precision)
    f = model.config.downsampling
    codes = model.encode(images(f)[:1])
    assert codes.shape == (1, 2, 1, 1)
    assert model.decode(codes).isfinite().all()
    assert model(images(f)[:1]).reconstruction.isfinite().all()


def test_the_command_takes_a_picture_of_one_position(tmp_path: Path, exported: Path) -> None:
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "picture.png")
    f = fqgan.load_tokenizer(exported).config.downsampling
    out = tmp_path / "out"
    argv = ["reconstruct", exported, tmp_path / "picture.png", "--size", f, "--out", out, "--device", "cpu"]
    assert not main([str(word) for word in argv])
    assert np.load(out / "picture.npz")["codes"].shape[1:] == (1, 1)


def test_the_normalisation_is_torch_s() -> None:
    x = torch.randn(2, 64, 5, 3)
    norm = Normalize(64)
    assert torch.equal(norm(x), torch.nn.GroupNorm(32, 64, eps=1e-6)(x))
    torch.testing.assert_close(Normalize(32)(x[:1, :32, :1, :1]), torch.zeros(1, 32, 1, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("changes", [{"grid": (1, 1)}, {"num_classes": 1}, {"codebook_sizes": (1,)}])
def test_generators_of_one(changes: dict[str, Any]) -> None:
    """One position, one class, one factor of one code."""
    for head in ("ar", "mlp", "linear", "masked"):
        generator = tiny(head=head, **changes)
        codes = generator.generate([0, generator.null_class], cfg_schedule="linear")
        assert codes.shape == (2, len(generator.config.codebook_sizes), *generator.config.grid)
        assert torch.equal(generator.sampler(2, static=True, cfg_schedule="linear")([0, generator.null_class]), codes)
        logits = generator(codes, [0, generator.null_class])
        assert all(each.isfinite().all() for each in logits)
        assert torch.stack(generator.loss(codes, [0, 0]).cross_entropy).isfinite().all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("static", [False, True])
def test_weights_that_are_not_numbers_give_no_codes(temperature: float, static: bool) -> None:
    generator = tiny()
    with torch.no_grad():
        next(iter(generator.head.outputs.parameters())).fill_(torch.nan)
    with pytest.raises(UserError, match="the generator's logits are not numbers"):
        generator.sampler(2, static=static, temperature=temperature)([0, 1])
