"""`python -m fqgan`."""

from fqgan.cli import run

run()
