"""`fqgan train-classifier PRESET --data.source ... --run runs/x`."""

from __future__ import annotations

from dataclasses import dataclass

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.commands.runs import RunArguments, TrainingCommand, print_last
from fqgan.config import ClassifierRunConfig

PRESETS = {"resnet-32": ClassifierRunConfig()}


@dataclass(frozen=True)
class Arguments(ClassifierRunConfig, RunArguments):
    """The settings of a run, from a preset, then --config, then these options."""


def preset(name: str) -> ClassifierRunConfig:
    """The preset of a name; `UserError` for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)} (presets: {', '.join(PRESETS)})")
    return PRESETS[name]


COMMAND = TrainingCommand(
    "fqgan train-classifier", "Train a classifier", PRESETS, preset, ClassifierRunConfig, Arguments
)


def main(argv: list[str]) -> None:
    """Entry point."""
    config, run = COMMAND.parse(argv)
    from fqgan.classifier.training import train_classifier  # torch: only when there is something to train

    train_classifier(config, run)
    print_last(run)
