"""`fqgan generate`: what it writes, the same bytes whatever the kills and ranks, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from generators import NAMES
from PIL import Image
from processes import on_two_ranks, start

from fqgan.base.classes import chosen_classes
from fqgan.base.errors import UserError
from fqgan.base.files import lock
from fqgan.cli import main
from fqgan.data.transforms import to_uint8
from fqgan.generator.model import FAR, load_generator, save_generator
from fqgan.tokenizer.load import save_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer

Refused = Callable[..., str]


def command(folder: Path, out: Path, *options: object) -> list[str]:
    fixed = ["--num", "7", "--batch", "2", "--device", "cpu", "--npz", "--out", out]
    return [str(part) for part in ("generate", folder, *fixed, *options)]


def sums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_what_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    settings = ["--classes", "2,dog", "--seed", "5", "--top-k", "0", "8", "--cfg-scale", "3"]
    assert main(command(folder, out, *settings)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{i:06d}.png" for i in range(7)),
        "grid.png",
        "samples.json",
        "samples.npz",
    ]
    labels = [2, 1, 2, 1, 2, 1, 2]
    generator = load_generator(folder)
    codes = generator.generate(labels, cfg_scale=3.0, top_k=[0, 8], seed=5, batch=3)
    with torch.no_grad():
        expected = to_uint8(torch.cat([generator.tokenizer.decode(part) for part in codes.split(2)]))
    content = json.loads((out / "samples.json").read_text())
    assert [picture["label"] for picture in content["pictures"]] == labels
    assert content["complete"]
    assert content["class_names"] == {"1": "dog", "2": "tench, Tinca tinca"}
    assert content["settings"]["sampling"]["top_k"] == [0, 8]
    with np.load(out / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (7, 32, 32, 3)
        assert arrays["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["arr_0"], expected.permute(0, 2, 3, 1).numpy())
        assert arrays["arr_1"].tolist() == labels
    for i, picture in enumerate(content["pictures"]):
        with Image.open(out / picture["file"]) as image:
            np.testing.assert_array_equal(np.asarray(image), expected[i].permute(1, 2, 0).numpy())
    with Image.open(out / "grid.png") as image:
        assert image.size == (2 + 2 * 34, 2 + 4 * 34)  # a column a class


def test_the_same_command_goes_on_and_keeps_what_is_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    out = tmp_path / "out"
    assert main(command(folder, out)) == 0
    expected = sums(out)
    times = {path: path.stat().st_mtime_ns for path in sorted(out.glob("0*.png"))}
    for lost in ("000003.png", "grid.png", "samples.npz"):
        (out / lost).unlink()
    (out / ".000003.png.writing").write_bytes(b"half")
    capsys.readouterr()
    assert main(command(folder, out)) == 0
    assert "7 pictures of 3 classes, 6 of them there already" in capsys.readouterr().out
    assert sums(out) == expected
    kept = [path.name for path, before in times.items() if path.stat().st_mtime_ns == before]
    assert kept == [f"{i:06d}.png" for i in (0, 1, 4, 5, 6)]
    line = refused(*command(folder, out, "--seed", "1", "--temperature", "0.5"))
    assert "was begun with other settings" in line
    assert "seed: 0 -> 1" in line
    assert "sampling.temperature: (1.0,) -> (0.5,)" in line
    assert sums(out) == expected


def test_weights_count_as_settings(folder: Path, generator: FAR, tmp_path: Path, refused: Refused) -> None:
    assert main(command(folder, tmp_path / "out")) == 0
    with torch.no_grad():
        generator.aggregate.weight.add_(0.1)
    other = save_generator(generator, tmp_path / "other")
    assert "generator: '" in refused(*command(other, tmp_path / "out"))


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(folder: Path, tmp_path: Path) -> None:
    assert main(command(folder, tmp_path / "straight", "--num", "24")) == 0
    rng, began = random.Random(0), time.monotonic()
    killed = 0
    while True:
        child = start(command(folder, tmp_path / "killed", "--num", "24"))
        # starting takes most of the time: wait for the manifest, then for a moment of the work
        while not (tmp_path / "killed" / "samples.json").exists() and child.poll() is None:
            time.sleep(0.005)
        try:
            child.wait(rng.uniform(0, 0.4) if killed < 4 else 120)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            killed += 1
            continue
        assert child.returncode == 0
        break
    assert killed
    assert time.monotonic() - began < 120
    (tmp_path / "killed" / ".lock").unlink(missing_ok=True)
    assert sums(tmp_path / "killed") == sums(tmp_path / "straight")


def test_two_ranks_write_what_one_writes(folder: Path, tmp_path: Path) -> None:
    assert main(command(folder, tmp_path / "one")) == 0
    on_two_ranks(command(folder, tmp_path / "two"))
    assert sums(tmp_path / "two") == sums(tmp_path / "one")


def test_classes() -> None:
    assert chosen_classes("all", 3, ()) == (0, 1, 2)
    assert chosen_classes("0, 2,0", 3, NAMES) == (0, 2, 0)
    assert chosen_classes("tench, Tinca tinca", 3, NAMES) == (2,)
    assert chosen_classes("dog,0", 3, NAMES) == (1, 0)
    for text, names, message in (
        ("3", NAMES, "there is no class 3, the generator has classes 0 to 2"),
        ("cat,dgo", NAMES, "unknown class 'dgo'; did you mean 'dog'?"),
        ("dog", (), "this generator's classes have numbers only"),
        ("0,,1", NAMES, "unknown class ''"),
    ):
        with pytest.raises(UserError) as error:
            chosen_classes(text, 3, names)
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "dgo"], "unknown class 'dgo'; did you mean 'dog'?"),
        (["--top-k", "17"], "top_k 17 is impossible: factor 1 has 16 codes"),
        (["--top-p", "0"], "top_p must be above 0 and at most 1, got 0.0"),
        (["--temperature", "1", "2", "3"], "temperature needs one value, or one for each of the 2 factors, got 3"),
        (["--cfg-scale", "-1"], "cfg_scale must be at least 0 and at most 1,000,000, got -1.0"),
        (["--num", "0"], "--num must be at least 1, got 0"),
        (["--weights", "ema"], "has no moving average"),
        (["--classses", "1"], "unknown option --classses; did you mean '--classes'?"),
    ],
)
def test_refused_before_anything_is_written(
    options: list[str], message: str, folder: Path, tmp_path: Path, refused: Refused
) -> None:
    assert message in refused(*command(folder, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_and_a_busy_one_are_refused(folder: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "exists and is no folder of generated pictures" in refused(*command(folder, tmp_path / "out"))
    (tmp_path / "busy").mkdir()
    with lock(tmp_path / "busy" / ".lock"):
        assert "is in use by another process" in refused(*command(folder, tmp_path / "busy"))


def test_a_tokenizer_that_does_not_belong_is_refused(
    folder: Path,
    tokenizer: FactorizedTokenizer,
    tmp_path: Path,
    refused: Refused,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def foreign(name: str, **changes: object) -> Path:
        config = replace(tokenizer.config, **changes)  # pyright: ignore[reportArgumentType]
        torch.manual_seed(1)
        return save_tokenizer(FactorizedTokenizer(config), tmp_path / name)

    other_weights = foreign("weights")
    assert "is not the one that" in refused(*command(folder, tmp_path / "out", "--tokenizer", other_weights))
    # files that don't say which tokenizer they belong to are compared by their shapes
    config = json.loads((folder / "config.json").read_text())
    del config["tokenizer"]
    (folder / "config.json").write_text(json.dumps(config))
    first, second = tokenizer.config.factors
    for name, changes, message in (
        ("codes", {"factors": (replace(first, codebook_size=64), second)}, "has 64 x 16 codes, the generator 32 x 16"),
        ("k", {"factors": (first,)}, "has 32 codes, the generator 32 x 16"),
        ("grid", {"image_size": 64}, "the generator's token grid is 8x8, the tokenizer's 16x16"),
    ):
        arguments = command(folder, tmp_path / "out", "--tokenizer", foreign(name, **changes))
        capsys.readouterr()
        assert main(arguments) == 2
        warning, error = capsys.readouterr().err.splitlines()
        assert "does not say which tokenizer it belongs to" in warning
        assert message in error
    assert not (tmp_path / "out").exists()


def test_fewer_pictures_than_ranks_are_refused(
    folder: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fqgan.engine import distributed

    world = distributed.World(0, 9, torch.device("cpu"))
    monkeypatch.setattr(distributed, "start", lambda name: world)
    assert "--num 7 is less than the 9 ranks" in refused(*command(folder, tmp_path / "out"))


def test_large_batches_are_decoded_in_parts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Feature maps of a whole batch may not fit where its codes do."""
    sizes: list[int] = []
    decode = FactorizedTokenizer.decode

    def counted(self: FactorizedTokenizer, codes: torch.Tensor, **options: bool) -> torch.Tensor:
        sizes.append(len(codes))
        return decode(self, codes, **options)

    monkeypatch.setattr(FactorizedTokenizer, "decode", counted)
    for most in (64, 2):
        monkeypatch.setattr("fqgan.generator.generate._DECODED", most)
        assert main(command(folder, tmp_path / str(most), "--batch", 5)) == 0
    assert sizes == [5, 2, 2, 2, 1, 2]
    assert sums(tmp_path / "64") == sums(tmp_path / "2")
