"""`fqgan evaluate generator CHECKPOINT --data REFERENCE --num 50000`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fqgan.base.outputs import check_output
from fqgan.commands.arguments import parse
from fqgan.commands.results import ResultOptions, conclude
from fqgan.config.evaluation import GeneratorEvaluation
from fqgan.models import hub


@dataclass(frozen=True, kw_only=True)
class Arguments(ResultOptions, GeneratorEvaluation):
    """Options of the command."""


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "Generate pictures of all classes and compare them with real ones (ADM's protocol: 50,000, gFID)."
    arguments = parse(Arguments, argv, "fqgan evaluate generator", about)
    arguments.check()
    home, name = hub.run_of(arguments.checkpoint), str(arguments.checkpoint)
    path = arguments.path(home, arguments.data, arguments.checkpoint)
    folder = arguments.samples
    if folder == Path():
        folder = (home if home.is_dir() else path.parent) / "evaluation"
    check_output(folder, folder=True, option="--samples", inputs=[arguments.data])
    settings = replace(arguments, checkpoint=hub.local(arguments.checkpoint), samples=folder)
    from fqgan.engine.session import running
    from fqgan.evaluation.generated import evaluate_generator

    with running(arguments.device) as world:
        conclude(evaluate_generator(settings, world, name), path)
