"""Models on the Hugging Face hub: addresses, downloads through its cache, uploads, and errors in one line."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fqgan.base.errors import UserError, in_one_line
from fqgan.base.printing import say

PREFIX = "hf:"
PYTHON, DIFFUSERS, SPLIT = FOREIGN = ("py:", "diffusers:", "split:")
"""How the addresses of tokenizers of others begin, which are no models of ours (`fqgan.tokenizer.foreign`)."""
DATASETS = "hf:datasets/"
SECONDS = 1.5
"""To wait for the hub's first answer."""

_ADDRESS = re.compile(r"hf:(?P<repository>[^/@\s]+/[^/@\s]+)(/(?P<file>[^@\s]+))?(@(?P<revision>\S+))?")
_DATASET = re.compile(
    r"hf:datasets/(?P<repository>[^/@:\s]+/[^/@:\s]+)(@(?P<revision>[^:\s]+))?(:(?P<config>[^/\s]+))?"
)
# what makes a model of ours; a repository may hold much else
_FILES = ("config.json", "eval.json", "*.safetensors", "tokenizer/config.json")
_NEEDED = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Address:
    """A model on the hub: `hf:org/name[@revision]`, or one of its files: `hf:org/name/file.pt[@revision]`."""

    repository: str
    revision: str | None = None
    file: str = ""

    @classmethod
    def of(cls, text: str) -> Address:
        """`UserError` for another form."""
        found = _ADDRESS.fullmatch(text)
        if not found:
            raise UserError(f"{text} is no address on the hub: hf:org/name, or hf:org/name@revision")
        return cls(found["repository"], found["revision"], found["file"] or "")

    def __str__(self) -> str:
        file, revision = f"/{self.file}" if self.file else "", f"@{self.revision}" if self.revision else ""
        return f"{PREFIX}{self.repository}{file}{revision}"


def local(path: str | Path) -> Path:
    """The path itself, or of an address the local copy (`fetch`).

    Commands ask for it before they import torch: a missing network is told at once, and each of their parts then reads
    the same copy.
    """
    return fetch(str(path)) if str(path).startswith(PREFIX) else Path(path)


