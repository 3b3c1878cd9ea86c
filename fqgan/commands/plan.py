"""`fqgan plan PRESET --gpus 8 --gpu h100`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fqgan.base.files import make_folder, write_text
from fqgan.base.outputs import check_output
from fqgan.base.printing import say, say_lines
from fqgan.commands import train_generator, train_tokenizer
from fqgan.commands.runs import TrainingCommand
from fqgan.config import GeneratorRunConfig, TokenizerRunConfig, presets
from fqgan.config.planning import PlanSettings


@dataclass(frozen=True, kw_only=True)
class Machines(PlanSettings):
    """Options beside a run's settings."""

    config: str = ""
    """A config.json, such as another run's, whose values replace those of the preset."""
    json: Path = Path()
    """JSON file to write the plan to; by default none."""


@dataclass(frozen=True)
class TokenizerArguments(TokenizerRunConfig, Machines):
    """A tokenizer's run, and the machines."""

    num_factors: int = 0
    """As in train-tokenizer."""


@dataclass(frozen=True)
class GeneratorArguments(GeneratorRunConfig, Machines):
    """A generator's run, and the machines."""


def _command(presets: Any, settings: Any, arguments: Any, adapt: Callable[..., Any]) -> TrainingCommand[Any]:
    return TrainingCommand("fqgan plan", "Plan a run", presets, settings, arguments, adapt)


ALL = {**presets.PRESETS, **presets.GENERATOR_PRESETS}
TOKENIZER = _command(ALL, TokenizerRunConfig, TokenizerArguments, train_tokenizer.COMMAND.adapt)
GENERATOR = _command(ALL, GeneratorRunConfig, GeneratorArguments, train_generator.COMMAND.adapt)


def main(argv: list[str]) -> None:
    """Entry point."""
    of_generator = bool(argv) and argv[0] in presets.GENERATOR_PRESETS
    if not of_generator:  # --data IMAGES, as for all else that takes images
        argv = [f"--data.source{each[6:]}" if each.partition("=")[0] == "--data" else each for each in argv]
    config, arguments = (GENERATOR if of_generator else TOKENIZER).parse_all(argv)
    if arguments.json != Path():
        check_output(arguments.json, folder=False, option="--json", mark='"launches"')
    from rich import print as show

    from fqgan.lab.planning.plan import plan
    from fqgan.lab.planning.table import notes, table

    made = plan(config, arguments, argv[0])
    show(table(made))
    say_lines(notes(made))
    if arguments.json != Path():
        make_folder(arguments.json.parent)
        write_text(arguments.json, json.dumps(made.to_json(), indent=2) + "\n")
        say(arguments.json)
