"""This process's place among the ranks, as torchrun's environment variables tell it. The only reader of them."""

from __future__ import annotations

import os
import re
import socket
from typing import NamedTuple

from fqgan.base.errors import UserError

_HINT = "start several ranks with torchrun, or unset the variable"


class Ranks(NamedTuple):
    """Numbers of RANK, WORLD_SIZE and LOCAL_RANK."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0


def ranks() -> Ranks:
    """This process's place. An empty variable counts as unset.

    Raises:
        UserError: values that are no numbers or contradict each other: a rank that takes itself for another one would
            save nothing, or what others save too.
    """
    size = _number("WORLD_SIZE", 1)
    rank, local = _number("RANK", 0), _number("LOCAL_RANK", 0)
    if size < 1:
        raise UserError(f"WORLD_SIZE is {size} in the environment, and must be at least 1: {_HINT}")
    if size > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise UserError(f"WORLD_SIZE is {size} in the environment, but {name} is not set: {_HINT}")
        _number("MASTER_PORT", 0)
    for name, value in (("RANK", rank), ("LOCAL_RANK", local)):
        if not 0 <= value < size:
            known = str(size) if os.environ.get("WORLD_SIZE") else "not set, which means 1"
            raise UserError(f"{name} is {value} in the environment, but WORLD_SIZE is {known}: {_HINT}")
    return Ranks(rank, size, local)


def ranks_or_one() -> Ranks:
    """As `ranks`; a single process where the environment makes no sense, for what works on one rank anyway."""
    try:
        return ranks()
    except UserError:
        return Ranks()


def meeting_place() -> str:
    """`host:port` where the ranks meet. `UserError` for a host that does not resolve: torch would try for half an hour
    to reach it."""
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        socket.getaddrinfo(host, int(port))
    except (OSError, UnicodeError, OverflowError) as error:
        raise UserError(
            f"MASTER_ADDR {host!r} cannot be resolved ({getattr(error, 'strerror', None) or error}): give torchrun a "
            "--master-addr that all machines know"
        ) from None
    return f"{host}:{port}"


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise UserError(f"{name} is {text[:40]!r} in the environment, and must be a number: {_HINT}")
    return int(text)
