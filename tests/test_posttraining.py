"""The decoder that learns alone, on an image's own codes or on those that a generator has drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import contents, lines

from fqgan.base.errors import UserError
from fqgan.config import TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.config.verbs import ExtractionSettings
from fqgan.data.tokens import TokenStore
from fqgan.engine.distributed import World
from fqgan.tokenizer import posttraining
from fqgan.tokenizer.extraction import extract
from fqgan.tokenizer.load import load_matching_tokenizer, load_tokenizer
from fqgan.tokenizer.start import Start
from fqgan.tokenizer.task import train_tokenizer

ALONE = World(0, 1, torch.device("cpu"))
CENTRE = {"crop_min": 1.0, "crop_max": 1.0, "flip": False}


@pytest.fixture(scope="module")
def trained(tiny: TokenizerRunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train_tokenizer(tiny, run)
    return run


@pytest.fixture(scope="module")
def store(trained: Path, pictures: Path) -> Path:
    out = trained.parent / "store"
    extract(ExtractionSettings(checkpoint=trained, data=str(pictures), out=out, workers=0), ALONE)
    return out


def decoder_only(tiny: TokenizerRunConfig, init: Path, **latent: object) -> TokenizerRunConfig:
    config = child(tiny, train={"only": "decoder", "steps": 2}, latent=latent, data=CENTRE)
    return replace(config, init=str(init))


def test_only_the_decoder_changes_and_a_generator_of_the_old_codes_takes_it(
    tiny: TokenizerRunConfig, trained: Path, tmp_path: Path
) -> None:
    config = child(decoder_only(tiny, trained), discriminator={"weight": 0.1, "start": 0, "channels": 32, "layers": 2})
    config = child(config, train={"ema_decay": 0.5, "steps": 3, "checkpoint_every": 9}, optimizer={"weight_decay": 0.1})
    config = child(config, model={"dropout": 0.1})
    train_tokenizer(config, tmp_path / "straight")
    train_tokenizer(child(config, train={"steps": 1}), tmp_path / "resumed")
    train_tokenizer(config, tmp_path / "resumed")
    before, after, resumed = contents(trained, 2), contents(tmp_path / "straight", 3), contents(tmp_path / "resumed", 3)
    assert after.keys() == resumed.keys() and all(torch.equal(after[name], resumed[name]) for name in after)
    for part in ("tokenizer", "ema"):
        names = [name.partition("/")[2] for name in before if name.startswith("tokenizer/")]
        changed = {name for name in names if not torch.equal(before[f"tokenizer/{name}"], after[f"{part}/{name}"])}
        assert changed == {name for name in names if name.startswith(("decoder.", "post_quant."))}
    assert {"reconstruction_loss", "gan_loss"} <= lines(tmp_path / "straight")[0].keys()
    assert "entropy_loss" not in lines(tmp_path / "straight")[0]
    old, new = load_tokenizer(trained), load_tokenizer(tmp_path / "straight")
    assert old.fingerprint() != new.fingerprint()
    found = load_matching_tokenizer(tmp_path / "straight", old.fingerprint(), "a generator")
    assert found.fingerprint() == new.fingerprint()
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(old.encode(images), new.encode(images))
    again = Start.of(str(tmp_path / "straight"), config.model)
    assert again.codes_of == old.fingerprint(), "however often the decoder is trained"


def test_what_is_held_is_in_eval_mode_while_the_decoder_trains(
    tiny: TokenizerRunConfig, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the encoder's dropout on, an image's codes would change from step to step."""
    modes: list[tuple[bool, ...]] = []

    def watched(model, *arguments, **options):
        modes.append((model.encoder.training, model.branches.training, model.decoder.training))
        return whole(model, *arguments, **options)

    whole = posttraining.FactorizedTokenizer.forward
    monkeypatch.setattr(posttraining.FactorizedTokenizer, "forward", watched)
    train_tokenizer(child(decoder_only(tiny, trained), model={"dropout": 0.2}), tmp_path / "run")
    assert modes == [(False, False, True)] * 2


