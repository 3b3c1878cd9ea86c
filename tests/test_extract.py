"""Extraction: the codes are the tokenizer's, and the same bytes whatever the batches and workers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extractions import CLASSES, command, contents, data
from PIL import Image
from torchvision.transforms.functional import ten_crop

import fqgan
from fqgan.base import schema
from fqgan.cli import main
from fqgan.config import TokenizerRunConfig
from fqgan.data.sources import open_source
from fqgan.data.tokens import TokenStore
from fqgan.data.transforms import center_crop, crops, flip, normalize, resize_shorter, to_tensor
from fqgan.models.find import find
from fqgan.models.fingerprint import weights_fingerprint
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.passes import Passes

__all__ = ["command", "data"]  # fixtures


@pytest.mark.parametrize(("kind", "crop_range"), [("center", 1.0), ("flip", 1.25), ("ten", 1.1)])
def test_the_codes_are_those_of_the_crops(
    kind: Any, crop_range: float, command: tuple[str, ...], tokenizer: FactorizedTokenizer, in_float64: None
) -> None:
    """In float64: in float32 a near tie may flip in a batch of another size."""
    tokenizer.double()
    assert main([*command, "store", "--crops", kind, "--crop-range", str(crop_range)]) == 0
    store, source = TokenStore.open("store", verify=True), open_source("data")
    assert (len(store), store.label_names, store.num_classes) == (15, CLASSES, 3)
    assert (store.codebook_sizes, store.grid, store.tokenizer_fingerprint) == (
        (32, 16),
        (8, 8),
        tokenizer.fingerprint(),
    )
    np.testing.assert_array_equal(store.labels, source.labels)
    for i in range(15):
        cut = crops(source.read(i)[0], 32, kind, crop_range)
        assert len(cut) == store.num_crops
        codes = tokenizer.encode(normalize(torch.stack([to_tensor(crop) for crop in cut])))
        taken, labels = store.take([i] * len(cut), range(len(cut)))
        assert torch.equal(taken, codes)
        assert labels.tolist() == [source.labels[i]] * len(cut)
    own = fqgan.load_tokenizer(store.tokenizer_path)
    assert own.fingerprint() == store.tokenizer_fingerprint


def test_ten_crops_are_torchvisions() -> None:
    """But for the order: theirs are the crops of the mirrored picture, ours the mirrored crops."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 94, 3), dtype=np.uint8))
    ours = crops(image, 40, "ten", 1.1)
    theirs = ten_crop(resize_shorter(image, 44), 40)
    for a, b in zip(ours, [*theirs[:5], *(theirs[i] for i in (6, 5, 8, 7, 9))], strict=True):  # pyright: ignore
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert [np.asarray(crop).tobytes() for crop in crops(image, 40, "flip")] == [
        np.asarray(crop).tobytes() for crop in (center_crop(image, 40), flip(center_crop(image, 40)))
    ]


def test_the_order_of_ten_crops() -> None:
    """Red grows to the right, green downwards."""
    y, x = np.mgrid[0:60, 0:80]
    image = Image.fromarray(np.stack([x * 3, y * 4, 0 * x], -1).astype(np.uint8))
    means = [np.asarray(crop)[..., :2].mean((0, 1)) for crop in crops(image, 50, "ten", 1.2)]
    right, bottom = [mean[0] for mean in means], [mean[1] for mean in means]
    assert right[0] == right[2] < right[4] < right[1] == right[3]
    assert bottom[0] == bottom[1] < bottom[4] < bottom[2] == bottom[3]
    np.testing.assert_allclose(means[5:], means[:5])
    steps = [np.diff(np.asarray(crop)[..., 0].astype(int), axis=1).mean() for crop in crops(image, 50, "ten", 1.2)]
    assert [round(step) for step in steps] == [3] * 5 + [-3] * 5


@pytest.mark.parametrize("options", ["--batch 1", "--batch 3", "--batch 8 --workers 1", "--batch 2 --workers 3"])
def test_batches_and_workers_change_no_byte(options: str, command: tuple[str, ...]) -> None:
    assert main([*command, "straight", "--crops", "flip"]) == 0
    assert main([*command, "store", "--crops", "flip", *options.split()]) == 0
    assert contents("store") == contents("straight")


