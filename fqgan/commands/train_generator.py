"""`fqgan train-generator PRESET --data STORE --run runs/x`."""

from __future__ import annotations

from dataclasses import dataclass

from fqgan.commands.runs import RunArguments, TrainingCommand, print_last
from fqgan.config import GeneratorRunConfig, presets


@dataclass(frozen=True)
class Arguments(GeneratorRunConfig, RunArguments):
    """The settings of a run, from a preset, then --config, then these options."""


COMMAND = TrainingCommand(
    "fqgan train-generator",
    "Train a generator on a token store",
    presets.GENERATOR_PRESETS,
    GeneratorRunConfig,
    Arguments,
)


def main(argv: list[str]) -> None:
    """Entry point."""
    config, run = COMMAND.parse(argv)
    from fqgan.generator.task import train_generator  # torch: only when there is something to train

    train_generator(config, run)
    print_last(run)
