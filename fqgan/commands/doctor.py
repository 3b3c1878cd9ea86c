"""`fqgan doctor [--device D ...] [--json FILE]`."""

from __future__ import annotations

from pathlib import Path

from fqgan.base.printing import say
from fqgan.commands.arguments import parse
from fqgan.config.doctor import DoctorSettings


def main(argv: list[str]) -> int:
    """Entry point; exit status 1 where a device disagrees with the CPU."""
    about = (
        "Print what a bug report needs: versions, devices, extras, weights. With --device, find out whether a device "
        "computes what the CPU computes."
    )
    settings = parse(DoctorSettings, argv, "fqgan doctor", about)
    from fqgan.lab.doctor import examine

    found = examine(settings, note=say)
    if settings.json != Path():
        say(settings.json)
    return int(bool(found.disagreements))
