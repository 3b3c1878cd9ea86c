"""What `quickstart` and `demo` take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.config.devices import Device
from fqgan.config.ranges import at_least

TOKENIZER, GENERATOR = "photos-dual", "far-photos"
"""Its presets."""


def models_of(run: Path) -> tuple[Path, ...]:
    """Tokenizer and generator that a quickstart in this folder left; none where one is not there."""
    pair = tuple(run / kind for kind in ("tokenizer", "generator"))
    return pair if all(map(Path.is_dir, pair)) else ()


@dataclass(frozen=True)
class QuickstartSettings:
    """A tokenizer and a generator on the packaged photographs."""

    run: Path = Path("runs/quickstart")
    """Folder for the two runs, the codes and the page. The same command resumes; once both models are trained, it only
    evaluates them again and writes the page again."""
    steps: int = 0
    """Number of optimizer steps of the tokenizer, for a shorter or longer trial; 0: as many as the preset has."""
    generator_steps: int = 0
    """Number of optimizer steps of the generator; 0: as many as the preset has."""
    images: int = 0
    """Number of images of each class that are generated and measured, for a shorter trial. The generator then learns
    from twice as many crops of each photograph. 0: 400 images of each class, and all 2,000 crops of each photograph."""
    device: Device = "auto"

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense, and for a folder that cannot be written."""
        if self.run == Path():
            raise UserError("--run must name a folder, such as --run runs/quickstart")
        check_output(self.run, folder=True, option="--run")
        at_least(0, steps=self.steps, **{"generator-steps": self.generator_steps}, images=self.images)


@dataclass(frozen=True)
class DemoSettings:
    """Pictures of a finished quickstart's two models."""

    run: Path = QuickstartSettings.run
    """Folder of the quickstart."""
    out: Path = Path("runs/demo")
    """Folder for the two pictures and demo.json. The same command replaces them."""
    num: int = 4
    """Number of images of each class that are generated."""
    seed: int = 0
    """Seed of the generated images."""
    device: Device = "auto"

    @property
    def generator(self) -> Path:
        """The generator, which carries its tokenizer; `UserError` where the quickstart has not come that far."""
        if not (pair := models_of(self.run)):
            raise UserError(
                f"{self.run} holds no trained pair: `fqgan quickstart --run {self.run}` makes one, in minutes"
            )
        return pair[1]

    def check(self) -> None:
        """Raise `UserError` where the models are missing, for numbers that make no sense, and for a folder that holds
        pictures of somebody else."""
        at_least(1, num=self.num)
        at_least(0, seed=self.seed)
        check_output(self.out, folder=True, inputs=[self.run])
        check_output(self.out / "demo.json", folder=False, mark='"demo"')
        assert self.generator
