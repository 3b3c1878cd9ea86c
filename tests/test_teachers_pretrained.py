"""CLIP, DINOv2 and timm's models as teachers: against their own libraries on small random models, and what can be wrong
with their files."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from patterns import noise
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from fqgan.base.errors import UserError
from fqgan.config import FactorConfig
from fqgan.nets import weights as hub
from fqgan.nets.features import NetworkTeacher
from fqgan.nets.sharing import sharing
from fqgan.nets.teachers import load_teacher, load_teachers

transformers = pytest.importorskip("transformers")
timm = pytest.importorskip("timm")
LocalEntryNotFoundError = pytest.importorskip("huggingface_hub.errors").LocalEntryNotFoundError

TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP_VISION = {**TOWER, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
CLIP_TEXT = {**TOWER, "intermediate_size": 64, "vocab_size": 50}
DINO = {**TOWER, "mlp_ratio": 2, "image_size": 42, "patch_size": 14}


def random_weights(network: nn.Module) -> nn.Module:
    """Larger than at initialisation, so that every part counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models as transformers saves them: `clip` (both towers), `clip-vision`, `dinov2`, `registers`."""
    root = tmp_path_factory.mktemp("models")
    models = {
        "clip": transformers.CLIPModel(
            transformers.CLIPConfig(vision_config=CLIP_VISION, text_config=CLIP_TEXT, projection_dim=16)
        ),
        "clip-vision": transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP_VISION)),
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**DINO)),
        "registers": transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**DINO)),
    }
    for name, model in models.items():
        random_weights(model).save_pretrained(root / name)
    # normalisations and sizes of their own, so that using the family's would be seen
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=32, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    ).save_pretrained(root / "clip")
    transformers.BitImageProcessor(
        size={"shortest_edge": 56}, crop_size=56, image_mean=[0.6, 0.5, 0.4], image_std=[0.3, 0.3, 0.2]
    ).save_pretrained(root / "dinov2")
    return root


@pytest.fixture
def copy(folders: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of the `folders`, to spoil."""
    return lambda name: Path(shutil.copytree(folders / name, tmp_path / name))


def refused(name: str) -> str:
    with pytest.raises(UserError) as refusal:
        load_teacher(name)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# --- transformers


@pytest.mark.parametrize(("family", "size"), [("clip", 32), ("dinov2", 56)])
def test_features_equal_transformers_on_its_own_preprocessing(family: str, size: int, folders: Path) -> None:
    folder = folders / family
    teacher = load_teacher(f"{family}:{folder}")
    assert (teacher.size, teacher.dim) == (size, 32)
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    inputs = transformers.AutoImageProcessor.from_pretrained(folder)(Image.fromarray(pixels), return_tensors="pt")
    with torch.no_grad():
        if family == "clip":  # the class token that the full model projects, before it does
            model = transformers.CLIPModel.from_pretrained(folder).eval()
            tokens = model.vision_model(**inputs).last_hidden_state
            expected = model.vision_model.post_layernorm(tokens[:, 0])
            projected = model.get_image_features(**inputs).pooler_output
            torch.testing.assert_close(model.visual_projection(expected), projected)
        else:
            expected = transformers.Dinov2Model.from_pretrained(folder).eval()(**inputs).last_hidden_state[:, 0]
    ours = teacher(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "cls", "size"),
    [
        ("clip:{}/clip-vision", "CLIPVisionModel", 32),
        ("clip:{}/clip-vision@48", "CLIPVisionModel", 48),
        ("dinov2:{}/registers", "Dinov2WithRegistersModel", 224),
        ("dinov2:{}/registers@28", "Dinov2WithRegistersModel", 28),
    ],
)
def test_other_sizes_and_the_familys_normalisation(name: str, cls: str, size: int, folders: Path) -> None:
    teacher = load_teacher(name.format(folders))
    assert teacher.size == size
    mean, std = {
        "CLIPVisionModel": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
        "Dinov2WithRegistersModel": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    }[cls]
    images = noise(2, 3, size, size)
    pixels = ((images + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    model = getattr(transformers, cls).from_pretrained(folders / teacher.name.partition("@")[0].rpartition("/")[2])
    options = {"interpolate_pos_encoding": True} if cls == "CLIPVisionModel" else {}
    with torch.no_grad():
        expected = model.eval()(pixels, **options).pooler_output
    torch.testing.assert_close(teacher(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "others"), [("clip:{}/clip", 1), ("dinov2:{}/dinov2", 1), ("dinov2:{}/registers@42", 5)]
)
def test_the_map_is_the_patch_tokens_row_by_row_in_one_pass(name: str, others: int, folders: Path) -> None:
    teacher = load_teacher(name.format(folders))
    assert isinstance(teacher, NetworkTeacher)
    images, tokens = noise(2, 3, teacher.size, teacher.size), []
    handle = teacher.network.register_forward_hook(lambda module, given, out: tokens.append(out.last_hidden_state))
    with sharing():
        found, feature = teacher.map(images), teacher(images)
    handle.remove()
    (tokens,) = tokens
    side = found.shape[2]
    assert found.shape == (2, 32, side, side) and feature.shape == (2, 32)
    assert tokens.shape[1] == others + side * side
    for row, column in ((0, 0), (0, side - 1), (side - 1, 0), (1, 2)):
        torch.testing.assert_close(found[:, :, row, column], tokens[:, others + row * side + column])


def test_timms_teachers_have_no_map(folders: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), folders / "vit.safetensors")
    name = f"timm:test_vit={folders}/vit.safetensors"
    with pytest.raises(UserError, match=r"factor a: the teacher timm:.* has no map of features; train offline with"):
        load_teachers([FactorConfig("a", spatial_teacher=name)])


@pytest.mark.parametrize("family", ["clip", "dinov2"])
def test_bf16_halves_the_weights_and_stays_close(family: str, folders: Path) -> None:
    images = noise(4, 3, 40, 40)
    teacher = load_teacher(f"{family}:{folders / family}", "bf16")
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    assert teacher.mean.dtype == torch.float32
    features = teacher(images)
    assert features.dtype == torch.float32
    assert torch.cosine_similarity(features, load_teacher(f"{family}:{folders / family}")(images)).min() > 0.99
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher(images), features), "the ambient autocast must not matter"


