"""A run that has begun: one step, and its checkpoint."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from test_bad_input import TRAIN

from fqgan.base import schema
from fqgan.cli import main
from fqgan.config import TokenizerRunConfig


def train(*options: object) -> int:
    return main([str(part) for part in (*TRAIN, *options)])


@pytest.fixture
def run(here: Path, tiny: TokenizerRunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of one that was trained once."""
    once = tmp_path_factory.getbasetemp() / "begun"
    if not once.exists():
        once.mkdir()
        schema.save(tiny, once / "tiny.json")
        with contextlib.chdir(once):
            assert train("--train.steps", "1", "--train.keep-last", "1") == 0
    return shutil.copytree(once / "run", here / "run")
