"""What tests of the quickstart and of its page share: a tiny tokenizer, and a reader of pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from fqgan.config import FactorConfig, TokenizerConfig

VOID = {"meta", "img"}


def tiny(k: int) -> TokenizerConfig:
    factors = tuple(FactorConfig(f"f{i}", codebook_size=16, code_dim=4, adapter_depth=0) for i in range(k))
    return TokenizerConfig(
        image_size=32,
        stem=4,
        channels=32,
        channel_multipliers=(1, 1),
        res_blocks=1,
        attention=False,
        z_channels=32,
        factors=factors,
    )


class Checker(HTMLParser):
    """Collects tags, resources and text, and fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: list[str] = []
        self.resources: list[str] = []
        self.alternatives: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.classes += (attributes.get("class") or "").split()
        self.resources += [value for key, value in attrs if key in ("src", "href", "srcset", "data") and value]
        self.alternatives += [attributes["alt"] or ""] if "alt" in attributes else []
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def parse(document: str) -> Checker:
    checker = Checker()
    checker.feed(document)
    checker.close()
    assert not checker.open
    checker.text = re.sub(r"\s+", " ", checker.text)
    return checker
