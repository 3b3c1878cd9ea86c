"""`fqgan redraw`: a generator draws a share of a store's codes again, for the post-training of a decoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from generators import paired
from stores import make_store

from fqgan.base.errors import UserError
from fqgan.cli import main
from fqgan.config.verbs import RedrawingSettings
from fqgan.data.tokens import TokenStore
from fqgan.engine.distributed import World
from fqgan.generator.model import FAR, load_generator, save_generator
from fqgan.generator.redrawn import kept_positions, redraw_store
from fqgan.generator.task import _open
from fqgan.tokenizer.model import FactorizedTokenizer

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("redrawn")


@pytest.fixture
def generator(folder: Path, tokenizer: FactorizedTokenizer) -> FAR:
    if not (folder / "far").exists():
        save_generator(paired(tokenizer), folder / "far")
        make_store(folder / "store", tokenizer, crops="center", side=32, images=7, shard=4)
        make_store(folder / "flipped", tokenizer, crops="flip", side=32, images=4)
    return load_generator(folder / "far")


def settings(folder: Path, out: str, **changes: object) -> RedrawingSettings:
    options = {"checkpoint": folder / "far", "store": folder / "store", "out": folder / out, "keep": 0.75, **changes}
    return RedrawingSettings(**options)  # pyright: ignore[reportArgumentType]


def test_kept_codes_stay_and_the_others_are_what_the_generator_draws_given_them(folder: Path, generator: FAR) -> None:
    done = redraw_store(settings(folder, "once", seed=3), ALONE)
    assert done.images == done.encoded == 7
    before, after = TokenStore.open(folder / "store"), TokenStore.open(folder / "once", verify=True)
    assert before.data_fingerprint()["labels"] == after.data_fingerprint()["labels"]
    assert after.manifest.data == before.manifest.data and after.tokenizer_fingerprint == before.tokenizer_fingerprint
    (old, labels), (new, _) = (store.take(range(7), [0] * 7) for store in (before, after))
    kept = torch.stack([kept_positions(64, 0.75, 3, i) for i in range(7)]).view(7, 1, 8, 8).expand(-1, 2, -1, -1)
    assert torch.equal(kept[:, 0].sum((1, 2)), torch.full((7,), 48)) and not torch.equal(kept[0], kept[1])
    assert torch.equal(old[kept], new[kept])
    changed = (old != new)[~kept].float().mean()
    assert changed > 0.8, "of 32 and 16 codes"
    i = 5
    drawn = generator.generate(labels[i : i + 1], seed=3, first_image=i, given=old[i : i + 1], mask=kept[i : i + 1])
    assert torch.equal(drawn[0], new[i])
    again = redraw_store(settings(folder, "other-batch", seed=3, batch=3), ALONE)
    assert torch.equal(TokenStore.open(again.out).take(range(7), [0] * 7)[0], new), "whatever the batch"


def test_the_command_resumes_and_refuses_other_settings(
    folder: Path, generator: FAR, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "by-command"
    words = ["redraw", str(folder / "far"), str(folder / "store"), "--out", str(out), "--device", "cpu"]
    assert main([*words, "--keep", "0.5"]) == 0
    assert "7 images of token store" in capsys.readouterr().out
    whole = {path.name: path.read_bytes() for path in out.glob("*.npy")}
    next(out.glob("codes-00001.npy")).unlink()
    assert main([*words, "--keep", "0.5"]) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.npy")} == whole
    assert "missing; it is made again" in capsys.readouterr().out
    assert main([*words, "--keep", "0.6"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_no_generator_can_draw_again_is_refused(folder: Path, generator: FAR, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--keep must be at least 0 and below 1, got 1\.5"):
        redraw_store(settings(folder, "a", keep=1.5), ALONE)
    with pytest.raises(UserError, match=r"has 2 crop\(s\) of 8 x 8 positions; one of 8 x 8 is needed"):
        redraw_store(settings(folder, "a", store=folder / "flipped"), ALONE)
    torch.manual_seed(5)
    make_store(tmp_path / "others", FactorizedTokenizer(generator.tokenizer.config), crops="center", side=32)  # pyright: ignore
    with pytest.raises(UserError, match="was made with another tokenizer"):
        redraw_store(settings(folder, "a", store=tmp_path / "others"), ALONE)
    done = redraw_store(settings(folder, "drawn"), ALONE)
    with pytest.raises(UserError, match="has been drawn again already"):
        redraw_store(settings(folder, "a", store=done.out), ALONE)
    with pytest.raises(UserError, match="is for the post-training of a decoder"):
        _open(str(done.out), ALONE)
    assert not (folder / "a").exists()
