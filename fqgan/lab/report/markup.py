"""HTML that escapes by construction, and numbers as people read them."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from importlib.resources import files

_VOID = {"img", "meta"}
MISSING = "–"


class Html(str):
    """Markup. Any other string is text, and is escaped where it becomes part of an element."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Html:
    """`element("p", "a < b", class_="note")` -> `<p class="note">a &lt; b</p>`.

    Children are text, markup, or lists of both; None is left out, among the attributes too.
    """
    named = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None)
    start = "".join([tag, *(f' {name}="{html.escape(str(value))}"' for name, value in named)])
    if tag in _VOID:
        return Html(f"<{start}>")
    return Html(f"<{start}>{join(children)}</{tag}>")


def join(children: Iterable[object]) -> Html:
    """Children one after the other."""
    return Html("".join(_markup(child) for child in children))


def _markup(child: object) -> str:
    if child is None:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return html.escape(str(child))


def document(title: str, *content: object) -> str:
    """A page of its own, in the report's style."""
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(files("fqgan.lab.report").joinpath("style.css").read_text(encoding="utf-8"))),
    ]
    whole = element("html", element("head", head), element("body", element("main", *content)), lang="en")
    return f"<!doctype html>\n{whole}\n"


def fixed(value: float | None, digits: int, unit: str = "") -> str:
    """`12.35 dB`; a dash where there is no finite number."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.{digits}f}{unit and ' '}{unit}".replace("-", "−")


def signed(value: float | None, digits: int, unit: str = "") -> str:
    """`fixed` with its sign."""
    plus = "+" if value is not None and math.isfinite(value) and value >= 0 else ""
    return plus + fixed(value, digits, unit)


def percent(share: float) -> str:
    """`97.5 %`; never rounded up to 100 nor down to 0."""
    exact = share in (0, 1)
    return f"{100 * share:.0f} %" if exact else f"{min(max(100 * share, 0.1), 99.9):.1f} %"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
