"""A run that has begun: one step, and its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_bad_input import TRAIN

from fqgan.cli import main


def train(*options: object) -> int:
    return main([str(part) for part in (*TRAIN, *options)])


@pytest.fixture
def run(here: Path) -> Path:
    assert train("--train.steps", "1", "--train.keep-last", "1") == 0
    return here / "run"
