"""One pass where several frozen networks ask for the same of the same images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")
_results: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] | None = None


@contextmanager
def sharing() -> Iterator[None]:
    """Within, a `shared` function that is called again with the very same tensors returns its first result.

    The results live until the end of the context, and nobody may write to them or to those tensors in it.
    """
    global _results
    outer, _results = _results, {}
    try:
        yield
    finally:
        _results = outer


def shared(function: Callable[..., T]) -> Callable[..., T]:
    """Let calls within `sharing` run once per arguments. Tensors that need gradient are never shared.

    Tensors count as the same if they are the same object, all other arguments if they are equal.
    """

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> T:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        if _results is None or any(tensor.requires_grad for tensor in tensors):
            return function(*arguments)
        key = (function, *(id(argument) if isinstance(argument, Tensor) else argument for argument in arguments))
        if key not in _results:
            _results[key] = arguments, function(*arguments)  # the arguments stay alive, so that no id is used twice
        return _results[key][1]

    return wrapper
