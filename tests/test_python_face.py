"""What users hand to the models' methods: taken as they mean it, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from faces import NAN, message, tokenizer
from generators import tiny
from test_tokenizer import images, small
from torch import Tensor

from fqgan.base.errors import brief
from fqgan.base.inputs import as_images
from fqgan.config import SamplingConfig
from fqgan.data.transforms import normalize
from fqgan.tokenizer.model import FactorizedTokenizer

__all__ = ["tokenizer"]  # fixtures

INF = float("inf")
HUGE = pytest.param(10**5000, id="huge")  # Python refuses to print it


@pytest.fixture(scope="module")
def codes(tokenizer: FactorizedTokenizer) -> Tensor:
    return tokenizer.encode(images())


@pytest.mark.parametrize(
    "form",
    [
        Tensor.double,
        Tensor.numpy,
        lambda x: x.double().numpy(),
        lambda x: x.numpy().astype(">f4"),
        lambda x: x.numpy()[:, ::-1].copy()[:, ::-1],
        list,
        lambda x: list(x.numpy()),
        lambda x: x.tolist(),
    ],
)
def test_images_of_other_forms_have_the_same_codes(
    tokenizer: FactorizedTokenizer, codes: Tensor, form: Callable[[Tensor], Any]
) -> None:
    assert torch.equal(tokenizer.encode(form(images())), codes)
    assert torch.equal(tokenizer.features(form(images()))[0], tokenizer.features(images())[0])
    output = tokenizer(form(images()))
    assert output.reconstruction.dtype == torch.float32
    assert torch.equal(output.quantized[1].codes, codes[:, 1])


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_are_taken_without_a_warning(tokenizer: FactorizedTokenizer, codes: Tensor) -> None:
    array = images().numpy().copy()
    array.flags.writeable = False
    assert torch.equal(tokenizer.encode(array), codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_half_precision_are_taken_as_they_are_rounded(
    tokenizer: FactorizedTokenizer, dtype: torch.dtype
) -> None:
    half = images().to(dtype)
    assert torch.equal(tokenizer.encode(half), tokenizer.encode(half.float()))


def test_bytes_are_a_picture(tokenizer: FactorizedTokenizer) -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = tokenizer.encode(normalize(pixels))
    assert torch.equal(tokenizer.encode(pixels), expected)
    assert torch.equal(tokenizer.encode(pixels.numpy()), expected)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_no_images_and_no_codes_give_nothing_of_the_right_shape(precision: str) -> None:
    model = small(2).set_precision(precision)
    for none in (images()[:0], np.zeros((0, 3, 32, 32)), torch.zeros(0, 3, 32, 32, dtype=torch.uint8)):
        found = model.encode(none)
        assert found.shape == (0, 2, 16, 16) and found.dtype == torch.int64
        assert [each.shape for each in model.features(none)] == [(0, 4, 16, 16), (0, 5, 16, 16)]
    for none in (found, np.zeros((0, 2, 16, 16))):
        decoded = model.decode(none, keep=0)
        assert decoded.shape == (0, 3, 32, 32) and decoded.dtype == torch.float32
    generator = tiny()
    drawn = generator.generate([])
    assert drawn.shape == (0, 3, 3, 4) and drawn.dtype == torch.int64
    assert [each.shape for each in generator(drawn, [])] == [(0, 12, 7), (0, 12, 11), (0, 12, 5)]


@pytest.mark.parametrize(
    ("wrong", "told_"),
    [
        (None, "images must be a tensor, an array or a list of numbers, got None"),
        ("picture.jpg", "got 'picture.jpg'"),
        ([[1, 2], [3]], "got [[1, 2], [3]]"),
        (np.full((1, 3, 32, 32), None), "got object of shape (1, 3, 32, 32)"),
        (images()[0], "got (3, 32, 32): one image is a batch too, images[None]"),
        (images().permute(0, 2, 3, 1), "channels come before height and width"),
        (images()[:, :1], "images must be (b, 3, H, W), got (2, 1, 32, 32)"),
        (images()[..., :31], "image size 31x32 is no multiple"),
        (images()[..., :0], "image size 0x32 is no multiple"),
        (images().long(), "floating point in [-1, 1] or uint8 in 0..255, got int64"),
        (images() > 0, "got bool"),
        (images().to(torch.complex64), "plain tensor of real numbers"),
        (images().to_sparse(), "plain tensor of real numbers"),
        (images() * NAN, "pixels that are not finite"),
        (images().masked_fill(images() > 0.99, NAN), "pixels that are not finite"),
        (images().masked_fill(images() > 0.99, -INF), "pixels that are not finite"),
        ((images() + 1) * 127.5, "images must lie in [-1, 1], got 0.02"),
        (images().double() * 1e300, "images must lie in [-1, 1]"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(tokenizer: FactorizedTokenizer, wrong: Any, told_: str) -> None:
    assert told_ in message(tokenizer.encode, wrong)
    assert told_ in message(tokenizer.features, wrong)


def test_training_looks_at_shapes_alone(tokenizer: FactorizedTokenizer) -> None:
    """Values would make a GPU wait; there, what a step gives is checked before the update."""
    assert tokenizer(images() * NAN).reconstruction.isnan().any()
    assert "images must be (b, 3, H, W)" in message(lambda: tokenizer(images()[0]))


def test_training_waits_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values would raise as soon as one is asked for."""
    monkeypatch.setattr("fqgan.generator.model.linear_cross_entropy", lambda x, *rest, **options: (x.sum(),) * 4)
    codes = torch.zeros(2, 3, 3, 4, dtype=torch.int64, device="meta")
    assert len(tiny().to("meta").train().loss(codes, codes[:, 0, 0, 0]).cross_entropy) == 3
    pictures = torch.zeros(2, 3, 32, 32, device="meta")
    assert as_images(pictures, values=False) is pictures


