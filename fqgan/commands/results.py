"""What the commands that measure share: where their numbers go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.base.printing import say, say_lines
from fqgan.config.devices import Device
from fqgan.models import hub

if TYPE_CHECKING:
    from fqgan.engine.distributed import World
    from fqgan.evaluation.protocol import Evaluation


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """Where a measuring command works and writes."""

    out: Path = Path()
    """File for the results and their protocol; by default eval.json (of codes codes.json) beside what is evaluated."""
    device: Device = "auto"

    def path(self, home: Path | str, *inputs: str | Path, name: str = "eval.json") -> Path:
        """The file to write: `out`, or `name` in the folder `home`. `UserError` where there is no such folder, and
        for a file that cannot be written, is one of the `inputs`, or holds something else."""
        if self.out == Path() and (Path(home).is_file() or str(home).startswith((hub.PREFIX, *hub.FOREIGN))):
            raise UserError(f"--out is missing: {home} is no folder that {name} could be written into")
        path = self.out if self.out != Path() else Path(home) / name
        check_output(path, folder=False, inputs=inputs if self.out != Path() else (), mark='"metrics"')
        return path


def conclude(found: Evaluation, path: Path, **more: Any) -> None:
    """Print a table and its warnings, write the result with more entries, and print where; on the main rank."""
    if found.content:
        say_lines(found.table())
        for warning in found.warnings:
            say(f"warning: {warning}")
        found.write(path, **more)
        say(path)


def measure(arguments: Any, evaluate: Callable[[Any, World], Evaluation], name: str = "eval.json") -> None:
    """Check a tokenizer's evaluation, a `TokenizerEvaluation` with `ResultOptions`, run it, and conclude it; by default
    in a file of this name beside the tokenizer."""
    arguments.check()
    path = arguments.path(hub.run_of(arguments.checkpoint), arguments.data, arguments.checkpoint, name=name)
    settings = replace(arguments, checkpoint=hub.local(arguments.checkpoint))
    from fqgan.engine.session import running

    with running(arguments.device) as world:
        conclude(evaluate(settings, world), path, checkpoint=str(arguments.checkpoint))
