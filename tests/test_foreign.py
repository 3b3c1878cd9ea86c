"""Tokenizers of others behind one protocol: any object with encode and decode, and diffusers' autoencoders."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fqgan
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import FactorConfig, ForeignConfig, GeneratorConfig, TokenizerConfig, presets
from fqgan.data.tokens import TokenStore
from fqgan.generator.model import FAR
from fqgan.lab.studies.paper import TABLE_1, TABLE_2, rows_of_generator, rows_of_tokenizer
from fqgan.metrics.psnr import PSNR
from fqgan.models.released.layouts import EUCLIDEAN
from fqgan.tokenizer.foreign import ForeignTokenizer
from fqgan.tokenizer.whole import decode_tiled, encode_tiled

Refused = Callable[..., str]
NETWORK = "efficientnet-lite0:stage3@32"
FAST = ("--features", NETWORK, "--workers", "0", "--kept", "0")


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def evaluated(address: str) -> dict[str, Any]:
    assert main(["evaluate", "tokenizer", address, "--data", "small", *FAST, "--out", "eval.json"]) == 0
    return json.loads(Path("eval.json").read_text())


@pytest.mark.parametrize("address", ["py:toys.py:grey", "py:toys.py:Grey", "py:toys:grey"])
def test_an_object_with_encode_and_decode_is_a_tokenizer(address: str, toys: Path) -> None:
    """By its module or file; the object itself, a class or a function."""
    tokenizer = fqgan.load_tokenizer(address)
    assert isinstance(tokenizer, ForeignTokenizer)
    assert (tokenizer.config.downsampling, tokenizer.codebook_sizes) == (4, (8,))
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = tokenizer.encode(images)
    assert codes.shape == (2, 1, 4, 6) and codes.dtype == torch.int64
    shades = tokenizer.decode(codes).unflatten(2, (4, 4)).unflatten(4, (6, 4))
    assert torch.equal(shades, shades[:, :, :, :1, :, :1].expand_as(shades))
    means = images.mean(1).unflatten(1, (4, 4)).unflatten(3, (6, 4)).mean((2, 4))
    assert (shades[:, 0, :, 0, :, 0] - means).abs().max() <= 1 / 8 + 1e-6, "half a shade"
    assert torch.equal(encode_tiled(tokenizer, images, 8), codes), "a cell's shade depends on nothing else"
    torch.testing.assert_close(decode_tiled(tokenizer, codes, 8), tokenizer.decode(codes))


def test_it_is_evaluated_like_any_other(toys: Path) -> None:
    result = evaluated("py:toys.py:grey")
    images = fqgan.load_images(sorted((toys / "small").glob("**/*.png")), size=16)
    tokenizer = fqgan.load_tokenizer("py:toys.py:grey")
    codes = tokenizer.encode(images)
    psnr = PSNR()
    psnr.update(images, tokenizer.decode(codes))
    assert result["metrics"]["psnr"] == pytest.approx(psnr.compute()["psnr"], rel=1e-5)
    assert result["factors"]["codes"]["usage"] == len(codes.unique()) / 8
    assert result["metrics"]["bits_per_position"] <= 3


def test_an_address_is_no_folder_for_results(toys: Path, refused: Refused) -> None:
    line = refused("evaluate", "tokenizer", "py:toys.py:grey", "--data", "small", *FAST)
    assert "--out is missing: py:toys.py:grey is no folder that eval.json could be written into" in line


def test_its_codes_are_extracted(toys: Path, refused: Refused) -> None:
    assert main(["extract", "py:toys.py:two", "--data", "small", "--out", "store", "--workers", "0"]) == 0
    store = TokenStore.open(Path("store"))
    images = fqgan.load_images(sorted((toys / "small").glob("**/*.png")), size=16)
    tokenizer = fqgan.load_tokenizer("py:toys.py:two")
    assert store.codebook_sizes == (8, 8) and store.tokenizer_fingerprint == tokenizer.fingerprint()
    codes, _ = store.take(range(6), [store.center_crop] * 6)
    assert torch.equal(codes, tokenizer.encode(images))
    # the store is data: it says whose code made it, and does not run that
    assert "store was made with py:toys.py:two, a tokenizer by address, and does not hold it" in refused(
        "reconstruct", "store", "small", "--out", "again"
    )


def test_pictures_pass_through_it(toys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", "py:toys.py:two", "small", "--out", "out", "--workers", "0"]) == 0
    assert "columns: original, reconstruction\n" in capsys.readouterr().out, "no factor alone"
    with np.load(next((toys / "out").glob("**/*.npz"))) as arrays:
        assert arrays["codes"].shape == (2, 4, 4) and arrays["factors"].tolist() == ["factor 0", "factor 1"]


def test_a_continuous_one_has_latents_and_no_codes(
    toys: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "py:toys.py:means"
    result = evaluated(address)
    assert "none: it encodes to latents" in capsys.readouterr().out
    assert result["factors"] == {} and "bits_per_position" not in result["metrics"]
    images = fqgan.load_images(sorted((toys / "small").glob("**/*.png")), size=16)
    psnr = PSNR()
    psnr.update(images, nn.functional.interpolate(nn.functional.avg_pool2d(images, 4), scale_factor=4.0))
    assert result["metrics"]["psnr"] == pytest.approx(psnr.compute()["psnr"], rel=1e-5)
    assert main(["reconstruct", address, "small", "--out", "out", "--workers", "0"]) == 0
    assert main(["reconstruct", address, "small", "--out", "out", "--workers", "0"]) == 0, "its own are written anew"
    with np.load(next((toys / "out").glob("**/*.npz"))) as arrays:
        assert arrays["latents"].shape == (3, 4, 4) and "codes" not in arrays
    assert "is continuous: it encodes to latents and has no codes" in refused(
        "extract", address, "--data", "small", "--out", "store"
    )
    assert not Path("store").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("py:toys.py", "is no address: py:module:function"),
        ("py:nowhere.py:grey", "there is no file nowhere.py"),
        ("py:nowhere.at.all:grey", "nowhere.at.all cannot be imported: No module named 'nowhere'"),
        ("py:toys.py:gray", "toys.py has no gray"),
        ("py:toys.py:number", "number has no encode and decode, and cannot be called"),
        ("py:toys.py:broken", "broken() failed: cannot be built"),
        ("py:toys.py:Failing", "encode failed: no such luck"),
        (
            "py:toys.py:NoSizes",
            "encode gave int64 (1, 4, 4), latents (b, c, h, w) of floating point are due; codes need",
        ),
        ("py:toys.py:Flat", "encode gave int64 (1, 16), whole numbers (b, 1, h, w) are due"),
        ("py:toys.py:Small", "codes of factor 0 must lie in [0, 2), got 4"),
        ("py:toys.py:Odd", "encode gave float32 (1, 3, 4, 4) for a picture of 16 pixels a side, and it says downs"),
        ("py:toys.py:WrongWay", "decode gave float32 (6, 3, 4, 4), images (6, 3, 16, 16) of floating point are due"),
    ],
)
def test_what_is_no_tokenizer_is_told_in_one_line(address: str, message: str, toys: Path, refused: Refused) -> None:
    line = refused("reconstruct", address, "small", "--out", "out", "--workers", "0")
    assert address in line and message in line and not Path("out").exists()


def test_what_needs_a_model_of_this_package_refuses_others(toys: Path, refused: Refused) -> None:
    argv = ("study", "disentangle", "py:toys.py:grey", "--data", "small", "--out", "study")
    assert "py:toys.py:grey is a tokenizer by address: reconstruct, extract" in refused(*argv)
    with pytest.raises(UserError, match="there are no ema weights"):
        fqgan.load_tokenizer("py:toys.py:grey", weights="ema")
    tokenizer = fqgan.load_tokenizer("py:toys.py:two")
    with pytest.raises(UserError, match="decodes all of its factors together"):
        tokenizer.decode(torch.zeros(1, 2, 4, 4, dtype=torch.int64), keep=[0])
    with pytest.raises(UserError, match="two's downsampling factor 4"):
        tokenizer.encode(torch.zeros(1, 3, 16, 18))


def test_other_weights_have_another_fingerprint(toys: Path) -> None:
    one, same, other = (fqgan.load_tokenizer("py:toys.py:means") for _ in range(3))
    assert isinstance(other, ForeignTokenizer)
    next(iter(other.parameters())).data.add_(0.5)
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert fqgan.load_tokenizer("py:toys.py:grey").fingerprint() != fqgan.load_tokenizer("py:toys.py:two").fingerprint()


# --- diffusers


@pytest.fixture
def autoencoders(tmp_path: Path) -> Path:
    """Small random models of diffusers, and the folder of a pipeline around one of them."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [32, 32],
        "layers_per_block": 1,
    }
    kl = diffusers.AutoencoderKL(**blocks, latent_channels=4, scaling_factor=0.18215)
    kl.save_pretrained(tmp_path / "kl")
    kl.save_pretrained(tmp_path / "pipeline/vae")
    (tmp_path / "pipeline/model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    vq = diffusers.VQModel(**blocks, latent_channels=3, num_vq_embeddings=16, vq_embed_dim=3)
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(torch.randn(16, 3))
    vq.save_pretrained(tmp_path / "vq")
    return tmp_path


def pictures(side: int = 16) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_an_autoencoder_of_diffusers_encodes_to_the_mode_of_its_posterior(autoencoders: Path) -> None:
    import diffusers

    model: Any = diffusers.AutoencoderKL.from_pretrained(autoencoders / "kl")
    images = pictures()
    wanted = model.eval().encode(images).latent_dist.mode()
    for folder in ("kl", "pipeline"):
        tokenizer = fqgan.load_tokenizer(f"diffusers:{autoencoders / folder}")
        assert (tokenizer.config.downsampling, tokenizer.codebook_sizes) == (2, ())
        torch.testing.assert_close(tokenizer.encode(images), wanted)
        torch.testing.assert_close(tokenizer.decode(wanted), model.decode(wanted).sample)
    with pytest.raises(UserError, match=r"latents must be \(b, 4, h, w\)"):
        tokenizer.decode(wanted[:, :3])


@torch.no_grad()
def test_a_vq_model_of_diffusers_has_codes(autoencoders: Path) -> None:
    import diffusers

    model: Any = diffusers.VQModel.from_pretrained(autoencoders / "vq")
    tokenizer, images = fqgan.load_tokenizer(f"diffusers:{autoencoders / 'vq'}"), pictures()
    codes = tokenizer.encode(images)
    assert tokenizer.codebook_sizes == (16,) and codes.shape == (2, 1, 8, 8) and len(codes.unique()) > 2
    latents = model.eval().encode(images).latents
    distances = (latents[:, None] - model.quantize.embedding.weight[None, :, :, None, None]).square().sum(2)
    chosen = distances.gather(1, codes)
    assert (chosen - distances.amin(1, keepdim=True)).abs().max() < 1e-5, "the nearest code"
    torch.testing.assert_close(tokenizer.decode(codes), model(images).sample, rtol=1e-4, atol=1e-4)
    assert tokenizer.config.factors[0].code_dim == 3


def test_diffusers_addresses_that_lead_nowhere(autoencoders: Path, refused: Refused) -> None:
    (autoencoders / "unet").mkdir()
    (autoencoders / "unet/config.json").write_text('{"_class_name": "UNet2DModel"}')
    (autoencoders / "empty").mkdir()
    for name, message in (("unet", "holds UNet2DModel, no autoencoder"), ("empty", "holds no model of diffusers")):
        assert message in refused("reconstruct", f"diffusers:{autoencoders / name}", "x.png", "--out", "out")
    (autoencoders / "kl/diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    assert "cannot be loaded" in refused("reconstruct", f"diffusers:{autoencoders / 'kl'}", "x.png", "--out", "out")


# --- studies


def test_all_kinds_stand_in_one_table(toys: Path, tokenizer: Any) -> None:
    fqgan.save_tokenizer(tokenizer, toys / "own")
    models = ["own", "py:toys.py:grey", "py:toys.py:means"]
    names = ["own", "grey", "means"]
    argv = [
        "study",
        "tokenizers",
        *models,
        "--names",
        *names,
        "--data",
        "small",
        "--size",
        "16",
        *FAST,
        "--out",
        "study",
    ]
    assert main(argv) == 0
    rows = table(toys / "study")[:3]
    assert [(row["model"], row["codes"], row["code dimension"]) for row in rows] == [
        ("own", "32 + 16", "4"),
        ("grey", "8", "–"),
        ("means", "–", "3"),
    ]
    for row, address in zip(rows[1:], models[1:], strict=True):
        assert float(row["psnr"]) == evaluated(address)["metrics"]["psnr"]
    assert (toys / "study/figure.png").exists()


def test_the_papers_row_stands_below_a_recognised_model(toys: Path, tokenizer: Any, monkeypatch: Any) -> None:
    """A tiny model that passes for the dual one at 16x."""
    from fqgan.lab.studies import comparison

    dual = next(i for i, row in enumerate(TABLE_1) if row[:2] == ("FQGAN-Dual", "16"))
    monkeypatch.setattr(comparison, "rows_of_tokenizer", lambda config: (dual,))
    fqgan.save_tokenizer(tokenizer, toys / "own")
    models = ["own", "py:toys.py:grey", "--names", "own", "grey"]
    assert main(["study", "tokenizers", *models, "--data", "small", "--size", "16", *FAST, "--out", "study"]) == 0
    names = [row["model"] for row in table(toys / "study")]
    assert names[:4] == ["own", "paper: FQGAN-Dual", "grey", "paper: VQGAN"]
    assert len(names) == 2 + len(TABLE_1)
    assert "Right below a model stands what the paper has of its architecture" in (toys / "study/table.md").read_text()


def paper_names(numbers: tuple[int, ...], paper: list[Any]) -> list[tuple[str, str]]:
    return [paper[i][:2] for i in numbers]


def single(downsampling: int, dim: int, quantizer: str, codes: int = 16384) -> TokenizerConfig:
    multipliers = {16: (1, 1, 2, 2, 4), 8: (1, 2, 2, 4)}[downsampling]
    factor = FactorConfig("visual", codes, dim, 0, quantizer=quantizer)
    return TokenizerConfig(channel_multipliers=multipliers, factors=(factor,))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (presets.DUAL_DS16.model, [("FQGAN-Dual", "16")]),
        (presets.get("triple-ds8").model, [("FQGAN-Triple", "8")]),
        (presets.get("vqgan-ds16").model, [("LlamaGen", "16")]),
        (presets.get("vqgan-ds8").model, [("LlamaGen", "8")]),
        (presets.CIFAR10_DUAL.model, []),
        (single(16, 256, EUCLIDEAN), [("VQGAN", "16")]),
        (single(16, 256, EUCLIDEAN, 1024), []),
        (single(16, 8, EUCLIDEAN), [("SD-VQGAN", "16")]),
        (single(8, 4, EUCLIDEAN), [("VQGAN *", "8"), ("SD-VQGAN *", "8")]),
        (single(8, 4, EUCLIDEAN, 256), []),
    ],
)
def test_which_row_of_table_1_a_tokenizer_is(config: TokenizerConfig, names: list[Any]) -> None:
    assert paper_names(rows_of_tokenizer(config), TABLE_1) == names


