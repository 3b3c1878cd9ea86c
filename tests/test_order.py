"""Order annealing: random orders with target-aware positions, raster in the end; and all levers in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from generators import TINY, tiny
from runs import assert_same, lines
from stores import make_store
from torch import Tensor

import fqgan
from fqgan.base.errors import UserError
from fqgan.base.schema import from_dict, to_dict
from fqgan.config import GeneratorRunConfig, GeneratorTrainConfig
from fqgan.config.presets import child, get_generator
from fqgan.data.tokens import TokenStore
from fqgan.engine.distributed import World
from fqgan.generator import task as task_module
from fqgan.generator.clusters import code_clusters
from fqgan.generator.model import FAR
from fqgan.generator.task import GeneratorTask, train_generator
from fqgan.tokenizer.model import FactorizedTokenizer

POSITIONS = TINY.num_positions


def inputs(model: FAR, b: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, labels, and a random order for each image."""
    generator = torch.Generator().manual_seed(5)
    codes = [torch.randint(size, (b, 3, 4), generator=generator) for size in model.config.codebook_sizes]
    orders = torch.rand(b, POSITIONS, generator=generator).argsort(1)
    return torch.stack(codes, 1), torch.arange(b), orders


def test_raster_is_one_of_the_orders_and_images_have_their_own(in_float64: None) -> None:
    model = tiny(target_positions=True)
    codes, labels, orders = inputs(model)
    raster = torch.arange(POSITIONS).expand(2, -1)
    for plain, ordered in zip(model(codes, labels), model(codes, labels, raster), strict=True):
        torch.testing.assert_close(plain, ordered)
    both = model(codes, labels, orders)
    for i in range(2):
        for one, of_both in zip(model(codes[i : i + 1], labels[i : i + 1], orders[i : i + 1]), both, strict=True):
            torch.testing.assert_close(one[0], of_both[i])
    loss = model.loss(codes, labels, orders)
    for i, logits in enumerate(both):
        targets = codes.flatten(2)[:, i].gather(1, orders)
        torch.testing.assert_close(loss.cross_entropy[i], torch.nn.functional.cross_entropy(logits.mT, targets))


def test_a_position_sees_those_before_it_in_the_order_wherever_they_stand(in_float64: None) -> None:
    model = tiny(target_positions=True, head="linear")
    codes, labels, orders = inputs(model, 1)
    before = model(codes, labels, orders)
    for turn in (0, 4, 11):
        changed = codes.clone()
        flat = changed[0, 1].view(-1)
        flat[orders[0, turn]] = (flat[orders[0, turn]] + 1) % 11
        for old, new in zip(before, model(changed, labels, orders), strict=True):
            assert ((old - new).abs().amax(-1)[0] > 1e-9).tolist() == [t > turn for t in range(POSITIONS)]


def test_what_has_been_seen_counts_as_a_set_but_for_causality(in_float64: None) -> None:
    """One block: the next position's prediction depends on which positions came before it, not on their order, since
    rotary rows and embeddings go with the positions. The input that it is made from is the last one."""
    model = tiny(target_positions=True, depth=1, head="linear")
    codes, labels, orders = inputs(model, 1)
    other = orders.clone()
    other[0, :5] = orders[0, :5].flip(0)
    # the inputs' own target embeddings would tell the order
    with torch.no_grad():
        model.target_embedding.weight.zero_()  # pyright: ignore[reportOptionalMemberAccess]
    for a, b in zip(model(codes, labels, orders), model(codes, labels, other), strict=True):
        differs = (a - b).abs().amax(-1)[0] > 1e-9
        assert not differs[6:].any() and differs[1:6].any()


def test_the_embedding_tells_which_position_is_next(in_float64: None) -> None:
    model = tiny(target_positions=True)
    codes, labels, orders = inputs(model, 1)
    other = orders.clone()
    other[0, -2:] = orders[0, -2:].flip(0)
    for a, b in zip(model(codes, labels, orders), model(codes, labels, other), strict=True):
        differs = (a - b).abs().amax(-1)[0] > 1e-9
        assert not differs[:-2].any() and differs[-2:].all()
    with pytest.raises(UserError, match="samples at its own grid of 3 x 4 positions alone"):
        model.generate([0], grid=(4, 4))


def test_the_share_of_random_orders_falls_from_all_to_none() -> None:
    def shares(*bounds: float) -> list[float]:
        train = GeneratorTrainConfig(random_order=bounds)
        return [train.random_share(progress) for progress in (0.0, 0.25, 0.5, 0.625, 0.75, 0.9)]

    assert shares(0.0, 0.0) == [0] * 6
    assert shares(0.5, 0.75) == [1, 1, 1, 0.5, 0, 0]
    assert shares(0.5, 0.5) == [1, 1, 0, 0, 0, 0]
    assert shares(0.0, 1.0) == pytest.approx([1, 0.75, 0.5, 0.375, 0.25, 0.1])


