"""`fqgan data info SOURCE` and `fqgan data pack SOURCE --out DIR`."""

from __future__ import annotations

from importlib import import_module

from fqgan.commands.subjects import choose

SUBJECTS = {
    "info": ("SOURCE", "classes, sizes and formats of a set of images, and what cannot be read"),
    "pack": ("SOURCE --out DIR", "resize a set once, into parquet files that training reads faster"),
}


def main(argv: list[str]) -> None:
    """Entry point."""
    if name := choose("fqgan data", "do", SUBJECTS, argv):
        import_module(f"fqgan.commands.data_{name}").main(argv[1:])
