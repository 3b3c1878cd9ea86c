"""The pages: HTML files that need nothing else, filled in from the templates of this folder."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from fqgan.lab.report import content, figures, numbers
from fqgan.lab.report.content import Report

_TEMPLATES = Environment(
    loader=PackageLoader("fqgan.lab.report", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "fixed": numbers.fixed,
    "percent": numbers.percent,
    "duration": numbers.duration,
    "listed": numbers.listed,
    "training_seconds": content.training_seconds,
    "picture": figures.picture,
    "code_map": figures.code_map,
    "thumbnail": figures.thumbnail,
    "quote": shlex.quote,
}


@dataclass(frozen=True)
class Captioned:
    """A picture, people's captions, and one of each row with its score."""

    picture: Image.Image
    name: str
    references: Sequence[str]
    captions: Mapping[str, tuple[str, float]]
    """Row -> caption, CIDEr-D."""


def page(report: Report) -> str:
    """The page of a quickstart."""
    import torch

    return _TEMPLATES.get_template("page.html.j2").render(
        report=report,
        generation=report.generation,
        metrics=numbers.METRICS,
        colours=figures.FACTOR_COLOURS,
        validation_charts=content.validation_charts(report),
        loss_charts=content.loss_charts(report),
        usage_charts=content.usage_charts(report),
        generator_charts=content.generator_charts(report.generation) if report.generation else [],
        versions=f"fqgan {metadata.version('fqgan')}, torch {torch.__version__}, Python {platform.python_version()}",
    )


def captions_page(title: str, intro: str, pictures: Sequence[Captioned]) -> str:
    """A page of pictures with what was written about them."""
    return _TEMPLATES.get_template("captions.html.j2").render(title=title, intro=intro, pictures=pictures)