@pytest.mark.parametrize(
    ("scale", "names"), [(0.18215, [("SD-VAE ‡", "8")]), (0.13025, [("SDXL-VAE ‡", "8")]), (1.0, [])]
)
def test_which_row_an_autoencoder_of_diffusers_is(scale: float, names: list[Any]) -> None:
    latents = (FactorConfig("latents", 0, 4, 0),)
    config = ForeignConfig("diffusers:x", 256, 8, latents, "AutoencoderKL", {"scaling_factor": scale})
    assert paper_names(rows_of_tokenizer(config), TABLE_1) == names
    assert not rows_of_tokenizer(replace(config, kind="AutoencoderTiny"))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (GeneratorConfig((16384,) * 2, (16, 16), 1000), ["FAR-Base"]),
        (GeneratorConfig((16384,) * 2, (16, 16), 1000, 1280, 36, 20), ["FAR-Large"]),
        (GeneratorConfig((16384,), (16, 16), 1000, aggregation=False, head="linear"), ["LlamaGen-L"]),
        (GeneratorConfig((16384,), (16, 16), 1000, 1280, 36, 20, aggregation=False, head="linear"), ["LlamaGen-XL"]),
        (GeneratorConfig((16384,), (24, 24), 1000, aggregation=False, head="linear"), []),
        (GeneratorConfig((16384,), (16, 16), 1000, 768, 12, 12, aggregation=False, head="linear"), []),
        (GeneratorConfig((16384,), (16, 16), 1000), []),
    ],
)
def test_which_row_of_table_2_a_generator_is(config: GeneratorConfig, names: list[str]) -> None:
    assert [TABLE_2[i][0] for i in rows_of_generator(config)] == names


def test_llamagen_samples_and_is_compared(toys: Path, tokenizer: Any) -> None:
    """A tiny one beside a generator of this package: one study, one sampler."""
    config = replace(tokenizer.config, factors=(FactorConfig("visual", 32, 4, 0),))
    one = type(tokenizer)(config)
    fqgan.save_tokenizer(one, toys / "one")
    shape = GeneratorConfig((32,), (8, 8), 2, width=64, depth=1, heads=1, legacy=True)
    for name, changes in (("llamagen", {"aggregation": False, "head": "linear"}), ("far", {"head_depth": 1})):
        torch.manual_seed(0)
        model = FAR(replace(shape, **changes))
        model.carry(one)
        fqgan.save_generator(model, toys / name)
    options = ["--data", "real", "--num", "4", "--size", "16", "--features", NETWORK, "--workers", "0", "--kept", "0"]
    assert main(["study", "generators", "llamagen", "far", *options, "--out", "study"]) == 0
    rows = table(toys / "study")
    assert [row["model"] for row in rows[:2]] == ["llamagen", "far"] and len(rows) == 2 + len(TABLE_2)