def test_files_without_levers_are_what_they_were() -> None:
    names = ("head_rounds", "factor_order", "adaln", "target_positions", "random_order", "cluster")
    assert not [name for name in names if name in str(to_dict(get_generator("far-base")))]
    changed = child(get_generator("far-base"), model={"adaln": True, "factor_order": (1, 0)})
    assert from_dict(GeneratorRunConfig, to_dict(changed)) == changed
    plain = FAR(TINY).state_dict()
    with_levers = FAR(replace(TINY, adaln=True, target_positions=True, factor_order=(2, 1, 0))).state_dict()
    assert plain.keys() == {name for name in with_levers if "modulation" not in name and "target" not in name}


def run_config(store: TokenStore, **changes: Any) -> GeneratorRunConfig:
    """A short run with all levers."""
    levers = {"target_positions": True, "adaln": True, "factor_order": (1, 0), "head": "masked", "head_rounds": 1}
    config = child(
        get_generator("far-tiny"),
        model={"width": 32, "depth": 2, "heads": 2, "mlp_multiple": 16, **levers},
        train={
            "batch": 8,
            "micro_batch": 4,
            "steps": 6,
            "random_order": (0.4, 0.8),
            "cluster_weight": 0.5,
            "clusters": (4, 2),
            "log_every": 1,
            "image_every": 0,
            "validate_every": 0,
            "checkpoint_every": 3,
            "sample_images": 4,
            "device": "cpu",
        },
    )
    return child(replace(config, data=str(store.path)), **changes)


def test_a_tasks_orders_are_permutations_in_the_share_of_the_step(
    tokenizer: FactorizedTokenizer, tmp_path: Path
) -> None:
    store = make_store(tmp_path / "store", tokenizer)
    config = run_config(store, train={"steps": 100})
    model = config.model.resolved(store.codebook_sizes, store.grid, store.num_classes)
    task = GeneratorTask(replace(config, model=model), World(0, 1, torch.device("cpu")), store, None)
    raster = torch.arange(model.num_positions)
    for step, share in ((0, 1.0), (39, 1.0), (60, 0.5)):
        task.step = step
        orders = task._orders(400)
        assert orders is not None and torch.equal(orders.sort(1).values, raster.expand(400, -1))
        assert ((orders != raster).any(1).float().mean() - share).abs() < 0.08
    for step in (80, 99):
        task.step = step
        assert task._orders(400) is None


def test_all_levers_train_resume_and_draw(tokenizer: FactorizedTokenizer, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", tokenizer)
    config = run_config(store)
    train_generator(config, tmp_path / "straight")
    stats = lines(tmp_path / "straight")
    assert stats[-1]["loss"] < stats[0]["loss"]
    names = [f"{name}_loss" for name in store.factor_names]
    for line in stats:
        assert line["loss"] == pytest.approx(sum(line[name] for name in names) / 2 + 0.5 * line["cluster_loss"])

    class Stopped(Exception):
        pass

    before = GeneratorTask._loss

    def stops(self: GeneratorTask, *rest: Any) -> Any:
        if self.step == 4:
            raise Stopped
        return before(self, *rest)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(GeneratorTask, "_loss", stops)
        train_generator(config, tmp_path / "resumed")
    with pytest.MonkeyPatch.context() as patch:  # another machine may round otherwise: those of the run are kept
        patch.setattr(task_module, "code_clusters", lambda *given: [each * 0 for each in code_clusters(*given)])
        train_generator(config, tmp_path / "resumed")
    assert_same(tmp_path / "resumed", tmp_path / "straight")
    generator = fqgan.load_generator(tmp_path / "straight")
    assert generator.config.rounds == ((1, 0),) and generator.config.adaln
    codes = generator.generate([0, 1], cfg_scale=3.0)
    assert generator.tokenizer.decode(codes).isfinite().all()
    assert generator.log_likelihood(codes, [0, 1]).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.random-order", "0.5", "0.4"], "must be two fractions 0 <= from <= to <= 1 of the run, got 0.5 0.4"),
        (["--train.random-order", "0.5"], "train.random_order must be two fractions"),
        (["--train.random-order", "0.5", "0.7"], "leaves open which position comes next: add --model.target-positions"),
        (["--model.factor-order", "1", "1"], "model.factor_order must name each of the factors 0 to 1 once, got 1 1"),
        (["--model.adaln", "--model.legacy"], "which have no model.adaln: drop one"),
    ],
)
def test_levers_that_make_no_sense_are_refused(
    options: list[str], message: str, here: Path, refused: Callable[..., str]
) -> None:
    assert message in refused("train-generator", "far-tiny", "--data", "store", "--run", "run", *options)
    assert not (here / "run").exists()