def test_the_stores_codes_are_decoded_each_with_its_own_picture(
    tiny: TokenizerRunConfig, trained: Path, store: Path, tmp_path: Path
) -> None:
    """Of unchanged codes training is what it is without a store; of changed ones the share is told."""
    plain, stored, changed = (tmp_path / name for name in ("plain", "stored", "changed"))
    train_tokenizer(decoder_only(tiny, trained), plain)
    train_tokenizer(decoder_only(tiny, trained, codes=str(store)), stored)
    for a, b in zip(lines(plain), lines(stored), strict=True):
        assert b.pop("redrawn_share") == 0, "in every batch each picture has its own codes"
        assert b == pytest.approx(a, rel=1e-5)
    file = next(store.glob("codes-*.npy"))
    codes = np.load(file)
    codes[:, :, 1, ::2] = (codes[:, :, 1, ::2] + 1) % 16  # half of the second factor's
    try:
        kept = file.read_bytes()
        np.save(file, codes)
        train_tokenizer(decoder_only(tiny, trained, codes=str(store)), changed)
    finally:
        file.write_bytes(kept)
    assert [line["redrawn_share"] for line in lines(changed)] == [0.25, 0.25]
    assert lines(changed)[0]["reconstruction_loss"] != lines(plain)[0]["reconstruction_loss"]


def test_stores_of_something_else_are_refused(tiny: TokenizerRunConfig, store: Path) -> None:
    opened = TokenStore.open(store)
    own = replace(tiny.model, codes_of=opened.tokenizer_fingerprint)
    data = opened.manifest.data
    for model, seen, options, why in (
        (replace(own, codes_of="another"), data, {}, "made by another tokenizer than --init"),
        (own, data | {"images": 9}, {}, r"of other images than --data\.source \(images: 8 .* 9\)"),
        (replace(own, image_size=64), data, {}, "of 32 pixels, not 64"),
        (own, data, {"small": "skip"}, "of pictures read in another way"),
    ):
        with pytest.raises(UserError, match=f"is a token store {why}"):
            posttraining.StoredCodes(str(store), model, seen, replace(tiny.data, **options))


def test_a_picture_that_was_unreadable_has_no_codes(store: Path, tiny: TokenizerRunConfig) -> None:
    opened = TokenStore.open(store)
    model = replace(tiny.model, codes_of=opened.tokenizer_fingerprint)
    codes = posttraining.StoredCodes(str(store), model, opened.manifest.data, tiny.data)
    assert torch.equal(codes.of(torch.tensor([3, 1])), opened.take([3, 1], [0, 0])[0])
    codes._rows[3] = -1
    with pytest.raises(UserError, match="has no codes of a picture that could not be read"):
        codes.of(torch.tensor([3]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent": {"codes": "store"}}, "latent.codes are for a decoder that learns alone: set train.only to decoder"),
        ({"train": {"only": "decoder"}}, "train.only decoder needs --init"),
        ({"latent": {"codes": "s", "perturb_share": 0.1}}, "decoded as they are: set latent.perturb_share to 0"),
    ],
)
def test_what_contradicts_itself_is_refused(tiny: TokenizerRunConfig, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        child(tiny, **changes).check()
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": {"restart_after": 5}}, "quantizer.restart_after changes codes, and train.only decoder leaves"),
        ({"data": {"flip": True}, "latent": {"codes": "store"}}, "latent.codes are those of centre crops"),
        ({"data": {"jitter": 0.1}, "latent": {"codes": "store"}}, "latent.codes are those of centre crops"),
    ],
)
def test_what_would_change_codes_is_refused(tiny: TokenizerRunConfig, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        child(decoder_only(tiny, Path("run")), **changes).check()
    assert message in str(refusal.value)
