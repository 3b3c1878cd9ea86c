"""Results of `fqgan evaluate` that a study asks for, and reuses where they answer the same request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fqgan.base.errors import UserError
from fqgan.config import SamplingConfig
from fqgan.data.fingerprint import fingerprint
from fqgan.evaluation.protocol import differences, read_result, write_result
from fqgan.evaluation.sets import open_set
from fqgan.nets.measuring import load_network

Numbers = dict[str, float]
_OF_NETWORK = ("frechet", "score", "kernel", "precision", "recall", "density", "coverage", "fid", "sfid", "inception")


_WITHOUT_EFFECT = {"--workers"}
_DRAWN_BY = {"--num", "--seed", "--batch", "--precision", "--device", "--tokenizer"}
_DRAWN_BY |= {f"--{name.replace('_', '-')}" for name in SamplingConfig.__dataclass_fields__}


def answers(file: Path, request: Sequence[str]) -> bool:
    """Whether the result in a file is that of a request: of the same options, but for those without effect."""
    try:
        found = read_result(file).get("request")
    except UserError:
        return False
    return isinstance(found, list) and _counting(found) == _counting(request)


def _counting(request: Sequence[str]) -> list[list[str]]:
    return [option for option in _options(request) if option[0] not in _WITHOUT_EFFECT]


def _options(request: Sequence[str]) -> Iterator[list[str]]:
    """Each option with its values; what stands before the first one comes first."""
    current: list[str] = []
    for text in request:
        if text.startswith("--") and current:
            yield current
            current = []
        current.append(text)
    if current:
        yield current


def drawing(request: Sequence[str]) -> str:
    """Names the pictures that a request generates: those of another network or other real images are the same."""
    counting = [option for option in _options(request) if option[0] in _DRAWN_BY]
    return hashlib.sha256(json.dumps(counting).encode()).hexdigest()[:8]


@lru_cache(maxsize=32)
def identity(network: str, data: str, split: str) -> tuple[str, ...]:
    """What a request's names stand for: the weights of a network, and which images these are. Stands before the
    options of a request, so that a retrained classifier or other images are measured anew."""
    given = open_set(data, split)
    if given.source is not None:
        images = json.dumps(fingerprint(given.source), sort_keys=True)
    else:
        images = hashlib.sha256(Path(data).expanduser().read_bytes()).hexdigest()
    return str(load_network(network).describe()["weights"]), hashlib.sha256(images.encode()).hexdigest()


def measure(command: Callable[[list[str]], None], argv: Sequence[str], request: Sequence[str], file: Path) -> None:
    """Run `fqgan evaluate ...` and keep its result with the request: all that its numbers depend on."""
    command([*argv, "--out", str(file)])
    write_result({**read_result(file), "request": list(request)}, file)


def scores_of(result: dict[str, Any], network: str) -> Numbers:
    """`frechet`, `kernel_distance` and the like under `name/network`, the rest under their own names."""
    found = {
        f"{name}/{network}" if name.startswith(_OF_NETWORK) else name: float("nan") if value is None else float(value)
        for name, value in result["metrics"].items()
    }
    if factors := result.get("factors"):
        found["usage"] = sum(factor["usage"] for factor in factors.values()) / len(factors)
    return found


class OneProtocol:
    """Lets results pass that were made under one protocol for each network.

    Args:
        apart: sides of the protocol in which they may differ.
    """

    def __init__(self, apart: Sequence[str] = ()) -> None:
        self._apart, self._first = apart, dict[str, tuple[Path, dict[str, Any]]]()

    def read(self, file: Path, network: str) -> dict[str, Any]:
        """A result; `UserError` where it was not measured as the first one was."""
        result = read_result(file)
        before, reference = self._first.setdefault(network, (file, result))
        apart = [side for side in self._apart if side in result["protocol"]]
        if told := differences(reference, result, apart):
            key, (was, now) = next(iter(told.items()))
            raise UserError(
                f"{file} was not measured as {before} was ({key}: {now!r}, not {was!r}): delete the one that is out of "
                "date, and start again"
            )
        return result
