"""`fqgan edit` and its functions: what stays, what is drawn, what comes from another picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.data.loader import load_images
from fqgan.generator.edit import kept_mask, likeliest, mixed, redraw
from fqgan.generator.likelihood import class_bits
from fqgan.generator.model import FAR, load_generator

FACTORS = ["visual", "semantic"]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in ("one", "two")]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths


def test_masks_hold_factors_and_what_the_region_does_not_touch() -> None:
    assert torch.equal(
        kept_mask((2, 3), FACTORS, ["semantic"]), torch.tensor([False, True])[:, None, None].expand(2, 2, 3)
    )
    mask = kept_mask((4, 4), FACTORS, region=(8, 0, 17, 9), cell=8)
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[0:2, 1:3] = False  # pixel 16 is of the third column, pixel 8 of the second row
    assert torch.equal(mask, expected.expand(2, 4, 4))
    both = kept_mask((4, 4), FACTORS, ["visual"], (0, 0, 8, 8), cell=8)
    assert both[0].all() and not both[1, 0, 0] and both[1].sum() == 15
    for region in [(0, 0, 0, 8), (0, 0, 40, 8), (-1, 0, 8, 8), (8, 8, 0, 0)]:
        with pytest.raises(UserError, match="the region"):
            kept_mask((4, 4), FACTORS, region=region, cell=8)
    with pytest.raises(UserError, match="keep names factor 'colour'"):
        kept_mask((4, 4), FACTORS, ["colour"])


def test_mixing_takes_a_factor_from_the_other() -> None:
    one, other = torch.zeros(2, 3, 3, dtype=torch.int64), torch.ones(2, 3, 3, dtype=torch.int64)
    found = mixed(one, other, FACTORS, ["semantic"])
    assert not found[0].any() and found[1].all() and not one.any()


def random_codes(generator: FAR) -> Tensor:
    sizes = generator.config.codebook_sizes
    return torch.stack([torch.randint(size, (8, 8), generator=torch.Generator().manual_seed(size)) for size in sizes])


def test_redrawing_keeps_what_is_given_whatever_the_batch(generator: FAR) -> None:
    codes = random_codes(generator)
    mask = kept_mask((8, 8), FACTORS, ["semantic"])
    whole = redraw(generator, codes, mask, 1, num=5, seed=3)
    assert whole.shape == (5, 2, 8, 8)
    assert torch.equal(whole[:, 1], codes[1].expand(5, -1, -1)) and not torch.equal(whole[0, 0], whole[1, 0])
    assert torch.equal(redraw(generator, codes, mask, 1, num=5, seed=3, batch=2), whole)
    assert torch.equal(redraw(generator, codes, mask, 1, num=2, seed=3, first_image=3), whole[3:])
    assert torch.equal(
        redraw(generator, codes, torch.ones_like(mask), 1, num=2, best_of=3), codes.expand(2, -1, -1, -1)
    )


def test_the_best_of_some_explains_what_lies_behind(generator: FAR) -> None:
    codes = random_codes(generator)
    mask = kept_mask((8, 8), FACTORS, region=(2, 2, 4, 4), cell=1)
    best = redraw(generator, codes, mask, 2, num=2, seed=1, best_of=4)
    every = generator.generate([2] * 8, seed=1, given=codes[None], mask=mask[None])
    behind = mask.flatten(1).clone()
    behind[:, : 2 * 8 + 3] = False  # the first drawn position is the third of the third row
    bits = (generator.log_likelihood(every, [2] * 8).flatten(2) * behind).sum((1, 2)).detach()
    for i in range(2):
        assert torch.equal(best[i], every[4 * i + int(bits[4 * i : 4 * i + 4].argmax())])
    assert len({round(float(each), 3) for each in bits}) > 1


def test_where_nothing_given_lies_behind_the_likeliest_draw_is_taken(generator: FAR) -> None:
    codes = random_codes(generator)
    for rows in (0, 3):  # nothing given, and a prefix
        mask = torch.zeros(2, 8, 8, dtype=torch.bool)
        mask[:, :rows] = True
        every = generator.generate([1] * 6, seed=2, given=codes[None], mask=mask[None])
        bits = generator.log_likelihood(every, [1] * 6).sum((1, 2, 3)).view(2, 3)
        best = torch.tensor([0, 3]) + bits.argmax(1)
        assert likeliest(generator, every, mask, [1] * 6, 3, batch=4).tolist() == best.tolist()
        assert torch.equal(redraw(generator, codes, mask, 1, num=2, seed=2, best_of=3), every[best])


def test_a_given_code_counts_behind_a_drawn_one_of_its_own_position(generator: FAR) -> None:
    codes = random_codes(generator)
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[1, 7, 7] = True  # the last code of all, the second at its position
    every = generator.generate([0] * 4, seed=6, given=codes[None], mask=mask[None])
    bits = generator.log_likelihood(every, [0] * 4)[:, 1, 7, 7]
    assert likeliest(generator, every, mask, [0] * 4, 4).tolist() == [int(bits.argmax())]


def edited(folder: Path, photos: list[Path], out: Path, *options: object) -> dict[str, Any]:
    arguments = ["edit", folder, photos[0], "--device", "cpu", "--out", out, *options]
    assert main([str(each) for each in arguments]) == 0
    return json.loads((out / "edit.json").read_text())


def test_the_command_keeps_a_factor(
    folder: Path,
    photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    options = ["--keep", "semantic", "--num", "3", "--seed", "4", "--temperature", "0.5"]
    made = edited(folder, photos, out, *options)
    told = capsys.readouterr().out
    model = load_generator(folder)
    with torch.inference_mode():
        codes = model.tokenizer.encode(load_images(photos[0], 32))[0]
    likeliest = int(class_bits(model, codes[None], 8).argmin())
    assert made["label"] == likeliest and made["drawn"] == 64
    assert "64 of 128 codes are drawn, for class" in told and "the likeliest" in told and "PSNR" in told
    expected = redraw(model, codes, kept_mask((8, 8), FACTORS, [1]), likeliest, 3, 4, temperature=0.5)
    with np.load(out / "codes.npz") as found:
        assert np.array_equal(found["codes"], expected.numpy())
        assert np.array_equal(found["original"][0], codes.numpy())
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{i:06d}.png" for i in range(3)),
        "codes.npz",
        "edit.json",
        "grid.png",
    ]
    before = (out / "000000.png").read_bytes()
    edited(folder, photos, out, *options)  # the same again writes the same
    assert (out / "000000.png").read_bytes() == before
    arguments = ["edit", folder, photos[0], "--device", "cpu", "--out", out, *options[:-1], "0.7"]
    monkeypatch.setattr("fqgan.generator.edit.redraw", None)  # refused before anything is drawn
    assert main([str(each) for each in arguments]) == 2
    assert "was begun with other settings (settings.temperature" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    arguments = ["edit", folder, photos[0], "--device", "cpu", "--out", tmp_path / "other", *options]
    assert main([str(each) for each in arguments]) == 2 and len(list((tmp_path / "other").iterdir())) == 1


def test_the_command_mixes_and_redraws_regions(folder: Path, photos: list[Path], tmp_path: Path) -> None:
    model = load_generator(folder)
    with torch.inference_mode():
        one, two = model.tokenizer.encode(load_images(photos, 32))
    made = edited(folder, photos, tmp_path / "mix", "--mix", photos[1], "--take", "visual")
    assert made["drawn"] == 0 and made["label"] == -1
    with np.load(tmp_path / "mix" / "codes.npz") as found:
        assert np.array_equal(found["codes"], torch.stack([two[0], one[1]])[None].numpy())
    region = ["--region", "4,4,12,12", "--classes", "dog", "--num", "2", "--best-of", "2"]
    made = edited(folder, photos, tmp_path / "region", *region)
    assert made["drawn"] == 2 * 4 and made["label"] == 1
    with np.load(tmp_path / "region" / "codes.npz") as found:
        assert np.array_equal(found["codes"][:, found["mask"]], np.stack([one[torch.from_numpy(found["mask"])]] * 2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "say what stays"),
        (["--keep", "colour"], "keep names factor 'colour'"),
        (["--region", "1,2,3"], "--region must be x0,y0,x1,y1"),
        (["--region", "0,0,99,9"], "the region 0,0,99,9 must be"),
        (["--take", "visual"], "--mix and --take belong together"),
        (["--keep", "visual", "--classes", "cat,dog"], "must be one class"),
        (["--keep", "visual", "--classes", "cow"], "unknown class 'cow'"),
        (["--keep", "visual", "--num", "0"], "--num must be at least 1"),
        (["--keep", "visual", "--best-of", "0"], "--best-of must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    options: list[str],
    words: str,
    folder: Path,
    photos: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["edit", folder, photos[0], "--device", "cpu", "--out", tmp_path / "out", *options]
    assert main([str(each) for each in arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()
