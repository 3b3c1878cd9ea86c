"""What the quickstart takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fqgan.base.errors import UserError
from fqgan.base.outputs import check_output
from fqgan.config.devices import Device
from fqgan.config.ranges import at_least

TOKENIZER, GENERATOR = "photos-dual", "far-photos"
"""Its presets."""


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
    """Device to train and evaluate on; auto: a GPU if there is one."""

    def check(self) -> None:
        """Raise `UserError` for numbers that make no sense, and for a folder that cannot be written."""
        if self.run == Path():
            raise UserError("--run must name a folder, such as --run runs/quickstart")
        check_output(self.run, folder=True, option="--run")
        at_least(0, steps=self.steps, **{"generator-steps": self.generator_steps}, images=self.images)
