"""The function behind `doctor`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fqgan.base.files import write_text
from fqgan.config.doctor import DoctorSettings
from fqgan.engine.devices import pick_device
from fqgan.engine.speed import keep_freed_memory
from fqgan.lab.agreement import Comparison, compare
from fqgan.lab.facts import Facts, look, without_home


@dataclass(frozen=True)
class Diagnosis:
    """What was found."""

    facts: Facts
    comparisons: list[Comparison]
    """Of the devices that were tried."""

    @property
    def disagreements(self) -> list[Comparison]:
        """Those beyond the tolerance."""
        return [each for each in self.comparisons if not each.agrees]

    def write(self, path: Path) -> None:
        """As JSON. `UserError` where it cannot be written."""
        compared = [{**asdict(each), "tolerance": each.tolerance, "agrees": each.agrees} for each in self.comparisons]
        write_text(path, json.dumps({"facts": self.facts, "comparisons": compared}, indent=2, allow_nan=False) + "\n")


def examine(settings: DoctorSettings, note: Callable[[str], None] = lambda line: None) -> Diagnosis:
    """Look at the installation and the machine, and try the devices that the settings name.

    Args:
        note: is called with every line of the report, as soon as it is known.

    Raises:
        UserError: an unknown device, or a file that cannot be written.
    """
    settings.check()
    keep_freed_memory()
    devices = [pick_device(name) for name in settings.device]
    facts = look()
    for section, rows in facts.items():
        note(f"{section}")
        for name, text in rows.items():
            note(f"  {name:<20} {text}")
    comparisons = []
    for each in compare(devices) if devices else ():
        comparisons.append(each)
        note(without_home(str(each)))
    found = Diagnosis(facts, comparisons)
    if settings.json != Path():
        found.write(settings.json)
    return found
