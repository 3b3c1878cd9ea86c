"""Studies of trained tokenizers: their numbers against closed forms, and the commands."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import ortho_group
from sklearn.metrics import mutual_info_score

from fqgan.cli import main
from fqgan.data.loader import load_images
from fqgan.data.sources import open_source
from fqgan.lab.studies.features import factor_features, pick
from fqgan.lab.studies.measures import linear_probe, mean_squared_cosine, neighbour_purity, within_share
from fqgan.metrics.information import entropy, mutual_information
from fqgan.metrics.psnr import psnr
from fqgan.tokenizer.load import save_tokenizer
from fqgan.tokenizer.model import FactorizedTokenizer

Refused = Callable[..., str]
RNG = np.random.default_rng(0)


# --- numbers


def test_cosines() -> None:
    x = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    assert mean_squared_cosine(x, -3 * x) == pytest.approx(1)
    turned = torch.from_numpy(ortho_group.rvs(8, random_state=0)).float()
    assert mean_squared_cosine(x, x.roll(1, 0) @ turned) == pytest.approx(1 / 8, abs=0.003)  # independent directions
    pairs = torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[0.0, 1], [1, 0]])
    assert mean_squared_cosine(*pairs) == pytest.approx((0 + 0.5) / 2)
    with pytest.raises(ValueError, match="equal shapes"):
        mean_squared_cosine(x, x[:, :4])


def test_mutual_information_is_that_of_a_library() -> None:
    a = torch.from_numpy(RNG.integers(0, 13, 4000))
    b = (a * 5 + torch.from_numpy(RNG.integers(0, 4, 4000))) % 17
    found = mutual_information(a, b)
    assert found.counted == pytest.approx(mutual_info_score(a, b) / math.log(2), abs=1e-9)
    assert found.smaller_entropy == pytest.approx(min(entropy(a), entropy(b)))
    assert entropy(torch.arange(8)) == pytest.approx(3)
    same = mutual_information(a, a)
    assert same.counted == pytest.approx(entropy(a)) and 0 < same.chance < 0.05


def test_information_of_independent_codes_is_chance() -> None:
    """Plug-in mutual information of 2,000 pairs of 64 x 64 codes is over half a bit; none of it is above chance."""
    a, b = (torch.from_numpy(RNG.integers(0, 64, 2000)) for _ in range(2))
    found = mutual_information(a, b, permutations=8)
    assert found.counted > 0.5
    assert found.corrected < 0.05


def test_purity_and_compactness() -> None:
    centres = np.array([[0.0, 0], [100, 0], [0, 100]])
    labels = np.repeat(np.arange(3), 30)
    apart = centres[labels] + RNG.normal(size=(90, 2))
    assert neighbour_purity(apart, labels, 10) == 1.0
    mixed = RNG.normal(size=(3000, 2)), RNG.integers(0, 3, 3000)
    assert neighbour_purity(*mixed, 10) == pytest.approx(1 / 3, abs=0.02)
    assert within_share(*mixed) == pytest.approx(1, abs=0.01)
    assert within_share(centres[labels], labels) == pytest.approx(0)
    # two classes at -1 and 1, each of variance 1: half of the variance is within
    line = np.array([[-2.0], [0], [0], [2]])
    assert within_share(line, np.array([0, 0, 1, 1])) == pytest.approx(0.5)
    assert within_share(line * 1e3, np.array([0, 0, 1, 1])) == pytest.approx(0.5), "free of scale"
    with pytest.raises(ValueError, match="more than 3 points"):
        neighbour_purity(apart[:3], labels[:3], 3)


def test_a_linear_probe() -> None:
    labels = RNG.integers(0, 4, 600)
    signal = np.eye(4)[labels] * 3 + RNG.normal(size=(600, 4)) * 0.1
    points = np.concatenate([signal, RNG.normal(size=(600, 20)) * 100], 1)
    found = linear_probe(points[:400], labels[:400], points[400:], labels[400:])
    assert found.accuracy > 0.99
    noise = linear_probe(points[:400, 4:], labels[:400], points[400:, 4:], labels[400:])
    assert noise.accuracy == pytest.approx(0.25, abs=4 * noise.error)
    assert noise.error == pytest.approx(math.sqrt(noise.accuracy * (1 - noise.accuracy) / 200))


# --- features and commands


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of two splits: twelve pictures of each of three classes, and six."""
    for split, count in (("train", 12), ("val", 6)):
        for label, colour in enumerate(("blue", "green", "red")):
            folder = tmp_path / "data" / split / colour
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = RNG.integers(0, 60, (32, 32, 3))
                pixels[..., 2 - label] += 40 + 10 * (i % 5)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def export(tokenizer: FactorizedTokenizer, tmp_path: Path) -> Path:
    return save_tokenizer(tokenizer, tmp_path / "tokenizer")


