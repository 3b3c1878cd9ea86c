"""`fqgan evaluate samples REFERENCE SAMPLES`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fqgan.base.outputs import check_output
from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.commands.results import ResultOptions, conclude
from fqgan.config.evaluation import SetEvaluation


@dataclass(frozen=True, kw_only=True)
class Arguments(ResultOptions, SetEvaluation):
    """Options of the command."""

    npz: Path = Path()
    """File to write the samples to, in the form that ADM's evaluator reads: arr_0 (n, H, W, 3) uint8, arr_1 the
    classes."""


def main(argv: list[str]) -> None:
    """Entry point."""
    arguments = parse(Arguments, argv, "fqgan evaluate samples", "Compare a set of images with a reference.")
    inputs = arguments.reference, arguments.samples
    arguments.check()
    samples = Path(arguments.samples).expanduser()
    path = arguments.path(samples if samples.is_dir() else ".", *inputs)
    if arguments.npz != Path():
        check_output(arguments.npz, folder=False, option="--npz", inputs=inputs, mark="arr_0")
    from fqgan.engine.distributed import from_main
    from fqgan.engine.session import running
    from fqgan.evaluation.sets import evaluate_samples, write_arrays

    with running(arguments.device) as world:
        conclude(evaluate_samples(arguments, world), path)
        if arguments.npz != Path():
            from_main(lambda: write_arrays(arguments, arguments.npz))
            if world.is_main:
                say(arguments.npz)