@pytest.mark.parametrize(
    "form",
    [
        Tensor.int,
        Tensor.short,
        Tensor.byte,
        lambda x: x.to(torch.uint16),
        Tensor.numpy,
        lambda x: x.numpy().astype(np.uint16),
        lambda x: x.tolist(),
    ],
)
def test_codes_of_other_forms_decode_the_same(
    tokenizer: FactorizedTokenizer, codes: Tensor, form: Callable[[Tensor], Any]
) -> None:
    assert torch.equal(tokenizer.decode(form(codes)), tokenizer.decode(codes))


@pytest.mark.parametrize(
    ("wrong", "told_"),
    [
        (lambda x: None, "codes must be a tensor, an array or a list of numbers"),
        (Tensor.float, "codes must be whole numbers, got float32"),
        (lambda x: x > 1, "codes must be whole numbers, got bool"),
        (lambda x: x - 1, "codes of factor 0 must lie in [0, 16), got -1"),
        (lambda x: x * 0 + 16, "codes of factor 0 must lie in [0, 16), got 16"),
        (lambda x: np.full(x.shape, 2**64 - 1, np.uint64), "codes of factor 0 must lie in [0, 16)"),
        (lambda x: x[0], "codes must be (b, 2, h, w), got (2, 16, 16)"),
        (lambda x: x[:, :1], "codes must be (b, 2, h, w)"),
        (lambda x: x[:, :, :0], "codes must be (b, 2, h, w)"),
    ],
)
def test_what_are_no_codes_is_refused(
    tokenizer: FactorizedTokenizer, codes: Tensor, wrong: Callable[[Tensor], Any], told_: str
) -> None:
    assert told_ in message(lambda: tokenizer.decode(wrong(codes)))
    assert told_ in message(lambda: tokenizer.embed(wrong(codes)))


