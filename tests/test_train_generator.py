"""Training a generator: batches, losses, exact resume, ranks, what it carries, and what is refused."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import IN_FLOAT64, finish, on_two_ranks, start
from runs import (
    STEPS,
    assert_alike,
    assert_same,
    contents,
    killed_and_resumed,
    lines,
    stopped_by,
)
from stores import CLASSES, make_store
from torch import Tensor

import fqgan
from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.commands.train_generator import COMMAND
from fqgan.config import GeneratorRunConfig, OptimizerConfig, TokenizerRunConfig
from fqgan.config.presets import child, get_generator
from fqgan.data.loader import token_batches
from fqgan.data.tokens import TokenStore
from fqgan.engine.distributed import World
from fqgan.engine.optim import make_optimizer
from fqgan.generator.model import FAR
from fqgan.generator.task import GeneratorTask, train_generator
from fqgan.tokenizer.model import FactorizedTokenizer

CPU = World(0, 1, torch.device("cpu"))
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def home(tiny: TokenizerRunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stores `store` (12 images, two crops) and `held-out` (7, ten crops)."""
    torch.manual_seed(0)
    tokenizer = FactorizedTokenizer(tiny.model).eval()
    folder = tmp_path_factory.mktemp("stores")
    make_store(folder / "store", tokenizer)
    make_store(folder / "held-out", tokenizer, images=7, seed=5, crops="ten")
    return folder


def small(home: Path, **changes: Any) -> GeneratorRunConfig:
    """Dropout, class dropout, accumulation, clipping and a moving average, all at once and tiny."""
    config = child(
        get_generator("far-tiny"),
        model={"width": 32, "depth": 2, "heads": 2, "mlp_multiple": 16},
        optimizer={"warmup_steps": 2, "schedule": "constant", "clip": 0.1},
        train={
            "batch": 8,
            "micro_batch": 4,
            "steps": STEPS,
            "ema_decay": 0.9,
            "log_every": 1,
            "validate_every": 3,
            "image_every": 0,
            "checkpoint_every": 3,
            "keep_last": 3,
            "sample_images": 3,
            "precision": "float32",
            "device": "cpu",
        },
    )
    config = replace(config, data=str(home / "store"), validation=str(home / "held-out"))
    return child(config, **changes)


def command(config: GeneratorRunConfig, run: Path, *options: str) -> list[str]:
    file = run.with_suffix(".config.json")
    schema.save(config, file)
    return ["train-generator", "far-tiny", "--config", str(file), "--run", str(run), *options]


def task(config: GeneratorRunConfig) -> GeneratorTask:
    """A task on its own, for a look at what it computes."""
    store, validation = TokenStore.open(config.data), TokenStore.open(config.validation)
    model = config.model.resolved(store.codebook_sizes, store.grid, store.num_classes)
    return GeneratorTask(replace(config, model=model), CPU, store, validation)


