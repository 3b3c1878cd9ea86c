"""What a study's numbers say, as cells and text."""

from __future__ import annotations

from collections.abc import Sequence

from fqgan.lab.studies.judgement import spread
from fqgan.lab.studies.results import Column, Judged
from fqgan.lab.studies.tables import markdown


def cell(column: Column, values: Sequence[float]) -> str:
    """Mean and, of several seeds, standard deviation."""
    mean = column.text(sum(values) / len(values))
    return f"{mean} ± {column.text(spread(values))}" if len(values) > 1 else mean


def told(verdicts: Sequence[Judged]) -> list[str]:
    """Paragraphs of Markdown on the orderings; none without one."""
    if not verdicts:
        return []
    rows = [
        [
            each.ordering.claim,
            each.column.label,
            f"{each.judgement.mean:+.{each.column.digits + 1}f}",
            "–" if len(each.judgement.differences) < 2 else f"{each.judgement.error:.{each.column.digits + 1}f}",
            " ".join(f"{d:+.{each.column.digits}f}" for d in each.judgement.differences),
            each.judgement.verdict,
        ]
        for each in verdicts
    ]
    head = ["ordering", "by", "mean difference", "its standard error", "each seed", "verdict"]
    return [
        f"## Orderings\n\nA difference above 0 speaks for the claim.\n\n{markdown(head, rows)}",
        "An ordering holds only if its sign agrees in all seeds and the mean of the paired differences exceeds "
        "twice its standard error; it fails if that is true of the opposite sign; else it is open.",
    ]
