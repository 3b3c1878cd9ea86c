"""Files that version 0.1 wrote are read, and what it began goes on. How they were made: tests/golden/README.md."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

import fqgan
from fqgan.cli import main
from fqgan.data.tokens import TokenStore
from fqgan.engine.run import read_stats

ARCHIVE = Path(__file__).parent / "golden" / "version-0.1.tar.xz"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs `tok` and `gen`, their exports, `store`, `samples`, and the `pictures` they came from."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("verb", "preset", "run"), [("tokenizer", "photos-dual", "tok"), ("generator", "far-tiny", "gen")]
)
def test_a_run_goes_on_with_the_same_step(written: Path, verb: str, preset: str, run: str) -> None:
    """The third step, after a resume, has the losses and gradient norm that version 0.1 found there."""
    config = ["--config", f"{run}/config.json", "--train.steps", "3"]
    assert main([f"train-{verb}", preset, "--run", run, *config]) == 0
    expected = json.loads((written / f"{run}-step-3.json").read_text())
    found = read_stats(written / run)[-1]
    compared = [name for name in expected if name.endswith(("loss", "norm")) or name in ("step", "images_seen", "lr")]
    assert len(compared) > 4 and found.keys() == expected.keys()
    for name in compared:
        assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name


def test_stores_exports_and_pictures_are_read(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = TokenStore.open("store", verify=True)
    exported, trained = fqgan.load_tokenizer("tok-export"), fqgan.load_tokenizer("tok")
    assert exported.fingerprint() == trained.fingerprint() == store.tokenizer_fingerprint
    images = fqgan.load_images(sorted(map(str, written.glob("pictures/*/*.png"))), size=16)
    codes = trained.encode(images)
    stored = store.take(range(len(store)), [0] * len(store))[0].view_as(codes)
    assert (codes == stored).float().mean() > 0.99  # a tie may fall otherwise on another CPU
    generator = fqgan.load_generator("gen-export")
    assert generator.tokenizer.fingerprint() == store.tokenizer_fingerprint
    # the same command finds all its pictures there
    assert main(["generate", "gen", "--num", "4", "--out", "samples", "--device", "cpu"]) == 0
    assert "4 of them there already" in capsys.readouterr().out
