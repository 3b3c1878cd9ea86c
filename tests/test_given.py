"""`fqgan generate --given`: codes of a file stay in the pictures, the others are drawn."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import on_two_ranks
from test_generate import command, sums
from torch import Tensor

import fqgan
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.data.transforms import to_uint8
from fqgan.generator.edit import kept_mask
from fqgan.generator.given import read_given, told
from fqgan.generator.model import FAR, load_generator
from fqgan.generator.rows import Given

Refused = Callable[..., str]
SIZES, GRID = (32, 16), (8, 8)
LABELS = [0, 1, 2, 0, 1, 2, 0]


def some_codes(n: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(size, (n, *GRID), generator=random) for size in SIZES], 1)


def pixels(generator: FAR, codes: Tensor, batch: int = 2) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        images = torch.cat([generator.tokenizer.decode(part) for part in codes.split(batch)])
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


def arrays(out: Path) -> np.ndarray[Any, Any]:
    with np.load(out / "samples.npz") as found:
        return found["arr_0"]


PREFIX = torch.zeros(2, *GRID, dtype=torch.bool)
PREFIX[:, :3] = True
MASKS = {
    "prefix": PREFIX,
    "region": kept_mask(GRID, ["visual", "semantic"], region=(2, 2, 5, 6)),
    "factor": kept_mask(GRID, ["visual", "semantic"], keep=["semantic"]),
    "everything": torch.ones(2, *GRID, dtype=torch.bool),
    "nothing": torch.zeros(2, *GRID, dtype=torch.bool),
}


@pytest.mark.parametrize("kind", MASKS)
def test_pictures_are_those_of_the_generator_with_the_same_given_codes(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, mask = some_codes(7), MASKS[kind]
    np.savez(tmp_path / "given.npz", codes=codes.numpy().astype(np.uint16), mask=mask.numpy())
    options = ["--seed", 5, "--cfg-scale", 3, "--top-k", 0, 8, "--given", tmp_path / "given.npz"]
    assert main(command(folder, tmp_path / "out", *options)) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("given: "))
    shares = [
        f"{name} {100 * part.float().mean():.4g} %" for name, part in zip(("visual", "semantic"), mask, strict=True)
    ]
    ending = "; nothing is drawn" if kind == "everything" else ""
    assert line == f"given: codes of 7 pictures; of them stay: {', '.join(shares)}{ending}"
    model = load_generator(folder)
    drawn = model.generate(LABELS, cfg_scale=3.0, top_k=[0, 8], seed=5, given=codes, mask=mask)
    assert torch.equal(drawn[:, mask], codes[:, mask])
    np.testing.assert_array_equal(arrays(tmp_path / "out"), pixels(model, drawn))
    alone = model.generate(LABELS, cfg_scale=3.0, top_k=[0, 8], seed=5)
    assert torch.equal(drawn, alone) == (kind == "nothing")


@pytest.mark.parametrize("n", [1, 3, 9])
def test_pictures_take_what_is_given_in_turn(
    n: int, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = some_codes(n)
    mask = torch.rand(codes.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    np.savez_compressed(tmp_path / "given.npz", codes=codes.numpy(), mask=mask.numpy())
    assert main(command(folder, tmp_path / "out", "--given", tmp_path / "given.npz", "--batch", 4)) == 0
    expected = {1: "1 picture; ", 3: "3 pictures, in turn; ", 9: "the first 7 of 9 pictures; "}
    assert f"given: codes of {expected[n]}" in capsys.readouterr().out
    rows = [i % n for i in range(7)]
    model = load_generator(folder)
    drawn = model.generate(LABELS, given=codes[rows], mask=mask[rows])
    np.testing.assert_array_equal(arrays(tmp_path / "out"), pixels(model, drawn, 4))


def test_another_grid_with_a_prefix_of_given_codes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    """Wide pictures that go on from the first rows of others."""
    wide = torch.cat([some_codes(1), some_codes(1, 1)], 3)
    mask = torch.zeros(1, 1, 8, 16, dtype=torch.bool)
    mask[:, :, :3] = True
    np.savez(tmp_path / "given.npz", codes=wide.numpy(), mask=mask.numpy())
    options = ["--given", tmp_path / "given.npz", "--grid", 8, 16]
    for _ in range(2):  # the second time all is there
        assert main(command(folder, tmp_path / "out", *options)) == 0
    assert "7 of them there already" in capsys.readouterr().out
    model = load_generator(folder)
    drawn = model.generate(LABELS, given=wide, mask=mask, grid=(8, 16))
    assert arrays(tmp_path / "out").shape == (7, 32, 64, 3)
    np.testing.assert_array_equal(arrays(tmp_path / "out"), pixels(model, drawn))
    told = refused(*command(folder, tmp_path / "out"))
    assert "grid" in told
    assert "takes a height and a width, got 1 number" in refused(*command(folder, tmp_path / "b", "--grid", 8))
    assert "grid must be" in refused(*command(folder, tmp_path / "b", "--grid", 8, 0))
    assert main(command(folder, tmp_path / "own", "--grid", 8, 8)) == 0
    assert main(command(folder, tmp_path / "own")) == 0, "the generator's own grid is no other setting"
    assert not (tmp_path / "b").exists()


def test_an_interruption_changes_nothing_and_other_codes_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    given = tmp_path / "given.npz"
    codes, mask = some_codes(3), MASKS["factor"].numpy()
    np.savez(given, codes=codes.numpy(), mask=mask)
    assert main(command(folder, tmp_path / "straight", "--given", given)) == 0

    from fqgan.generator import generate

    save, count = generate.save_picture, 0

    def failing(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generate, "save_picture", failing)
        assert main(command(folder, tmp_path / "out", "--given", given)) != 0
    assert len(list((tmp_path / "out").glob("0*.png"))) == 3
    before = sums(tmp_path / "out")

    np.savez(tmp_path / "moved.npz", codes=codes.numpy() ^ 1, mask=mask)
    np.savez(tmp_path / "held.npz", codes=codes.numpy(), mask=~mask)
    for name in ("moved", "held"):
        line = refused(*command(folder, tmp_path / "out", "--given", tmp_path / f"{name}.npz"))
        assert "was begun with other settings (given: '" in line
    line = refused(*command(folder, tmp_path / "out"))
    assert "was begun with other settings (given: '" in line and "-> ''" in line
    assert sums(tmp_path / "out") == before

    # what is drawn anyway, the type and the name of the file decide nothing
    drawn = np.where(mask, codes.numpy(), codes.numpy() ^ 3).astype(np.int16)
    np.savez_compressed(tmp_path / "same.npz", codes=drawn, mask=np.broadcast_to(mask, drawn.shape))
    assert main(command(folder, tmp_path / "out", "--given", tmp_path / "same.npz")) == 0
    assert sums(tmp_path / "out") == sums(tmp_path / "straight")


def test_folders_without_given_codes_stay_as_they_were(folder: Path, tmp_path: Path, refused: Refused) -> None:
    """What was begun before there were given codes goes on."""
    assert main(command(folder, tmp_path / "out")) == 0
    manifest = tmp_path / "out" / "samples.json"
    assert "given" not in json.loads(manifest.read_text())["settings"]
    (tmp_path / "out" / "000003.png").unlink()
    assert main(command(folder, tmp_path / "out")) == 0
    np.savez(tmp_path / "given.npz", codes=some_codes(1).numpy())
    line = refused(*command(folder, tmp_path / "out", "--given", tmp_path / "given.npz"))
    assert "was begun with other settings (given: '' -> '" in line


def test_two_ranks_write_what_one_writes(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "given.npz", codes=some_codes(3).numpy(), mask=MASKS["region"].numpy())
    assert main(command(folder, tmp_path / "one", "--given", tmp_path / "given.npz")) == 0
    on_two_ranks(command(folder, tmp_path / "two", "--given", tmp_path / "given.npz"))
    assert sums(tmp_path / "two") == sums(tmp_path / "one")


def test_without_a_mask_negative_codes_are_drawn(tmp_path: Path) -> None:
    codes, mask = some_codes(2), MASKS["region"].expand(2, -1, -1, -1)
    expected = codes.masked_fill(~mask, -1)
    np.savez(tmp_path / "alone.npz", codes=expected.numpy())
    np.savez(tmp_path / "both.npz", codes=codes.numpy(), mask=mask.numpy())
    for name in ("alone", "both"):
        assert torch.equal(read_given(tmp_path / f"{name}.npz", SIZES, GRID), expected)


def test_shapes_that_repeat_are_taken(tmp_path: Path) -> None:
    codes, mask = some_codes(3), torch.tensor([False, True])[:, None, None]
    for n, own, held in (
        (3, codes, mask),
        (3, codes, mask[None]),
        (1, codes[0], mask),  # of one picture
        (3, codes[0], mask.expand(3, 2, 8, 8)),
        (3, codes[:, :, :1, :1], mask),
    ):
        np.savez(tmp_path / "given.npz", codes=own.numpy(), mask=held.numpy())
        found = read_given(tmp_path / "given.npz", SIZES, GRID)
        wanted, stay = own.expand(n, 2, 8, 8), held.expand(n, 2, 8, 8)
        assert torch.equal(found, wanted.masked_fill(~stay, -1))


def test_given_codes_are_taken_in_any_type_of_whole_numbers() -> None:
    codes = some_codes(1).numpy()
    for kind in ("uint8", "uint16", "uint32", "uint64", "int8", ">i4"):
        found = Given.of(codes.astype(kind), np.ones((1, 2, 1, 1), bool), SIZES, GRID, 1)
        assert torch.equal(found.codes, torch.from_numpy(codes).flatten(2).permute(2, 0, 1))


def test_the_codes_of_an_edit_are_a_file_to_generate_from(folder: Path, pictures: Path, tmp_path: Path) -> None:
    edit = ["edit", folder, pictures / "0.png", "--keep", "semantic", "--num", 2, "--device", "cpu"]
    assert main([*map(str, edit), "--out", str(tmp_path / "edited")]) == 0
    given = tmp_path / "edited" / "codes.npz"
    done = fqgan.generate(folder, out=tmp_path / "out", num=4, classes="1", device="cpu", given=given, npz=True)
    assert len(done.settings.given) == 64
    with np.load(given) as found:
        codes, mask = torch.from_numpy(found["codes"]), torch.from_numpy(found["mask"])
    model = load_generator(folder)
    drawn = model.generate([1] * 4, given=codes[[0, 1, 0, 1]], mask=mask)
    np.testing.assert_array_equal(arrays(tmp_path / "out"), pixels(model, drawn, 4))


def test_what_is_given_in_words() -> None:
    given = some_codes(2)
    given[0, 1] = -1
    assert told(given, ["a", "b"], 1) == "given: codes of the first 1 of 2 pictures; of them stay: a 100 %, b 0 %"
    assert told(given, ["a", "b"], 5) == "given: codes of 2 pictures, in turn; of them stay: a 100 %, b 50 %"


class Harm:
    """Whoever unpickles it finds out."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def array(values: Any, kind: str = "<i8") -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, kind))
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": (1, 2, 8, 8)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + pickle.dumps(Harm())


