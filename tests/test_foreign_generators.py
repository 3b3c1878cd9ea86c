"""Generators of codes that tokenizers of others made: trained, drawn, exported, compared."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from foreign import LEARNER, TOY
from sets import write_pictures

import fqgan
from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.models.find import model_config

Refused = Callable[..., str]
NETWORK = "efficientnet-lite0:stage3@32"


def run_generator(home: Path, *more: str) -> list[str]:
    """A tiny one on the codes of `two`."""
    if not (home / "store").exists():
        assert main(["extract", "py:toys.py:two", "--data", "small", "--out", "store", "--workers", "0"]) == 0
    argv = LEARNER.split()
    return [*argv, "--train.image-every", "1", "--train.sample-images", "4", *more]


def test_a_generator_learns_codes_of_others_and_they_decode_its_pictures(
    toys: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "py:toys.py:two"
    assert f"store was made with {own}, a tokenizer by address: add --tokenizer {own}" in refused(*run_generator(toys))
    assert not Path("run").exists()
    wrong = refused(*run_generator(toys), "--tokenizer", "py:toys.py:grey")
    assert "py:toys.py:grey is not the one that token store store was made with" in wrong
    assert main([*run_generator(toys), "--tokenizer", own]) == 0
    assert len(list(Path("run/images").glob("*.png"))) == 2, "decoded on the way"
    draw = ["generate", "run", "--num", "3", "--batch", "2", "--device", "cpu"]
    assert f"are those of {own}, a tokenizer by address: name it as the tokenizer" in refused(*draw, "--out", "drawn")
    wrong = refused(*draw, "--out", "drawn", "--tokenizer", "py:toys.py:grey")
    assert "is not the one that" in wrong and not Path("drawn").exists()
    assert main([*draw, "--out", "drawn", "--tokenizer", own]) == 0
    generator = fqgan.load_generator("run", tokenizer=own)
    wanted = generator.tokenizer.decode(generator.generate([0, 1, 0], batch=2))
    drawn = fqgan.load_images([f"drawn/{i:06}.png" for i in range(3)], size=16)
    assert (drawn - wanted).abs().max() <= 1 / 127.5, "as 8-bit values"
    manifest = json.loads(Path("drawn/samples.json").read_text())
    assert fqgan.load_tokenizer(own).fingerprint() in json.dumps(manifest)
    # bits of codes need no tokenizer; what the codes look like does
    assert f"add --tokenizer {own}" in refused("evaluate", "likelihood", "run", "--data", "store")
    assert main(["evaluate", "likelihood", "run", "--data", "store", "--tokenizer", own, "--shown", "2"]) == 0
    result = json.loads(Path("run/likelihood/eval.json").read_text())
    assert set(result["factors"]) == {"factor 0", "factor 1"}
    capsys.readouterr()


def test_an_exported_generator_says_whose_codes_it_makes(toys: Path, refused: Refused) -> None:
    own = "py:toys.py:two"
    assert main([*run_generator(toys), "--tokenizer", own]) == 0
    assert main(["convert", "run", "bare"]) == 0
    assert main(["convert", "run", "whole", "--tokenizer", own]) == 0
    fingerprint = fqgan.load_tokenizer(own).fingerprint()
    for folder in ("bare", "whole"):
        content = json.loads(Path(folder, "config.json").read_text())
        assert (content["tokenizer"], content["tokenizer_address"]) == (fingerprint, own)
        assert f'tokenizer="{own}"' in Path(folder, "README.md").read_text()
        assert f"are those of {own}" in refused("generate", folder, "--out", "drawn")
        assert fqgan.load_generator(folder, tokenizer=own).tokenizer.fingerprint() == fingerprint
    assert "makes codes of py:toys.py:two: no tokenizer by address is served" in refused("serve", "bare")
    # code that has changed since may mean other things by its codes
    Path("toys.py").write_text(TOY.replace("/ 4 - 1", "/ 3 - 1"))
    with pytest.raises(UserError, match=r"py:toys\.py:two is not the one that"):
        fqgan.load_generator("bare", tokenizer=own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"downsampling": 99}, "model makes no sense"), ({"odd": 1}, "unknown key 'odd'"), ({"factors": []}, "no sense")],
)
def test_a_damaged_description_is_told_in_one_line(changes: dict, message: str, toys: Path) -> None:
    file = fqgan.load_tokenizer("py:toys.py:two").export(toys / "described") / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"model": content["model"] | changes}))
    with pytest.raises(UserError, match=rf"described/config\.json: .*{message}"):
        model_config(toys / "described", "tokenizer")


@pytest.mark.slow
def test_learnability_compares_tokenizers_of_others(toys: Path) -> None:
    for i, folder in enumerate(("train/cat", "train/dog", "validation/cat", "validation/dog")):
        write_pictures(toys / folder, 6, i, size=32)
    argv = ["study", "learnability", "py:toys.py:grey", "py:toys.py:two", "--names", "one", "two", "--data", "train"]
    argv += ["--validation", "validation", "--out", "out", "--widths", "16", "--steps", "3", "--train-batch", "4"]
    argv += ["--num", "6", "--scales", "1.5", "--features", NETWORK, "--workers", "0", "--device", "cpu"]
    assert main(argv) == 0
    with (toys / "out/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["tokenizer"] for row in rows] == ["one", "two"]
    # the two codes of a position of the second are the same number: the one tells all of the other
    assert float(rows[0]["other_factors"]) == 0 and float(rows[1]["other_factors"]) > 0
    assert float(rows[1]["entropy"]) == pytest.approx(2 * float(rows[0]["entropy"]))
    before = {file: file.stat().st_mtime_ns for file in (toys / "out").glob("generators/rows/*/*/points/1/*")}
    assert before and main(argv) == 0, "what is there is used again"
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
