"""Two results side by side, and whether their protocols are the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fqgan.base.schema import flatten, is_number
from fqgan.evaluation.protocol import differences, read_result


@dataclass(frozen=True)
class Comparison:
    """The numbers of two results, A and B."""

    numbers: dict[str, tuple[float, float]]
    """Name -> in A and in B; NaN where one has none."""
    differences: dict[str, tuple[Any, Any]]
    """Entry of the protocol -> in A and in B, where they differ: then the numbers do not compare."""

    def table(self) -> str:
        """Aligned text."""
        width = max(map(len, self.numbers))
        lines = [f"{'':<{width}}  {'A':>12}  {'B':>12}  {'B - A':>12}"]
        for name, (a, b) in self.numbers.items():
            values = "  ".join(f"{'-' if math.isnan(each) else f'{each:.6g}':>12}" for each in (a, b, b - a))
            lines.append(f"{name:<{width}}  {values}")
        return "\n".join(lines)


def compare(first: Path, second: Path, allow: Sequence[str] = ()) -> Comparison:
    """Compare two eval.json, or those of two folders.

    Args:
        allow: entries of the protocol that may differ.

    Raises:
        UserError: files that are no results, and entries that no protocol has.
    """
    a, b = read_result(first), read_result(second)
    own, other = _numbers(a), _numbers(b)
    names = dict.fromkeys([*own, *other])
    numbers = {name: (own.get(name, math.nan), other.get(name, math.nan)) for name in names}
    return Comparison(numbers, differences(a, b, allow))


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    both = {**result["metrics"], **{f"factors.{k}": v for k, v in result.get("factors", {}).items()}}
    return {name: value for name, value in flatten(both).items() if is_number(value)}