@pytest.mark.parametrize("keep", [1, "f1", [1], ["f1"], (1,), {1}, np.int64(1), np.array([1]), torch.tensor(1)])
def test_factors_are_kept_by_number_or_name(tokenizer: FactorizedTokenizer, codes: Tensor, keep: Any) -> None:
    other = codes.clone()
    other[:, 0] = 0  # what is not kept must not matter
    assert torch.equal(tokenizer.decode(codes, keep=keep), tokenizer.decode(other, keep=[1]))
    assert torch.equal(tokenizer.decode(codes, keep=["f0", 1]), tokenizer.decode(codes))


@pytest.mark.parametrize("keep", [2, -1, True, [True], 0.0, [None], "visual", "", "01", b"f0", [[0]], HUGE, NAN])
def test_what_is_no_factor_is_refused(tokenizer: FactorizedTokenizer, codes: Tensor, keep: Any) -> None:
    found = message(tokenizer.decode, codes, keep=keep)
    assert "but the tokenizer has factors 0..1: f0, f1" in found


@pytest.mark.parametrize(
    "labels",
    [(1, 4), range(1, 5, 3), np.array([1, 4]), np.array([1, 4], np.uint8), torch.tensor([1, 4], dtype=torch.int32)],
)
def test_labels_and_codes_of_other_forms_give_the_same(labels: Any) -> None:
    generator = tiny()
    expected = generator.generate([1, 4], seed=3)
    assert torch.equal(generator.generate(labels, seed=3), expected)
    logits = generator(expected, torch.tensor([1, 4]))
    for form in (expected.int(), expected.numpy(), expected.to(torch.uint8)):
        assert torch.equal(generator(form, labels)[2], logits[2])
        loss, other = generator.loss(form, labels), generator.loss(expected, torch.tensor([1, 4]))
        assert loss.cross_entropy[0] == other.cross_entropy[0]


@pytest.mark.parametrize(
    "labels", [3, "cat", ["cat"], None, [None], [1.0], [True], [-2], [7], [2**70], [[1]], {1}, torch.tensor([1.5])]
)
def test_what_are_no_labels_is_refused(labels: Any) -> None:
    generator = tiny()
    codes = torch.zeros(1, 3, 3, 4, dtype=torch.int64)
    calls = (
        lambda: generator.generate(labels),
        lambda: generator.sampler(1)(labels),
        lambda: generator(codes, labels),
        lambda: generator.loss(codes, labels),
    )
    for call in calls:
        assert message(call).startswith("labels must ")
    assert "labels must be one for each of 1, got 2" in message(generator, codes, [0, 0])
    assert "codes must be (b, 3, 3, 4), got (1, 3, 4, 3)" in message(generator, codes.mT, [0])
    assert "codes of factor 1 must lie in [0, 11), got 11" in message(lambda: generator(codes + _at(1, 11), [0]))


def _at(factor: int, value: int) -> Tensor:
    codes = torch.zeros(1, 3, 3, 4, dtype=torch.int64)
    codes[0, factor, 2, 3] = value
    return codes


def test_seeds_of_other_forms_give_the_same() -> None:
    sampler = tiny().sampler(2)
    one, several = sampler([0, 1], 3), sampler([0, 1], [5, 6])
    for seed in (np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)):
        assert torch.equal(sampler([0, 1], seed), one)
    for seed in ((5, 6), range(5, 7), np.array([5, 6]), torch.tensor([5, 6]), [np.int32(5), torch.tensor(6)]):
        assert torch.equal(sampler([0, 1], seed), several)
    assert sampler([0, 1], 2**64 - 1, first_image=2**64 - 2).shape == (2, 3, 3, 4)


@pytest.mark.parametrize(
    "seed", [-1, 2**64, HUGE, 1.0, NAN, "1", "12", b"12", None, True, [0, 1.0], [-1, 0], ["1", "2"], [0], {0, 1}]
)
def test_what_is_no_seed_is_refused(seed: Any) -> None:
    sampler = tiny().sampler(2)
    found = message(sampler, [0, 1], seed)
    assert "seed must be a whole number from 0 to 2^64 - 1, got" in found or "one for each of the 2 images" in found
    if not isinstance(seed, list | set):
        assert message(sampler, [0, 1], 0, seed).startswith("first_image must be a whole number from 0 to ")


