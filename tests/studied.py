"""What a study of trained rows has written."""

from __future__ import annotations

import csv
from pathlib import Path


def table(out: Path) -> list[dict[str, str]]:
    """The rows of its table, without the processor time, which differs from run to run."""
    with (out / "table.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "cpu_seconds"} for row in csv.DictReader(file)]
