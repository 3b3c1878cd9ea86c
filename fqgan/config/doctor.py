"""What `doctor` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fqgan.base.outputs import check_output


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """What to look at."""

    device: tuple[str, ...] = ()
    """Devices to try, such as `cpu`, `cuda`, `cuda:1` or `mps`: a tiny tokenizer and generator compute and learn there,
    and on the CPU in float32, and the results are compared. By default nothing is computed."""
    json: Path = Path()
    """File for the same as JSON."""

    def check(self) -> None:
        """Raise `UserError` for a file that cannot be written."""
        if self.json != Path():
            check_output(self.json, folder=False, option="--json", mark='"comparisons"')
