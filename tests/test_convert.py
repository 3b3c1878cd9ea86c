"""fqgan convert, what a folder holds, and what starts from a released file: fine-tuning, codes, generators."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from generators import tiny as tiny_generator
from huggingface_hub import ModelCard
from released import SMALL, keys, small, write
from runs import lines
from safetensors.torch import load_file
from torch import Tensor

import fqgan
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config import FactorConfig, GeneratorConfig, TokenizerConfig, TokenizerRunConfig
from fqgan.config.presets import child, get_generator
from fqgan.engine.checkpoint import load_tensors
from fqgan.generator.model import FAR
from fqgan.generator.task import train_generator
from fqgan.models.card import model_card
from fqgan.models.released import files
from fqgan.models.released.layouts import to_released
from fqgan.tokenizer.adversary import build_discriminator
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.start import Start
from fqgan.tokenizer.task import train_tokenizer

GENERATOR = GeneratorConfig((64, 32), (16, 16), 10, width=64, depth=1, heads=1, mlp_multiple=16, head_depth=1)
Refused = Callable[..., str]


def images(size: int = 32, b: int = 2) -> Tensor:
    return torch.rand(b, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def patchgan(channels: int = 64) -> dict[str, Tensor]:
    """A discriminator that has been trained a little: its statistics are not those of a new one."""
    torch.manual_seed(3)
    module = build_discriminator(replace(TokenizerRunConfig().discriminator, channels=channels), 32)
    for tensor in module.state_dict().values():
        tensor.add_(1)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("discriminator", ["patchgan", "stylegan", "none"])
@pytest.mark.parametrize("average", [False, True])
def test_to_a_folder_and_back(
    discriminator: str, average: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All tensors, of both discriminators' layouts too, and the number of steps."""
    torch.manual_seed(0)
    judge = {name: torch.randn(shape) for name, shape in keys().get(discriminator, {}).items() if len(shape) < 3}
    entries: dict[str, Any] = {"discriminator": judge} if judge else {}
    if average:
        entries["ema"] = {name: tensor + 1 for name, tensor in small().items() if not name.endswith("codebook_used")}
    path = write(tmp_path / "released.pt", small(), **entries)
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    printed = capsys.readouterr().out
    fingerprint = fqgan.load_tokenizer(path).fingerprint()
    assert f"fingerprint {fingerprint}" in printed and printed.splitlines()[-1] == str(tmp_path / "folder")
    assert fqgan.load_tokenizer(tmp_path / "folder").fingerprint() == fingerprint
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "again.pt"), "--to", "released"]) == 0
    before, after = files.read(path), files.read(tmp_path / "again.pt")
    assert before.weights.keys() == after.weights.keys() == ({"raw", "ema"} if average else {"raw"})
    assert same(before.weights["raw"], after.weights["raw"])
    if average:
        used = {name: t for name, t in after.weights["ema"].items() if not name.endswith("codebook_used")}
        assert same(before.weights["ema"], used)
    assert same(before.discriminator, after.discriminator) and after.steps == before.steps == 7
    assert fqgan.load_tokenizer(tmp_path / "again.pt").fingerprint() == fingerprint


