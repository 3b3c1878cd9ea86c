"""The learning rate of each step, against closed forms."""

from __future__ import annotations

import math

import pytest

from fqgan.config import OptimizerConfig
from fqgan.engine.optim import learning_rate


def rates(steps: int, **settings: object) -> list[float]:
    config = OptimizerConfig(lr=2.0, **settings)  # pyright: ignore[reportArgumentType]
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_constant_after_a_linear_warmup() -> None:
    assert rates(6, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_half_a_cosine_to_the_final_rate() -> None:
    wanted = [2 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 8)) / 2) for step in range(8)]
    assert rates(10, schedule="cosine", warmup_steps=2, final_lr=0.1) == pytest.approx([1.0, 2.0, *wanted])


def test_a_line_in_the_last_steps() -> None:
    found = rates(10, schedule="cooldown", cooldown=0.4, warmup_steps=2)
    assert found == pytest.approx([1.0, *[2.0] * 6, 1.5, 1.0, 0.5])
    found = rates(10, schedule="cooldown", cooldown=0.5, final_lr=0.5)
    assert found == pytest.approx([*[2.0] * 6, 1.8, 1.6, 1.4, 1.2])


def test_a_cooldown_begins_after_the_warmup_and_may_be_none() -> None:
    assert rates(4, schedule="cooldown", cooldown=1.0, warmup_steps=2) == pytest.approx([1.0, 2.0, 2.0, 1.0])
    assert rates(4, schedule="cooldown", cooldown=0.0) == [2.0] * 4
    assert rates(2, schedule="cooldown", warmup_steps=4) == [0.5, 1.0], "a run that ends before"
