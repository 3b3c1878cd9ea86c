"""What tests of remote files share: a server with a file of random bytes, an empty cache, and the line of a refusal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_server import FileServer

from fqgan.base.errors import UserError
from fqgan.data import remote, servers

CONTENT = np.random.default_rng(0).bytes(10 * 1000 + 7)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own with blocks of 1000 bytes, and no long pauses."""
    monkeypatch.setenv("FQGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BLOCK", 1000)
    monkeypatch.setattr(servers, "_PAUSES", (0.01, 0.01))
    return tmp_path / "cache"


@pytest.fixture
def server() -> Iterator[FileServer]:
    made = FileServer({"a.bin": CONTENT})
    yield made
    made.shutdown()
    made.server_close()


def message(call: Any) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text
