"""The file of results: a row is there as soon as it is measured. Imports nothing heavy, as the runner uses it, too."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PASSED: Row = {"": "passed"}
"""Values of a test; the table only counts those."""


class Results:
    """`{"machine": facts, "rows": {part: {name: row}}}` in a JSON file that is replaced as a whole at each change.

    A row holds `values` (measured), `error` (its last line), `skipped` (why), or `until`: it is under way, and should
    be done by that time of the clock.
    """

    def __init__(self, path: Path):
        self.path = path
        self.machine: Row = {}
        self.rows: dict[str, dict[str, Row]] = {}
        self.load()

    def load(self) -> None:
        """Read what other processes have written meanwhile."""
        if self.path.is_file():
            content = json.loads(self.path.read_text())
            self.machine, self.rows = content["machine"], content["rows"]

    def save(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"machine": self.machine, "rows": self.rows}, indent=1) + "\n")
        os.replace(temporary, self.path)

    def put(self, part: str, name: str, row: Row) -> None:
        self.load()
        self.rows.setdefault(part, {})[name] = row
        self.save()

    def forget_unmeasured(self) -> None:
        """What failed, was left out or was cut off is tried again."""
        self.rows = {
            part: {name: row for name, row in rows.items() if "values" in row} for part, rows in self.rows.items()
        }
        self.save()

    def under_way(self, part: str) -> tuple[str, float]:
        """The row that a part's process works on, and until when it may; ("", inf) where it has told of none."""
        self.load()
        for name, row in self.rows.get(part, {}).items():
            if "until" in row:
                return name, row["until"]
        return "", float("inf")


def in_words(row: Row) -> str:
    """A row's outcome. Keys are units; those that begin with `of ` are shares."""
    if "error" in row:
        return f"FAILED: {row['error']}"
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    if "until" in row:
        return "cut off"
    return ", ".join(filter(None, (_value(unit, value) for unit, value in row["values"].items())))


def _value(unit: str, value: Any) -> str:
    if value is None:
        return f"{unit}: unknown"
    if isinstance(value, str):
        return f"{unit}: {value}" if unit else value
    if unit.startswith("of "):
        return f"{value:.1%} {unit}"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}"


def table(results: Results) -> str:
    """Everything as one table in Markdown, under lines that say where it was measured."""
    machine = results.machine
    dry = " **A dry run with tiny models on a CPU: no figure here says anything about a GPU.**" if _dry(machine) else ""
    shown = {name: value for name, value in machine.items() if value and name not in ("card", "date", "small")}
    facts = ", ".join(f"{name} {value}" for name, value in shown.items())
    head = f"{machine.get('card', 'unknown card')}, {facts}; {machine.get('date', time.strftime('%Y-%m-%d'))}.{dry}"
    lines = [head, "", "| what | measured | aim |", "|---|---|---|"]
    for part, rows in results.rows.items():
        passed = [name for name, row in rows.items() if row.get("values") == PASSED]
        if passed:
            lines.append(f"| {part} | {len(passed)} passed | |")
        for name, row in rows.items():
            if row.get("values") == PASSED:
                continue
            cells = (f"{part}: {name}", in_words(row), row.get("aim", ""))
            lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


def _dry(machine: Row) -> bool:
    return bool(machine.get("small")) or not machine.get("cuda")