@pytest.fixture(scope="module")
def trained(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "straight"
    train_generator(small(home), run)
    return run


def test_the_options_win_over_the_file_and_the_file_over_the_preset(home: Path, tmp_path: Path) -> None:
    schema.save(small(home), tmp_path / "config.json")
    options = ["--config", str(tmp_path / "config.json"), "--data", "there", "--model.depth", "3"]
    config, run = COMMAND.parse(["far-base", "--run", "x", *options])
    assert (config.data, config.model.depth, config.model.width, run) == ("there", 3, 32, Path("x"))


def test_a_batch_is_a_crop_of_each_image_drawn_from_seed_epoch_and_index(home: Path) -> None:
    """Every image once an epoch; the same crops at any number of ranks; other crops and another order next time."""
    store = TokenStore.open(home / "held-out")

    def first_epochs(world: int, micro_batch: int) -> list[list[Tensor]]:
        """Codes of the first two epochs, in the order of the stream."""
        ranks = [
            token_batches(store, seed=3, batch=14, micro_batch=micro_batch, rank=r, world=world, start_step=0)
            for r in range(world)
        ]
        rounds = 14 // (world * micro_batch)
        codes = torch.cat([next(rank)[0] for _ in range(rounds) for rank in ranks])
        return [list(codes[:7]), list(codes[7:])]

    one, two = first_epochs(1, 14), first_epochs(2, 7)
    assert all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))
    every, _ = store.take([i for i in range(7) for _ in range(10)], list(range(10)) * 7)
    places = [[int((every == codes).flatten(1).all(1).nonzero()) for codes in epoch] for epoch in one]
    assert all(sorted(place // 10 for place in epoch) == list(range(7)) for epoch in places)
    assert places[0] != places[1] and len({place % 10 for epoch in places for place in epoch}) > 3


def test_images_without_a_label_are_of_the_null_class(home: Path) -> None:
    own = task(small(home))
    batch = own._placed(torch.zeros(2, 2, 4, 4, dtype=torch.int64), torch.tensor([1, -1]))
    assert batch.labels.tolist() == [1, own.config.model.num_classes]


def test_a_run_folder(trained: Path, home: Path) -> None:
    line = lines(trained)[-1]
    assert line["loss"] == pytest.approx((line["visual_loss"] + line["semantic_loss"]) / 2)
    for name in ("loss", "visual_loss", "semantic_loss", "visual_accuracy", "semantic_accuracy", "bits_per_image"):
        assert math.isfinite(line[f"val_{name}"])
    nats = line["val_visual_loss"] + line["val_semantic_loss"]
    assert line["val_bits_per_image"] == pytest.approx(nats * 16 / math.log(2))
    assert ["val_loss" in line for line in lines(trained)] == [False, False, True] * 2
    config = schema.load(GeneratorRunConfig, trained / "config.json")
    assert (config.model.codebook_sizes, config.model.grid, config.model.num_classes) == ((32, 16), (4, 4), 3)
    for file in (home / "store" / "tokenizer").iterdir():
        assert (trained / "tokenizer" / file.name).samefile(file), "hard links"
    assert [path.name for path in (trained / "images").iterdir()] == [f"step-{STEPS:08d}.png"]


def test_validation_is_the_mean_over_centre_crops_whatever_the_micro_batch(home: Path, in_float64: None) -> None:
    config = small(home, train={"batch": 12, "micro_batch": 4})
    own = task(config)
    model = own.phases[0].module
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    store = own.validation
    assert isinstance(model, FAR) and store
    found = own.validate(model.eval())
    with torch.no_grad():
        plain = model.loss(*store.take(range(7), [4] * 7))
    assert [found["visual_loss"], found["semantic_loss"]] == pytest.approx([x.item() for x in plain.cross_entropy])
    assert [found["visual_accuracy"], found["semantic_accuracy"]] == pytest.approx([x.item() for x in plain.accuracy])
    other = task(replace(config, train=replace(config.train, micro_batch=6)))
    assert other.validate(model) == pytest.approx(found, rel=1e-6)


def test_weight_decay_takes_matrices_alone() -> None:
    """Without a gradient's push AdamW scales by 1 - lr * decay; Muon's decay is the same."""
    layer = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.LayerNorm(24), torch.nn.Embedding(5, 24))
    torch.nn.init.constant_(layer[0].bias, 1.0)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for kind in ("adam", "muon"):
        layer.load_state_dict(before)
        optimizer = make_optimizer(layer, OptimizerConfig(kind=kind, lr=0.1, weight_decay=0.5))
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for name, value in layer.state_dict().items():
            torch.testing.assert_close(value, before[name] * (0.95 if value.ndim == 2 else 1.0), msg=f"{kind} {name}")


@pytest.mark.parametrize("recompute", [False, True])
def test_activation_checkpointing_changes_no_bit(trained: Path, home: Path, tmp_path: Path, recompute: bool) -> None:
    """Nor does an interruption: the second half is done by another task."""
    config = small(home)
    train_generator(child(config, train={"steps": 3, "validate_every": 1000}), tmp_path / "run")
    train_generator(child(config, train={"activation_checkpointing": recompute}), tmp_path / "run")
    a, b = contents(trained, STEPS), contents(tmp_path / "run", STEPS)
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []


def test_overfitting_three_images(home: Path, tmp_path: Path) -> None:
    """Near-zero loss, and greedy decoding gives the training images back."""
    store = make_store(
        tmp_path / "store", fqgan.load_tokenizer(home / "store"), images=3, crops="center", names=CLASSES
    )
    config = small(
        home,
        model={"dropout": 0.0, "class_dropout": 0.0, "width": 64},
        optimizer={"lr": 3e-3, "weight_decay": 0.0, "clip": 1.0},
        train={"batch": 3, "micro_batch": 0, "steps": 300, "log_every": 1, "checkpoint_every": 300},
    )
    train_generator(replace(config, data=str(store.path), validation=""), tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["visual_loss"] < 0.1 and lines(tmp_path / "run")[-1]["semantic_loss"] < 0.1
    generator = fqgan.load_generator(tmp_path / "run")
    codes, labels = store.take([0, 1, 2], [0, 0, 0])
    assert torch.equal(generator.generate(labels, cfg_scale=1.0, temperature=0.0), codes)


def test_what_is_loaded_is_what_was_saved(trained: Path, home: Path, tmp_path: Path) -> None:
    generator = fqgan.load_generator(trained)
    checkpoint = trained / "checkpoints" / f"step-{STEPS:08d}"
    raw = fqgan.load_generator(checkpoint, weights="raw")
    assert generator.label_names == raw.label_names == CLASSES
    assert generator.tokenizer.fingerprint() == TokenStore.open(home / "store").tokenizer_fingerprint
    assert not any(name.startswith("tokenizer") for name in generator.state_dict())
    exported = fqgan.load_generator(fqgan.save_generator(generator, tmp_path / "exported"))
    assert exported.label_names == CLASSES and exported.has_tokenizer
    codes, labels = TokenStore.open(home / "store").take([0, 1], [0, 1])
    for a, b, c in zip(generator(codes, labels), exported(codes, labels), raw(codes, labels), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)
    for path in (trained, checkpoint, tmp_path / "exported"):
        assert fqgan.load_tokenizer(path).fingerprint() == generator.tokenizer.fingerprint()
    moved = shutil.copytree(checkpoint, tmp_path / "alone")
    with pytest.raises(UserError, match="carries no tokenizer"):
        _ = fqgan.load_generator(moved).tokenizer
    assert fqgan.load_generator(moved, tokenizer=trained).has_tokenizer


def test_init_starts_from_other_weights(trained: Path, home: Path, tmp_path: Path, refused: Refused) -> None:
    config = replace(small(home, train={"steps": 1}), init=str(trained))
    train_generator(config, tmp_path / "run")
    first = lines(tmp_path / "run")[0]["loss"]
    assert abs(first - lines(trained)[0]["loss"]) > 1e-3 and first < lines(trained)[0]["loss"]
    wide = command(replace(config, model=replace(config.model, width=64)), tmp_path / "wide")
    line = refused(*wide)
    assert f"--init {trained}: tensor class_embedding.weight has shape (4, 32), the model wants (4, 64)" in line
    assert not (tmp_path / "wide").exists()


def foreign(tiny: TokenizerRunConfig) -> FactorizedTokenizer:
    """Another tokenizer of the same architecture."""
    torch.manual_seed(9)
    return FactorizedTokenizer(tiny.model).eval()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--data is missing: a token store, which fqgan extract makes"),
        (("--data", "nowhere"), "token store nowhere does not exist"),
        (("--data", "tokenizer"), "tokenizer is no token store"),
        (("--data", "cut"), "truncated"),
        (("--data", "unlabelled", "--model.num-classes", "3"), "is 3, but the token store has no labels: leave it out"),
        (("--data", "unlabelled", "--sampling.cfg-scale", "3"), "cfg_scale guides towards a class, and there is none"),
        (("--data", "store", "--unconditional", "--model.num-classes", "3"), "--unconditional leaves no classes, but"),
        (("--data", "store", "--tokenizer", "tokenizer"), "the tokenizer tokenizer is not the one that token store"),
        (("--data", "store", "--validation", "foreign"), "foreign was made with another tokenizer than token store"),
        (("--data", "store", "--validation", "larger"), "larger has 8 x 8 positions, token store store 4 x 4"),
        (("--data", "store", "--validation", "renamed"), "renamed has other classes than token store store"),
        (("--data", "store", "--model.grid", "2", "2"), "model.grid is 2 2, but the token store has 4 4"),
        (("--data", "store", "--init", "tokenizer"), "tokenizer holds a tokenizer, no generator"),
        (("--data", "store", "--sampling.top-k", "20"), "top_k 20 is impossible: factor 1 has 16 codes"),
        (("--data", "store", "--train.micro-batch", "3"), "train.batch 64 is no multiple of train.micro_batch 3"),
        (("--data", "store", "--train.fsdp", "--optimizer.kind", "muon"), "optimizer.kind muon needs whole matrices"),
        (("--dta", "store"), "unknown option --dta; did you mean '--data'?"),
    ],
)
def test_refused_before_anything_is_written(
    options: tuple[str, ...],
    message: str,
    home: Path,
    tiny: TokenizerRunConfig,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = foreign(tiny)
    shutil.copytree(home / "store", "store")
    if "tokenizer" in options:
        fqgan.save_tokenizer(other, "tokenizer")
    if "cut" in options:
        (Path(shutil.copytree("store", "cut")) / "codes-00001.npy").write_bytes(b"")
    if "unlabelled" in options:
        make_store(tmp_path / "unlabelled", other, names=(), labelled=False)
    if "foreign" in options:
        make_store(tmp_path / "foreign", other)
    if "larger" in options:
        make_store(tmp_path / "larger", fqgan.load_tokenizer("store"), side=32)
    if "renamed" in options:
        make_store(tmp_path / "renamed", fqgan.load_tokenizer("store"), names=("a", "b", "c"))
    assert message in refused("train-generator", "far-tiny", "--run", "run", *options)
    assert not Path("run").exists()


def test_an_unknown_preset(refused: Refused) -> None:
    assert "unknown preset 'far-smal'; did you mean 'far-small'?" in refused("train-generator", "far-smal")


def test_more_ranks_than_images(home: Path) -> None:
    from fqgan.generator.task import _open

    with pytest.raises(UserError, match=r"holds 12 picture\(s\) for 13 ranks"):
        _open(str(home / "store"), World(0, 13, CPU.device))


def test_a_generator_with_another_tokenizer_is_refused(trained: Path, tiny: TokenizerRunConfig, tmp_path: Path) -> None:
    other = fqgan.save_tokenizer(foreign(tiny), tmp_path / "other")
    with pytest.raises(UserError, match=r"is not the one that .* was made with"):
        fqgan.load_generator(trained, tokenizer=other)
    with pytest.raises(UserError, match="holds a generator, no tokenizer"):
        fqgan.load_tokenizer(shutil.copytree(trained / "checkpoints" / f"step-{STEPS:08d}", tmp_path / "alone"))


def test_other_settings_are_refused_and_pictures_may_change(trained: Path, home: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    moved = shutil.copytree(home / "store", tmp_path / "store")
    train_generator(replace(small(home, sampling={"top_k": (3,)}), data=str(moved)), run)
    with pytest.raises(UserError, match=r"other settings \(model.dropout"):
        train_generator(small(home, model={"dropout": 0.2}), run)
    make_store(tmp_path / "changed", fqgan.load_tokenizer(home / "store"), seed=4)
    with pytest.raises(UserError, match=r"training data of .* changed since its last checkpoint"):
        train_generator(replace(small(home), data=str(tmp_path / "changed")), run)


@pytest.fixture(scope="module")
def uninterrupted(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `trained`, in a process of its own: other processes are compared with it bit for bit."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    finish(start(command(small(home), run)))
    return run


@pytest.mark.slow
def test_kill_at_a_random_moment(uninterrupted: Path, home: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    killed_and_resumed(command(small(home), run), run, after="step-00000003")
    assert_same(run, uninterrupted)


@pytest.mark.slow
def test_sigterm_saves_then_stops(uninterrupted: Path, home: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "stopped", small(home, train={"checkpoint_every": 100})
    stopped_by(signal.SIGTERM, command(config, run), run)
    finish(start(command(config, run)))
    assert_same(run, uninterrupted)


BAD_CODES_OF_ONE_RANK = """
import os, sys
from fqgan.cli import run
from fqgan.data.tokens import TokenStore
from fqgan.base.errors import UserError
whole = TokenStore.take
def take(self, *arguments):
    if os.environ["RANK"] == "1" and sys._getframe(1).f_code.co_name == "validate":
        raise UserError("one bad code")
    return whole(self, *arguments)
TokenStore.take = take
run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_bad_validation_codes_of_one_rank_stop_all_of_them_saved(home: Path, tmp_path: Path, fsdp: bool) -> None:
    run = tmp_path / "run"
    config = small(home, train={"micro_batch": 2, "fsdp": fsdp, "checkpoint_every": 100})
    output = on_two_ranks(command(config, run), 2, code=BAD_CODES_OF_ONE_RANK)
    assert output.count("fqgan: error: one bad code; the same command resumes from step 3") == 1, output
    assert "Traceback" not in output
    assert "at step 3" in on_two_ranks(command(config, run))


@pytest.mark.slow
def test_ranks_and_sharding_change_nothing_but_rounding(home: Path, tmp_path: Path) -> None:
    """One process, two ranks with DDP, two with FSDP2: with accumulation, clipping and a moving average. A checkpoint
    of the sharded run goes on in one process, to the same end."""
    plain = {"dropout": 0.0, "class_dropout": 0.0}
    config = small(home, model=plain, train={"micro_batch": 2})
    runs = [tmp_path / name for name in ("alone", "ddp", "fsdp", "resumed")]
    finish(start(command(config, runs[0]), code=IN_FLOAT64))
    sharded = child(config, train={"fsdp": True})
    for run, each in ((runs[1], config), (runs[2], sharded)):
        assert "2 x cpu" in on_two_ranks(command(each, run), code=IN_FLOAT64)
    shutil.copytree(runs[2], runs[3])
    shutil.rmtree(runs[3] / "checkpoints" / f"step-{STEPS:08d}")
    assert "at step 3" in finish(start(command(sharded, runs[3]), code=IN_FLOAT64))
    expected = contents(runs[0], STEPS)
    before = contents(runs[0], 3)
    for run in runs[1:]:
        assert_alike(runs[0], run)
        found = contents(run, STEPS)
        assert found.keys() == expected.keys()
        for group in ("generator/", "ema/"):
            names = [name for name in expected if name.startswith(group)]
            moved = torch.cat([(expected[name] - before[name]).flatten() for name in names])
            apart = torch.cat([(expected[name] - found[name]).flatten() for name in names])
            assert moved.norm() > 0 and apart.norm() < 1e-6 * moved.norm(), (run.name, group)
        assert (run / "images" / f"step-{STEPS:08d}.png").exists()
    assert all(line["generator_gradient_norm"] > config.optimizer.clip for line in lines(runs[0])), "clipping acts"


@pytest.mark.slow
def test_compiled_blocks_train_alike(home: Path, tmp_path: Path, in_float64: None) -> None:
    config = replace(
        small(home, model={"dropout": 0.0, "depth": 1, "head": "linear"}, train={"steps": 2}), validation=""
    )
    for name, on in (("usual", False), ("compiled", True)):
        train_generator(child(config, train={"compile": on}), tmp_path / name)
    assert_alike(tmp_path / "usual", tmp_path / "compiled")
