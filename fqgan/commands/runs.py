"""What the commands that train share: preset < --config < options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from fqgan.base import schema
from fqgan.base.errors import UserError
from fqgan.base.printing import say
from fqgan.base.ranks import ranks
from fqgan.commands.arguments import parse
from fqgan.config import ClassifierRunConfig, GeneratorRunConfig, TokenizerRunConfig
from fqgan.config.presets import named

Run = TypeVar("Run", TokenizerRunConfig, GeneratorRunConfig, ClassifierRunConfig)


@dataclass(frozen=True)
class RunArguments:
    """Options beside a run's settings."""

    run: Path = Path()
    """Run folder; the same command resumes it."""
    config: str = ""
    """A config.json, such as another run's, whose values replace those of the preset."""


@dataclass(frozen=True)
class TrainingCommand(Generic[Run]):
    """A command that trains: how it is called, and what it takes."""

    prog: str
    about: str
    presets: Mapping[str, Run]
    settings: type[Run]
    arguments: type[Any]
    """`settings` with `RunArguments` and options of the command's own."""
    adapt: Callable[[Run, list[str]], Run] = lambda base, rest: base
    """What options that must be known before the others are parsed make of the preset or --config."""

    def parse(self, argv: list[str]) -> tuple[Run, Path]:
        """The settings and the run folder of a command line."""
        config, arguments = self.parse_all(argv)
        if arguments.run == Path():
            raise UserError("--run is missing: the folder of this run, such as --run runs/first")
        config.check()
        return config, arguments.run

    def parse_all(self, argv: list[str]) -> tuple[Run, Any]:
        """The settings, not checked yet, and all options of a command line."""
        if not argv or argv[0].startswith("-"):
            known = ", ".join(self.presets)
            if {"-h", "--help"} & set(argv):
                print(
                    f"usage: {self.prog} PRESET [OPTIONS]\n\npresets: {known}\n\n{self.prog} PRESET --help says more."
                )
                raise SystemExit(0)
            raise UserError(f"name a preset first: {self.prog} PRESET ... (presets: {known})")
        base, rest = named(self.presets, argv[0]), argv[1:]
        if file := value_of(rest, "--config"):
            base = schema.load(self.settings, Path(file))
        base = self.adapt(base, rest)
        values = {field.name: getattr(base, field.name) for field in fields(base)}
        about = f"{self.about} from preset {argv[0]}, or resume."
        arguments = parse(self.arguments, rest, f"{self.prog} {argv[0]}", about, self.arguments(**values))
        return self.settings(**{name: getattr(arguments, name) for name in values}), arguments


def print_last(run: Path) -> None:
    """The run's folder, once for all ranks."""
    if ranks().is_main:
        say(run)


def value_of(argv: list[str], option: str) -> str:
    """The value of an option that must be known before the others are parsed."""
    for i, argument in enumerate(argv):
        if argument == option:
            return argv[i + 1] if i + 1 < len(argv) else ""
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return ""