def test_a_generator_takes_a_tokenizer_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = write(tmp_path / "far.pt", small(replace(GENERATOR, legacy=True)))
    tokenizer = write(tmp_path / "tokenizer.pt", small())
    assert main(["convert", str(far), str(tmp_path / "both"), "--tokenizer", str(tokenizer)]) == 0
    model = fqgan.load_generator(tmp_path / "both")
    assert model.tokenizer.fingerprint() == fqgan.load_tokenizer(tokenizer).fingerprint()
    assert main(["convert", str(tmp_path / "both"), str(tmp_path / "again.pt"), "--to", "released"]) == 0
    assert same(files.read(far).weights["raw"], files.read(tmp_path / "again.pt").weights["raw"])
    text = (tmp_path / "both" / "README.md").read_text()
    assert "10 classes, 16 x 16 positions of 2 codes each (64 x 32)" in text and "`legacy`" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("proper out.pt --to released", "the released layout has no proper rotary rows, only those of model.legacy"),
        ("four out.pt --to released", "the released layout has names for at most 3 factors, not for 4"),
        ("one.pt there", "DST there exists: choose another name"),
        ("one.pt one.pt --to released", "DST one.pt is an input: choose another name"),
        ("one.pt one.pt", "DST one.pt is a file: name a folder"),
        ("nothing out", "checkpoint nothing does not exist"),
        ("one.pt out --weights ema", "one.pt has no moving average"),
        ("one.pt out --tokenizer one.pt", "--tokenizer is for generators: one.pt is a tokenizer"),
    ],
)
def test_refusals_write_nothing(
    arguments: str, message: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fqgan.save_generator(tiny_generator(), "proper")
    factors = tuple(FactorConfig(name, 8, 4, 1) for name in "abcd")
    fqgan.save_tokenizer(FactorizedTokenizer(replace(SMALL, factors=factors)), "four")
    write(Path("one.pt"), small())
    Path("there").mkdir()
    Path("there/file").touch()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert message in refused("convert", *arguments.split())
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_a_run_becomes_a_folder(tiny: TokenizerRunConfig, tmp_path: Path) -> None:
    """Of its moving average, with what was measured of it."""
    train_tokenizer(child(tiny, train={"ema_decay": 0.5}), tmp_path / "run")
    scores = {"checkpoint": "/secret/place/run", "data": "/secret/place/photos", "size": 32, "images": 8, "psnr": 21.5}
    (tmp_path / "run" / "eval.json").write_text(json.dumps({**scores, "ssim": None, "factors": {}}))
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "folder")]) == 0
    model, run = fqgan.load_tokenizer(tmp_path / "folder"), fqgan.load_tokenizer(tmp_path / "run")
    assert same(model.state_dict(), run.state_dict())
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == (
        ["README.md", "config.json", "eval.json", "model.safetensors"]
    )
    card = ModelCard.load(tmp_path / "folder" / "README.md")
    assert card.data.library_name == "fqgan" and "image-tokenizer" in card.data.tags
    [result] = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("psnr", 21.5, "photos")
    assert "| PSNR, mean over images (dB) | 21.5 |" in card.text and "8 images of photos at 32 pixels" in card.text
    assert "`AutoModel` does not load it" in card.text
    assert "| visual | vq | 32 x 4 | none |" in card.text and model.fingerprint() in card.text
    whole = "".join(path.read_text() for path in (tmp_path / "folder").glob("*[!s]") if path.suffix != ".safetensors")
    assert "secret" not in whole, "no paths of this machine"


@pytest.mark.parametrize(
    ("config", "scores", "told", "sentence"),
    [
        (
            TokenizerConfig(),
            {
                "data": "imagenet-256",
                "images": 50000,
                "metrics": {"psnr": 20.5, "perceptual": 0.125, "fid": 0.94, "ssim": float("nan")},
                "protocol": {"size": 256, "perceptual": "lpips-vgg", "features": {"network": "inception"}},
            },
            {"psnr": 20.5, "lpips": 0.125, "fid": 0.94},
            "Measured on 50,000 images of imagenet-256 at 256 pixels with the features of inception:",
        ),
        (
            GENERATOR,
            {
                "reference": "imagenet-256",
                "samples": "all",
                "metrics": {"fid": 3.25, "precision": 0.75},
                "protocol": {"size": 256, "samples": {"count": 50000}, "features": {"network": "inception"}},
            },
            {"fid": 3.25, "precision": 0.75},
            "Measured on 50,000 images against imagenet-256 at 256 pixels with the features of inception:",
        ),
    ],
)
def test_the_index_of_a_card_has_what_was_measured_and_on_what(
    config: TokenizerConfig | GeneratorConfig, scores: dict[str, Any], told: dict[str, float], sentence: str
) -> None:
    """LPIPS had the other distance's name, and a generator's card told neither how many images nor the reference."""
    card = ModelCard(model_card(config, 1000, {"fingerprint": "abc"}, scores))
    (index,) = card.data.to_dict()["model-index"]
    (results,) = index["results"]
    assert results["dataset"] == {
        "type": "imagenet-256",
        "name": "imagenet-256",
        "args": {"images": 50000, "size": 256},
    }
    assert results["task"]["type"] in ("image-feature-extraction", "unconditional-image-generation")
    assert {metric["type"]: metric["value"] for metric in results["metrics"]} == told
    assert sentence in card.text
    assert ("LPIPS (VGG)" in card.text) == ("lpips" in told) and "nan" not in card.text
    assert "model-index" not in model_card(config, 1000, {"fingerprint": "abc"}, {})


