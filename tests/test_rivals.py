"""The rivals' released files: VQGAN, latent diffusion's VQ models and LlamaGen's generators as models of this package,
with the numbers that the original ones gave, whatever stands around their weights."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released import GOLDEN, check_reconstruction, keys, reference_images, small, tensors, write
from torch import Tensor

import fqgan
from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import FactorConfig, GeneratorConfig, TokenizerConfig
from fqgan.engine.sizes import num_parameters
from fqgan.generator.model import FAR
from fqgan.models.released import layouts
from fqgan.tokenizer.model import FactorizedTokenizer

SMALL_VQGAN = TokenizerConfig(
    image_size=256,
    channels=32,
    channel_multipliers=(1, 2),
    res_blocks=1,
    z_channels=6,
    factors=(FactorConfig("visual", 64, 6, 0, quantizer=layouts.EUCLIDEAN),),
)
SMALL_GPT = GeneratorConfig(
    (30,), (16, 16), 5, width=128, depth=2, heads=2, head="linear", aggregation=False, legacy=True
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "dims", "parameters"), [("vqgan_f16_16384", 256, 76_073_859), ("ldm_vq_f16", 8, 69_593_371)]
)
@torch.no_grad()
def test_the_vqgans_numbers(layout: str, dims: int, parameters: int, tmp_path: Path) -> None:
    """Codes, features before quantization and reconstruction, from a Lightning file that the recipe filled."""
    golden = np.load(GOLDEN / f"tok_{layout}.npz")
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": tensors(layout), "epoch": 3, "global_step": 12}, path)
    model = fqgan.load_tokenizer(path)
    path.unlink()  # hundreds of MB, which the mapping holds until the model goes
    assert num_parameters(model) == parameters and model.provenance["steps"] == 12
    factor = model.config.factors[0]
    assert (factor.codebook_size, factor.code_dim, model.config.downsampling) == (16384, dims, 16)
    images = reference_images()
    codes, features = model.encode(images), model.features(images)[0]
    expected = torch.from_numpy(golden["indices"]).long().view(2, 1, 16, 16)
    assert (codes == expected).float().mean() >= 0.995
    torch.testing.assert_close(
        features[:, :8, ::4, ::4], torch.from_numpy(golden["features_stride"]), rtol=1e-4, atol=1e-4
    )
    check_reconstruction(model.decode(expected), golden, 3e-5)


@pytest.fixture(scope="module")
def llamagen(tmp_path_factory: pytest.TempPathFactory) -> FAR:
    """LlamaGen's GPT-B, filled by the recipe."""
    path = write(tmp_path_factory.mktemp("llamagen") / "c2i_B_256.pt", tensors("llamagen_gpt_B_256"))
    model = fqgan.load_generator(path)
    path.unlink()
    return model


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "llamagen_gpt_B_256.npz"))


@pytest.mark.slow
@torch.no_grad()
def test_llamagens_numbers(llamagen: FAR, golden: dict[str, np.ndarray]) -> None:
    assert num_parameters(llamagen) == 110_888_448
    codes = torch.from_numpy(golden["codes"].astype(np.int64)).view(2, 1, 16, 16)
    own = llamagen(codes, golden["labels"])[0][:, golden["positions"], ::64]
    wanted = torch.from_numpy(golden["logits"])
    assert (own - wanted).norm() / wanted.norm() < 1e-5
    loss = llamagen.loss(codes, golden["labels"]).cross_entropy[0]
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-5)


def test_llamagen_decodes_greedily_with_guidance(llamagen: FAR, golden: dict[str, np.ndarray]) -> None:
    """The first sixteen positions."""
    sampler = llamagen.sampler(2, cfg_scale=4.0, top_k=1)
    rows = sampler.join(golden["labels"])
    for _ in range(16):
        sampler.step()
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(sampler.so_far(row)[0].numpy(), golden["greedy_cfg4"][i])