def promised() -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (10**12, 2, 8, 8)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


GOOD, ONES = np.zeros((1, 2, 8, 8)), np.ones((1, 2, 8, 8))
HOSTILE: list[tuple[dict[str, bytes], str]] = [
    ({}, "holds no array codes"),
    ({"mask": array(ONES, "bool")}, "holds no array codes"),
    ({"codes": array(GOOD, "float32")}, "codes must be whole numbers, got float32"),
    ({"codes": array(GOOD, "bool")}, "codes must be whole numbers, got bool"),
    ({"codes": array(GOOD, "U3")}, "codes must be a tensor, an array or a list of numbers"),
    ({"codes": array(GOOD, "complex64")}, "codes must be a plain tensor of real numbers"),
    ({"codes": array(GOOD, "M8[s]")}, "codes must be a tensor, an array or a list of numbers"),
    ({"codes": array(np.zeros((1, 2, 4, 4)))}, "given must be codes (1, 2, 8, 8) with a mask of the same shape"),
    ({"codes": array(np.zeros((1, 3, 8, 8)))}, "got (1, 3, 8, 8) with a mask (1, 3, 8, 8)"),
    ({"codes": array(np.zeros((1, 1, 2, 8, 8)))}, "got (1, 1, 2, 8, 8) with a mask (1, 1, 2, 8, 8)"),
    ({"codes": array(np.zeros((0, 2, 8, 8)))}, "codes of one picture or more are needed, got none"),
    ({"codes": array(np.zeros((3, 2, 8, 8))), "mask": array(np.ones((2, 2, 8, 8)), "bool")}, "got (3, 2, 8, 8)"),
    ({"codes": array(GOOD + 32)}, "codes of factor 0 must lie in [0, 32), got 32"),
    ({"codes": array(GOOD + 16)}, "codes of factor 1 must lie in [0, 16), got 16"),
    ({"codes": array(GOOD - 1), "mask": array(ONES, "bool")}, "codes of factor 0 must lie in [0, 32), got -1"),
    ({"codes": array(np.full((1, 2, 8, 8), 2**64 - 1, np.uint64), "u8"), "mask": array(ONES, "bool")}, "got -1"),
    ({"codes": array(GOOD), "mask": array(ONES)}, "mask must be true or false, got int64"),
    ({"codes": array(GOOD), "mask": array(ONES, "U1")}, "mask must be a tensor"),
    ({"codes": array(GOOD), "mask": pickled()}, "mask cannot be read as an array"),
    ({"codes": pickled()}, "codes cannot be read as an array (cut short, or another format?): it holds objects"),
    ({"codes": promised()}, "its header promises (1000000000000, 2, 8, 8) int64, and 0 bytes follow"),
    ({"codes": array(GOOD)[:-8]}, "codes cannot be read as an array"),
    ({"codes": b""}, "codes cannot be read as an array"),
    ({"codes": b"\x93NUMPY"}, "codes cannot be read as an array"),
    ({"codes": b"codes"}, "codes cannot be read as an array"),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_arrays_are_refused_in_one_line(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    members, message = HOSTILE[number]
    with zipfile.ZipFile("given.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    with pytest.raises(UserError) as error:
        read_given(Path("given.npz"), SIZES, GRID)
    text = str(error.value)
    assert message in text and text.startswith("given.npz") and "\n" not in text
    assert not Path("harm").exists()


def test_files_that_are_none_are_refused_and_nothing_is_written(
    folder: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("good.npz", codes=some_codes(1).numpy())
    np.savez("bad.npz", codes=some_codes(1).numpy() + 16)
    np.save("single.npy", some_codes(1).numpy())
    Path("text.npz").write_text("codes")
    Path("empty.npz").touch()
    Path("cut.npz").write_bytes(Path("good.npz").read_bytes()[:-40])
    out = tmp_path / "made" / "out"
    for name, message in (
        ("missing.npz", "missing.npz does not exist"),
        (".", "is no file"),
        ("single.npy", "single.npy cannot be read as an .npz file"),
        ("text.npz", "text.npz cannot be read as an .npz file"),
        ("empty.npz", "empty.npz cannot be read as an .npz file"),
        ("cut.npz", "cut.npz cannot be read as an .npz file"),
        ("bad.npz", "bad.npz: codes of factor 0 must lie in [0, 32), got "),
    ):
        assert message in refused(*command(folder, out, "--given", name))
        assert not out.parent.exists()
    assert "is the folder of the input good.npz" in refused(*command(folder, tmp_path, "--given", "good.npz"))
