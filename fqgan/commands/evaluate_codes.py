"""`fqgan evaluate codes CHECKPOINT --data ...`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fqgan.commands.arguments import parse
from fqgan.commands.results import ResultOptions, measure
from fqgan.config.evaluation import CodesEvaluation

if TYPE_CHECKING:
    from fqgan.engine.distributed import World
    from fqgan.evaluation.protocol import Evaluation


@dataclass(frozen=True, kw_only=True)
class Arguments(ResultOptions, CodesEvaluation):
    """Options of the command."""


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "What a tokenizer's codes tell of each other, and what becomes of its pictures when some codes are wrong."
    measure(parse(Arguments, argv, "fqgan evaluate codes", about), _evaluate, "codes.json")


def _evaluate(settings: CodesEvaluation, world: World) -> Evaluation:
    from fqgan.evaluation.robustness import evaluate_codes

    return evaluate_codes(settings, world)
