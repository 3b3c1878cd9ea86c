"""`fqgan data pack SOURCE --out DIR`."""

from __future__ import annotations

from fqgan.base.printing import say
from fqgan.base.progress import readable_bytes
from fqgan.commands.arguments import parse
from fqgan.config.packing import PackSettings


def main(argv: list[str]) -> None:
    """Entry point."""
    settings = parse(PackSettings, argv, "fqgan data pack", "Resized pictures in parquet files, for fast training.")
    settings.check()
    from fqgan.data.pack import pack

    done = pack(settings)
    manifest = done.manifest
    if done.packed:
        say(f"{done.packed:,} pictures in {done.seconds:.1f} s, {done.packed / done.seconds:.1f} images/s")
    left_out = f", {len(manifest.unreadable):,} unreadable ones left out" if manifest.unreadable else ""
    say(f"{manifest.rows:,} pictures in {len(manifest.shards):,} files, {readable_bytes(manifest.bytes)}{left_out}")
    if below := sum(shard.below_size for shard in manifest.shards):
        say(
            f"warning: {below:,} pictures have a shorter side below {settings.size} pixels and stay as they are: "
            "training and measuring enlarge them, unless --small (in training --data.small) says skip or refuse"
        )
    say(done.out)
