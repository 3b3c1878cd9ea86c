"""`fqgan evaluate tokenizer CHECKPOINT --data ...`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fqgan.commands.arguments import parse
from fqgan.commands.results import ResultOptions, conclude
from fqgan.config.evaluation import TokenizerEvaluation
from fqgan.models import hub


@dataclass(frozen=True, kw_only=True)
class Arguments(ResultOptions, TokenizerEvaluation):
    """Options of the command."""


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "How well a tokenizer reproduces images: per pixel, perceptually, as a set (rFID), and the codes it uses."
    arguments = parse(Arguments, argv, "fqgan evaluate tokenizer", about)
    arguments.check()
    path = arguments.path(hub.run_of(arguments.checkpoint), arguments.data, arguments.checkpoint)
    settings = replace(arguments, checkpoint=hub.local(arguments.checkpoint))
    from fqgan.engine.session import running
    from fqgan.evaluation.reconstructions import evaluate_tokenizer

    with running(arguments.device) as world:
        conclude(evaluate_tokenizer(settings, world), path, checkpoint=str(arguments.checkpoint))
