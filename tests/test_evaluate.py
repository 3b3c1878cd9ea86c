"""`fqgan evaluate samples`, `statistics` and `compare`: the numbers, the protocol, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from inception_weights import save_random_inception
from processes import IN_FLOAT64, finish, on_two_ranks, start
from sets import FAST, FULL, evaluated, samples, write_pictures

from fqgan.base.files import file_sha256
from fqgan.base.schema import flatten
from fqgan.cli import main
from fqgan.data.fingerprint import content_sha256
from fqgan.data.sources import open_source
from fqgan.evaluation.statistics import load_statistics
from fqgan.nets import inception

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_inception(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.fixture
def genuine(random_inception: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Random weights that pass for FID's."""
    monkeypatch.setattr(inception, "SHA256", file_sha256(random_inception)[:8])
    return random_inception


# --- samples


def test_samples_are_measured_and_the_protocol_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = evaluated("samples", "real", "fake", *FULL)
    printed = capsys.readouterr().out
    assert "fake (12 images) against real (14 images) at 24 pixels" in printed
    assert "Frechet distance (efficientnet-lite0@32, not FID)" in printed and " FID" not in printed.replace(
        "not FID", ""
    )
    assert "warning: 12 samples: the Frechet distance is biased upwards" in printed
    assert printed.splitlines()[-1] == "out.json"
    assert result["metrics"]["frechet"] > 0 and set(result["metrics"]) >= {
        *("frechet_half", "score", "kernel_distance_error", "precision", "recall", "density", "coverage"),
    }
    protocol = result["protocol"]
    assert protocol["features"]["network"] == "efficientnet-lite0@32" and len(protocol["features"]["weights"]) == 64
    assert protocol["size"] == 24 and "bicubic" in protocol["crop"]
    assert protocol["samples"]["labels"] == {"classes": 2, "fewest": 6, "most": 6, "unlabelled": 0}
    assert protocol["reference"]["count"] == 14
    assert protocol["reference"]["content"] == f"sha256:{content_sha256(open_source('real'))}"
    assert protocol["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_set_against_itself(here: Path) -> None:
    numbers = samples("real", "real")["metrics"]
    assert numbers["frechet"] < 1e-3 and numbers["precision"] == numbers["recall"] == numbers["coverage"] == 1


def test_every_form_of_a_set_gives_the_same_numbers(here: Path) -> None:
    """A folder, ADM's .npz of it (compressed or not), and statistics of it."""
    expected = samples("real", "fake", "--npz", "fake.npz")["metrics"]
    with np.load("fake.npz") as arrays:
        assert arrays["arr_0"].shape == (12, 24, 24, 3) and arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_1"].tolist() == [0] * 6 + [1] * 6
        np.savez_compressed("small.npz", **arrays)
    for name in ("fake.npz", "small.npz"):
        assert samples("real", name)["metrics"] == pytest.approx(expected, rel=1e-6)
    assert main(["evaluate", "statistics", "real", *FAST, "--out", "real.safetensors"]) == 0
    result = samples("real.safetensors", "fake")
    assert result["metrics"] == pytest.approx(expected, rel=1e-6)
    assert result["protocol"] == samples("real", "fake")["protocol"]


def test_a_reference_is_kept_under_the_hash_of_its_content(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = samples("real", "fake")
    expected = first["metrics"]
    assert samples("real", "fake", "--no-cache")["protocol"] == first["protocol"]
    (kept,) = (here / "cache" / "statistics").iterdir()
    shutil.move("real", "elsewhere")
    capsys.readouterr()
    assert samples("elsewhere", "fake")["metrics"] == expected
    assert f"from {kept}" in capsys.readouterr().out
    write_pictures(Path("elsewhere"), 1, 9)  # another first picture
    assert samples("elsewhere", "fake")["metrics"] != expected
    assert len(list(kept.parent.iterdir())) == 2
    kept.write_bytes(b"cut")  # a damaged one is made again
    shutil.rmtree("elsewhere")
    write_pictures(Path("real"), 14, 0)
    assert samples("real", "fake")["metrics"] == pytest.approx(expected)


@pytest.mark.slow
def test_inception_gives_fid_sfid_and_inception_score(
    here: Path, genuine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And statistics in ADM's form; under other weights the same numbers have other names."""
    options = (f"inception={genuine}", "--workers", "0", "--limit", "6")
    result = evaluated("samples", "real", "fake", "--features", *options)
    names = {"fid", "fid_half", "sfid", "inception_score", "inception_score_std"}
    assert names < set(result["metrics"]) and not any("frechet" in name for name in result["metrics"])
    assert result["protocol"]["features"]["resize"] == "TensorFlow 1 bilinear to 299, not filtered"
    assert main(["evaluate", "statistics", "real", "--out", "real.safetensors", "--features", *options]) == 0
    kept, _ = load_statistics(Path("real.safetensors"))
    assert kept.spatial is not None
    arrays = {"mu": kept.pooled.mean, "sigma": kept.pooled.covariance}
    arrays |= {"mu_s": kept.spatial.mean, "sigma_s": kept.spatial.covariance}
    np.savez("adm.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
    capsys.readouterr()
    of_adm = evaluated("samples", "adm.npz", "fake", "--features", *options)
    for name in names:
        assert of_adm["metrics"][name] == pytest.approx(result["metrics"][name], rel=1e-6)
    assert "no kernel distance, precision, recall" in capsys.readouterr().out
    assert "precision" not in of_adm["metrics"]


def test_what_cannot_be_compared_is_refused_in_one_line(here: Path, refused: Refused, random_inception: Path) -> None:
    np.savez("mu.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez("nan.npz", mu=np.full(4, np.nan), sigma=np.eye(4))
    np.savez("odd.npz", mu=np.zeros(4), sigma=np.eye(5))
    np.savez("float.npz", arr_0=np.zeros((2, 8, 8, 3)))
    np.savez("else.npz", weights=np.zeros(3))
    Path("cut.npz").write_bytes(b"PK no")
    Path("cut.safetensors").write_bytes(b"no")
    write_pictures(Path("one"), 1, 3)
    write_pictures(Path("small"), 6, 3, size=20)
    assert main(["evaluate", "statistics", "real", *FAST, "--out", "real.safetensors"]) == 0
    before = sorted(here.iterdir())

    def line(*argv: object, fast: tuple[str, ...] = FAST) -> str:
        return refused("evaluate", "samples", *argv, *fast, "--no-cache")

    assert "mu.npz are of 2048-dimensional features, those of efficientnet-lite0:stage3@32 have 40" in line(
        "mu.npz", "fake"
    )
    assert "--features inception" in line("mu.npz", "fake")
    fast = ("--features", f"inception={random_inception}", "--workers", "0")
    assert "mu and sigma in mu.npz are Inception's" in line("mu.npz", "fake", fast=fast)
    assert "nan.npz: mu and sigma must be finite" in line("nan.npz", "fake")
    assert "mu and sigma must be (d,) and (d, d), got (4,) and (5, 5)" in line("odd.npz", "fake")
    assert "arr_0 must be (n, H, W, 3) uint8, got (2, 8, 8, 3) float64" in line("float.npz", "fake")
    assert "else.npz holds weights: arr_0, or mu and sigma, is needed" in line("else.npz", "fake")
    assert "cut.npz cannot be read as an .npz file (cut short, or another format?)" in line("cut.npz", "fake")
    assert "cut.safetensors cannot be read as statistics of fqgan evaluate" in line("cut.safetensors", "fake")
    assert "one: at least two readable pictures are needed" in line("real", "one")
    assert "is 20x20 pixels, below the image size 24" in line("small", "fake", "--small", "refuse")
    assert "99999999 pixels at a time" in line("real", "fake", "--size", 99999999)
    assert "made in another way (size: 24, not 20)" in line("real.safetensors", "small")
    other = ("--features", "efficientnet-lite0:stage3@48", "--workers", "0")
    told = line("real.safetensors", "fake", fast=other)
    assert "features.network: 'efficientnet-lite0:stage3@32', not 'efficientnet-lite0:stage3@48'" in told
    assert "nowhere does not exist" in line("nowhere", "fake")
    assert sorted(here.iterdir()) == before


def test_broken_pictures_are_named_and_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("fake/class0/000.png").write_bytes(b"no picture")
    result = samples("real", "fake", "--size", "24")
    assert "warning: skipped: fake/class0/000.png is no picture" in capsys.readouterr().out
    assert result["protocol"]["samples"]["count"] == 11 and result["protocol"]["samples"]["unreadable"] == 1


def test_too_few_samples_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = samples("real", "fake", "--limit", "4")
    told = capsys.readouterr().out
    assert "no kernel distance, precision, recall, density and coverage: too few" in told
    assert "span fewer than the 40 dimensions" in told and "precision" not in result["metrics"]


@pytest.mark.slow
def test_two_ranks_and_other_batches_give_the_numbers_of_one(here: Path) -> None:
    """The network's features move in their last bits with the batch, and the numbers with them."""
    argv = ["evaluate", "samples", "real", "fake", *FAST, "--no-cache", "--device", "cpu", "--out"]
    finish(start([*argv, "one.json"], code=IN_FLOAT64))
    on_two_ranks([*argv, "two.json", "--batch", "3"], code=IN_FLOAT64)
    expected, found = (json.loads(Path(f"{name}.json").read_text()) for name in ("one", "two"))
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-9)
    assert found["protocol"]["samples"] == expected["protocol"]["samples"]


@pytest.mark.slow
def test_two_ranks_and_other_batches_give_the_numbers_of_a_tokenizer(
    here: Path, exported: Path, pictures: Path
) -> None:
    argv = ["evaluate", "tokenizer", str(exported), "--data", str(pictures), *FAST, "--device", "cpu", "--out"]
    finish(start([*argv, "one.json"], code=IN_FLOAT64))
    on_two_ranks([*argv, "two.json", "--batch", "3"], code=IN_FLOAT64)
    expected, found = (json.loads(Path(f"{name}.json").read_text()) for name in ("one", "two"))
    assert {"psnr", "ssim", "perceptual", "frechet", "kernel_distance", "coverage"} <= set(expected["metrics"])
    for part in ("metrics", "factors"):
        for name, value in flatten(expected[part]).items():
            assert flatten(found[part])[name] == pytest.approx(value, rel=1e-9), name


# --- compare


def test_compare_shows_both_and_refuses_two_protocols(
    here: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    samples("real", "fake")
    Path("out.json").rename("a.json")
    samples("real", "fake", "--limit", "10")
    Path("out.json").rename("b.json")
    assert main(["evaluate", "compare", "a.json", "a.json"]) == 0
    shown = capsys.readouterr().out
    assert "the same protocol" in shown and "frechet" in shown
    line = refused("evaluate", "compare", "a.json", "b.json")
    assert "not the same protocol, so these numbers do not compare" in line
    assert "samples.count: 12 against 10" in line and "versions" not in line
    assert main(["evaluate", "compare", "a.json", "b.json", "--allow", "samples", "reference"]) == 0
    assert "the same protocol but for samples, reference" in capsys.readouterr().out
    assert "no such entry" in refused("evaluate", "compare", "a.json", "b.json", "--allow", "sample")
    changed = json.loads(Path("a.json").read_text())
    changed["protocol"]["versions"]["torch"] = "1.0"
    changed["protocol"]["features"]["weights"] = "0" * 64
    Path("c.json").write_text(json.dumps(changed))
    line = refused("evaluate", "compare", "a.json", "c.json")
    assert "features.weights: " in line and "versions.torch: " in line


def test_compare_wants_results(here: Path, refused: Refused) -> None:
    Path("no.json").write_text("{}")
    assert "no.json is no result of fqgan evaluate: it has no metrics" in refused("evaluate", "compare", "no.json", "x")
    assert "eval.json does not exist" in refused("evaluate", "compare", "real", "x")


def test_an_error_in_a_loader_process_ends_the_command(here: Path) -> None:
    """Its traceback used to hold the loader, and the command waited for the other processes without end."""
    code = (
        "import fqgan.data.loader as loader, torch.utils.data as data; from fqgan import cli; import sys\n"
        "read = loader.EvaluationSet.read_or_skip\n"
        "def full(self, key):\n"
        "    if data.get_worker_info(): raise MemoryError('no room')\n"
        "    return read(self, key)\n"
        "loader.EvaluationSet.read_or_skip = full\n"
        "sys.exit(cli.main(['evaluate', 'samples', 'real', 'fake', '--workers', '2', '--no-cache', '--out', 'o.json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "out of memory" in done.stderr and not Path("o.json").exists()