@pytest.mark.parametrize(
    ("size", "layers", "heads", "width", "millions"),
    [
        ("B", 12, 12, 768, 111),
        ("L", 24, 16, 1024, 343),
        ("XL", 36, 20, 1280, 775),
        ("XXL", 48, 24, 1536, 1411),
        ("3B", 24, 32, 3200, 3101),
    ],
)
@pytest.mark.parametrize("pixels", [256, 384])
def test_llamagens_sizes(size: str, layers: int, heads: int, width: int, millions: int, pixels: int) -> None:
    """By names and shapes alone, so that no weights are needed; parameters as LlamaGen's paper has them."""
    hidden = -(-(8 * width // 3) // 256) * 256
    shapes = {
        "cls_embedding.embedding_table.weight": (1001, width),
        "tok_embeddings.weight": (16384, width),
        "norm.weight": (width,),
        "output.weight": (16384, width),
    }
    for i in range(layers):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * width, width),
            f"layers.{i}.attention.wo.weight": (width, width),
            f"layers.{i}.feed_forward.w1.weight": (hidden, width),
            f"layers.{i}.feed_forward.w3.weight": (hidden, width),
            f"layers.{i}.feed_forward.w2.weight": (width, hidden),
            f"layers.{i}.attention_norm.weight": (width,),
            f"layers.{i}.ffn_norm.weight": (width,),
        }
    given = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = layouts.recognise(given, {"image_size": pixels, "downsample_size": 16}, size)
    assert config == GeneratorConfig(
        (16384,), (pixels // 16,) * 2, 1000, width, layers, heads, aggregation=False, head="linear", legacy=True
    )
    with torch.device("meta"):
        model = FAR(config)
    layouts.to_ours(given, config, model.state_dict(), size)  # every tensor has its place
    assert num_parameters(model) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("multipliers", "dim", "codes", "attention", "downsampling"),
    [
        ((1, 1, 2, 2, 4), 8, 16384, "lowest", 16),
        ((1, 2, 2, 4), 4, 16384, "lowest", 8),
        ((1, 2, 2, 4), 4, 256, "lowest", 8),
        ((1, 2, 4), 3, 8192, "middle", 4),
        ((1, 1, 2, 2, 4), 256, 1024, "lowest", 16),
    ],
)
def test_the_vq_models_sizes(
    multipliers: tuple[int, ...], dim: int, codes: int, attention: Any, downsampling: int
) -> None:
    """vq-f16, vq-f8, vq-f8-n256, vq-f4 and VQGAN of 1,024 codes: the architecture comes back from names and shapes."""
    config = TokenizerConfig(
        channel_multipliers=multipliers,
        attention_at=attention,
        z_channels=dim,
        factors=(FactorConfig("visual", codes, dim, 0, quantizer=layouts.EUCLIDEAN),),
    )
    with torch.device("meta"):
        released = layouts.to_released(FactorizedTokenizer(config).state_dict(), config)
    found = layouts.recognise(released, {}, "the file")
    assert found == config and config.downsampling == downsampling
    f16 = keys()["ldm_vq_f16"]
    assert (set(released) == set(f16)) == (downsampling == 16)
    middle = {name for name in f16 if "mid." in name or name.startswith("quant")}
    assert middle <= set(released)


@pytest.mark.parametrize("layout", ["vqgan_f16_16384", "ldm_vq_f16", "llamagen_gpt_B_256"])
def test_the_rivals_tensors_come_back(layout: str) -> None:
    """Each of one number of its own: nothing but names can tell them apart."""
    shapes = keys()[layout].items()
    given = {name: torch.tensor(float(i + 1)).expand(shape) for i, (name, shape) in enumerate(shapes)}
    config = layouts.recognise(given, {}, "the file")
    cls = FactorizedTokenizer if isinstance(config, TokenizerConfig) else FAR
    with torch.device("meta"):
        template = cls(config).state_dict()  # pyright: ignore[reportArgumentType]
    again = layouts.to_released(layouts.to_ours(given, config, template, "the file"), config)
    assert again.keys() == given.keys()
    assert [name for name, tensor in again.items() if not torch.equal(tensor, given[name])] == []


def fingerprint(path: Path) -> str:
    return fqgan.load_tokenizer(path).fingerprint()


@pytest.mark.parametrize("form", ["Lightning", "first stage", "bare", "no attention below"])
def test_forms_of_a_vqgans_file(form: str, tmp_path: Path) -> None:
    config = replace(SMALL_VQGAN, attention_at="middle") if form == "no attention below" else SMALL_VQGAN
    given = small(config)
    expected = FactorizedTokenizer(config)
    with torch.no_grad():
        ours = layouts.to_ours(given, config, expected.state_dict(), "the file")
    expected.load_state_dict(ours)
    others = {"loss.discriminator.main.0.weight": torch.ones(2, 2), "colorize": torch.ones(3, 2, 1, 1)}
    averages = {"model_ema.decay": torch.tensor(0.9), "model_ema.encoderconv_inweight": torch.ones(2)}
    whole = given | others | averages
    path = tmp_path / "model.ckpt"
    match form:
        case "first stage":
            held = {f"first_stage_model.{name}": tensor for name, tensor in whole.items()}
            held |= {"model.diffusion_model.out.0.weight": torch.ones(2), "cond_stage_model.x": torch.ones(2)}
            torch.save({"state_dict": held, "global_step": 7}, path)
        case "bare":
            torch.save(whole, path)
        case _:
            torch.save({"epoch": 1, "state_dict": whole, "optimizer_states": [{"state": {}}]}, path)
    assert fingerprint(path) == expected.fingerprint()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = fqgan.load_tokenizer(path)
    codes = model.encode(images)
    # the codes whose distance to the features, not normalised, is the least
    features, table = model.features(images)[0].double(), given["quantize.embedding.weight"].double()
    distances = (features[:, None] - table[None, :, :, None, None]).square().sum(2)
    chosen = distances.gather(1, codes).squeeze(1)
    torch.testing.assert_close(chosen, distances.amin(1), rtol=1e-5, atol=1e-5)
    assert model.decode(codes).shape == images.shape


