"""What pretrained networks share: where weights come from, that no file is trusted, and that they never train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from fqgan.base.errors import UserError, in_one_line
from fqgan.models.hub import SECONDS, ask
from fqgan.models.pickles import load_pickle

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def require(package: str, extra: str = "teachers") -> None:
    """`UserError` when a package of an extra is not installed. Does not import it."""
    try:
        found = find_spec(package)
    except ValueError:  # a module that is loaded without a spec
        found = None
    if found is None:
        raise UserError(f"needs the package {package}, which is not installed: pip install 'fqgan[{extra}]'")


def weights_in(folder: Path, names: Sequence[str] = WEIGHTS) -> Path | None:
    """The first of the files of these names that the folder has."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def hub_folder(repository: str, weights: Sequence[str] = WEIGHTS, also: Sequence[str] = ()) -> Path:
    """The local copy of a hub repository: from the cache if the weights are there, else downloaded to it.

    Only configs, files of the patterns `also` and the first of the `weights` that the repository has are downloaded. A
    repository that does not exist, and a hub that gives no answer within two seconds, raise `UserError`.
    """
    from huggingface_hub import HfApi, snapshot_download

    if folder := cached_folder(repository, weights):
        return folder
    absent = f"{repository} is not in the local cache of the hub"
    info = ask(lambda: HfApi().model_info(repository, timeout=SECONDS), absent, SECONDS)
    files = {sibling.rfilename for sibling in info.siblings or ()}
    chosen = next((name for name in weights if name in files), None)
    if chosen is None:
        raise UserError(f"the hub's {repository} has none of the files {', '.join(weights)}")
    shards = ["model-*.safetensors"] if chosen.endswith(".index.json") else []
    patterns = ["config.json", "preprocessor_config.json", "processor_config.json", chosen, *shards, *also]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:
        raise UserError(f"the download of {repository} failed: {in_one_line(error)}") from error


def cached_folder(repository: str, weights: Sequence[str] = WEIGHTS) -> Path | None:
    """The copy of a hub repository in the hub's cache on this machine; None where it or its weights are not there.
    `UserError` for what is no repository's id."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise UserError(f"{repository} is neither a folder nor the id of a hub repository") from None
    return folder if weights_in(folder, weights) else None


class FrozenModule(nn.Module):
    """A module that stays in eval mode whatever `train()` is called on it or on a module that holds it."""

    def freeze(self) -> Self:
        """Turn off the parameters' gradients. Subclasses call it at the end of `__init__`."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode; `mode` is ignored."""
        return super().train(False)


@torch.no_grad()
def converted(module: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """The module with each parameter and buffer changed, in place. Unlike `Module.to` it works on fake tensors."""
    for part in module.modules():
        for name, tensor in [*part.named_parameters(recurse=False)]:
            setattr(part, name, nn.Parameter(change(tensor), tensor.requires_grad))
        for name, tensor in [*part.named_buffers(recurse=False)]:
            setattr(part, name, change(tensor))
    return module


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a torch file, on the CPU. Truncated and foreign files raise `UserError`."""
    weights = load_pickle(path)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no dictionary of tensors")
    return weights