def table(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_features_are_the_tokenizers(tokenizer: FactorizedTokenizer, data: Path, in_float64: None) -> None:
    tokenizer.double()
    source = open_source(str(data), "train")
    indices = pick(source, 2, (0, 2))
    assert source.labels[indices].tolist() == [0, 0, 2, 2]
    features = factor_features(tokenizer, source, indices, size=32, batch=3)
    images = load_images([source.describe(i) for i in indices], 32)
    codes = tokenizer.encode(images)
    assert torch.equal(features.codes, codes) and features.labels.tolist() == [0, 0, 2, 2]
    for i, (own, embedded) in enumerate(zip(tokenizer.features(images), tokenizer.embed(codes), strict=True)):
        torch.testing.assert_close(features.continuous[i], own)
        torch.testing.assert_close(features.discrete[i], embedded)
        assert features.points("discrete", i, "mean") == pytest.approx(embedded.mean((2, 3)).detach().numpy())
        assert features.points("continuous", i, "grid").shape == (4, own[0].numel())
        torch.testing.assert_close(features.vectors("discrete", i)[65], embedded[1, :, 0, 1])


def test_the_studies_through_the_command_line(
    export: Path,
    data: Path,
    tokenizer: FactorizedTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    in_float64: None,
) -> None:
    tokenizer.double()
    common = ["--data", str(data), "--workers", "0", "--out"]
    out = tmp_path / "disentangle"
    assert main(["study", "disentangle", str(export), *common, str(out)]) == 0
    written = [*(out / f"table.{kind}" for kind in ("md", "csv", "tex")), out / "figure.png", out / "figure.pdf"]
    assert capsys.readouterr().out.splitlines()[-5:] == list(map(str, written))
    assert all(path.stat().st_size for path in written)
    row = table(out)[0]
    features = factor_features(tokenizer, source := open_source(str(data), "validation"), range(len(source)), size=32)
    pair = features.vectors("discrete", 0), features.vectors("discrete", 1)
    assert float(row["cos2_discrete"]) == pytest.approx(mean_squared_cosine(*pair))
    assert row["positions"] == str(18 * 64) and row["factors"] == "visual, semantic"

    out = tmp_path / "probe"
    assert main(["study", "probe", str(export), *common, str(out)]) == 0
    rows = table(out)
    assert [(r["factor"], r["features"], r["points"]) for r in rows[:3]] == [
        *(("visual", "continuous", "mean"), ("visual", "continuous", "grid"), ("visual", "discrete", "mean"))
    ]
    assert len(rows) == 3 * 2 * 2 and {r["test_images"] for r in rows} == {"18"}
    assert (out / "figure.png").is_file() and (out / "figure.pdf").is_file()
    # even an untrained encoder tells colours apart
    assert max(float(r["accuracy"]) for r in rows if r["factor"] == "all") > 0.6

    out = tmp_path / "tsne"
    options = ["--classes", "blue,red", "--neighbours", "3", "--perplexity", "3", "--split", "train"]
    assert main(["study", "tsne", str(export), *common, str(out), *options]) == 0
    rows = table(out)
    assert {r["images"] for r in rows} == {"24"} and len(rows) == 4
    assert "24 images of blue, red" in (out / "table.md").read_text()
    assert (out / "figure.png").read_bytes()[:4] == b"\x89PNG" and (out / "figure.pdf").read_bytes()[:4] == b"%PDF"

    out = tmp_path / "views"
    assert main(["study", "views", str(export), *common, str(out), "--shown", "5", "--batch", "4"]) == 0
    images = torch.cat([load_images([source.describe(i)], 32) for i in range(len(source))])
    alone = psnr(images, tokenizer.decode(tokenizer.encode(images), [1])).mean().item()
    assert [r["from"] for r in table(out)] == ["all factors", "visual alone", "semantic alone"]
    assert float(table(out)[2]["psnr"]) == pytest.approx(alone)
    document = (out / "views.pdf").read_bytes()
    assert document[:4] == b"%PDF" and b"CreationDate" not in document and b"DCTDecode" not in document  # no JPEG
    with Image.open(out / "views.png") as picture:
        assert picture.size == (5 * 34 + 2, 4 * 34 + 2)


def test_several_tokenizers_beside_each_other(export: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv = ["study", "tsne", str(export), str(export), "--data", str(data), "--workers", "0", "--out", str(out)]
    argv += ["--names", "one", "an other", "--num-classes", "3", "--neighbours", "3", "--perplexity", "3"]
    assert main(argv) == 0
    rows = table(out)
    assert [row["model"] for row in rows] == ["one"] * 4 + ["an other"] * 4
    assert [r["purity"] for r in rows[:4]] == [r["purity"] for r in rows[4:]]
    assert sorted(path.name for path in out.glob("*.png")) == ["figure-an-other.png", "figure-one.png"]


def test_what_cannot_be_studied_is_refused(
    export: Path, data: Path, pictures: Path, tmp_path: Path, refused: Refused
) -> None:
    def line(study: str, *rest: object, source: Path = data) -> str:
        return refused("study", study, export, "--data", source, "--workers", "0", "--out", tmp_path / "out", *rest)

    other = tmp_path / "other"
    shutil.copytree(data / "val", other)
    (other / "red").rename(other / "rouge")
    assert "fqgan study tsne" in refused("study", "tsne", "--help-me", "--data", data)
    assert "name at least one checkpoint" in refused("study", "views", "--data", data, "--out", tmp_path / "x")
    assert "--out is missing" in refused("study", "views", export, "--data", data)
    assert "unknown class 'bleu'; did you mean 'blue'?" in line("tsne", "--classes", "bleu")
    assert "has 3 class(es), not 4: choose fewer with --num-classes" in line("tsne")
    assert "has 3 class(es), not 5" in line("tsne", "--preset", "fig6")
    assert "has 3 class(es), not 8" in line("tsne", "--preset", "fig6", "--num-classes", "8")
    assert "18 images are too few for 10 neighbours and perplexity 30" in line("tsne", "--num-classes", "3")
    assert "--names has 2 name(s) for 1 checkpoint(s)" in line("views", "--names", "a", "b")
    assert "is named twice" in refused("study", "views", export, export, "--data", data, "--out", tmp_path / "x")
    both = [export, export, "--names", "a/b", "a-b", "--data", data, "--out", tmp_path / "x"]
    assert "a/b and a-b would share a file" in refused("study", "views", *both)
    assert "a probe needs one of each" in line("probe", source=pictures)
    assert "has no validation split" in line("probe", source=data / "train")
    assert "--split validation takes the images to test on" in line("probe", "--split", "validation")
    assert f"--test {data} holds the images" in line("probe", "--test", data, "--split", "validation")
    assert "4 images are too few for a probe" in line("probe", "--limit", 4)
    assert "have other classes" in line("probe", "--test", other)
    # without names on one side the numbers must do
    bare = tmp_path / "bare.parquet"
    content = [{"bytes": path.read_bytes()} for path in sorted((data / "train").rglob("*.png"))]
    pq.write_table(pa.table({"image": content, "label": [i // 12 for i in range(36)]}), bare)
    assert "4 images are too few" in line("probe", "--test", data, "--limit", 4, source=bare)
    # the same names are not the same pictures
    shutil.copytree(data / "train", twin := tmp_path / "twin")
    assert "holds the images" in line("probe", "--test", twin)
    Image.new("RGB", (32, 32)).save(next(twin.rglob("*.png")))
    assert "4 images are too few for a probe" in line("probe", "--test", twin, "--limit", 4)
    assert not (tmp_path / "out").exists()