@pytest.mark.parametrize("name", ["clip:{}/clip", "dinov2:{}/dinov2", "timm:test_vit={}/vit.safetensors"])
def test_frozen_in_evaluation_mode_without_gradient(name: str, folders: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), folders / "vit.safetensors")
    teacher = load_teacher(name.format(folders))
    nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(noise(1, 3, 32, 32).requires_grad_()).requires_grad


def test_only_the_vision_tower_is_kept(folders: Path, capfd: pytest.CaptureFixture[str]) -> None:
    teacher = load_teacher(f"clip:{folders / 'clip'}")
    assert isinstance(teacher, NetworkTeacher)
    vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP_VISION))
    assert sum(p.numel() for p in teacher.parameters()) == sum(p.numel() for p in vision.parameters())
    assert "".join(capfd.readouterr()) == "", "no progress bar, no list of unused weights"


def test_torch_weights_load_without_running_code(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("dinov2")
    expected = load_teacher(f"dinov2:{folder}")(noise(1, 3, 56, 56))
    weights: dict[str, Any] = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    torch.testing.assert_close(load_teacher(f"dinov2:{folder}")(noise(1, 3, 56, 56)), expected)

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({**weights, "layernorm.bias": Payload()}, folder / "pytorch_model.bin")
    assert "cannot be loaded" in refused(f"dinov2:{folder}")
    assert not (tmp_path / "ran").exists()


def test_what_is_wrong_with_a_folder_is_said(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("clip")
    assert "size 36 is no multiple of the model's patches of 8 pixels" in refused(f"clip:{folder}@36")
    assert "model of type 'clip', not dinov2" in refused(f"dinov2:{folder}")
    assert f"{tmp_path}/none is no folder" in refused(f"clip:{tmp_path}/none")
    file = folder / "model.safetensors"
    weights = load_file(file)
    lost = {name: value for name, value in weights.items() if name != "vision_model.post_layernorm.weight"}
    save_file(lost, file, {"format": "pt"})
    assert "lacks 1 weights, such as post_layernorm.weight" in refused(f"clip:{folder}")
    save_file({**weights, "vision_model.post_layernorm.weight": torch.ones(5)}, file, {"format": "pt"})
    assert "cannot be loaded" in refused(f"clip:{folder}")
    file.write_bytes(file.read_bytes()[:5000])
    assert "cannot be loaded" in refused(f"clip:{folder}")
    (folder / "config.json").unlink()
    assert "no config.json" in refused(f"clip:{folder}")
    file.unlink()
    assert "model.safetensors is missing" in refused(f"clip:{folder}")


@pytest.mark.parametrize(
    ("name", "package"), [("clip:x/y", "transformers"), ("dinov2:x/y", "transformers"), ("timm:x", "timm")]
)
def test_a_missing_package_names_the_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"needs the package {package}, which is not installed: pip install 'fqgan[teachers]'" in refused(name)


# --- timm


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("headless", [False, True])
def test_timm_features_equal_timms(name: str, headless: bool, tmp_path: Path) -> None:
    model = random_weights(timm.create_model(name, **({"num_classes": 0} if headless else {})))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    teacher = load_teacher(f"timm:{name}={tmp_path}/weights.safetensors")
    data = timm.data.resolve_model_data_config(model)
    assert data["input_size"] == (3, teacher.size, teacher.size)
    images = noise(2, 3, teacher.size, teacher.size)
    pixels = (images + 1) / 2 - torch.tensor(data["mean"]).view(3, 1, 1)
    pixels /= torch.tensor(data["std"]).view(3, 1, 1)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    assert expected.shape == (2, teacher.dim)
    torch.testing.assert_close(teacher(images), expected, atol=1e-5, rtol=1e-5)
    assert load_teacher(f"{teacher.name}@96")(images).shape == (2, teacher.dim)
    half = load_teacher(teacher.name, "bf16")(images)
    assert torch.cosine_similarity(half, expected).min() > 0.99


def test_what_is_wrong_with_a_timm_teacher_is_said(tmp_path: Path) -> None:
    weights = timm.create_model("test_vit").state_dict()
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    assert "did you mean 'test_vit.r160_in1k'" in refused("timm:test_vit.r160")
    assert "timm has no model 'tset_vit'" in refused("timm:tset_vit")
    assert "is no multiple of the model's patches of 16 pixels" in refused(f"timm:test_vit={file}@100")
    assert "does not take these weights" in refused(f"timm:test_resnet={file}")
    save_file({name: value for name, value in weights.items() if name != "cls_token"}, file)
    assert "does not take these weights" in refused(f"timm:test_vit={file}")
    file.write_bytes(b"nothing")
    assert "is damaged or no file of weights" in refused(f"timm:test_vit={file}")
    assert "none.pth does not exist" in refused(f"timm:test_vit={tmp_path}/none.pth")


# --- the hub


def cached(cache: Path, repository: str, files: dict[str, Path]) -> None:
    """Put files where the hub's library keeps those that it has downloaded."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    for name, path in files.items():
        shutil.copy(path, snapshot / name)


def test_cached_repositories_load_without_network(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("asked the hub"))
    folder, images = folders / "dinov2", noise(2, 3, 56, 56)
    cached(tmp_path, "some/dino", {name: folder / name for name in ("config.json", "model.safetensors")})
    expected = load_teacher(f"dinov2:{folders / 'dinov2'}").network
    ours = load_teacher("dinov2:some/dino@56").network
    assert torch.equal(ours(images).pooler_output, expected(images).pooler_output)
    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), file)
    cached(tmp_path, "timm/test_vit.r160_in1k", {"model.safetensors": file})
    images = noise(2, 3, 160, 160)
    torch.testing.assert_close(load_teacher("timm:test_vit")(images), load_teacher(f"timm:test_vit={file}")(images))


@pytest.mark.parametrize("answer", ["error", "silence"])
def test_without_network_it_fails_within_seconds(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model_info(*_: object, **__: object) -> None:
        if answer == "error":
            raise ConnectionError("no route")
        time.sleep(20)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    start = time.perf_counter()
    line = refused("clip:openai/clip-vit-base-patch16")
    assert time.perf_counter() - start < 2
    assert "openai/clip-vit-base-patch16 is not in the local cache of the hub, and the hub cannot be reached" in line


def test_safetensors_are_downloaded_rather_than_pickles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    patterns: list[str] = []

    def snapshot_download(repository: str, local_files_only: bool = False, allow_patterns: Any = ()) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("nothing")
        patterns[:] = allow_patterns
        return str(tmp_path)

    def repository(*names: str) -> None:
        info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    repository("config.json", "pytorch_model.bin", "model.safetensors", "flax_model.msgpack")
    assert hub.hub_folder("some/model") == tmp_path
    assert "model.safetensors" in patterns and "pytorch_model.bin" not in patterns
    repository("config.json", "pytorch_model.bin", "flax_model.msgpack")
    hub.hub_folder("some/model")
    assert "pytorch_model.bin" in patterns
    repository("config.json", "flax_model.msgpack")
    with pytest.raises(UserError, match=r"has none of the files model\.safetensors"):
        hub.hub_folder("some/model")


# --- maps of several depths


@pytest.mark.parametrize("name", ["clip:{}/clip", "clip:{}/clip-vision@48", "dinov2:{}/dinov2", "dinov2:{}/registers"])
def test_the_last_depth_of_a_transformer_is_its_map_but_for_the_last_norm(name: str, folders: Path) -> None:
    teacher = load_teacher(name.format(folders) + ("" if "@" in name or "registers" not in name else "@28"))
    images = noise(2, 3, teacher.size, teacher.size).requires_grad_()
    maps = teacher.maps(images)
    assert len(maps) == 2 and maps[0].shape == maps[1].shape
    norm: Any = getattr(teacher.network, "layernorm", nn.Identity())
    last = norm(maps[1].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(last, teacher.map(images), rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(maps[0].sum(), images)[0].abs().sum() > 0


def test_the_last_depth_of_a_convolutional_model_of_timm_averages_to_its_feature(tmp_path: Path) -> None:
    network = random_weights(timm.create_model("resnet18", num_classes=0))
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    teacher = load_teacher(f"timm:resnet18={tmp_path / 'weights.safetensors'}@64")
    images = noise(2, 3, 64, 64)
    maps = teacher.maps(images)
    assert [each.shape[2] for each in maps] == [32, 16, 8, 4, 2]
    torch.testing.assert_close(maps[-1].mean((2, 3)), teacher(images), rtol=1e-4, atol=1e-4)
