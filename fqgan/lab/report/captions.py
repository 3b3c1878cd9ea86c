"""A page of pictures with what was written about them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from fqgan.lab.report.images import embedded
from fqgan.lab.report.markup import Html, document, element, fixed

SIDE = 224
"""Pixels of the longer side of a picture on the page, at most."""


@dataclass(frozen=True)
class Captioned:
    """A picture, people's captions, and one of each row with its score."""

    picture: Image.Image
    name: str
    references: Sequence[str]
    captions: Mapping[str, tuple[str, float]]
    """Row -> caption, CIDEr-D."""


def captions_page(title: str, intro: str, pictures: Sequence[Captioned]) -> str:
    """One HTML document that refers to nothing outside itself."""
    header = element("header", element("h1", title), element("p", intro, class_="lead"))
    return document(title, header, [_section(each) for each in pictures])


def _section(each: Captioned) -> Html:
    rows = [
        element("tr", element("th", row, scope="row"), element("td", text or "–"), element("td", fixed(score, 1)))
        for row, (text, score) in each.captions.items()
    ]
    heading = element(
        "tr", element("th", "read by the language model"), element("th", "caption"), element("th", "CIDEr-D")
    )
    table = element("table", element("thead", heading), element("tbody", rows), class_="scores captions")
    people = element("ul", [element("li", text) for text in each.references])
    return element(
        "section",
        element("h2", each.name),
        element("div", element("div", _jpeg(each.picture, each.name), people), table, class_="captioned"),
    )


def _jpeg(picture: Image.Image, alt: str) -> Html:
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return embedded(buffer.getvalue(), "image/jpeg", alt)
