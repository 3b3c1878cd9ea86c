"""Commands that have commands of their own."""

from __future__ import annotations

from collections.abc import Mapping

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean

Subjects = Mapping[str, tuple[str, str]]
"""Name -> its arguments, and what it is about."""


def choose(prog: str, verb: str, subjects: Subjects, argv: list[str]) -> str:
    """The subject that `argv` names; empty where it asked for help, which is printed. `UserError` for another one.

    Args:
        verb: what the command does with a subject, for messages.
    """
    if argv and argv[0] in subjects:
        return argv[0]
    if {"-h", "--help"} & set(argv):
        rows = [f"  {prog} {name} {usage}\n      {about}" for name, (usage, about) in subjects.items()]
        print(f"usage: {prog} SUBJECT ...\n\n" + "\n".join(rows) + "\n\nEach has --help.")
        return ""
    usage = f"{prog} {'|'.join(subjects)} ..."
    found = f"cannot {verb} {argv[0]!r}{did_you_mean(argv[0], subjects)}" if argv else f"name what to {verb}"
    raise UserError(f"{found}: {usage}")
