"""Training a generator: batches, losses, what it carries, and what is refused."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generator_runs import home, small
from runs import STEPS, assert_alike, command, contents, lines
from stores import CLASSES, make_store
from torch import Tensor

import fqgan
from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.commands.train_generator import COMMAND
from fqgan.config import GeneratorRunConfig, OptimizerConfig, TokenizerRunConfig
from fqgan.config.presets import child
from fqgan.data.loader import token_batches
from fqgan.data.tokens import TokenStore
from fqgan.engine.distributed import World
from fqgan.engine.optim import make_optimizer
from fqgan.generator.model import FAR
from fqgan.generator.task import GeneratorTask, train_generator
from fqgan.tokenizer.model import FactorizedTokenizer

__all__ = ["home"]  # fixtures

CPU = World(0, 1, torch.device("cpu"))
Refused = Callable[..., str]


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


@pytest.mark.slow
def test_compiled_blocks_train_alike(home: Path, tmp_path: Path, in_float64: None) -> None:
    config = replace(
        small(home, model={"dropout": 0.0, "depth": 1, "head": "linear"}, train={"steps": 2}), validation=""
    )
    for name, on in (("usual", False), ("compiled", True)):
        train_generator(child(config, train={"compile": on}), tmp_path / name)
    assert_alike(tmp_path / "usual", tmp_path / "compiled")
