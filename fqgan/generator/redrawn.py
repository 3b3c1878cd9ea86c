"""The function behind `redraw`: a token store in which a generator has drawn a share of each image's codes again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fqgan.base.errors import UserError
from fqgan.base.files import UnwritableError
from fqgan.base.printing import say
from fqgan.base.progress import image_bar
from fqgan.config.verbs import RedrawingSettings
from fqgan.data.token_manifest import StoreManifest
from fqgan.data.token_writer import TokenWriter
from fqgan.data.tokens import TokenStore
from fqgan.engine.distributed import World, barrier, from_main
from fqgan.engine.stops import stop_requests
from fqgan.generator.model import FAR, load_generator
from fqgan.models.fingerprint import weights_fingerprint
from fqgan.tokenizer.extraction import Extraction

_TAG = 0x9ED  # keeps this use of (seed, image) apart from others


def redraw_store(settings: RedrawingSettings, world: World) -> Extraction:
    """Draw a share of a store's codes again, image by image, into another store; called by all ranks.

    Of an image's positions `round(keep * h * w)`, chosen by (seed, image), keep all of their codes. The generator draws
    the others in its own order, each given the class and all codes before it: those that stayed and those that it drew,
    as RobustTok's post-training has it (Qiu et al. 2025). Neither ranks nor batches change a code in float32 on a CPU.

    Raises:
        UserError: settings that make no sense, a store of other codes or of several crops, a folder that holds
            something else or cannot be written.
        SystemExit: after Ctrl-C or SIGTERM; the same call goes on.
    """
    settings.check()
    generator = load_generator(settings.checkpoint, world.device, settings.weights, settings.precision)
    store = TokenStore.open(settings.store)
    _check(generator, store, settings)
    planned = _plan(generator, store, settings)
    shards = store.manifest.shards
    firsts = np.cumsum([0, *(shard.images for shard in shards)])
    writer = TokenWriter(settings.out, planned, shards[-1].stop)
    try:
        missing = from_main(lambda: writer.begin(generator.tokenizer.export, note=say))
        if world.is_main:
            already = "" if missing else f"{settings.out} is there already; "
            share = f"{settings.keep:.4g} of {generator.config.num_positions} positions keep their codes"
            say(f"{already}{len(store):,} images of {store.name}; of each {share}")
        began, own = time.monotonic(), missing[world.rank :: world.size]
        with image_bar("drawing", sum(shards[i].images for i in own), shown=world.is_main) as advance:
            _draw(generator, store, writer, own, firsts.tolist(), settings, advance)
        barrier()
        manifest = from_main(lambda: writer.finish() if missing else writer.manifest)
    except UnwritableError as error:
        raise UserError(f"{error}; the same command resumes") from None
    finally:
        writer.close(keep=world.size > 1)
    return Extraction(settings.out, manifest, sum(shards[i].images for i in missing), time.monotonic() - began)


def kept_positions(count: int, keep: float, seed: int, image: int) -> Tensor:
    """(count,) bool: which of an image's positions keep their codes."""
    kept = np.zeros(count, bool)
    kept[np.random.default_rng([_TAG, seed, image]).permutation(count)[: round(keep * count)]] = True
    return torch.from_numpy(kept)


def _check(generator: FAR, store: TokenStore, settings: RedrawingSettings) -> None:
    config = generator.config
    settings.check(config.codebook_sizes)
    if store.tokenizer_fingerprint != generator.tokenizer.fingerprint():
        raise UserError(f"{store.name} was made with another tokenizer than {settings.checkpoint} draws codes of")
    if store.num_crops != 1 or tuple(store.grid) != tuple(config.grid):
        raise UserError(
            f"{store.name} has {store.num_crops} crop(s) of {' x '.join(map(str, store.grid))} positions; one of "
            f"{' x '.join(map(str, config.grid))} is needed, from fqgan extract --crops center"
        )
    if store.manifest.options.redrawn:
        raise UserError(f"{store.name} has been drawn again already: start from the images' own codes")


def _plan(generator: FAR, store: TokenStore, settings: RedrawingSettings) -> StoreManifest:
    """What the new store says of itself: all that the old one does, and how its codes were drawn."""
    how = {"keep": settings.keep, "seed": settings.seed, "precision": settings.precision, **settings.values}
    told = {"generator": weights_fingerprint(generator.state_dict()), **how}
    options = replace(store.manifest.options, redrawn=json.dumps(told, sort_keys=True))
    return replace(store.manifest, options=options, count=0, tokenizer_files=(), shards=())


def _draw(
    generator: FAR,
    store: TokenStore,
    writer: TokenWriter,
    numbers: list[int],
    firsts: list[int],
    settings: RedrawingSettings,
    advance: Callable[[int], None],
) -> None:
    sampler = generator.sampler(settings.batch, **settings.values) if numbers else None
    count, grid = generator.config.num_positions, store.grid
    with stop_requests() as stop:
        for number in numbers:
            shard, parts = store.manifest.shards[number], []
            images = range(firsts[number], firsts[number] + shard.images)
            for start in range(0, len(images), settings.batch):
                if stop.number:
                    say(
                        f"stopped with {len(writer.records())} of {len(writer.ranges)} shards; the same command resumes"
                    )
                    raise SystemExit(128 + stop.number)
                batch = images[start : start + settings.batch]
                codes, labels = store.take(batch, [0] * len(batch))
                kept = torch.stack([kept_positions(count, settings.keep, settings.seed, i) for i in batch])
                mask = kept.unflatten(1, grid)[:, None].expand(-1, store.num_factors, -1, -1)
                if not generator.config.num_classes:
                    labels = torch.full_like(labels, -1)
                assert sampler is not None
                parts.append(sampler(labels, settings.seed, batch.start, given=codes, mask=mask).cpu())
                advance(len(batch))
            drawn = torch.cat(parts) if parts else torch.empty(0, store.num_factors, *grid)
            found = drawn.numpy().reshape(store.manifest.options.shape(shard.images))
            writer.write(number, found, store.labels[images.start : images.stop], shard.unreadable)