class Command:
    """Writes a file where a pickle of it is opened carelessly."""

    def __init__(self, text: str):
        self.text = text

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.text,)


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with classes as a Lightning file has them, which is gone once the file is written."""
    module = types.ModuleType("pretend_lightning.callbacks")
    made = {
        "ModelCheckpoint": type("ModelCheckpoint", (), {"__module__": module.__name__}),
        "AttributeDict": type("AttributeDict", (dict,), {"__module__": module.__name__}),
        "Entries": type("Entries", (list,), {"__module__": module.__name__}),
    }
    vars(module).update(made)
    monkeypatch.setitem(sys.modules, "pretend_lightning", types.ModuleType("pretend_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_lightning_files_other_objects_are_passed_by(
    zipped: bool, lightning: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instances, classes as keys, subclasses of dict and list, and calls: none of them is imported or run."""
    given, trace = small(SMALL_VQGAN), tmp_path / "trace"
    callback = lightning.ModelCheckpoint()
    callback.best = lightning.Entries([lightning.ModelCheckpoint(), 2])
    content = {
        "state_dict": given,
        "callbacks": {lightning.ModelCheckpoint: {"best_model_score": torch.tensor(1.0), "self": callback}},
        "hyper_parameters": lightning.AttributeDict(lr=1.0, path=Path("a"), more=lightning.AttributeDict(n=[1])),
        "hparams_type": lightning.AttributeDict,
        "call": Command(f"open({str(trace)!r}, 'w').close()"),
        "global_step": 3,
    }
    path = tmp_path / "last.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for name in ("pretend_lightning", lightning.__name__):
        monkeypatch.delitem(sys.modules, name)
    torch.save({"state_dict": given}, tmp_path / "plain.ckpt")
    assert fingerprint(path) == fingerprint(tmp_path / "plain.ckpt")
    assert not trace.exists() and "pretend_lightning" not in sys.modules


