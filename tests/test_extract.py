"""Extraction: the codes are the tokenizer's, and the same bytes whatever the ranks, batches, workers and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from processes import on_two_ranks
from torchvision.transforms.functional import ten_crop

import fqgan
from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.files import lock
from fqgan.cli import main
from fqgan.config import TokenizerRunConfig
from fqgan.data.sources import open_source
from fqgan.data.tokens import TokenStore
from fqgan.data.transforms import center_crop, crops, flip, normalize, resize_shorter, to_tensor
from fqgan.data.workers import Batches
from fqgan.engine import distributed
from fqgan.models.find import find
from fqgan.models.fingerprint import weights_fingerprint
from fqgan.tokenizer.model import FactorizedTokenizer
from fqgan.tokenizer.passes import Passes

Refused = Callable[..., str]
CLASSES = ("cat", "dog", "emu")


def write_picture(path: Path, seed: int, width: int = 44, height: int = 40) -> None:
    y, x = np.mgrid[0:height, 0:width] / 40
    waves = np.stack([np.sin((2 + seed) * x + c) + np.cos((1 + seed) * y - c) for c in range(3)], -1)
    noise = np.random.default_rng(seed).normal(0, 30, waves.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((128 + 50 * waves + noise).clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Fifteen pictures of three classes."""
    for i in range(15):
        write_picture(tmp_path / "data" / CLASSES[i % 3] / f"{i}.png", i, 40 + i, 52 - i)
    return tmp_path / "data"


@pytest.fixture
def command(data: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Shards of four images; the store's folder comes last."""
    monkeypatch.chdir(data.parent)
    return ("extract", "exported", "--data", "data", "--shard-images", "4", "--workers", "0", "--out")


def contents(folder: Path | str) -> dict[str, bytes]:
    """All files, hidden ones too."""
    root = Path(folder)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


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


def test_a_finished_store_stays_as_it_is(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "store"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("data: image folder; ")
    assert lines[1].startswith("15 images of data with 1 crop each in 4 shards; tokenizer ")
    assert " images/s, " in lines[2]
    assert lines[3:] == ["15 images, 15 crops of 2 x 8 x 8 codes: 5.0 kB in 4 shards", "store"]
    before = {path: path.stat().st_mtime_ns for path in Path("store").rglob("*")}
    assert main([*command, "store", "--verify"]) == 0
    assert "store is extracted already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("store").rglob("*")} == before


def test_a_damaged_store_is_made_whole(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "store"]) == 0
    before = contents("store")
    data = Path("store/codes-00002.npy")
    data.write_bytes(data.read_bytes()[:-1] + b"\x07")
    os.truncate("store/labels-00000.npy", 3)
    assert main([*command, "store", "--verify"]) == 0
    text = capsys.readouterr().out
    assert "warning: labels-00000.npy is truncated (3 of 160 bytes); it is made again" in text
    assert "warning: codes-00002.npy is damaged" in text
    assert "in 4 shards, 2 of them done" in text
    assert contents("store") == before


def test_unreadable_pictures_are_left_out_and_listed(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    assert main([*command, "whole"]) == 0
    bad = sorted(Path("data").rglob("*.png"))[6]
    bad.write_bytes(bad.read_bytes()[:99])
    capsys.readouterr()
    assert main([*command, "store", "--workers", "2"]) == 0
    text = capsys.readouterr().out
    assert f"warning: left out: {bad} cannot be read as a picture" in text
    assert "14 images, 1 unreadable ones left out, 14 crops" in text
    store, whole = TokenStore.open("store"), TokenStore.open("whole")
    [left_out] = store.manifest.unreadable
    assert left_out.index == 6
    assert str(bad) in left_out.problem
    kept = [i for i in range(15) if i != 6]
    assert torch.equal(store.take(range(14), [0] * 14)[0], whole.take(kept, [0] * 14)[0])
    assert store.labels.tolist() == whole.labels[kept].tolist()
    line = refused(*command, "strict", "--max-unreadable", "0")
    assert "1 of the 15 pictures of data cannot be read so far, more than --max-unreadable 0 allows" in line
    for file in Path("data").rglob("*.png"):
        file.write_bytes(b"")
    assert "11 of the 15 pictures of data cannot be read so far" in refused(*command, "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data nowhere", "nowhere does not exist"),
        ("--size 30", "image size 30x30 is no multiple of the tokenizer's downsampling factor 4"),
        ("--weights ema", "exported has no moving average"),
        ("--crops nine", "invalid choice 'nine' for argument '--crops'"),
        ("--crop-range 0.5", "--crop-range must be at least 1, got 0.5"),
        ("--batch 0", "--batch must be at least 1, got 0"),
        ("--shard-images -1", "--shard-images must be at least 0, got -1"),
        ("--max-unreadable 2", "--max-unreadable must be between 0 and 1, got 2.0"),
        ("--out exported", "--out exported is an input: choose another name"),
        ("--out tiny", "--out tiny is a file: name a folder"),
        ("--size 40 --small refuse", "data/cat/12.png is 52x40 pixels"),
        (
            "--size 64 --small refuse",
            "pixels, below the image size 64: choose a smaller size, or say what becomes of such",
        ),
    ],
)
def test_refused_before_anything_is_written(
    options: str, message: str, command: tuple[str, ...], refused: Refused
) -> None:
    Path("tiny").write_text("")
    if "--size 40" in options:
        for i in range(15):
            write_picture(Path(f"data/{CLASSES[i % 3]}/{i}.png"), i, 52, 40)
        write_picture(Path("data/cat/12.png"), 0, 52, 39)
        message = message.replace("52x40", "52x39")
    before = contents(".")
    assert message in refused(*command, "out", *options.split())
    assert contents(".") == before
    assert not Path("out").exists()


