"""`fqgan evaluate likelihood GENERATOR --data DATA`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fqgan.base.files import WRITING
from fqgan.base.folder import ResumableFolder
from fqgan.base.outputs import check_output
from fqgan.commands.arguments import parse
from fqgan.commands.results import conclude
from fqgan.config.devices import Device
from fqgan.config.evaluation import LikelihoodEvaluation
from fqgan.models import hub

_FILES = {"eval.json", "images.csv", "worst-and-best.png", "map.png"}


@dataclass(frozen=True, kw_only=True)
class Arguments(LikelihoodEvaluation):
    """Options of the command."""

    device: Device = "auto"


def main(argv: list[str]) -> None:
    """Entry point."""
    about = "How well a generator predicts the codes of images: bits, worst and best images, class by likelihood."
    arguments = parse(Arguments, argv, "fqgan evaluate likelihood", about)
    arguments.check()
    folder = arguments.out
    if folder == Path():
        home = hub.run_of(arguments.checkpoint)
        folder = (home if home.is_dir() else Path()) / "likelihood"
    check_output(folder, folder=True, inputs=[arguments.data, arguments.checkpoint])
    ResumableFolder(folder, kind="folder of evaluate likelihood", known=lambda: _is_ours(folder)).check_own()
    settings = replace(arguments, checkpoint=hub.local(arguments.checkpoint), out=folder)
    from fqgan.engine.session import running
    from fqgan.evaluation.likelihood import evaluate_likelihood

    with running(arguments.device) as world:
        conclude(evaluate_likelihood(settings, world, str(arguments.checkpoint)), folder / "eval.json")


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds nothing but what this command writes."""
    return {path.name for path in folder.iterdir() if not path.name.endswith(WRITING)} <= _FILES
