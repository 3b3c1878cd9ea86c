"""Factorized visual tokenization and generation (FQGAN and FAR)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fqgan.base.errors import UserError
    from fqgan.data.loader import load_images
    from fqgan.face import evaluate, extract, generate, train_generator, train_tokenizer
    from fqgan.generator.model import load_generator, save_generator
    from fqgan.tokenizer.load import load_tokenizer, save_tokenizer

__version__ = "0.2.0"
__all__ = [
    "UserError",
    "evaluate",
    "extract",
    "generate",
    "load_generator",
    "load_images",
    "load_tokenizer",
    "save_generator",
    "save_tokenizer",
    "train_generator",
    "train_tokenizer",
]

_HOMES = {
    "UserError": "fqgan.base.errors",
    "evaluate": "fqgan.face",
    "extract": "fqgan.face",
    "generate": "fqgan.face",
    "load_generator": "fqgan.generator.model",
    "load_images": "fqgan.data.loader",
    "load_tokenizer": "fqgan.tokenizer.load",
    "save_generator": "fqgan.generator.model",
    "save_tokenizer": "fqgan.tokenizer.load",
    "train_generator": "fqgan.face",
    "train_tokenizer": "fqgan.face",
}


def __dir__() -> list[str]:
    """The public face alone."""
    return sorted([*__all__, "__version__"])


def __getattr__(name: str) -> Any:
    """Load the public face on first use: `import fqgan` stays fast."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fqgan' has no attribute {name!r}")
