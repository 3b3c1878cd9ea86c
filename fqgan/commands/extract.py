"""`fqgan extract CKPT --data ... --out STORE`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fqgan.base.printing import say
from fqgan.base.progress import readable_bytes
from fqgan.commands.arguments import parse
from fqgan.config.trained import ExtractionSettings
from fqgan.models import hub

if TYPE_CHECKING:
    from fqgan.data.sources import ImageSource
    from fqgan.tokenizer.extraction import Extraction


def main(argv: list[str], source: ImageSource | None = None) -> None:
    """Entry point; `source` is encoded in place of what --data names, where it is given."""
    settings = parse(ExtractionSettings, argv, "fqgan extract", "Encode a set of images into a token store.")
    settings.check()
    settings = replace(settings, checkpoint=hub.local(settings.checkpoint))
    from fqgan.engine.session import running
    from fqgan.tokenizer.extraction import extract

    with running(settings.device) as world:
        done = extract(settings, world, source)
        if world.is_main:
            _summarize(done)
            say(done.out)


def _summarize(done: Extraction) -> None:
    manifest = done.manifest
    if done.encoded:
        crops = done.encoded * manifest.num_crops
        rate = f"{done.encoded / done.seconds:.1f} images/s, {crops / done.seconds:.1f} crops/s"
        say(f"{done.encoded:,} images in {done.seconds:.1f} s, {rate}")
    left_out = f", {len(done.unreadable):,} unreadable ones left out" if done.unreadable else ""
    size = readable_bytes(sum(file.bytes for shard in manifest.shards for file in (shard.codes, shard.labels)))
    h, w = manifest.options.grid
    say(
        f"{done.images:,} images{left_out}, {done.images * manifest.num_crops:,} crops of {manifest.num_factors} x "
        f"{h} x {w} codes: {size} in {len(manifest.shards):,} shards"
    )
