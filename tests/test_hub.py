"""The hub: uploads and downloads through its own library, its cache without a network, and what is told otherwise."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_server import start
from processes import Started
from test_data_images import write_parquet

import fqgan
from fqgan.base.errors import UserError
from fqgan.data.sources import open_source
from fqgan.models import hub
from fqgan.tokenizer.model import FactorizedTokenizer

LOAD = "import fqgan; print(fqgan.load_tokenizer({!r}).fingerprint())"


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = start()
    yield server
    server.shutdown()


def python(code: str, cache: Path, port: int = 1, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose hub is this machine's port, with a cache of its own; UserError as its one line."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    errors = cache.with_name(f"{cache.name}.errors")
    lines = ["import sys", f"sys.stderr = open({str(errors)!r}, 'w')", "import fqgan", "try:", f"  {code}"]
    lines += ["except fqgan.UserError as error: sys.exit(str(error))"]
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(cache), "HF_TOKEN": "hf_test", **env}
    process = Started([], "\n".join(lines), {**environment, **settings})
    output, _ = process.communicate(timeout=300)
    return subprocess.CompletedProcess(code, process.returncode, output, errors.read_text())


def test_a_model_travels(
    server: ThreadingHTTPServer, exported: Path, tokenizer: FactorizedTokenizer, tmp_path: Path
) -> None:
    """Up, down into an empty cache, from the cache alone, by revision, and with the hub gone."""
    port, cache = server.server_port, tmp_path / "cache"
    up = python(f'print(fqgan.load_tokenizer({str(exported)!r}).push_to_hub("org/name"))', tmp_path / "other", port)
    assert up.returncode == 0 and "/org/name/commit/" in up.stdout, up.stderr
    for address, environment in (
        ("hf:org/name", {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}),
        ("hf:org/name", {}),
        ("hf:org/name", {"HF_HUB_OFFLINE": "1"}),
        ("hf:org/name@main", {}),
        ("hf:org/name/model.safetensors", {}),
    ):
        done = python(LOAD.format(address), cache, port, **environment)
        assert done.stdout.strip() == tokenizer.fingerprint(), (address, done.stderr)
        assert not done.stderr, done.stderr
    missing = python(LOAD.format("hf:org/name/weights.pt"), cache, port)
    assert "hf:org/name/weights.pt has no weights.pt; name one of its files: hf:org/name/model.safetensors" in (
        missing.stderr
    )
    server.shutdown()
    server.server_close()
    done = python(LOAD.format("hf:org/name"), cache, port)
    assert done.stdout.strip() == tokenizer.fingerprint()
    assert done.stderr.strip() == (
        "fqgan: warning: no answer from the hub about hf:org/name: taking the copy in its cache"
    )


@pytest.mark.parametrize(
    ("address", "environment", "message"),
    [
        ("hf:org/name", {"HF_HUB_OFFLINE": "1"}, "the hub cannot be reached (HF_HUB_OFFLINE is set)"),
        ("hf:org/name@v1", {}, "hf:org/name@v1 is not in the hub's cache, and the hub cannot be reached"),
    ],
)
def test_what_cannot_be_had_is_one_line(address: str, environment: dict, message: str, tmp_path: Path) -> None:
    done = python(LOAD.format(address), tmp_path, **environment)
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_a_repository_that_is_not_there(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    done = python(LOAD.format("hf:org/name"), tmp_path, server.server_port)
    assert "hf:org/name is not in the hub's cache, and the hub has no such model for you" in done.stderr


def test_an_upload_without_a_hub_is_one_line(exported: Path, tmp_path: Path) -> None:
    done = python(f'fqgan.load_tokenizer({str(exported)!r}).push_to_hub("org/name")', tmp_path)
    assert done.stderr.strip() == "org/name was not uploaded, and the hub cannot be reached"


def test_a_hub_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host's name may take long to look up, which no timeout of a request ends."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: time.sleep(60))
    began = time.monotonic()
    with pytest.raises(UserError, match="the hub cannot be reached"):
        fqgan.load_tokenizer("hf:org/name")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("address", ["hf:name", "hf:org/name@", "hf:org/na--me", "hf:/name", "hf:org/na me"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError) as error:
        fqgan.load_tokenizer(address)
    assert str(error.value).startswith(f"{address} is no address on the hub")


def test_addresses() -> None:
    assert hub.Address.of("hf:org/name@refs/pr/1") == hub.Address("org/name", "refs/pr/1")
    address = hub.Address.of("hf:org/name/far/B.pt@v2")
    assert address == hub.Address("org/name", "v2", "far/B.pt") and str(address) == "hf:org/name/far/B.pt@v2"


def test_data_sets_are_read_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their files lie in the cache as links; a configuration is one of their folders."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    root = tmp_path / "datasets--org--name"
    snapshot = root / "snapshots" / ("0" * 40)
    for config, labels in (("small", [1]), ("large", [2, 3])):
        for split in ("train", "test"):
            write_parquet(root / f"blobs/{config}-{split}", labels if split == "train" else [9])
            link = snapshot / config / f"{split}-00000-of-00001.parquet"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(root / f"blobs/{config}-{split}")
    (snapshot / "README.md").write_text("# set")
    (root / "refs").mkdir()
    (root / "refs/main").write_text("0" * 40)
    assert open_source("hf:datasets/org/name:small").labels.tolist() == [1]
    assert open_source("hf:datasets/org/name:large").labels.tolist() == [2, 3]
    assert open_source("hf:datasets/org/name:large", "validation").labels.tolist() == [9]
    with pytest.raises(UserError, match="holds several sets"):
        open_source("hf:datasets/org/name")
    with pytest.raises(UserError, match="no folder huge; it has large, small"):
        open_source("hf:datasets/org/name:huge")
    with pytest.raises(UserError, match=r"org/other is not in the hub's cache, and the hub cannot be reached"):
        open_source("hf:datasets/org/other")
    with pytest.raises(UserError, match="no data set on the hub"):
        open_source("hf:datasets/name")
