"""Crops against closed forms: box means and linear gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fqgan.data import transforms
from fqgan.data.transforms import center_crop, flip, normalize, random_crop, resize_shorter, to_tensor, to_uint8


def gradient(width: int, height: int) -> Image.Image:
    """Red is 256 times the fraction of the width, green the same of the height, blue marks the halves."""
    x = (np.arange(width) + 0.5) / width * 256
    y = (np.arange(height) + 0.5) / height * 256
    red, green = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, 128 * (red > 128)], -1).astype(np.uint8))


def span(image: Image.Image, channel: int) -> tuple[float, float]:
    """Where a crop of `gradient` begins and ends, as fractions of the whole, from its inner slope."""
    values = np.asarray(image, np.float64)[..., channel].mean(1 if channel else 0)
    n = len(values)
    slope = (values[n * 3 // 4] - values[n // 4]) / (n * 3 // 4 - n // 4)
    middle = values[n // 4] + slope * ((n - 1) / 2 - n // 4) + 0.5
    return (middle - slope * n / 2) / 256, (middle + slope * n / 2) / 256


def test_powers_of_two_are_box_means() -> None:
    """256 to 64 is two halvings and no bicubic step. Pillow rounds half up after each direction."""
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    expected = pixels.astype(np.int64)
    for _ in range(2):
        expected = (expected[:, ::2] + expected[:, 1::2] + 1) // 2
        expected = (expected[::2] + expected[1::2] + 1) // 2
    np.testing.assert_array_equal(np.asarray(center_crop(Image.fromarray(pixels), 64)), expected)


def test_same_size_is_untouched() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(center_crop(Image.fromarray(pixels), 32)), pixels)


def test_center_crop_takes_the_middle() -> None:
    crop = center_crop(gradient(300, 200), 80)
    assert span(crop, 0) == pytest.approx((1 / 6, 5 / 6), abs=0.01)
    assert span(crop, 1) == pytest.approx((0, 1), abs=0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 60), st.integers(0, 2**32))
def test_crops_have_the_size(width: int, height: int, size: int, seed: int) -> None:
    image = Image.new("RGB", (width, height))
    assert min(resize_shorter(image, size).size) == size
    assert center_crop(image, size).size == (size, size)
    assert random_crop(image, size, np.random.default_rng(seed), 0.5, 1.0).size == (size, size)


def test_random_crops_span_what_they_should() -> None:
    image, rng = gradient(400, 320), np.random.default_rng(0)
    for _ in range(50):
        crop = random_crop(image, 64, rng, 0.5, 0.8)
        (left, right), (top, bottom) = span(crop, 0), span(crop, 1)
        assert 0.5 - 0.02 <= bottom - top <= 0.8 + 0.02
        assert (right - left) * 400 == pytest.approx((bottom - top) * 320, rel=0.05)
        assert min(left, top) > -0.02
        assert max(right, bottom) < 1.02


def test_random_crop_draws_every_size_and_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends of the range are drawn: ceil(10 / 0.95) = 11 to ceil(10 / 0.8) = 13, and every window in it."""
    sizes, windows = set(), set()

    def noting_resize(image: Image.Image, target: int) -> Image.Image:
        sizes.add(target)
        return resize_shorter(image, target)

    def noting_window(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
        windows.add((min(image.size), left, top))
        return image.crop((left, top, left + size, top + size))

    monkeypatch.setattr(transforms, "resize_shorter", noting_resize)
    monkeypatch.setattr(transforms, "_window", noting_window)
    rng = np.random.default_rng(0)
    for _ in range(400):
        random_crop(Image.new("RGB", (20, 20)), 10, rng, 0.8, 0.95)
    assert sizes == {11, 12, 13}
    assert windows == {(n, x, y) for n in sizes for x in range(n - 9) for y in range(n - 9)}


def test_crop_fraction_one_resizes_the_shorter_side_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    crop = random_crop(Image.fromarray(pixels), 32, np.random.default_rng(0), 1.0, 1.0)
    np.testing.assert_array_equal(np.asarray(crop), pixels)


def test_tensors() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    tensor = to_tensor(image)
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    np.testing.assert_array_equal(tensor.numpy(), pixels.transpose(2, 0, 1))
    np.testing.assert_array_equal(to_tensor(flip(image)).numpy(), pixels[:, ::-1].transpose(2, 0, 1))


def test_normalize_and_back() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    normalized = normalize(values)
    assert normalized.dtype == torch.float32
    assert (normalized[0], normalized[-1]) == (-1, 1)
    assert torch.equal(to_uint8(normalized), values)
    assert to_uint8(torch.tensor([-1.3, 1.2, 0.5 / 127.5 - 1 + 1e-4])).tolist() == [0, 255, 1]
