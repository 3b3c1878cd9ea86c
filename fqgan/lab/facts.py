"""What an installation and its machine are, and what they lack: looked up, never downloaded."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from fqgan.base.errors import UserError, in_one_line
from fqgan.base.progress import readable_bytes
from fqgan.config.presets import PRESETS
from fqgan.engine.devices import device_name
from fqgan.engine.sizes import memory_of
from fqgan.engine.speed import compile_problem, has_bf16
from fqgan.nets import inception
from fqgan.nets.efficientnet import efficientnet_file
from fqgan.nets.perceptual import lpips_paths
from fqgan.nets.teachers import VITS
from fqgan.nets.weights import cached_folder

Facts = dict[str, dict[str, str]]
"""Section -> name -> what was found."""
_INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "bf16", "sve")


def look() -> Facts:
    """All facts, JSON-ready. Nothing asks the network; paths under the home folder begin with ~."""
    found = {
        "versions": _versions(),
        "machine": _machine(),
        "devices": dict(map(_device, _devices())),
        "extras": {
            name: _lacking(name) or "whole" for name in metadata.metadata("fqgan").get_all("Provides-Extra", [])
        },
        "weights": _weights(),
    }
    return {section: {name: without_home(text) for name, text in rows.items()} for section, rows in found.items()}


def without_home(text: str) -> str:
    """A text in which the home folder is ~."""
    for home in sorted({str(Path.home()), os.path.realpath(Path.home())}, key=len, reverse=True):
        text = text.replace(home, "~") if len(home) > 1 else text
    return text


def _versions() -> dict[str, str]:
    """Of Python, and of all that the package itself needs."""
    needed = [Requirement(line) for line in metadata.requires("fqgan") or ()]
    names = [each.name for each in needed if each.marker is None]
    known = {name: _version(name) or "not installed" for name in ("fqgan", *names)}
    # the build of torch, too, which its metadata do not always tell
    return {"python": sys.version.split()[0], **known, "torch": torch.__version__}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _machine() -> dict[str, str]:
    processor = torch.cpu.get_capabilities()
    libc = " ".join(filter(None, platform.libc_ver())) or "not glibc"
    return {
        "system": f"{platform.system()} {platform.release()}, {libc}",
        "processor": f"{processor.get('cpu_name') or platform.processor() or 'unknown'} ({platform.machine()})",
        "instructions": " ".join(name for name in _INSTRUCTIONS if processor.get(name)) or "none of interest",
        "memory": readable_bytes(memory_of(torch.device("cpu"))),
    }


def _devices() -> Iterator[torch.device]:
    yield torch.device("cpu")
    yield from (torch.device("cuda", i) for i in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        yield torch.device("mps")


def _device(device: torch.device) -> tuple[str, str]:
    """Its name, and what it is, has and can."""
    what = [device_name(device)]
    if device.type == "cpu":
        what.append(f"{os.cpu_count()} cores")
    else:
        what.append(readable_bytes(memory_of(device)))
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        what.append(f"capability {major}.{minor}, CUDA {torch.version.cuda}, driver {_driver()}")
    what.append("bf16" if has_bf16(device) else "no bf16")
    problem = compile_problem(device)
    what.append(f"torch.compile fails: {problem}" if problem else "torch.compile works")
    return str(device), ", ".join(what)


def _driver() -> str:
    """NVIDIA's, as Linux knows it."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def _lacking(extra: str) -> str:
    """What an extra needs that is not here, or not in a version that will do; empty if nothing is."""
    lacking: list[str] = []
    for line in metadata.requires("fqgan") or ():
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": ""}) or not need.marker.evaluate({"extra": extra}):
            continue
        if need.name == "fqgan":  # an extra made of others
            lacking += [text for text in map(_lacking, sorted(need.extras)) if text]
        elif not (there := _version(need.name)):
            lacking.append(f"no {need.name}")
        elif not need.specifier.contains(there, prereleases=True):
            lacking.append(f"{need.name} {there}, not {need.specifier}")
    return ", ".join(dict.fromkeys(", ".join(lacking).split(", "))) if lacking else ""


def _weights() -> dict[str, str]:
    """Where the weights of frozen networks are: those of metrics, and of the presets' teachers."""
    teachers = {factor.teacher for preset in PRESETS.values() for factor in preset.model.factors}
    vits = sorted(name for name in teachers if name.partition(":")[0] in VITS)
    return {
        "efficientnet-lite0": _place(efficientnet_file),
        "inception": _place(inception.weights_on_disk),
        "lpips-vgg": ", ".join(f"{path}{'' if path.is_file() else ' is missing'}" for path in lpips_paths()),
        **{name: _place(lambda name=name: cached_folder(name.partition(":")[2])) for name in vits},
    }


def _place(find: Callable[[], Any]) -> str:
    try:
        return str(find() or "not on this machine")
    except UserError as error:
        return in_one_line(error)
