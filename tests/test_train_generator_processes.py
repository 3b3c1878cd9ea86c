"""Training a generator in processes of their own: exact resume after kills and signals, and ranks."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from generator_runs import home, small
from processes import IN_FLOAT64, finish, on_two_ranks, start
from runs import STEPS, assert_alike, assert_same, command, contents, killed_and_resumed, lines, stopped_by

from fqgan.config.presets import child

__all__ = ["home"]  # fixtures


@pytest.fixture(scope="module")
def uninterrupted(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run in a process of its own: other processes are compared with it bit for bit."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    finish(start(command(small(home), run)))
    return run


def test_kill_at_a_random_moment(uninterrupted: Path, home: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    killed_and_resumed(command(small(home), run), run, after="step-00000003")
    assert_same(run, uninterrupted)


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


@pytest.mark.parametrize("fsdp", [False, True])
def test_bad_validation_codes_of_one_rank_stop_all_of_them_saved(home: Path, tmp_path: Path, fsdp: bool) -> None:
    run = tmp_path / "run"
    config = small(home, train={"micro_batch": 2, "fsdp": fsdp, "checkpoint_every": 100})
    output = on_two_ranks(command(config, run), 2, code=BAD_CODES_OF_ONE_RANK)
    assert output.count("fqgan: error: one bad code; the same command resumes from step 3") == 1, output
    assert "Traceback" not in output
    assert "at step 3" in on_two_ranks(command(config, run))


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
