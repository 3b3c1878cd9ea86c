"""`fqgan data info SOURCE` and `fqgan data pack SOURCE --out DIR`."""

from __future__ import annotations

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean
from fqgan.commands import data_info, data_pack

PROG = "fqgan data"


def main(argv: list[str]) -> None:
    """Entry point."""
    commands = {"info": data_info.main, "pack": data_pack.main}
    if argv and argv[0] in commands:
        commands[argv[0]](argv[1:])
    elif {"-h", "--help"} & set(argv):
        print(
            f"usage: {PROG} info SOURCE\n       {PROG} pack SOURCE --out DIR\n\n"
            f"{PROG} info --help and {PROG} pack --help say more."
        )
    else:
        found = f"unknown {argv[0]!r}{did_you_mean(argv[0], commands)}" if argv else "say what to do"
        raise UserError(f"{found}: {PROG} info SOURCE, or {PROG} pack SOURCE --out DIR")
