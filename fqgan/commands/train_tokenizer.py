"""`fqgan train-tokenizer PRESET --data.source ... --run runs/x`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from fqgan import presets, schema
from fqgan.commands.arguments import parse
from fqgan.config import TokenizerRunConfig
from fqgan.errors import UserError

PROG = "fqgan train-tokenizer"


@dataclass(frozen=True)
class Arguments(TokenizerRunConfig):
    """The settings of a run, from a preset, then --config, then these options."""

    run: Path = Path()
    """Run folder; the same command resumes it."""
    config: str = ""
    """A config.json (of another run, say) to start from instead of the preset's values."""
    num_factors: int = 0
    """Number of factors: drops the last ones or repeats the last; 0: as the preset has."""


def main(argv: list[str]) -> None:
    """Entry point."""
    config, run = parse_run(argv)
    from fqgan.tokenizer.training import train_tokenizer  # torch: only when there is something to train

    train_tokenizer(config, run)
    print(run)


def parse_run(argv: list[str]) -> tuple[TokenizerRunConfig, Path]:
    """Preset < --config < options; returns the config and the run folder."""
    if not argv or argv[0].startswith("-"):
        if {"-h", "--help"} & set(argv):
            known = ", ".join(presets.PRESETS)
            print(f"usage: {PROG} PRESET [OPTIONS]\n\npresets: {known}\n\n{PROG} PRESET --help says more.")
            raise SystemExit(0)
        raise UserError(f"name a preset first: {PROG} PRESET ... (presets: {', '.join(presets.PRESETS)})")
    base, rest = presets.get(argv[0]), argv[1:]
    if file := _value(rest, "--config"):
        base = schema.load(TokenizerRunConfig, Path(file))
    if count := _value(rest, "--num-factors") or _value(rest, "--num_factors"):
        base = with_num_factors(base, count)
    values = {field.name: getattr(base, field.name) for field in fields(base)}
    description = f"Train a tokenizer from preset {argv[0]}, or resume its run."
    arguments = parse(Arguments, rest, f"{PROG} {argv[0]}", description, Arguments(**values))
    if arguments.run == Path():
        raise UserError("--run is missing: the folder of this run, such as --run runs/first")
    config = TokenizerRunConfig(**{name: getattr(arguments, name) for name in values})
    config.check()
    return config, arguments.run


def with_num_factors(config: TokenizerRunConfig, count: str) -> TokenizerRunConfig:
    """The first factors of a config, or all with the last repeated under numbered names."""
    if not count.isdigit() or not int(count):
        raise UserError(f"--num-factors must be a positive integer, got {count!r}")
    factors = list(config.model.factors[: int(count)])
    last = factors[-1]
    for number in range(len(factors), int(count)):
        factors.append(replace(last, name=f"{last.name}{number}"))
    return replace(config, model=replace(config.model, factors=tuple(factors)))


def _value(argv: list[str], option: str) -> str:
    """The value of an option that must be known before the others are parsed."""
    for i, argument in enumerate(argv):
        if argument == option:
            return argv[i + 1] if i + 1 < len(argv) else ""
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return ""
