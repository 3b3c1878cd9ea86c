"""Pictures of any size and aspect: fitted to the tokenizer, and in overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.config import FactorConfig
from fqgan.config.presets import PHOTOS_DUAL, child
from fqgan.data.sources.photos import PHOTOS
from fqgan.data.sources.photos import _load as photograph
from fqgan.data.transforms import resize_shorter, to_tensor
from fqgan.lab.planning.tracking import Tracker
from fqgan.metrics.pixels import eight_bit
from fqgan.tokenizer.load import load_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.task import train_tokenizer
from fqgan.tokenizer.whole import decode_strips, decode_tiled, encode_tiled, fit, spans, tiles


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 15), (3, 5), (1, 2), (1, 1), (40, 33)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_padding_continues_a_picture_by_its_reflection(height: int, width: int, dtype: torch.dtype) -> None:
    images = (torch.rand(2, 3, height, width) * 255).to(dtype)
    sides = [(0, -height % 8), (0, -width % 8)]
    assert np.array_equal(fit(images, 8), np.pad(images.numpy(), [(0, 0), (0, 0), *sides], mode="reflect"))


def test_cropping_takes_the_middle() -> None:
    images = torch.rand(1, 3, 19, 24)
    assert torch.equal(fit(images, 8, "crop"), images[:, :, 1:17])
    with pytest.raises(UserError, match="24x7 pixels are below 8: pad them"):
        fit(images[:, :, :7], 8, "crop")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit(torch.zeros(3, 8, 8), 8), r"images must be \(b, c, H, W\), got \(3, 8, 8\)"),
        (lambda: fit(torch.zeros(1, 3, 0, 8), 8), "images must be"),
        (lambda: fit(torch.zeros(1, 3, 8, 8), 8, "stretch"), "fitted by pad or crop, not by 'stretch'"),  # pyright: ignore
        (lambda: fit(torch.zeros(1, 3, 8, 8), 0), "f must be a whole number"),
    ],
)
def test_what_cannot_be_fitted_is_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize("length", [1, 5, 8, 9, 15, 16, 17, 40, 99])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 0), (8, 1), (8, 2), (8, 3), (8, 4), (2, 1), (1, 0), (2**63, 0)])
@pytest.mark.parametrize("f", [1, 3, 4])
def test_tiles_cover_every_position_and_their_shares_add_up_to_one(
    length: int, tile: int, overlap: int, f: int
) -> None:
    found = spans(length, tile, overlap, f)
    assert [p for span in found for p in range(span.first, span.last)] == list(range(length))
    total = torch.zeros(length * f, dtype=torch.float64)
    for span in found:
        assert 0 <= span.start <= span.first < span.last <= span.stop <= length
        assert span.stop - span.start == min(tile, length)
        assert span.weights.min() >= 0
        total[span.start * f : span.stop * f] += span.weights
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-6, rtol=0)
    for one, other in pairwise(found):
        assert one.stop - other.start >= overlap
        assert abs((one.last - other.start) - (one.stop - one.last)) <= 1, "each has the half that is nearer"
    assert len(found) == (1 if length <= tile else -(-(length - overlap) // (tile - overlap)))


def test_shares_change_linearly_across_what_two_tiles_share() -> None:
    one, other = spans(14, 8, 2, 4)
    across = (torch.arange(8) + 0.5) / 8  # two positions of four pixels
    torch.testing.assert_close(other.weights, torch.cat([across, torch.ones(24)]))
    torch.testing.assert_close(one.weights, torch.cat([torch.ones(24), 1 - across]))


class PatchTokenizer(FactorizedTokenizer):
    """Each patch's code follows from the patch alone and is drawn by itself, so that tiles change nothing."""

    def encode(self, images: Any, *, values: bool = True) -> Tensor:
        patches = images.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).mean((1, 3, 5))
        return torch.stack([((patches + 1) * 7.9).long(), ((patches + 1) * 7.9 * 16).long() % 16], 1)

    def decode(self, codes: Any, keep: Any = None, *, values: bool = True) -> Tensor:
        fine = (codes[:, 0] * 16 + codes[:, 1]).float() / 128 - 1
        return fine.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None].expand(-1, 3, -1, -1).clone()


