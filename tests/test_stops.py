"""Whatever stops a training: the last finished step is saved, the reason is one line, and the run goes on from there as
if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import finish, on_two_ranks, start
from runs import STEPS, contents, lines, stopped_by
from test_resume import command, everything, pictures, uninterrupted

from fqgan.config import TokenizerRunConfig
from fqgan.config.presets import child

__all__ = ["pictures", "uninterrupted"]  # fixtures

pytestmark = pytest.mark.slow
HEAD = """
import os, signal, sys
from functools import wraps
from fqgan.cli import run
from fqgan.base.errors import UserError
from fqgan.engine import checkpoint, trainer
from fqgan.tokenizer import task as training
from fqgan.data import workers
rank = os.environ.get("RANK", "0")

def at_call(number, owner, name, fault):
    whole, calls = getattr(owner, name), []
    @wraps(whole)
    def faulty(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            fault()
        return whole(*arguments, **options)
    setattr(owner, name, faulty)

def user():
    raise UserError("one bad picture")
def memory():
    import torch
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
def bug():
    raise KeyError("a mistake of ours")
def disk():
    raise OSError(28, "No space left on device", "the board")
"""
# step 4 (micro-batches 7 and 8) fails, or what follows step 4: what was done until then must not be done again
STOPS = {
    "the data": ("at_call(7, workers.Batches, '__next__', user)", 3, "one bad picture"),
    "the data amid a step": ("at_call(8, workers.Batches, '__next__', user)", 3, "one bad picture"),
    "memory amid a step": ("at_call(8, training, 'tokenizer_loss', memory)", 3, "out of memory"),
    "memory of the discriminator": (
        "at_call(4, training.TokenizerTask, '_discriminator_loss', memory)",
        3,
        "a smaller --train.micro-batch",
    ),
    "validation": ("at_call(1, training, 'score_reconstructions', user)", 4, "one bad picture"),
    "a picture's writing": ("at_call(1, training, 'save_picture', disk)", 4, "No space left on device"),
    "statistics": ("at_call(4, trainer.RunFolder, 'log', disk)", 4, "No space left on device"),
}
STOPS["a bug"] = ("at_call(8, training, 'tokenizer_loss', bug)", 3, "KeyError: 'a mistake of ours'")


def stoppable(pictures: Path) -> TokenizerRunConfig:
    """As the uninterrupted run, but for when it is watched: a checkpoint is due at its end only."""
    return child(
        everything(pictures),
        data={"workers": 0, "validation": str(pictures)},
        train={"checkpoint_every": 100, "validate_every": 4, "image_every": 4, "validation_images": 2},
    )


def without_validation(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if not k.startswith("val_")} for line in lines(run)]


@pytest.mark.parametrize("stop", STOPS)
def test_no_step_is_lost(stop: str, uninterrupted: Path, pictures: Path, tmp_path: Path) -> None:
    fault, step, why = STOPS[stop]
    run = tmp_path / "run"
    arguments = command(stoppable(pictures), run)
    process = start(arguments, code=f"{HEAD}\n{fault}\nrun()")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == (1 if stop == "a bug" else 2), output
    assert f"the same command resumes from step {step}" in output
    assert why in output
    assert ("Traceback" in output) == (stop == "a bug")
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    assert f"at step {step}" in finish(start(arguments))
    a, b = contents(run, STEPS), contents(uninterrupted, STEPS)
    assert a.keys() == b.keys()
    assert [name for name in a if not name.startswith("statistics/") and not a[name].equal(b[name])] == []
    whole = {line["step"]: line for line in lines(uninterrupted)}
    for line in without_validation(run):
        assert line == whole[line["step"]]
    assert without_validation(run)[-1] == whole[STEPS]


def test_a_killed_loader_process_costs_nothing(uninterrupted: Path, pictures: Path, tmp_path: Path) -> None:
    """Steps are slowed down, so that the worker does not die after all of its work is done."""
    run = tmp_path / "run"
    config = stoppable(pictures)
    arguments = command(replace(config, data=replace(config.data, workers=2)), run)
    kill = """
def kill():
    import multiprocessing
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
at_call(4, training.TokenizerTask, "after_step", kill)
"""
    process = start(arguments, code=f"{HEAD}\n{kill}\nrun()")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in output, output
    found = re.search(
        r"fqgan: error: a loader process ended without a word.*; the same command resumes from step (\d)", output
    )
    assert found and int(found[1]) >= 4, output
    finish(start(arguments))
    a, b = contents(run, STEPS), contents(uninterrupted, STEPS)
    assert [name for name in a if not name.startswith("statistics/") and not a[name].equal(b[name])] == []


@pytest.mark.parametrize("rank", ["0", "1"])
def test_an_error_of_one_rank_stops_all_of_them_saved(rank: str, pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = child(stoppable(pictures), train={"micro_batch": 0, "steps": 4})
    fault = f"rank == '{rank}' and at_call(3, workers.Batches, '__next__', user)"
    output = on_two_ranks(command(config, run), 2, code=f"{HEAD}\n{fault}\nrun()")
    assert output.count("fqgan: error: one bad picture; the same command resumes from step 2") == 1, output
    assert "Traceback" not in output
    assert "at step 2" in on_two_ranks(command(config, run))


def test_a_bad_validation_picture_of_one_rank_stops_all_of_them_saved(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = child(stoppable(pictures), train={"micro_batch": 0, "steps": 4, "validate_every": 3})
    fault = "rank == '1' and at_call(4, workers.Batches, '__next__', user)"  # after three of training
    output = on_two_ranks(command(config, run), 2, code=f"{HEAD}\n{fault}\nrun()")
    assert output.count("fqgan: error: one bad picture; the same command resumes from step 3") == 1, output


def test_a_lost_rank_costs_nothing_but_its_statistics(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = child(stoppable(pictures), train={"micro_batch": 0, "steps": 4})
    die = "rank == '1' and at_call(3, training, 'tokenizer_loss', lambda: os.kill(os.getpid(), signal.SIGKILL))"
    with pytest.raises(AssertionError) as caught:
        on_two_ranks(command(config, run), 2, code=f"{HEAD}\n{die}\nrun()")
    output = str(caught.value)
    assert "another rank was lost" in output and "the same command resumes from step 2" in output, output
    assert "Traceback" not in output
    assert "at step 2" in on_two_ranks(command(config, run))


SPOIL = """
import torch
whole = training.tokenizer_loss
steps = []
def spoilt(*arguments, **options):
    total, terms = whole(*arguments, **options)
    steps.append(1)
    return (total * torch.nan if (len(steps) + 1) // 2 in BAD else total), terms
training.tokenizer_loss = spoilt
run()
"""


def test_steps_that_are_not_finite_are_left_out_and_counted(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = child(stoppable(pictures), train={"skip_nonfinite": 2})
    arguments = command(config, run)
    output = finish(start(arguments, code=f"{HEAD}\nBAD = (2, 3, 5)\n{SPOIL}"))
    assert output.count("left out") == 3
    assert [line.get("nonfinite_steps") for line in lines(run)] == [None, 1, 2, 2, 3, 3]
    assert "reconstruction_loss" not in lines(run)[1], "nothing was counted of a step that was left out"
    state = json.loads((run / f"checkpoints/step-{STEPS:08d}/state.json").read_text())
    assert state["nonfinite_steps"] == [3, 0]
    other = tmp_path / "other"
    process = start(command(config, other), code=f"{HEAD}\nBAD = (2, 3, 4)\n{SPOIL}")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "as in the 2 step(s) before" in output and "resumes from step 3" in output
    finish(start(command(config, other)))
    assert lines(other)[-1]["nonfinite_steps"] == 2


def test_a_step_left_out_changes_nothing_but_its_number(pictures: Path, tmp_path: Path) -> None:
    """All steps are left out: weights, averages and codes' ages are those before the first."""
    config = child(
        stoppable(pictures), train={"skip_nonfinite": 9, "steps": 2}, quantizer={"ema_decay": 0.9, "restart_after": 5}
    )
    moved, still = tmp_path / "moved", tmp_path / "still"
    finish(start(command(child(config, optimizer={"lr": 1e-30}), moved)))
    finish(start(command(config, still), code=f"{HEAD}\nBAD = (1, 2)\n{SPOIL}"))
    a, b = contents(still, 2), contents(moved, 2)
    assert not any(name.startswith("tokenizer-optimizer/") for name in a)
    assert not a["extra/0/ages"].any() and b["extra/0/ages"].any()
    for name in (name for name in a if name.startswith("tokenizer/") and "codebook" not in name):
        assert torch.allclose(a[name], b[name], atol=1e-20), "with next to no rate nothing moves either"


def test_a_resume_changes_what_a_user_must_change(pictures: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    run, config = tmp_path / "run", child(stoppable(pictures), train={"steps": 3})
    finish(start(command(config, run)))
    moved = tmp_path / "elsewhere"
    moved.symlink_to(pictures, target_is_directory=True)
    options = ["--train.steps", "5", "--optimizer.lr", "1e-5", "--loss.entropy-weight", "0", "--data.small", "skip"]
    options += ["--optimizer.clip", "0.5", "--data.source", str(moved), "--train.precision", "bf16"]
    options += ["--discriminator.weight", "0.1", "--data.max-unreadable", "0.5"]
    output = finish(start(command(config, run, *options)))
    assert "changed from now on: " in output and "optimizer.lr: 0.0002 -> 1e-05" in output
    content = json.loads((run / "config.json").read_text())
    (entry,) = content["history"]
    assert entry["step"] == 3 and entry["changed"]["data.source"] == [str(pictures), str(moved)]
    assert len(entry["changed"]) == 9
    told = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told] == [1, 2, 3, 3, 4, 5]
    assert told[3]["changed"] == entry["changed"]
    assert told[4]["lr"] == pytest.approx(1e-5) or told[4]["lr"] < 1e-5
    finish(start(command(config, run, *options, "--train.steps", "6")))  # what follows is told once more, not again
    assert len(json.loads((run / "config.json").read_text())["history"]) == 2
    for option, value in (("--train.seed", "3"), ("--train.batch", "4"), ("--discriminator.weight", "0")):
        line = refused(*command(config, run, *options, option, value))
        assert f"restore them or use a new --run; --init {run} with a new --run starts from these weights" in line


def test_wandb_goes_on_with_its_run(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text(
        "import json\n"
        "class Run:\n    def log(self, *a, **k): pass\n    def finish(self): pass\n"
        "def init(**k):\n"
        "    print('WANDB', json.dumps({n: str(v) for n, v in k.items() if n != 'config'}))\n    return Run()\n"
    )
    config = child(everything(pictures), train={"wandb": "project", "steps": 1}, data={"workers": 0})
    run, ids = tmp_path / "run", []
    for steps in ("1", "2"):
        code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom fqgan.cli import run\nrun()"
        output = finish(start(command(config, run, "--train.steps", steps), code=code))
        (line,) = (line for line in output.splitlines() if line.startswith("WANDB"))
        told = json.loads(line.removeprefix("WANDB"))
        assert told["resume"] == "allow" and told["project"] == "project"
        ids.append(told["id"])
    assert ids[0] == ids[1] and re.fullmatch("[a-z0-9]{8}", ids[0])


def test_wandb_itself_takes_up_its_run(pictures: Path, tmp_path: Path) -> None:
    """Offline, where it keeps a folder of each start, named after the run."""
    pytest.importorskip("wandb")
    config = child(everything(pictures), train={"wandb": "project", "steps": 1}, data={"workers": 0})
    run = tmp_path / "run"
    for steps in ("1", "2"):
        finish(start(command(config, run, "--train.steps", steps), WANDB_MODE="offline", WANDB_CONSOLE="off"))
    name = (run / "wandb-id").read_text().strip()
    starts = sorted(run.glob("wandb/offline-run-*"))
    assert len(starts) == 2 and all(each.name.endswith(f"-{name}") for each in starts)
    for each in starts:
        (record,) = each.glob("*.wandb")
        assert record.name == f"run-{name}.wandb" and b"reconstruction_loss" in record.read_bytes()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "1"}, "RANK is 1 in the environment, but WORLD_SIZE is not set, which means 1"),
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc' in the environment, and must be a number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0 in the environment, and must be at least 1"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 in the environment, but RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2 in the environment, but MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "but MASTER_ADDR is not set"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x' in the environment"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "1"},
            "MASTER_ADDR 'no-such-host.invalid' cannot be resolved",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "5", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
            "RANK is 5 in the environment, but WORLD_SIZE is 2",
        ),
    ],
)
def test_odd_ranks_are_one_line(environment: dict[str, str], message: str, pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(command(everything(pictures), run), **environment)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in output, output
    assert message in output
    assert not run.exists()
    process = start(["data", "info", str(pictures), "--workers", "0"], **environment)
    assert "12" in finish(process), "what needs no ranks works"


def test_a_port_in_use_is_one_line(pictures: Path, tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = start(command(everything(pictures), tmp_path / "run"), **place)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in output, output
    assert f"the ranks cannot meet at 127.0.0.1:{port}" in output


def test_a_loader_process_ends_with_its_parent(pictures: Path, tmp_path: Path) -> None:
    config = child(stoppable(pictures), data={"workers": 2}, train={"steps": 1000})
    process = start(
        command(config, tmp_path / "run"),
        code=f"{HEAD}\n"
        + """
def told():
    import multiprocessing
    print("CHILDREN", *(child.pid for child in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
at_call(1, training.TokenizerTask, "after_step", told)
run()
""",
    )
    output, _ = process.communicate(timeout=300)
    (line,) = (line for line in output.splitlines() if line.startswith("CHILDREN"))
    workers = [int(word) for word in line.split()[1:]]
    assert len(workers) == 2
    for _ in range(100):
        alive = [pid for pid in workers if _runs(pid)]
        if not alive:
            return
        signal.sigtimedwait([], 0.1)
    raise AssertionError(f"{alive} still there after 10 s")


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_closed_terminal_saves(pictures: Path, tmp_path: Path) -> None:
    """Unless nohup, under which these tests may run, has it ignored."""
    arguments = command(child(stoppable(pictures), train={"steps": 500}), tmp_path / "run")
    heard = f"{HEAD}\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\nrun()"
    stopped_by(signal.SIGHUP, arguments, tmp_path / "run", heard)


def test_ranks_go_on_with_other_losses_than_the_lines_before(pictures: Path, tmp_path: Path) -> None:
    """The sums since the last line are one rank's, under names that the resumed run does not count any more."""
    run = tmp_path / "run"
    config = child(stoppable(pictures), train={"micro_batch": 0, "log_every": 4, "steps": 3, "validate_every": 0})
    config = child(config, loss={"entropy_weight": 0.0}, data={"validation": ""})
    code = f"{HEAD}\nat_call(4, workers.Batches, '__next__', user)\nrun()"
    process = start(command(child(config, train={"steps": 4}), run), code=code)
    output, _ = process.communicate(timeout=300)
    assert "resumes from step 3" in output
    later = child(config, train={"steps": 4}, loss={"perceptual": "none"})
    assert "at step 3" in on_two_ranks(command(later, run))
    assert "perceptual_loss" in lines(run)[-1]
