"""Sharded weights (FSDP2) in bf16: what travels, in which types, and that it trains as without sharding."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from generator_runs import home, small
from generators import tiny as tiny_generator
from processes import on_two_ranks
from rehearsal import counted
from runs import command, contents, lines
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fqgan.config import GeneratorRunConfig
from fqgan.config.presets import child
from fqgan.engine.sharding import shard, sharded_parts
from fqgan.engine.speed import compile_parts
from fqgan.generator.model import FAR
from fqgan.generator.task import LossFace
from fqgan.generator.transformer import Block

__all__ = ["home"]  # fixtures


@pytest.fixture
def two_ranks() -> Iterator[None]:
    """One of two ranks, to which nothing ever comes from the other."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


class Sent(TorchDispatchMode):
    """Bytes that come out of collectives, by their name and type."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[tuple[str, torch.dtype]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            output = next(each for each in tree_leaves(args) if isinstance(each, torch.Tensor))
            self.bytes[func.__name__.partition(".")[0], output.dtype] += output.nbytes
        return func(*args, **(kwargs or {}))


def step(precision: str, micro_batches: int = 2) -> tuple[FAR, Counter[tuple[str, torch.dtype]], set[torch.dtype]]:
    """A sharded generator after the backward passes of a step; what travelled; types of what comes into its blocks."""
    model = tiny_generator(qk_norm=True).train()
    shard(model, Block, torch.device("cpu"), precision=precision, also=["loss"])
    seen: set[torch.dtype] = set()
    for block in model.modules():
        if isinstance(block, Block):
            block.register_forward_pre_hook(lambda module, inputs: seen.update(each.dtype for each in inputs))
    with Sent() as sent:
        for i in range(micro_batches):
            for part in sharded_parts(model):
                part.set_requires_gradient_sync(i == micro_batches - 1)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                found = LossFace(model)(torch.zeros(2, 3, 3, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
            assert {each.dtype for each in found.loss} == {torch.float32}
            torch.stack(found.loss).mean().backward()
    return model, sent.bytes, seen


def test_bf16_halves_what_is_gathered_and_sums_in_float32(two_ranks: None) -> None:
    _, usual, _ = step("float32")
    model, half, seen = step("bf16")
    gathered, summed = "_allgather_base_", "_reduce_scatter_base_"
    assert usual.keys() == {(gathered, torch.float32), (summed, torch.float32)}
    assert half.keys() == {(gathered, torch.bfloat16), (summed, torch.float32)}
    assert half[gathered, torch.bfloat16] * 2 == usual[gathered, torch.float32]
    assert half[summed, torch.float32] == usual[summed, torch.float32]
    assert seen == {torch.float32}, "rotary tables, and the sum that runs through the blocks"
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32 and parameter.grad is not None and parameter.grad.dtype == torch.float32
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_sharded_blocks_share_what_is_compiled_once(two_ranks: None, recompute: bool) -> None:
    """Those of the backbone, and those of the head: the hooks that gather weights break no graph."""
    with counted() as graphs:
        model, counts = tiny_generator(depth=12).train(), []
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        for block in blocks:
            block.recompute = recompute
        assert compile_parts(blocks, torch.device("cpu"))
        shard(model, Block, torch.device("cpu"), precision="bf16", also=["loss"])
        for _ in range(2):
            graphs.clear()
            with torch.autocast("cpu", torch.bfloat16):
                found = LossFace(model)(torch.zeros(2, 3, 3, 4, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
            torch.stack(found.loss).mean().backward()
            counts.append(len(graphs))
    assert counts == [2, 0]


@pytest.fixture
def config(home: Path) -> GeneratorRunConfig:
    return small(
        home,
        model={"class_dropout": 0.0, "qk_norm": True},
        optimizer={"lr": 1e-3, "clip": 1.0},
        train={"micro_batch": 2, "precision": "bf16"},
    )


def trained(config: GeneratorRunConfig, run: Path) -> list[dict[str, float]]:
    on_two_ranks(command(config, run))
    return lines(run)


@pytest.mark.slow
def test_sharded_bf16_trains_as_ddp_and_resumes_exactly(config: GeneratorRunConfig, tmp_path: Path) -> None:
    """With dropout, micro-batches and a moving average. Losses agree to bf16's rounding; checkpoints are float32."""
    usual, sharded = trained(config, tmp_path / "ddp"), trained(child(config, train={"fsdp": True}), tmp_path / "fsdp")
    learned = usual[0]["loss"] - usual[-1]["loss"]
    assert learned > 0.01
    for one, two in zip(usual, sharded, strict=True):
        assert one.keys() == two.keys()
        for name in {"loss", "val_loss"} & one.keys():
            assert abs(two[name] - one[name]) < 0.02 * learned, (name, one["step"])
        close = 0.01 if one["step"] <= 2 else 0.1  # roundings of bf16 go their own ways from then on
        assert two["generator_gradient_norm"] == pytest.approx(one["generator_gradient_norm"], rel=close)
    straight = contents(tmp_path / "fsdp", 6)
    assert {each.dtype for each in straight.values() if each.is_floating_point()} <= {torch.float32, torch.float64}
    assert any(
        (each != each.bfloat16().float()).any() for name, each in straight.items() if name.startswith("generator/")
    )
    shutil.rmtree(tmp_path / "fsdp" / "checkpoints" / "step-00000006")
    again = trained(child(config, train={"fsdp": True}), tmp_path / "fsdp")
    resumed = contents(tmp_path / "fsdp", 6)
    assert [name for name in straight if not torch.equal(straight[name], resumed[name])] == []
    assert again == sharded
