"""Factorized visual tokenization and generation (FQGAN and FAR)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fqgan.checkpoints import load_generator, load_tokenizer, save_generator, save_tokenizer
    from fqgan.data.images import load_images
    from fqgan.errors import UserError

__version__ = "0.1.0"
__all__ = ["UserError", "load_generator", "load_images", "load_tokenizer", "save_generator", "save_tokenizer"]

_HOMES = {
    "UserError": "fqgan.errors",
    "load_generator": "fqgan.checkpoints",
    "load_images": "fqgan.data.images",
    "load_tokenizer": "fqgan.checkpoints",
    "save_generator": "fqgan.checkpoints",
    "save_tokenizer": "fqgan.checkpoints",
}


def __getattr__(name: str) -> Any:
    """Load the public face on first use: `import fqgan` stays fast."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fqgan' has no attribute {name!r}")
