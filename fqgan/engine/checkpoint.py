"""Checkpoints: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich import print as say
from rich.markup import escape
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fqgan.engine.sharding import sharded_like
from fqgan.errors import UserError
from fqgan.files import replacing, sync, writing
from fqgan.schema import load_json

Tensors = Mapping[str, Tensor]
_TEMPORARY = ".writing-"


def save(root: Path, step: int, tensors: Mapping[str, Tensors], state: dict[str, Any], keep_last: int) -> Path:
    """Write `root/step-NNNNNNNN` and delete all but the last `keep_last` checkpoints.

    Every file is written and synced under a temporary name; the rename at the end makes the checkpoint exist.
    `UnwritableError` where that fails, with nothing left of this checkpoint and all of the earlier ones.

    Args:
        tensors: file stem -> tensors of `stem.safetensors`.
        state: JSON-ready rest; `config` in it is also written as config.json.
    """
    final, folder = root / f"step-{step:08d}", root / f"{_TEMPORARY}step-{step:08d}"
    try:
        with writing(final):
            _write(folder, step, tensors, state)
            if final.exists():
                shutil.rmtree(final)
            folder.rename(final)
            sync(root)
            for old in list(_steps(root))[keep_last:]:
                shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return final


def _write(folder: Path, step: int, tensors: Mapping[str, Tensors], state: dict[str, Any]) -> None:
    """All files of a checkpoint, synced, in a folder of temporary name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(stale)
    folder.mkdir()
    for stem, group in tensors.items():
        _save_file(group, folder / f"{stem}.safetensors")
    (folder / "config.json").write_text(json.dumps(state["config"], indent=2) + "\n")
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / "state.json").write_text(json.dumps({**state, "step": step, "files": sizes}, indent=2) + "\n")
    for path in [*folder.iterdir(), folder]:
        sync(path)


def latest(root: Path) -> Path | None:
    """The newest whole checkpoint under `root`; broken ones are passed over with a warning.

    None where there is no checkpoint at all; `UserError` when there are some but none is whole.
    """
    broken = []
    for folder in _steps(root):
        problem = problem_of(folder)
        if not problem:
            return folder
        say(f"[yellow]warning:[/] skipping checkpoint {escape(f'{folder}: {problem}')}")
        broken.append(folder)
    if broken:
        raise UserError(f"no whole checkpoint in {root}: {problem_of(broken[0])}")
    return None


def problem_of(folder: Path) -> str:
    """What is wrong with a checkpoint's files; empty if nothing is."""
    try:
        files = load_json(folder / "state.json").get("files")
    except UserError as error:
        return str(error)
    if not files:
        return "state.json lists no files"
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} is truncated ({path.stat().st_size} of {size} bytes)"
    return ""


def step_of(folder: Path) -> int:
    """Optimizer steps behind a checkpoint."""
    return load_json(folder / "state.json")["step"]


def save_tensors(tensors: Tensors, path: Path) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        _save_file(tensors, temporary)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Tensors of a safetensors file; `UserError` when it is missing, truncated or something else."""
    try:
        return load_file(path, device=str(device))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error})") from None


def load_module(module: nn.Module, tensors: Tensors, where: str) -> None:
    """Copy tensors into a module; `UserError` as `check_fit`."""
    check_fit(module, tensors, where)
    own = module.state_dict()
    module.load_state_dict({name: sharded_like(tensors[name], tensor) for name, tensor in own.items()})


def check_fit(module: nn.Module, tensors: Tensors, where: str) -> None:
    """`UserError` names the first tensor that a module lacks, does not know or has in another shape."""
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise UserError(f"{where} has no tensor {name}: it belongs to another model")
        if tensors[name].shape != tensor.shape:
            shapes = f"{tuple(tensors[name].shape)}, the model wants {tuple(tensor.shape)}"
            raise UserError(f"{where}: tensor {name} has shape {shapes}")
    if unknown := set(tensors) - set(own):
        raise UserError(f"{where} has an unknown tensor {min(unknown)}: it belongs to another model")


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """An optimizer's per-parameter state as `parameter/entry` -> tensor."""
    return {
        f"{name}/{entry}": value
        for name, parameter in module.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Tensors) -> None:
    """Restore what `optimizer_tensors` gave. Learning rates come from the schedule, not from the file."""
    index = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    parameters = dict(module.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        if value.shape == parameter.shape:
            value = sharded_like(value, parameter)
            # fused kernels go through the memory of both: the layouts must agree
            value = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
        state.setdefault(index[id(parameter)], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _steps(root: Path) -> Iterator[Path]:
    """Checkpoint folders, newest first."""
    return iter(sorted(root.glob("step-*"), reverse=True))


def _save_file(tensors: Tensors, path: Path) -> None:
    """Write tensors in safetensors' format, readable for whoever may read a new file here: the library's own are for
    their owner alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(mode)
