"""What a survey found, as a table."""

from __future__ import annotations

from typing import Any

from fqgan.base.progress import readable_bytes

LISTED = 12
"""Classes that are shown one by one."""


def table(numbers: dict[str, Any]) -> Any:
    """The numbers of a survey (`fqgan.data.survey`) as a rich table."""
    from rich.table import Table
    from rich.text import Text

    found = numbers["understood"]
    rows = {
        "form": numbers["kind"],
        "split": f"{found['split']}, chosen by {found['split_rule']}" if found["split"] else "",
        "pictures": f"{numbers['pictures']:,}" + (f", from {found['pictures_from']}" if found["pictures_from"] else ""),
        "classes": _classes(numbers),
        "labels": _labels(numbers),
        "labels from": found["labels_from"] if numbers["labels"] else "",
        "captions from": found["captions_from"],
        "ignored": _counts(found["ignored"]),
        "joined": f"{found['merged']:,} samples whose members stand apart" if found["merged"] else "",
        "left out": f"{found['without_picture']:,} samples without a picture" if found["without_picture"] else "",
        "values": found["values"],
        "small pictures": {"enlarge": "are enlarged", "skip": "are skipped", "refuse": "are refused"}[found["small"]],
        "blocks": f"{numbers['blocks']['count']:,} of {_range(numbers['blocks'])} pictures",
        "looked at": f"{numbers['scanned']:,}, {'decoded' if numbers['decoded'] else 'their headers'}",
    }
    if numbers["width"]:
        rows |= {name.replace("_", " "): f"{_range(numbers[name])} px" for name in ("width", "height", "shorter_side")}
        readable = numbers["scanned"] - len(numbers["unreadable"])
        rows |= {f"below {size} px": f"{count:,} of {readable:,}" for size, count in numbers["below"].items()}
    rows |= {name: _counts(numbers[name]) for name in ("formats", "modes") if numbers[name]}
    if numbers["mean_bytes"]:
        total = numbers["mean_bytes"] * numbers["pictures"]
        rows["bytes a picture"] = f"{numbers['mean_bytes']:,} on average, about {readable_bytes(total)} in all"
    rows["unreadable"] = f"{len(numbers['unreadable']):,}"
    grid = Table(title=Text(numbers["source"]), show_header=False, title_justify="left")
    for name, value in rows.items():
        if value:
            grid.add_row(name, Text(value))
    return grid


def _classes(numbers: dict[str, Any]) -> str:
    counts = numbers["classes"]
    if not counts:
        return "none"
    shown = f"{len(counts):,}: "
    if len(counts) <= LISTED:
        return shown + _counts(counts)
    first = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:3])
    ranked = sorted(counts.items(), key=lambda item: item[1])
    (least, fewest), (most, largest) = ranked[0], ranked[-1]
    return f"{shown}{first}, ...; smallest {least} {fewest:,}, largest {most} {largest:,}"


def _labels(numbers: dict[str, Any]) -> str:
    if numbers["labels"] is None:
        return "none"
    low, high = numbers["labels"]
    without = f", {numbers['unlabelled']:,} pictures without" if numbers["unlabelled"] else ""
    return (f"{low} to {high}" if low < high else f"{low}") + without


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _range(spread: dict[str, float]) -> str:
    low, middle, high = spread["min"], spread["median"], spread["max"]
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (median {middle:,.0f})"
