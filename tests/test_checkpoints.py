"""Checkpoints: whole or not at all, the newest whole one is found, and what is read back is what was written."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError
from fqgan.engine import checkpoint
from fqgan.engine.checkpoint import latest, load_module, load_optimizer, load_tensors, optimizer_tensors, save

STATE = {"config": {"format_version": 1}}


def write(root: Path, *steps: int, keep_last: int = 9) -> list[Path]:
    return [save(root, step, {"model": {"a": torch.full((64,), step)}}, STATE, keep_last) for step in steps]


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def test_the_newest_is_found_and_reads_back(tmp_path: Path) -> None:
    assert latest(tmp_path / "nothing-yet") is None
    folders = write(tmp_path, 2, 10)
    assert [folder.name for folder in folders] == ["step-00000002", "step-00000010"]
    assert latest(tmp_path) == folders[1]
    assert load_tensors(folders[1] / "model.safetensors")["a"].tolist() == [10] * 64
    assert sorted(path.name for path in folders[1].iterdir()) == ["config.json", "model.safetensors", "state.json"]


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4, keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    write(tmp_path, 1)
    [folder] = write(tmp_path, 1)
    assert [folder] == list(tmp_path.iterdir())
    assert checkpoint.problem_of(folder) == ""


def test_a_truncated_newest_is_passed_over_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older, newer = write(tmp_path, 1, 2)
    truncate(newer)
    assert latest(tmp_path) == older
    warning = " ".join(capsys.readouterr().out.split())
    assert "warning: skipping checkpoint" in warning
    assert "model.safetensors is truncated" in warning


@pytest.mark.parametrize("damage", ["missing file", "no state", "broken state", "empty state"])
def test_other_damage_is_seen_too(tmp_path: Path, damage: str) -> None:
    older, newer = write(tmp_path, 1, 2)
    match damage:
        case "missing file":
            (newer / "model.safetensors").unlink()
        case "no state":
            (newer / "state.json").unlink()
        case "broken state":
            (newer / "state.json").write_text('{"step": 2, "fil')
        case "empty state":  # a checkpoint that lists no files once passed for a whole one
            (newer / "state.json").write_text("{}")
    assert latest(tmp_path) == older


def test_a_warning_prints_brackets_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder named `run[1]` lost its brackets: the warning was read as rich's markup."""
    [folder] = write(tmp_path / "x[red]y", 1)
    truncate(folder)
    with pytest.raises(UserError):
        latest(folder.parent)
    assert "x[red]y" in capsys.readouterr().out.replace("\n", "")


def test_all_broken_is_an_error_and_no_fresh_start(tmp_path: Path) -> None:
    for folder in write(tmp_path, 1, 2):
        truncate(folder)
    with pytest.raises(UserError, match=r"no whole checkpoint in .*model\.safetensors is truncated \(\d+ of \d+ bytes"):
        latest(tmp_path)


def test_a_killed_write_leaves_the_one_before_and_is_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [first] = write(tmp_path, 1)
    if not (child := os.fork()):
        monkeypatch.setattr(checkpoint, "sync", lambda path: os.kill(os.getpid(), signal.SIGKILL))
        with suppress(BaseException):
            write(tmp_path, 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    leftovers = [path for path in tmp_path.iterdir() if path != first]
    assert len(leftovers) == 1, "the kill came after the files were written under a temporary name"
    assert latest(tmp_path) == first
    write(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def optimize(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        module(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), 1e-2, (0.9, 0.95), fused=True)


def test_weights_and_optimizer_state_round_trip_exactly(tmp_path: Path) -> None:
    first = network(0)
    first_adam = adam(first)
    optimize(first, first_adam, range(3))
    groups: dict[str, dict[str, Tensor]] = {
        "model": first.state_dict(),
        "optimizer": optimizer_tensors(first_adam, first),
    }
    folder = save(tmp_path, 3, groups, STATE, keep_last=1)

    second = network(1)
    second_adam = adam(second)
    load_module(second, load_tensors(folder / "model.safetensors"), "model")
    load_optimizer(second_adam, second, load_tensors(folder / "optimizer.safetensors"), "optimizer")
    for module, optimizer in ((first, first_adam), (second, second_adam)):
        optimize(module, optimizer, range(3, 6))
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.bias": None}, "here has no tensor 0.bias: it belongs to another model"),
        ({"0.bias": torch.zeros(5)}, r"here: tensor 0.bias has shape \(5,\), the model wants \(4,\)"),
        ({"9.bias": torch.zeros(1)}, "here has an unknown tensor 9.bias: it belongs to another model"),
    ],
    ids=["missing", "shape", "unknown"],
)
def test_tensors_of_another_model_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    module = network(0)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {name: tensor for name, tensor in {**network(1).state_dict(), **change}.items() if tensor is not None}
    with pytest.raises(UserError, match=message):
        load_module(module, tensors, "here")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04 a zip"], ids=["empty", "zeros", "foreign"])
def test_what_is_no_safetensors_file_is_told_so(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        load_tensors(file)
    file.write_bytes(content)
    with pytest.raises(UserError, match="is truncated or no safetensors file"):
        load_tensors(file)
