"""Factorized visual tokenization and generation (FQGAN and FAR)."""

__version__ = "0.1.0"
