"""The thresholds of glibc's allocator, for versions that take large ones and for those that refuse them."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from fqgan.engine.speed import keep_freed_memory


@pytest.mark.parametrize(("limit", "expected"), [(2**31 - 1, 2**31 - 1), (2**25, 2**25)], ids=["2.36", "2.31"])
def test_the_largest_threshold_that_glibc_takes(monkeypatch: pytest.MonkeyPatch, limit: int, expected: int) -> None:
    """Until 2.34 mallopt returns 0 for a threshold of mmap above 32 MiB, and changes nothing."""
    settings: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        if parameter == -3 and value > limit:
            return 0
        settings[parameter] = value
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(gnu_get_libc_version=None, mallopt=mallopt))
    keep_freed_memory()
    assert settings == {-3: expected, -1: 2**31 - 1}


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()
