"""`fqgan evaluate tokenizer CHECKPOINT --data ...`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fqgan.commands.arguments import parse
from fqgan.commands.results import ResultOptions, measure
from fqgan.config.evaluation import TokenizerEvaluation

if TYPE_CHECKING:
    from fqgan.engine.distributed import World
    from fqgan.evaluation.protocol import Evaluation


@dataclass(frozen=True, kw_only=True)
class Arguments(ResultOptions, TokenizerEvaluation):
    """Options of the command."""


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "How well a tokenizer reproduces images: per pixel, perceptually, as a set (rFID), and the codes it uses."
    measure(parse(Arguments, argv, "fqgan evaluate tokenizer", about), _evaluate)


def _evaluate(settings: TokenizerEvaluation, world: World) -> Evaluation:
    from fqgan.evaluation.reconstructions import evaluate_tokenizer

    return evaluate_tokenizer(settings, world)