def test_weights_that_are_no_tensors_are_refused(lightning: types.ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "odd.ckpt"
    torch.save({"state_dict": {**small(SMALL_VQGAN), "encoder.conv_in.bias": lightning.ModelCheckpoint()}}, path)
    with pytest.raises(UserError, match=r"odd\.ckpt: 'encoder\.conv_in\.bias' is no tensor, but a PassedBy"):
        fqgan.load_tokenizer(path)


def test_what_pickles_a_pickle_of_another_kind_is_refused(tmp_path: Path) -> None:
    """torch's loader does not read it: it is not tried again and again."""
    path = tmp_path / "plain.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Command("1")}))
    with pytest.raises(UserError, match=r"plain\.ckpt"):
        fqgan.load_tokenizer(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["encoder.conv_in.weight", "decoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"], "continuous"),
        (["encoder.conv_in.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"], "an autoencoder of diffusers"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight", "quantize.embed.weight"], "the Gumbel quantizer"),
        (["tok_embeddings.weight", "cls_embedding.cap_proj.fc1.weight"], "LlamaGen's generator from text"),
        (["transformer.tok_emb.weight", "transformer.pos_emb"], "a transformer of taming-transformers"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "the network of a diffusion model"),
        (["model.embed_tokens.weight"], "a language model"),
        (["visual.proj", "logit_scale"], "it holds visual.proj, logit_scale"),
    ],
)
def test_what_is_not_recognised_says_what_it_looks_like(names: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": {name: torch.ones(2, 2) for name in names}}, path)
    with pytest.raises(UserError, match="is no released FQGAN, FAR, LlamaGen or VQGAN model") as error:
        fqgan.load_tokenizer(path)
    assert message in str(error.value)


def test_attention_at_other_levels_is_refused_by_name(tmp_path: Path) -> None:
    given = small(SMALL_VQGAN)
    given |= {"encoder.down.0.attn.0.q.weight": torch.ones(32, 32, 1, 1)}
    torch.save({"state_dict": given}, path := tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"encoder\.down\.0\.attn\.0\.q\.weight does not belong there"):
        fqgan.load_tokenizer(path)


@pytest.mark.parametrize("entry", ["model", "state_dict", "module"])
def test_forms_of_a_generators_file(entry: str, tmp_path: Path) -> None:
    given = small(SMALL_GPT)
    args = argparse.Namespace(image_size=384, downsample_size=16)
    wrapped = {f"_orig_mod.module.{name}": tensor for name, tensor in given.items()}
    torch.save({entry: wrapped, "steps": 5, "args": args}, tmp_path / "gpt.pt")
    model = fqgan.load_generator(tmp_path / "gpt.pt")
    assert model.config == replace(SMALL_GPT, grid=(24, 24))
    assert torch.equal(model.code_embeddings[0].weight, given["tok_embeddings.weight"])  # pyright: ignore
    codes = model.generate([1, 5], cfg_scale=2.0)
    assert codes.shape == (2, 1, 24, 24)


def test_a_file_that_does_not_say_its_grid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the caller's, else the tokenizer's, else assumed with a warning; and a folder keeps it."""
    torch.save({"model": small(SMALL_GPT)}, path := tmp_path / "gpt.pt")
    assert fqgan.load_generator(path).config.grid == (16, 16)
    assert "does not say its token grid: taking 16 x 16" in capsys.readouterr().err
    assert fqgan.load_generator(path, grid=(24, 24)).config.grid == (24, 24)
    config = replace(SMALL_VQGAN, image_size=48, factors=(FactorConfig("visual", 30, 4, 0),))
    fqgan.save_tokenizer(FactorizedTokenizer(config), tmp_path / "tokenizer")
    whole = fqgan.load_generator(path, tokenizer=tmp_path / "tokenizer")
    assert whole.config.grid == (24, 24)
    fqgan.save_generator(whole, tmp_path / "export")
    again = fqgan.load_generator(tmp_path / "export")
    assert again.config == whole.config and not again.config.aggregation
    with pytest.raises(UserError, match="says that its token grid is 24 x 24, not 16 x 16"):
        fqgan.load_generator(tmp_path / "export", grid=(16, 16))


def test_conversion_keeps_the_rivals(tmp_path: Path) -> None:
    """Into a folder and back into a file with the rival's own names and outer form."""

    def command(*words: object) -> None:
        assert main(list(map(str, words))) == 0

    given = small(SMALL_VQGAN)
    torch.save({"state_dict": given}, tmp_path / "vqgan.ckpt")
    command("convert", tmp_path / "vqgan.ckpt", tmp_path / "folder")
    command("convert", tmp_path / "folder", tmp_path / "again.ckpt", "--to", "released")
    again = torch.load(tmp_path / "again.ckpt", weights_only=False)["state_dict"]
    assert again.keys() == given.keys() and all(torch.equal(again[name], given[name]) for name in given)
    torch.save({"model": (weights := small(SMALL_GPT))}, tmp_path / "gpt.pt")
    command("convert", tmp_path / "gpt.pt", tmp_path / "far", "--grid", "24", "24")
    assert fqgan.load_generator(tmp_path / "far").config.grid == (24, 24)
    command("convert", tmp_path / "far", tmp_path / "gpt-again.pt", "--to", "released")
    file = torch.load(tmp_path / "gpt-again.pt", weights_only=False)
    assert all(torch.equal(file["model"][name], weights[name]) for name in weights)
    assert file["args"].image_size == 384


def test_settings_of_the_rivals_alone_change_no_other_file() -> None:
    """A file names them only where they are not their defaults, and both forms are read."""
    written = json.dumps([schema.to_dict(TokenizerConfig()), schema.to_dict(GeneratorConfig())])
    assert "attention_at" not in written and "aggregation" not in written
    for config in (SMALL_GPT, replace(SMALL_VQGAN, attention_at="middle"), GeneratorConfig(), TokenizerConfig()):
        assert schema.from_dict(type(config), json.loads(json.dumps(schema.to_dict(config)))) == config
    assert schema.to_dict(SMALL_GPT)["aggregation"] is False


def test_several_factors_need_their_aggregation() -> None:
    with pytest.raises(UserError, match=r"model\.aggregation is needed with 2 factors"):
        FAR(replace(SMALL_GPT, codebook_sizes=(8, 8)))


@torch.no_grad()
def test_without_aggregation_a_step_is_the_teacher_forced_pass(in_float64: None) -> None:
    """The sampler's likeliest codes are those that the logits of the whole sequence name."""
    torch.manual_seed(0)
    model = FAR(replace(SMALL_GPT, grid=(3, 3), legacy=False)).eval()
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    codes = model.generate([0, 3], cfg_scale=1.0, top_k=1)
    logits: Tensor = model(codes, [0, 3])[0]
    assert torch.equal(logits.argmax(-1), codes.flatten(1))