@pytest.mark.slow
def test_another_process_has_the_same_codes(tokenizer: FactorizedTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "saved")
    torch.save(images(), tmp_path / "images.pt")
    code = (
        "import torch; from fqgan.tokenizer.model import FactorizedTokenizer as T; "
        f"torch.set_num_threads(1); codes = T.from_pretrained({str(tmp_path / 'saved')!r})"
        f".encode(torch.load({str(tmp_path / 'images.pt')!r})); torch.save(codes, {str(tmp_path / 'codes.pt')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.equal(torch.load(tmp_path / "codes.pt"), tokenizer.encode(images()))


@pytest.mark.parametrize("place", ["released.pt", "hf:org/name"])
def test_numbers_of_what_is_no_folder_need_a_place(
    place: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the whole evaluation the numbers were lost."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "released.pt", small())
    line = refused("evaluate", "tokenizer", place, "--data", "photos")
    assert f"--out is missing: {place} is no folder" in line


def test_others_may_read_what_is_written(tokenizer: FactorizedTokenizer, tmp_path: Path) -> None:
    """safetensors makes files that their owner alone may read, which a colleague met as a missing model."""
    tokenizer.save_pretrained(tmp_path / "saved")
    modes = {path.name: oct(path.stat().st_mode) for path in (tmp_path / "saved").iterdir()}
    assert len(set(modes.values())) == 1, modes


def test_a_generators_folder_is_whole(tmp_path: Path) -> None:
    model = tiny_generator(codebook_sizes=(64, 32), grid=(16, 16))
    model.label_names = ("a", "b")
    model.carry(FactorizedTokenizer(SMALL))
    model.save_pretrained(tmp_path / "saved")
    again = FAR.from_pretrained(tmp_path / "saved")
    assert same(again.state_dict(), model.state_dict()) and again.label_names == ("a", "b")
    assert again.tokenizer.fingerprint() == model.tokenizer.fingerprint()
    assert not FAR.from_pretrained(tmp_path / "saved", with_tokenizer=False).has_tokenizer


def test_exports_of_earlier_versions_load(tokenizer: FactorizedTokenizer, exported: Path) -> None:
    (exported / "model.safetensors").rename(exported / "tokenizer.safetensors")
    config = json.loads((exported / "config.json").read_text())
    del config["kind"]
    (exported / "config.json").write_text(json.dumps(config))
    assert fqgan.load_tokenizer(exported).fingerprint() == tokenizer.fingerprint()
    with pytest.raises(UserError, match="holds a tokenizer, no generator"):
        fqgan.load_generator(exported)


def test_weights_are_mapped_not_copied(tmp_path: Path) -> None:
    """A loaded model's weights lie in the file's mapping; changing them leaves the file as it is."""
    path = fqgan.save_tokenizer(FactorizedTokenizer(SMALL), tmp_path / "saved")
    before = (path / "model.safetensors").read_bytes()
    model = fqgan.load_tokenizer(path)
    maps = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "model.safetensors" in line and str(tmp_path) in line:
            maps.append([int(end, 16) for end in line.split()[0].split("-")])
    assert all(any(a <= p.data_ptr() < b for a, b in maps) for p in model.parameters())
    with torch.no_grad():
        model.post_quant.weight.add_(1)
    assert (path / "model.safetensors").read_bytes() == before


@pytest.fixture
def tuning(tiny: TokenizerRunConfig, tmp_path: Path) -> TokenizerRunConfig:
    """Two steps from a released file, with its discriminator."""
    torch.manual_seed(0)
    write(tmp_path / "released.pt", small(), discriminator=patchgan())
    model = replace(SMALL, factors=tuple(replace(factor, teacher="", teacher_dim=0) for factor in SMALL.factors))
    config = child(tiny, discriminator={"weight": 0.5, "start": 0})
    return replace(config, model=model, init=str(tmp_path / "released.pt"))


def test_a_released_file_is_tuned_and_the_run_resumes(
    tuning: TokenizerRunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_tokenizer(tuning, tmp_path / "straight")
    printed = capsys.readouterr().out
    assert (
        "released.pt, raw weights; no feature-prediction head for semantic" in printed
        and "its discriminator goes on, too" in printed
    )
    train_tokenizer(child(tuning, train={"steps": 1}), tmp_path / "run")
    capsys.readouterr()
    (tmp_path / "released.pt").unlink()  # a resumed run has no need of it
    train_tokenizer(tuning, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "at step 1" in printed and "goes on" not in printed
    for name in ("tokenizer", "discriminator"):
        one, two = (
            load_tensors(tmp_path / run / "checkpoints" / "step-00000002" / f"{name}.safetensors")
            for run in ("straight", "run")
        )
        assert same(one, two)
    assert lines(tmp_path / "straight") == lines(tmp_path / "run")


def test_tuning_starts_where_the_file_ends(tuning: TokenizerRunConfig, tmp_path: Path) -> None:
    """With no learning rate to speak of, a step changes nothing but the statistics of the norms."""
    config = child(tuning, optimizer={"lr": 1e-30}, train={"steps": 1})
    train_tokenizer(config, tmp_path / "run")
    expected = fqgan.load_tokenizer(tuning.init)
    assert fqgan.load_tokenizer(tmp_path / "run").fingerprint() == expected.fingerprint()
    found = load_file(tmp_path / "run" / "checkpoints" / "step-00000001" / "discriminator.safetensors")
    wanted = {name: tensor for name, tensor in patchgan().items() if "running" not in name and "num_" not in name}
    assert same(wanted, {name: found[name] for name in wanted})


@pytest.mark.parametrize("source", ["run", "folder", "checkpoint"])
def test_tuning_starts_from_our_folders_too(source: str, tuning: TokenizerRunConfig, tmp_path: Path) -> None:
    first = child(tuning, train={"steps": 1, "ema_decay": 0.5})
    train_tokenizer(first, tmp_path / "run")
    main(["convert", str(tmp_path / "run"), str(tmp_path / "folder")])
    path = tmp_path / "run/checkpoints/step-00000001" if source == "checkpoint" else tmp_path / source
    start = Start.of(str(path), first.model)
    checkpoint = tmp_path / "run/checkpoints/step-00000001"
    assert same(dict(start.tensors), load_file(checkpoint / "ema.safetensors"))
    assert same(dict(start.discriminator), load_file(checkpoint / "discriminator.safetensors"))


def test_heads_of_another_teacher_and_other_discriminators_start_afresh(tmp_path: Path) -> None:
    path = str(write(tmp_path / "released.pt", small(), discriminator=patchgan(32)))
    other = replace(SMALL, factors=(SMALL.factors[0], replace(SMALL.factors[1], teacher_dim=24)))
    start = Start.of(path, other)
    assert start.summary.endswith("raw weights; a new feature-prediction head for semantic")
    model = FactorizedTokenizer(other)
    head = {name: tensor.clone() for name, tensor in model.branches[1].head.state_dict().items()}  # pyright: ignore
    start.start(model)
    assert same(head, model.branches[1].head.state_dict())  # pyright: ignore
    assert model.fingerprint() == fqgan.load_tokenizer(path).fingerprint()
    notes: list[str] = []
    start.start_discriminator(build_discriminator(TokenizerRunConfig().discriminator, 32), notes.append)
    [note] = notes
    assert "with a new discriminator: the file's: tensor main.0.weight has shape (32, 3, 4, 4)" in note
    averaging = build_discriminator(replace(TokenizerRunConfig().discriminator, channels=32), 32)
    averaging.register_buffer("logit_means", torch.zeros(2))
    start.start_discriminator(averaging, notes.append)
    assert notes[1] == "its discriminator goes on, too" and same(
        {"main.0.bias": averaging.get_parameter("main.0.bias").detach()}, {"main.0.bias": patchgan(32)["main.0.bias"]}
    )


def test_another_architecture_is_no_start(tuning: TokenizerRunConfig, tmp_path: Path) -> None:
    wider = replace(tuning, model=replace(tuning.model, z_channels=64))
    with pytest.raises(UserError, match=r"--init .*released\.pt: tensor branches\.0\.conv\.weight has shape"):
        train_tokenizer(wider, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="kmeans_iterations would overwrite the codebooks of --init"):
        child(tuning, quantizer={"kmeans_iterations": 2}).check()


def test_a_generator_is_trained_on_a_released_tokenizers_codes(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And starts from a released generator, if its rotary rows are the same."""
    for name in ("cats", "dogs"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for i, file in enumerate(sorted(pictures.iterdir())):
        (tmp_path / "data" / ("cats", "dogs")[i % 2] / file.name).symlink_to(file)
    released = write(tmp_path / "released.pt", small())
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    options = ["--workers", "0", "--device", "cpu", "--batch", "4"]
    assert main(["extract", str(released), "--data", str(tmp_path / "data"), "--out", store, *options]) == 0
    assert fqgan.load_tokenizer(store).fingerprint() == fqgan.load_tokenizer(released).fingerprint()
    far = write(tmp_path / "far.pt", small(replace(GENERATOR, num_classes=2, legacy=True)))
    config = child(get_generator("far-tiny"), train={"steps": 2, "batch": 4, "image_every": 0, "device": "cpu"})
    config = replace(config, data=store, init=str(far), model=replace(GENERATOR, num_classes=0, codebook_sizes=()))
    with pytest.raises(UserError, match=r"was trained with model\.legacy, .*: add --model\.legacy"):
        train_generator(config, Path(run))
    train_generator(child(config, model={"legacy": True}), Path(run))
    assert fqgan.load_generator(run).tokenizer.fingerprint() == fqgan.load_tokenizer(released).fingerprint()


def test_any_of_our_tokenizers_that_fits_can_be_written(tmp_path: Path) -> None:
    """A model that was trained here, with another adapter depth and k = 3, is read back as it was."""
    torch.manual_seed(0)
    factors = (FactorConfig("a", 16, 4, 1), FactorConfig("b", 8, 6, 2), FactorConfig("c", 8, 2, 3, "unknown", 24))
    config: TokenizerConfig = replace(SMALL, channel_multipliers=(1, 2, 4), res_blocks=2, factors=factors)
    model = FactorizedTokenizer(config)
    write(tmp_path / "own.pt", to_released(model.state_dict(), config))
    assert same(fqgan.load_tokenizer(tmp_path / "own.pt").state_dict(), model.state_dict())