def test_other_settings_or_data_are_refused(
    command: tuple[str, ...], refused: Refused, tiny: TokenizerRunConfig
) -> None:
    assert main([*command, "store"]) == 0
    line = refused(*command, "store", "--crops", "flip", "--precision", "bf16")
    assert line.endswith(
        "store was begun with other settings (crops: 'center' -> 'flip', precision: 'float32' -> 'bf16'): "
        "restore them or use a new --out"
    )
    torch.manual_seed(1)
    other = FactorizedTokenizer(tiny.model)
    fqgan.save_tokenizer(other, "other")
    line = refused("extract", "other", *command[2:], "store")
    before = TokenStore.open("store").tokenizer_fingerprint[:12]
    assert f"(tokenizer: '{before}' -> '{other.fingerprint()[:12]}')" in line
    next(Path("data").rglob("*.png")).unlink()
    line = refused(*command, "store")
    assert "store is made of data, which is another data set or has changed since (images: 15 -> 14)" in line
    Path("store/manifest.json").write_text("{}")
    assert "store/manifest.json is no token store's manifest" in refused(*command, "store")


def test_a_store_in_use_is_refused(command: tuple[str, ...], refused: Refused) -> None:
    Path("store/.unfinished").mkdir(parents=True)
    with lock(Path("store/.unfinished/lock")):
        assert "store is in use by another process: wait for it, or choose another --out" in refused(*command, "store")
    assert main([*command, "store"]) == 0


def test_more_ranks_than_images(command: tuple[str, ...], refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "start", lambda device: distributed.World(0, 16, torch.device("cpu")))
    assert "data holds 15 picture(s) for 16 ranks: start no more than it holds" in refused(*command, "store")


def test_a_full_disk(command: tuple[str, ...], mounted: Callable[[str], Path], refused: Refused) -> None:
    assert main([*command, "straight", "--crops", "ten"]) == 0
    whole = sum(map(len, contents("straight").values()))
    out = mounted(f"size={whole - 12_000}") / "store"
    line = refused(*command, out, "--crops", "ten")
    assert "cannot be written: No space left on device: free some space; the same command resumes" in line
    assert not list(out.rglob(".*.writing"))
    mounted(f"size={3 * whole}")
    assert main([*command, str(out), "--crops", "ten"]) == 0
    assert contents(out) == contents("straight")


def in_a_child(argv: list[str], monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> int:
    """The command in a forked process, which waits that long before each batch; its output goes to `log`."""
    if child := os.fork():
        return child
    code, read = 1, Batches.__next__

    def slow(batches: Any) -> Any:
        time.sleep(seconds)
        return read(batches)

    try:
        monkeypatch.setattr(Batches, "__next__", slow)
        sys.stdout = sys.stderr = open("log", "a", buffering=1)  # noqa: SIM115
        code = main(argv)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_is_interrupted_goes_on(
    number: signal.Signals, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*command, "store", "--batch", "1"]
    assert main([*command, "straight"]) == 0
    for done in (1, 2):
        child = in_a_child(argv, monkeypatch, 0.05)
        while len(list(Path("store").glob(".unfinished/shard-*.json"))) < done:
            assert not os.waitpid(child, os.WNOHANG)[0], Path("log").read_text()
            time.sleep(0.002)
        os.kill(child, number)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if number != signal.SIGKILL:
            assert code == 128 + number
            last = Path("log").read_text().splitlines()[-1]
            assert last == f"stopped with {done} of 4 shards finished; the same command resumes"
        with pytest.raises(UserError, match=rf"store is not finished \({done} shard"):
            TokenStore.open("store")
    assert os.waitpid(in_a_child(argv, monkeypatch), 0)[1] == 0
    assert "in 4 shards, 2 of them done" in Path("log").read_text()
    assert contents("store") == contents("straight")


@pytest.mark.slow
def test_two_ranks_write_what_one_does(command: tuple[str, ...]) -> None:
    """Their errors are told once."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fqgan", "--"]
    argv = [*command, "store", "--crops", "ten"]
    assert main([*command, "straight", "--crops", "ten"]) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *torchrun, *argv], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stdout
    assert done.stdout.splitlines()[-1] == "store"
    assert contents("store") == contents("straight")
    assert "store is extracted already" in on_two_ranks(argv)
    told = on_two_ranks([*argv, "--precision", "bf16"], status=2)
    assert told.count("fqgan: error:") == 1
    assert "store was begun with other settings (precision: 'float32' -> 'bf16')" in told


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
