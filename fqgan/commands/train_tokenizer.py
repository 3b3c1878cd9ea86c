"""`fqgan train-tokenizer PRESET --data.source ... --run runs/x`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from fqgan.base.errors import UserError
from fqgan.commands.runs import RunArguments, TrainingCommand, print_last, value_of
from fqgan.config import TokenizerRunConfig, presets
from fqgan.config.factor import MOST_FACTORS


@dataclass(frozen=True)
class Arguments(TokenizerRunConfig, RunArguments):
    """The settings of a run, from a preset, then --config, then these options."""

    num_factors: int = 0
    """Number of factors. A smaller number than the preset's drops the last factors; a larger one repeats the last
    factor. 0: as many as the preset has."""


def _resized(base: TokenizerRunConfig, argv: list[str]) -> TokenizerRunConfig:
    count = value_of(argv, "--num-factors") or value_of(argv, "--num_factors")
    return with_num_factors(base, count) if count else base


def with_num_factors(config: TokenizerRunConfig, count: str) -> TokenizerRunConfig:
    """The first factors of a config, or all with the last repeated under numbered names."""
    if not re.fullmatch("[0-9]{1,3}", count) or not 0 < int(count) <= MOST_FACTORS:
        raise UserError(f"--num-factors must be an integer from 1 to {MOST_FACTORS}, got {count[:40]!r}")
    factors = list(config.model.factors[: int(count)])
    last = factors[-1]
    for number in range(len(factors), int(count)):
        factors.append(replace(last, name=f"{last.name}{number}"))
    return replace(config, model=replace(config.model, factors=tuple(factors)))


COMMAND = TrainingCommand(
    "fqgan train-tokenizer",
    "Train a tokenizer",
    presets.PRESETS,
    TokenizerRunConfig,
    Arguments,
    adapt=_resized,
)


def main(argv: list[str]) -> None:
    """Entry point."""
    config, run = COMMAND.parse(argv)
    from fqgan.tokenizer.task import train_tokenizer  # torch: only when there is something to train

    train_tokenizer(config, run)
    print_last(run)