@pytest.mark.parametrize(("tile", "meant"), [(4, 0), (16, 8), (28, 12), (48, 16), (64, 16), (128, 32)])
def test_tiles_share_a_quarter_and_at_least_four_positions(
    tokenizer: FactorizedTokenizer, tile: int, meant: int
) -> None:
    images = torch.rand(1, 3, 8, 200) * 2 - 1
    assert torch.equal(encode_tiled(tokenizer, images, tile), encode_tiled(tokenizer, images, tile, meant))


@pytest.mark.parametrize(("tile", "overlap"), [(16, None), (16, 8), (24, 4), (8, 0), (0, None)])
def test_tiles_of_a_tokenizer_without_context_are_the_picture_in_one_piece(
    tokenizer: FactorizedTokenizer, tile: int, overlap: int | None
) -> None:
    model = PatchTokenizer(tokenizer.config)
    images = torch.rand(2, 3, 36, 76) * 2 - 1
    codes = model.encode(images)
    assert torch.equal(encode_tiled(model, images, tile, overlap), codes)
    torch.testing.assert_close(decode_tiled(model, codes, tile, overlap), model.decode(codes))
    strips = list(decode_strips(model, codes, tile, overlap))
    assert len(strips) == tiles(model, 36, 76, tile, overlap)[0]


@pytest.mark.parametrize("tile", [0, 64, 640])
def test_a_picture_that_fits_into_a_tile_is_encoded_and_decoded_in_one_piece(
    tokenizer: FactorizedTokenizer, tile: int
) -> None:
    images = torch.rand(2, 3, 64, 28) * 2 - 1
    codes = encode_tiled(tokenizer, images, tile)
    assert torch.equal(codes, tokenizer.encode(images))
    for keep in (None, 1, "visual", iter([0])):
        kept = 0 if keep not in (None, 1) else keep
        assert torch.equal(decode_tiled(tokenizer, codes, tile, keep=keep), tokenizer.decode(codes, kept))


def test_a_tile_sees_no_further_than_its_edge(tokenizer: FactorizedTokenizer) -> None:
    images = torch.rand(1, 3, 16, 64) * 2 - 1
    codes = encode_tiled(tokenizer, images, 32, 8)
    first, second, third = spans(16, 8, 2, 4)  # from positions 0, 4 and 8 on
    for span in (first, second, third):
        alone = tokenizer.encode(images[..., span.start * 4 : span.stop * 4])
        assert torch.equal(
            codes[..., span.first : span.last], alone[..., span.first - span.start :][..., : span.last - span.first]
        )
    assert (first.last, second.last) == (6, 10)


def test_bytes_are_pictures_in_tiles_too(tokenizer: FactorizedTokenizer) -> None:
    pixels = torch.randint(0, 256, (1, 3, 40, 64), dtype=torch.uint8)
    codes = encode_tiled(tokenizer, pixels, 32)
    assert torch.equal(encode_tiled(tokenizer, pixels.numpy(), 32), codes)
    assert torch.equal(encode_tiled(tokenizer, pixels.float() / 127.5 - 1, 32), codes)


