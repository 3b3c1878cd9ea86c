"""Checkpoints: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fqgan.base.errors import UserError, in_one_line
from fqgan.base.files import is_name, replacing, sync, writing
from fqgan.base.printing import say
from fqgan.base.schema import entry, load_json
from fqgan.engine.optim import state_entries
from fqgan.engine.sharding import sharded_like

Tensors = Mapping[str, Tensor]
_TEMPORARY = ".writing-"


def save(root: Path, step: int, tensors: Mapping[str, Tensors], state: dict[str, Any], keep_last: int) -> Path:
    """Write `root/step-NNNNNNNN` and delete all but the last `keep_last` checkpoints up to it. Folders of other names,
    such as copies that a user made, are left alone.

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
            if final.is_symlink():
                final.unlink()
            elif final.exists():
                shutil.rmtree(final)
            folder.rename(final)
            sync(root)
            before = [old for old in folders(root) if _number(old) < step]
            for old in before[keep_last - 1 :]:
                old.unlink() if old.is_symlink() else shutil.rmtree(old)
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
    for folder in folders(root):
        problem = problem_of(folder)
        if not problem:
            return folder
        say(f"warning: skipping checkpoint {folder}: {problem}")
        broken.append(folder)
    if broken:
        raise UserError(f"no whole checkpoint in {root}: {problem_of(broken[0])}")
    return None


def newest(path: Path) -> Path:
    """The newest whole checkpoint of a run folder; anything else is its own. `UserError` where a run has none."""
    if not (path / "checkpoints").is_dir():
        return path
    if (found := latest(path / "checkpoints")) is None:
        raise UserError(f"run {path} has no checkpoint yet")
    return found


def problem_of(folder: Path) -> str:
    """What is wrong with a checkpoint's files; empty if nothing is."""
    try:
        files = load_state(folder)["files"]
        load_json(folder / "config.json")
    except UserError as error:
        return str(error)
    for name, size in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} is truncated ({path.stat().st_size} of {size} bytes)"
    return ""


def load_state(folder: Path) -> dict[str, Any]:
    """A checkpoint's state.json. `UserError` names the entry that is missing or of another form."""
    path = folder / "state.json"
    state = load_json(path)
    entry(state, "step", int, path, lambda step: 0 <= step < 2**53)
    names = "of plain file names and their bytes"
    entry(state, "files", dict, path, _are_files, names)
    entry(state, "config", dict, path)
    entry(state, "data", dict, path, lambda data: all(isinstance(v, int | str) for v in data.values()), default={})
    state.setdefault("data", {})
    counts = entry(state, "nonfinite_steps", list, path, default=[0, 0])
    if len(counts) != 2 or not all(isinstance(n, int) and 0 <= n < 2**53 for n in counts):
        raise UserError(f"{path}: nonfinite_steps must be two counts, got {str(counts)[:40]}")
    return state


def _are_files(files: dict[str, Any]) -> bool:
    plain = all(map(is_name, files))
    return bool(files) and plain and all(isinstance(size, int) for size in files.values())


def step_of(folder: Path) -> int:
    """Optimizer steps behind a checkpoint."""
    return load_state(folder)["step"]


def folders(root: Path) -> list[Path]:
    """The checkpoints under `root`, newest first."""
    found = [path for path in root.glob("step-*") if re.fullmatch(r"step-[0-9]{8,15}", path.name) and path.is_dir()]
    return sorted(found, key=_number, reverse=True)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def save_tensors(tensors: Tensors, path: Path) -> None:
    """Write a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        _save_file(tensors, temporary)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Tensors of a safetensors file; `UserError` when it is missing, truncated or something else."""
    if not path.is_file():
        raise UserError(f"{path} {'is no file' if path.exists() else 'does not exist'}")
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({in_one_line(error)})") from None


def load_module(module: nn.Module, tensors: Tensors, where: str) -> None:
    """Copy tensors into a module; `UserError` as `check_fit`."""
    check_fit(module, tensors, where)
    own = module.state_dict()
    module.load_state_dict({name: sharded_like(tensors[name], tensor) for name, tensor in own.items()})


def check_fit(module: nn.Module, tensors: Tensors, where: str) -> None:
    """`check_like` of a module's tensors."""
    check_like(module.state_dict(), tensors, where)


def check_like(own: Tensors, tensors: Tensors, where: str) -> None:
    """`UserError` names the first tensor that is missing, not known, or of another shape or kind of numbers than its
    namesake in `own`."""
    for name, tensor in own.items():
        if name not in tensors:
            raise UserError(f"{where} has no tensor {name}: it belongs to another model")
        found = tensors[name]
        if found.shape != tensor.shape:
            shapes = f"{tuple(found.shape)}, the model wants {tuple(tensor.shape)}"
            raise UserError(f"{where}: tensor {name} has shape {shapes}")
        if _kind(found) != _kind(tensor):
            raise UserError(f"{where}: tensor {name} holds {found.dtype}, the model wants {tensor.dtype}")
    if unknown := set(tensors) - set(own):
        raise UserError(f"{where} has an unknown tensor {min(unknown)}: it belongs to another model")


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    """What sort of numbers it holds, whatever their width."""
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """An optimizer's per-parameter state as `parameter/entry` -> tensor."""
    return {
        f"{name}/{entry}": value
        for name, parameter in module.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Tensors, where: str) -> None:
    """Restore what `optimizer_tensors` gave. Learning rates come from the schedule, not from the file. `UserError` for
    what is not this optimizer's: its kernels go through the memory of parameter and moments side by side."""
    index = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    parameters = dict(module.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    found: dict[str, set[str]] = {}
    for key in tensors:
        name, _, entry = key.rpartition("/")
        found.setdefault(name, set()).add(entry)
    for name, entries in found.items():
        if name not in parameters:
            raise UserError(f"{where} has an unknown tensor {name}: it belongs to another model")
        wanted = state_entries(optimizer, parameters[name])
        if odd := min(wanted ^ entries, default=""):
            raise UserError(f"{where}: {name} {'has an unknown' if odd in entries else 'lacks its'} {odd}")
        shapes = {
            entry: torch.empty(() if entry == "step" else parameters[name].shape, device="meta") for entry in wanted
        }
        check_like(shapes, {entry: tensors[f"{name}/{entry}"] for entry in entries}, f"{where}: {name}")
        for entry in entries:
            value, parameter = tensors[f"{name}/{entry}"], parameters[name]
            if not value.isfinite().all():
                raise UserError(f"{where}: {entry} of {name} is not finite")
            if entry != "step":
                value = sharded_like(value, parameter)
                value = torch.empty_like(parameter, device=value.device).copy_(value)
            state.setdefault(index[id(parameter)], {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _save_file(tensors: Tensors, path: Path) -> None:
    """Write tensors in safetensors' format, readable for whoever may read a new file here: the library's own are for
    their owner alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(mode)