def test_passes_do_not_depend_on_batches_or_threads(tokenizer: FactorizedTokenizer) -> None:
    """Features of a batch of another size differ in their last bits, and so may a code: features are compared."""
    images = torch.randint(0, 256, (13, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features: dict[bytes, torch.Tensor] = {}
    encode, results = tokenizer.encode, []

    def noting(batch: torch.Tensor, *, values: bool) -> torch.Tensor:
        assert torch.get_num_threads() == 1
        features[batch.numpy().tobytes()] = torch.cat([part.flatten(1) for part in tokenizer.features(batch)], 1)
        return encode(batch, values=values)

    tokenizer.encode = noting  # pyright: ignore[reportAttributeAccessIssue]
    for sizes, threads in (([13], 1), ([1] * 13, 1), ([5, 0, 8], 3), ([4, 4, 4, 1], 2)):
        features.clear()
        torch.set_num_threads(threads)
        try:
            with Passes(tokenizer, torch.device("cpu"), 4) as passes:
                assert passes.threads == threads
                for part in images.split(sizes):
                    passes.add(part)
                codes = passes.finish()
                assert passes.finish().size == 0
        finally:
            torch.set_num_threads(1)
        parts = [features[normalize(part).numpy().tobytes()] for part in images.split(4)]
        results.append((codes, torch.cat(parts)))
    assert all(np.array_equal(codes, results[0][0]) for codes, _ in results)
    assert all(torch.equal(noted, results[0][1]) for _, noted in results)


def test_the_fingerprint_is_that_of_the_codes(
    tokenizer: FactorizedTokenizer, tiny: TokenizerRunConfig, tmp_path: Path
) -> None:
    """Unchanged by export, precision and layout, and by feature-prediction heads; changed by any weight that codes or
    pictures depend on."""
    own = tokenizer.fingerprint()
    fqgan.save_tokenizer(tokenizer, tmp_path / "copy")
    for precision in ("float32", "bf16"):
        assert fqgan.load_tokenizer(tmp_path / "copy", precision=precision).fingerprint() == own
    tensors = tokenizer.state_dict()
    assert (
        weights_fingerprint(dict(reversed(tensors.items())))
        == weights_fingerprint({k: t.double() for k, t in tensors.items()})
        == own
    )
    factors = tuple(replace(factor, teacher="efficientnet-lite0@32") for factor in tiny.model.factors)
    taught = FactorizedTokenizer(replace(tiny.model, factors=factors))
    taught.load_state_dict(tensors, strict=False)
    assert len(taught.state_dict()) > len(tensors)
    assert taught.fingerprint() == own
    for name, tensor in tensors.items():
        changed = tensor.clone()
        changed.view(-1)[-1] += 1
        assert weights_fingerprint({**tensors, name: changed}) != own, name
    first = next(iter(tensors))
    assert weights_fingerprint({**tensors, first: tensors[first].flatten()}) != own
    assert weights_fingerprint({f"x.{name}" if name == first else name: t for name, t in tensors.items()}) != own


def test_which_weights(
    tiny: TokenizerRunConfig, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's moving average by default; the store says so and carries it."""
    monkeypatch.chdir(tmp_path)
    schema.save(tiny, Path("tiny.json"))
    assert (
        main(["train-tokenizer", "dual-ds16", "--config", "tiny.json", "--run", "run", "--train.ema-decay", "0.5"]) == 0
    )
    for weights, kind in (("auto", "ema"), ("raw", "raw")):
        argv = ["extract", "run", "--data", tiny.data.source, "--workers", "0", "--weights", weights]
        assert main([*argv, "--out", f"store-{weights}"]) == 0
        assert json.loads(Path(f"store-{weights}/manifest.json").read_text())["weights"] == kind
        expected = fqgan.load_tokenizer("run", weights=weights).fingerprint()
        assert TokenStore.open(f"store-{weights}").tokenizer_fingerprint == expected
    assert TokenStore.open("store-raw").tokenizer_fingerprint != TokenStore.open("store-auto").tokenizer_fingerprint
    assert find(exported, "tokenizer").choose("auto") == "exported"


def test_the_photographs_and_their_held_out_regions(exported: Path, tmp_path: Path) -> None:
    argv = ["extract", str(exported), "--data", "photos", "--workers", "0", "--split"]
    assert main([*argv, "validation", "--out", str(tmp_path / "held-out")]) == 0
    store = TokenStore.open(tmp_path / "held-out")
    assert (len(store), store.num_classes) == (240, 10)
    assert store.label_names == open_source("photos").classes