@pytest.mark.parametrize("tile", [0, 16])
def test_no_pictures_have_no_tiles(tokenizer: FactorizedTokenizer, tile: int) -> None:
    codes = encode_tiled(tokenizer, torch.zeros(0, 3, 32, 40), tile)
    assert codes.shape == (0, 2, 8, 10) and codes.dtype == torch.int64
    assert decode_tiled(tokenizer, codes, tile).shape == (0, 3, 32, 40)
    assert fit(torch.zeros(0, 3, 30, 40), 8).shape == (0, 3, 32, 40)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (30, None, "tile 30 is no multiple of the tokenizer's downsampling factor 4"),
        (-4, None, "tile must be a whole number"),
        (32, 3, "overlap 3 is no multiple of 4 up to half of a tile of 32 pixels"),
        (32, 20, "overlap 20 is no multiple of 4 up to half"),
    ],
)
def test_tiles_that_the_tokenizer_cannot_use_are_refused(
    tokenizer: FactorizedTokenizer, tile: int, overlap: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        encode_tiled(tokenizer, torch.zeros(1, 3, 8, 8), tile, overlap)
    with pytest.raises(UserError, match=message):
        decode_tiled(tokenizer, torch.zeros(1, 2, 8, 8, dtype=torch.int64), tile, overlap)
    with pytest.raises(UserError, match="image size 30x32 is no multiple"):
        encode_tiled(tokenizer, torch.zeros(1, 3, 32, 30), 32)
    with pytest.raises(UserError, match="codes of factor 0 must lie in"):
        decode_tiled(tokenizer, torch.full((1, 2, 4, 4), 99), 16)


def peak(work: Callable[[], Any], given: list[Tensor]) -> int:
    """Most bytes of tensors alive at once that `work` makes, beside those that it is given."""
    with torch.inference_mode(), Tracker() as tracker:
        work()
    return int(tracker.alive({"given": given}, "made")["made"].max())


@pytest.mark.slow
def test_memory_grows_with_the_tile_and_not_with_the_picture(tokenizer: FactorizedTokenizer) -> None:
    def peaks(height: int, width: int, tile: int) -> tuple[int, int]:
        image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
        codes = torch.zeros(1, 2, height // 4, width // 4, dtype=torch.int64)
        given = [image, codes, *tokenizer.parameters()]
        encoding = peak(lambda: encode_tiled(tokenizer, image, tile), given) - codes.nbytes
        return encoding, peak(lambda: sum(len(strip) for strip in decode_strips(tokenizer, codes, tile)), given)

    small, tall, wide, whole = peaks(64, 48, 32), peaks(256, 48, 32), peaks(64, 256, 32), peaks(256, 48, 0)
    assert tall[0] < 1.05 * small[0] and wide[0] < 1.05 * small[0]
    assert tall[1] < 1.05 * small[1]
    rows = (2 * 32 + 8) * 256 * 3 * 4  # the row of tiles that is handed out, the next one, and what both share
    assert wide[1] < 1.05 * small[1] + rows
    assert whole[0] > 4 * tall[0] and whole[1] > 4 * tall[1], "in one piece it does grow"


@pytest.mark.slow
def test_tiles_lose_no_tenth_of_a_decibel_near_their_borders(tmp_path: Any) -> None:
    """Against the picture in one piece, within 8 pixels of where tiles meet, over the packaged photographs."""
    config = child(
        PHOTOS_DUAL,
        model={"factors": (FactorConfig("visual", 256, 4, 0),)},
        data={"source": "photos", "workers": 0},
        loss={"perceptual": "none"},
        discriminator={"weight": 0.0},
        train={"steps": 40, "batch": 8, "device": "cpu", "precision": "float32", "image_every": 0, "validate_every": 0},
    )
    train_tokenizer(config, tmp_path / "run")
    model = load_tokenizer(tmp_path / "run")
    f, lost = model.config.downsampling, []
    for photo in PHOTOS:
        picture = fit(to_tensor(resize_shorter(photograph(photo), 128))[None], f)

        def errors(tile: int, overlap: int, picture: Tensor = picture) -> Tensor:
            made = decode_tiled(model, encode_tiled(model, picture, tile, overlap), tile, overlap)
            return (eight_bit(made) - picture.float()).square().mean(1)[0]

        def near(overlap: int, shape: torch.Size = picture.shape[2:]) -> Tensor:
            mask = torch.zeros(shape, dtype=torch.bool)
            for axis, side in enumerate(shape):
                for span in spans(side // f, 64 // f, overlap // f, f)[1:]:
                    mask.narrow(axis, span.first * f - 8, 16).fill_(True)
            return mask

        one = errors(0, 0)
        lost.append([(errors(64, o)[near(o)].mean() / one[near(o)].mean()).log10() * 10 for o in (32, 0)])
    with_overlap, without = torch.tensor(lost).mean(0).tolist()
    assert with_overlap < 0.1
    assert without - with_overlap > 0.3, "which is what the overlap is for"
