"""Study learnability: codes into stores, generators on them, and what ranks tokenizers."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sets import write_pictures

import fqgan
from fqgan.cli import main
from fqgan.config import FactorConfig, TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.lab.studies.learnability import row_name
from fqgan.metrics.information import code_statistics
from fqgan.tokenizer.model import FactorizedTokenizer

NETWORK = "efficientnet-lite0:stage3@32"


@pytest.fixture
def home(tiny: TokenizerRunConfig, tmp_path: Path) -> Path:
    """Four tokenizers and pictures of two classes."""
    for i in range(4):
        torch.manual_seed(i)
        factors = tuple(FactorConfig(f"f{j}", 16, 4, 0) for j in range(1 + i % 2))
        model = FactorizedTokenizer(child(tiny, model={"factors": factors}).model)
        fqgan.save_tokenizer(model.eval(), tmp_path / f"tok{i}")
    for i, folder in enumerate(("train/cat", "train/dog", "validation/cat", "validation/dog")):
        write_pictures(tmp_path / folder, 6, i, size=32)
    return tmp_path


def call(home: Path, *rest: object, count: int = 2) -> list[str]:
    tokenizers = [home / f"tok{i}" for i in range(count)]
    argv = ["study", "learnability", *tokenizers, "--names", *(f"t{i}" for i in range(count)), "--data", home / "train"]
    argv += ["--validation", home / "validation", "--out", home / "out", "--widths", 16, 32, "--steps", 3]
    argv += [
        "--train-batch",
        4,
        "--num",
        6,
        "--scales",
        1.5,
        2.0,
        "--features",
        NETWORK,
        "--workers",
        0,
        "--device",
        "cpu",
        "--train-precision",
        "float32",
    ]
    return [str(each) for each in (*argv, *rest)]


def table(home: Path) -> list[dict[str, str]]:
    with (home / "out" / "table.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_tokenizer_gets_the_same_generators_and_what_is_there_is_used_again(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(call(home)) == 0
    rows = table(home)
    assert [(row["tokenizer"], row["width"]) for row in rows] == [(f"t{i}", w) for i in (0, 1) for w in ("16", "32")]
    for row in rows:
        assert float(row["bits_per_image"]) > 0 and row["scale"] in ("1.5", "2.0")
        assert math.isfinite(float(row["unguided"])) and math.isfinite(float(row["guided"]))
        assert 0 < float(row["usage"]) <= 1
        assert all(float(row[name]) > 0 for name in ("reconstruction", "0.1_wrong", "0.1_near", "entropy"))
    assert int(rows[1]["parameters"]) > int(rows[0]["parameters"])
    # untrained codes of 16 a factor: about 4 bits a code and 64 positions, of one factor and of two
    for row, factors in zip(rows, (1, 1, 2, 2), strict=True):
        assert 0.5 < float(row["bits_per_image"]) / (64 * 4 * factors) < 2
    text = (home / "out/table.md").read_text()
    runs = sorted((home / "out/generators/rows").glob("*/seed-0/config.json"))
    assert len(runs) == 4 and all(json.loads(run.read_text())["train"]["precision"] == "float32" for run in runs)
    assert (
        "trained for 3 steps of 4" in text
        and "in float32" in text
        and "With fewer than 4 tokenizers no rank correlation" in text
    )
    doublings = math.log2(int(rows[1]["parameters"]) / int(rows[0]["parameters"]))
    bits, unguided = (((float(rows[0][key]), float(rows[1][key]))) for key in ("bits_per_image", "unguided"))
    change = (unguided[1] / unguided[0]) ** (1 / doublings) - 1
    assert f"| t0 | {(bits[1] - bits[0]) / doublings:+.1f} | {change:+.1%} |" in text
    assert (home / "out/figure.png").exists()
    before = {path: path.stat().st_mtime_ns for path in (home / "out").rglob("*.safetensors")}
    capsys.readouterr()
    assert main(call(home)) == 0
    assert table(home) == rows
    assert {path: path.stat().st_mtime_ns for path in (home / "out").rglob("*.safetensors")} == before
    assert "training to" not in capsys.readouterr().out


@pytest.mark.slow
def test_four_tokenizers_are_ranked(home: Path) -> None:
    assert main(call(home, "--seeds", 2, "--scales", 1.5, "--widths", 16, count=4)) == 0
    assert len(table(home)) == 8
    text = (home / "out/table.md").read_text()
    assert "## What ranks the tokenizers" in text and "| bits an image, width 16 |" in text
    assert "±" in text and "| 0.1 near |" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--features", "a", "b"), "--features must name one network"),
        (("--scales", "0.5"), "--scales are guidance scales above 1"),
        (("--steps", "0"), "--steps must be at least 1"),
        (("--share", "0"), "--share must be above 0 and at most 1"),
        (("--data", "missing"), "missing"),
    ],
)
def test_what_compares_nothing_is_refused(home: Path, refused: object, options: tuple[str, ...], message: str) -> None:
    argv = call(home)
    if options[0] in argv:
        place = argv.index(options[0])
        end = next((i for i in range(place + 1, len(argv)) if argv[i].startswith("--")), len(argv))
        argv[place:end] = []
    line = refused(*argv, *options)  # pyright: ignore
    assert message in line
    assert not (home / "out/generators").exists()


@pytest.mark.parametrize(("package", "count"), [("scipy", 4), ("matplotlib.figure", 2)])
def test_a_package_for_the_table_is_asked_for_before_the_trainings(
    home: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, package: str, count: int
) -> None:
    """The missing scipy was found after hours, when the correlations were due."""
    monkeypatch.setitem(sys.modules, package, None)
    assert "pip install 'fqgan[report]'" in refused(*call(home, count=count))
    assert not (home / "out").exists()


def test_statistics_of_codes_in_closed_form() -> None:
    """Independent uniform codes have their entropy and no information; a copied neighbour has all of it."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 4, (400, 2, 6, 6), generator=generator)
    found = code_statistics(codes, (4, 8))
    assert found.entropy == pytest.approx(4, abs=0.01) and found.usage == pytest.approx((1 + 0.5) / 2)
    assert max(found.left, found.upper, found.other) < 0.005
    codes[:, :, :, 1:] = codes[:, :, :, :1]  # each row is one code
    found = code_statistics(codes, (4, 4))
    assert found.left == pytest.approx(4, abs=0.05) and found.upper < 0.05 and found.other < 0.05
    codes[:, 1] = (codes[:, 0] + 1) % 4
    assert code_statistics(codes, (4, 4)).other == pytest.approx(2, abs=0.05)
    single = code_statistics(codes[:, :1, :, :1], (4,))
    assert single.left == 0 and single.other == 0


def test_names_of_rows_are_of_one_tokenizer() -> None:
    assert row_name("runs/a b", 64) == "runs-a-b-w64"
