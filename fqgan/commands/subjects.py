"""Commands that have commands of their own."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from fqgan.base.errors import UserError
from fqgan.base.schema import did_you_mean

Subjects = Mapping[str, tuple[str, str]]
"""Name -> its arguments, and what it is about."""


def dispatch(
    prog: str, verb: str, subjects: Subjects, argv: list[str], modules: Mapping[str, str] | None = None
) -> None:
    """Call the command that `argv` names.

    Args:
        verb: what the command does with a subject, for messages.
        modules: module in `fqgan.commands` of a subject whose `main` takes its name too; the others have one each,
            `VERB_NAME`.
    """
    if not argv or argv[0] not in subjects:
        rows = [f"  {prog} {name} {usage}\n      {about}" for name, (usage, about) in subjects.items()]
        if {"-h", "--help"} & set(argv):
            print(f"usage: {prog} SUBJECT ...\n\n" + "\n".join(rows) + "\n\nEach has --help.")
            return
        usage = f"{prog} {'|'.join(subjects)} ..."
        found = f"cannot {verb} {argv[0]!r}{did_you_mean(argv[0], subjects)}" if argv else f"name what to {verb}"
        raise UserError(f"{found}: {usage}")
    if modules and argv[0] in modules:
        import_module(f"fqgan.commands.{modules[argv[0]]}").main(argv[0], argv[1:])
    else:
        import_module(f"fqgan.commands.{verb}_{argv[0]}").main(argv[1:])