def run_of(checkpoint: Path) -> Path:
    """The run folder of a checkpoint; anything else is its own."""
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def fetch(text: str) -> Path:
    """The local copy of what an address names, a folder or a file; what is missing is downloaded to the hub's cache.

    Where the hub cannot be asked, the copy in the cache is taken. `UserError` where there is none, and for what is no
    model of ours.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError

    address = Address.of(text)
    where: dict[str, Any] = {"repo_id": address.repository, "revision": address.revision}

    def get(**options: Any) -> Path:
        if address.file:
            return Path(hf_hub_download(filename=address.file, **where, **options))
        return Path(snapshot_download(allow_patterns=list(_FILES), **where, **options))

    def cached() -> Path | None:
        try:
            path = get(local_files_only=True)
        except HFValidationError as error:
            raise UserError(f"{address} is no address on the hub: {in_one_line(error)}") from None
        except Exception:  # not there, in one of several classes
            return None
        return path if path.is_file() or all((path / name).is_file() for name in _NEEDED) else None

    known = cached()
    try:
        info = ask(
            lambda: HfApi().model_info(**where, timeout=SECONDS), f"{address} is not in the hub's cache", SECONDS
        )
    except UserError:
        if known is None:
            raise
        if not _offline():
            say(f"fqgan: warning: no answer from the hub about {address}: taking the copy in its cache", error=True)
        return known
    files = {sibling.rfilename for sibling in info.siblings or ()}
    if missing := [name for name in ((address.file,) if address.file else _NEEDED) if name not in files]:
        others = [name for name in sorted(files) if name.endswith((".pt", ".pth", ".ckpt", ".safetensors"))]
        hint = f"; name one of its files: {PREFIX}{address.repository}/{others[0]}" if others else ""
        raise UserError(f"{address} has no {' and no '.join(missing)}{hint}")
    wanted = [name for name in files if any(fnmatch(name, pattern) for pattern in _FILES)]
    if known and info.sha in known.parts and (address.file or all((known / name).is_file() for name in wanted)):
        return known
    try:
        return get()
    except Exception as error:
        raise UserError(f"the download of {address} failed: {in_one_line(error)}") from None


def fetch_dataset(text: str) -> Path:
    """The local copy of a data set `hf:datasets/org/name[@revision][:config]`, or of one of its configurations (a
    folder, or a folder in data/); what is missing is downloaded to the hub's cache.

    Where the hub cannot be asked, the copy in the cache is taken. `UserError` where there is none.
    """
    from huggingface_hub import HfApi, snapshot_download

    found = _DATASET.fullmatch(text)
    if not found:
        raise UserError(
            f"{text} is no data set on the hub: hf:datasets/org/name, with @revision and :config if need be"
        )
    where: dict[str, Any] = {"repo_id": found["repository"], "revision": found["revision"], "repo_type": "dataset"}
    subject = f"{text} is not in the hub's cache"
    try:
        known = Path(snapshot_download(local_files_only=True, **where))
    except Exception:  # not there, in one of several classes
        known = None
    try:
        info = ask(lambda: HfApi().repo_info(timeout=SECONDS, **where), subject, SECONDS)
        if known is None or info.sha not in known.parts:
            known = Path(snapshot_download(**where))
    except UserError:
        if known is None:
            raise
    except Exception as error:
        raise UserError(f"the download of {text} failed: {in_one_line(error)}") from None
    assert known is not None, "a copy was there, or was downloaded"
    if not found["config"]:
        return known
    places = [known / found["config"], known / "data" / found["config"]]
    folders = sorted(path.name for path in known.iterdir() if path.is_dir() and not path.name.startswith("."))
    if place := next((path for path in places if path.is_dir()), None):
        return place
    raise UserError(f"{text}: the data set has no folder {found['config']}; it has {', '.join(folders) or 'none'}")


def upload(
    folder: Path, repository: str, message: str, private: bool | None, revision: str | None, token: str | None
) -> str:
    """Put the files of a folder into a repository, which is made if it is missing; returns the commit's address."""
    from huggingface_hub import HfApi

    Address.of(f"{PREFIX}{repository}")
    api = HfApi(token=token)
    ask(api.whoami, f"{repository} was not uploaded", SECONDS)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message, revision=revision)
    except Exception as error:
        raise UserError(f"{repository} was not uploaded: {in_one_line(error)}") from None
    return str(commit.commit_url)


def ask(call: Callable[[], Any], subject: str, seconds: float) -> Any:
    """The hub's answer to a short question. `UserError`, in the form "`subject`, and the hub ...", where it refuses or
    does not answer in time."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return within(seconds, call)
    except RevisionNotFoundError:
        raise UserError(f"{subject}, and the hub has no such revision of it") from None
    except RepositoryNotFoundError:
        raise UserError(f"{subject}, and the hub has no such model for you (a private one needs a login)") from None
    except HfHubHTTPError as error:
        raise UserError(f"{subject}, and the hub refuses it: {in_one_line(error)}") from None
    except LocalTokenNotFoundError:
        raise UserError(f"{subject}, and the hub wants a login: hf auth login") from None
    except Exception:  # whatever the HTTP library raises when there is no way to the hub, and the offline mode
        why = " (HF_HUB_OFFLINE is set)" if _offline() else ""
        raise UserError(f"{subject}, and the hub cannot be reached{why}") from None


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of a call, or `TimeoutError`: looking up a host's name heeds no timeout of the request."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.extend([call(), None])
        except Exception as error:
            outcome.extend([None, error])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError
    result, error = outcome
    if error is not None:
        raise error
    return result


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE
