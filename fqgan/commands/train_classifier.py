"""`fqgan train-classifier PRESET --data.source ... --run runs/x`."""

from __future__ import annotations

from dataclasses import dataclass

from fqgan.commands.runs import RunArguments, TrainingCommand, print_last
from fqgan.config import ClassifierRunConfig

PRESETS = {"resnet-32": ClassifierRunConfig()}


@dataclass(frozen=True)
class Arguments(ClassifierRunConfig, RunArguments):
    """The settings of a run, from a preset, then --config, then these options."""


COMMAND = TrainingCommand("fqgan train-classifier", "Train a classifier", PRESETS, ClassifierRunConfig, Arguments)


def main(argv: list[str]) -> None:
    """Entry point."""
    config, run = COMMAND.parse(argv)
    from fqgan.classifier.training import train_classifier  # torch: only when there is something to train

    train_classifier(config, run)
    print_last(run)
