"""Tokenizers of others, as far as pictures pass through them and are measured: any object with `encode` and `decode`,
and the autoencoders of the library diffusers."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fqgan.base import schema
from fqgan.base.errors import UserError, in_one_line
from fqgan.base.files import make_folder, write_text
from fqgan.base.inputs import Numbers, as_codes, as_count, as_images, as_tensor
from fqgan.config import FactorConfig, ForeignConfig
from fqgan.models.fingerprint import weights_fingerprint
from fqgan.models.hub import DIFFUSERS, FOREIGN, PYTHON
from fqgan.tokenizer.protocol import Tokenizer, check_sides

_IMAGE_SIZE = 256  # of a tokenizer that does not say
_TRIED = 64  # pixels a side that any autoencoder of diffusers takes


@dataclass(frozen=True)
class _Parts:
    """What an address leads to."""

    encode: Callable[[Tensor], Any]
    decode: Callable[[Tensor], Any]
    inner: Any
    """Whatever holds the weights."""
    sizes: tuple[int, ...]
    image_size: int
    downsampling: int = 0
    """0: found out."""
    facts: dict[str, Any] = field(default_factory=dict)
    dim: int = 0
    """Of a code; 0: not known."""
    tried: int = 0
    """Side of the first picture; 0: `image_size`."""


class ForeignTokenizer(nn.Module):
    """A tokenizer of others, as a `Tokenizer`: what goes into it and what comes out is checked here.

    Args:
        address: `py:module:function`, `py:file.py:function` or `diffusers:folder-or-id`.
        device: to which images go, and the weights where it is an `nn.Module`.
        precision: `bf16` runs it under autocast.
    """

    kind = "tokenizer"
    chosen = "exported"
    separate = ()

    def __init__(self, address: str, device: torch.device, precision: str = "float32"):
        super().__init__()
        if precision not in ("float32", "bf16"):
            raise UserError(f"precision must be float32 or bf16, got {precision!r}")
        self.address, self.device, self.precision = address, device, precision
        parts = _diffusers_parts(address) if address.startswith(DIFFUSERS) else _python_parts(address)
        self.inner = parts.inner.eval().to(device) if isinstance(parts.inner, nn.Module) else parts.inner
        self._parts = parts
        self.codebook_sizes = parts.sizes
        self.config = self._found_out(parts)

    def encode(self, images: Numbers, *, values: bool = True) -> Tensor:
        """Codes (b, k, H/f, W/f) int64, or latents (b, c, H/f, W/f) in their own type, of images as
        `FactorizedTokenizer.encode` takes them."""
        images = as_images(images, self.device, values=values)
        self.check_size(images.shape[2], images.shape[3])
        f = self.config.downsampling
        return self._encoded(images, (images.shape[2] // f, images.shape[3] // f))

    def decode(self, codes: Numbers, keep: Any = None, *, values: bool = True) -> Tensor:
        """Images (b, 3, H, W), not clipped, of what `encode` gives. `UserError` where factors are asked for alone."""
        self._refuse_alone(keep)
        codes = self.check_codes(codes)
        with torch.no_grad(), self._autocast():
            images = self._called("decode", self._parts.decode, codes)
        f = self.config.downsampling
        wanted = (len(codes), 3, codes.shape[2] * f, codes.shape[3] * f)
        if tuple(images.shape) != wanted or not images.is_floating_point():
            raise UserError(f"{self.address}: decode gave {_shown(images)}, images {wanted} of floating point are due")
        return images.to(self.device).float().clone(memory_format=torch.contiguous_format)  # callers write into theirs

    def _refuse_alone(self, keep: Any) -> None:
        if keep is not None:
            raise UserError(f"{self.address} decodes all of its factors together, none of them alone")

    def check_codes(self, codes: Numbers) -> Tensor:
        """What `decode` takes, on the device; `UserError` for anything else."""
        if self.codebook_sizes:
            return as_codes(codes, self.codebook_sizes, self.device)
        latents, channels = as_tensor(codes, "latents"), self.config.factors[0].code_dim
        if latents.ndim != 4 or latents.shape[1] != channels or not latents.is_floating_point():
            raise UserError(f"latents must be (b, {channels}, h, w) of floating point, got {_shown(latents)}")
        return latents.to(self.device)

    def check_size(self, height: int, width: int) -> None:
        """`UserError` unless both are positive multiples of the downsampling factor."""
        check_sides(height, width, self.config.downsampling, self.address)

    def fingerprint(self) -> str:
        """64 hex digits that only the same weights share; of what is no `nn.Module`, the same address and source."""
        if isinstance(self.inner, nn.Module):
            return weights_fingerprint(self.inner.state_dict())
        source = inspect.getsourcefile(self.inner if inspect.ismodule(self.inner) else type(self.inner))
        text = Path(source).read_bytes() if source else b""
        return hashlib.sha256(self.address.encode() + b"\0" + text).hexdigest()

    def export(self, folder: str | Path) -> Path:
        """Write config.json, which says whose tokenizer it was; its weights stay where they are."""
        folder = Path(folder)
        make_folder(folder)
        model = schema.to_dict(self.config)
        version = model.pop("format_version")
        content = {"format_version": version, "kind": "tokenizer", "address": self.address, "model": model}
        content["fingerprint"] = self.fingerprint()
        write_text(folder / "config.json", json.dumps(content, indent=2) + "\n")
        return folder

    def _found_out(self, parts: _Parts) -> ForeignConfig:
        """What one picture tells."""
        side = parts.tried or parts.image_size
        self.config = ForeignConfig(self.address, side)
        found = self._encoded(torch.zeros(1, 3, side, side, device=self.device), None)
        f = side // found.shape[2] if found.shape[2] else 0
        if not f or tuple(found.shape[2:]) != (side // f,) * 2 or side % f or parts.downsampling not in (0, f):
            said = f", and it says downsampling {parts.downsampling}" if parts.downsampling else ""
            raise UserError(
                f"{self.address}: encode gave {_shown(found)} for a picture of {side} pixels a side{said}: (b, c, "
                "side / f, side / f) is due"
            )
        names = [f"factor {i}" if len(parts.sizes) > 1 else "codes" for i in range(len(parts.sizes))]
        factors = tuple(FactorConfig(n, size, parts.dim, 0) for n, size in zip(names, parts.sizes, strict=True))
        if not factors:
            factors = (FactorConfig("latents", 0, found.shape[1], 0),)
        return ForeignConfig(self.address, parts.image_size, f, factors, type(self.inner).__name__, parts.facts)

    def _encoded(self, images: Tensor, grid: tuple[int, int] | None) -> Tensor:
        with torch.no_grad(), self._autocast():
            found = self._called("encode", self._parts.encode, images)
        sizes = self.codebook_sizes
        if sizes and len(sizes) == 1 and found.ndim == 3:
            found = found[:, None]
        whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
        fits = found.ndim == 4 and len(found) == len(images) and found.shape[1] == (len(sizes) or found.shape[1])
        if not fits or whole != bool(sizes) or (grid and tuple(found.shape[2:]) != grid):
            due = f"whole numbers (b, {len(sizes)}, h, w)" if sizes else "latents (b, c, h, w) of floating point"
            hint = "" if sizes or not whole else "; codes need an attribute codebook_sizes"
            raise UserError(f"{self.address}: encode gave {_shown(found)}, {due} are due{hint}")
        if not sizes:
            return found.to(self.device)
        try:
            return as_codes(found, sizes, self.device)
        except UserError as error:
            raise UserError(f"{self.address}: what encode gave: {error}") from None

    def _called(self, name: str, function: Callable[[Tensor], Any], given: Tensor) -> Tensor:
        try:
            found = function(given)
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise UserError(f"{self.address}: {name} failed: {in_one_line(error)}") from error
        if not isinstance(found, Tensor):
            raise UserError(f"{self.address}: {name} gave a {type(found).__name__}, a tensor is due")
        return found

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def made_by(tokenizer: Tokenizer) -> dict[str, str]:
    """What a generator says of the tokenizer whose codes it makes, JSON-ready: its fingerprint and, as nobody can carry
    a tokenizer of others along, where that is."""
    known = {"tokenizer": tokenizer.fingerprint()}
    return known | ({"tokenizer_address": tokenizer.address} if isinstance(tokenizer, ForeignTokenizer) else {})


def is_foreign(path: str | Path) -> bool:
    """Whether it is the address of a tokenizer of others."""
    return str(path).startswith(FOREIGN)


def _python_parts(address: str) -> _Parts:
    """Of `py:module:function`: the object, or what the function returns when it is called."""
    where, _, name = address.removeprefix(PYTHON).rpartition(":")
    if not where or not name:
        raise UserError(f"{address} is no address: py:module:function or py:file.py:function")
    home = _module(where, address)
    if not hasattr(home, name):
        raise UserError(f"{address}: {where} has no {name}")
    found = getattr(home, name)
    if isinstance(found, type) or _lacking(found):
        found = _made(found, f"{address}: {name}")
    if missing := _lacking(found):
        raise UserError(f"{address}: {type(found).__name__} has no {' and no '.join(missing)}")
    sizes = getattr(found, "codebook_sizes", ())
    sizes = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
    return _Parts(
        found.encode,
        found.decode,
        found,
        tuple(as_count(size, f"{address}: codebook_sizes", 1, 2**24) for size in sizes),
        as_count(getattr(found, "image_size", _IMAGE_SIZE), f"{address}: image_size", 1, 2**16),
        as_count(getattr(found, "downsampling", 0), f"{address}: downsampling", 0, 2**16),
    )


def _made(make: Any, who: str) -> Any:
    """What a class or function gives without arguments."""
    if not callable(make):
        raise UserError(f"{who} has no encode and decode, and cannot be called for what has")
    try:
        return make()
    except Exception as error:  # whatever the code of others does
        raise UserError(f"{who}() failed: {in_one_line(error)}") from error


def _lacking(found: Any) -> list[str]:
    """What it should have and has not."""
    return [name for name in ("encode", "decode") if not callable(getattr(found, name, None))]


def _module(where: str, address: str) -> Any:
    """A module by its name, also one in the working folder, or by its file."""
    path = Path(where).expanduser()
    try:
        if where.endswith(".py"):
            if not path.is_file():
                raise UserError(f"{address}: there is no file {where}")
            spec = importlib.util.spec_from_file_location(f"fqgan_foreign_{path.stem}", path)
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses and pickles look their module up
            spec.loader.exec_module(module)
            return module
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        return importlib.import_module(where)
    except UserError:
        raise
    except Exception as error:  # whatever the code of others does
        raise UserError(f"{address}: {where} cannot be imported: {in_one_line(error)}") from error


def _diffusers_parts(address: str) -> _Parts:
    """An autoencoder of diffusers, alone or in the folder of a pipeline: the mode of its posterior, or its codes."""
    place = address.removeprefix(DIFFUSERS)
    try:
        import diffusers
    except ImportError:
        raise UserError(f"{address} needs diffusers: pip install 'fqgan[diffusers]'") from None
    config, options = _diffusers_config(place, address)
    name = str(config.get("_class_name", ""))
    cls: Any = getattr(diffusers, name, None)
    if _lacking(cls):
        raise UserError(f"{address} holds {name or 'nothing that says its class'}, no autoencoder of diffusers")
    try:
        # the memory that it would save needs one more library, of which it warns
        model: Any = cls.from_pretrained(place, low_cpu_mem_usage=False, **options)
    except Exception as error:  # missing files, the hub, and what diffusers raises for broken weights
        raise UserError(f"{address} cannot be loaded: {in_one_line(error)}") from None
    model = model.eval().float()
    facts = {key: config[key] for key in ("scaling_factor", "latent_channels") if key in config}
    size = config.get("sample_size")
    # the size that an untouched config has is not that of the training pictures
    size = size if isinstance(size, int) and size >= 64 else _IMAGE_SIZE
    if not hasattr(model, "quantize"):
        continuous = lambda x: _latents(model.encode(x)), lambda z: model.decode(z).sample
        return _Parts(*continuous, model, (), size, facts=facts, tried=_TRIED)

    def encode(images: Tensor) -> Tensor:
        latents = model.encode(images).latents
        return model.quantize(latents)[2][2].reshape(len(latents), *latents.shape[2:])

    def decode(codes: Tensor) -> Tensor:
        vectors = model.quantize.embedding.weight[codes[:, 0]].permute(0, 3, 1, 2).contiguous()
        return model.decode(vectors).sample  # which quantizes them once more: to themselves

    codes, dim = model.quantize.embedding.weight.shape
    return _Parts(encode, decode, model, (codes,), size, facts=facts, dim=dim, tried=_TRIED)


def _latents(output: Any) -> Tensor:
    """Of what an encoder of diffusers gives: the mode of a distribution, or the latents themselves."""
    if hasattr(output, "latent_dist"):
        return output.latent_dist.mode()
    return output.latents if hasattr(output, "latents") else output.latent


def _diffusers_config(place: str, address: str) -> tuple[dict[str, Any], dict[str, str]]:
    """config.json, and where it lies: in the folder or repository itself, or in a pipeline's."""
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

    problem = ""
    for folder in ("", "vae", "vqvae", "vqgan"):
        options = {"subfolder": folder} if folder else {}
        try:
            return AutoencoderKL.load_config(place, **options), options  # pyright: ignore
        except Exception as error:  # another place may have it
            problem = problem or in_one_line(error)
    raise UserError(f"{address} holds no model of diffusers: {problem}")


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