@pytest.mark.parametrize("batch", [0, -1, 1.5, "4", None, True])
def test_what_is_no_batch_is_refused(batch: Any) -> None:
    for call in (lambda: tiny().sampler(batch), lambda: tiny().generate([0], batch=batch)):
        assert message(call).startswith("batch must be a whole number from 1 to ")


@pytest.mark.parametrize("form", [np.float32, np.float64, np.array, torch.tensor, lambda x: [x], lambda x: (x,) * 3])
def test_settings_of_other_forms_give_the_same(form: Callable[[float], Any]) -> None:
    settings = {"cfg_scale": 1.5, "temperature": 0.75, "top_p": 0.5, "cfg_power": 2.0}
    expected = tiny().generate([0, 1], **settings)
    others = {name: form(value) for name, value in settings.items()}
    assert torch.equal(tiny().generate([0, 1], **others), expected)
    assert torch.equal(tiny().generate([0], top_k=np.array([2, 3, 4])), tiny().generate([0], top_k=[2, 3, 4]))
    assert SamplingConfig.of(cfg_interval=np.array([0.25, 0.5])).cfg_interval == (0.25, 0.5)


@pytest.mark.parametrize(
    ("settings", "told_"),
    [
        *(({name: None}, f"{name} must be ") for name in ("cfg_scale", "temperature", "top_k", "top_p", "cfg_power")),
        *(({name: "1"}, f"{name} must be ") for name in ("cfg_scale", "temperature", "top_k", "top_p", "cfg_power")),
        *(({name: True}, f"{name} must be ") for name in ("cfg_scale", "temperature", "top_k", "top_p", "cfg_power")),
        ({"temperature": [0.5, "a", 1]}, "temperature must be numbers, got (0.5, 'a', 1)"),
        ({"temperature": 1j}, "temperature must be numbers"),
        ({"temperature": {}}, "temperature needs one value"),
        ({"temperature": 10**5000}, "temperature must be at least 0 and at most 1,000,000"),
        ({"top_k": 5.0}, "top_k must be whole numbers, got (5.0,)"),
        ({"top_k": 10**5000}, "top_k something of type int is impossible"),
        ({"cfg_scale": 1e38}, "cfg_scale must be at least 0 and at most 1,000,000, got 1e+38"),
        ({"cfg_power": [1.0, 2.0]}, "cfg_power needs one value, or one for each of the 3 factors, got 2"),
        (
            {"cfg_schedule": ["linear", 1, "linear"]},
            "must be constant, linear or power-cosine, got ('linear', 1, 'linear')",
        ),
        (
            {"cfg_schedule": ["linear", "up", "linear"]},
            "cfg_schedule must be constant, linear or power-cosine, got 'up'",
        ),
        ({"cfg_interval": 0.5}, "cfg_interval must be two fractions"),
        ({"cfg_interval": "ab"}, "cfg_interval must be numbers"),
        ({"cfg_schedule": None}, "cfg_schedule must be constant, linear or power-cosine"),
        ({"temprature": 1.0}, "unknown setting 'temprature': there are cfg_interval, "),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], told_: str) -> None:
    assert told_ in message(lambda: tiny().generate([0], **settings))


def test_settings_that_are_no_tuples_are_refused() -> None:
    wrong = SamplingConfig(temperature=1.0)  # pyright: ignore[reportArgumentType]
    assert message(lambda: wrong.check((7,))).startswith("temperature must be numbers, got 1.0")


def test_anything_can_be_told() -> None:
    class Odd:
        shape, dtype = 3, 4

        def __repr__(self) -> str:
            raise OSError

    assert brief(Odd()) == "something of type Odd"
    assert brief("a\nb") == r"'a\nb'" and len(brief("x" * 999)) == 40
    assert brief(np.zeros((2, 3))) == "float64 of shape (2, 3)"
