"""The runner of benchmarks/gpu.py: what is lost where a part crashes, hangs, runs out of memory or of time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.slow

PART = """
import os, sys, time
import torch

def broken():
    raise ValueError("a bad\\nnumber")

def too_large():
    return torch.empty(2**50)

def crash():
    print("the driver has gone", file=sys.stderr, flush=True)
    os._exit(9)

def run(bench):
    bench.row("first", lambda: {"images/s": 1234.4, "of the limit": 0.5}, aim="a lot")
    bench.row("broken", broken)
    bench.row("large", too_large)
    bench.row("crash", crash)
    bench.row("hang", lambda: time.sleep(100), limit=1.0)
    bench.row("last", lambda: {"GiB": None})
"""
LATER = """
import os
from pathlib import Path

def run(bench):
    count = Path(os.environ["COUNT"])
    bench.small = False
    bench.row("no time", lambda: {}, needs=1e6)
    bench.row("there is", lambda: {"calls": count.write_text(count.read_text() + "x")}, needs=1)
"""
RUN = """
import sys
from gpu import Part, main
parts = {"one": Part("part_one", 60), "absent": Part("no_such_part", 1), "two": Part("part_two", 9)}
sys.exit(main(sys.argv[1:], parts))
"""


def measured(folder: Path, *options: str) -> tuple[int, str, dict[str, dict[str, Any]]]:
    """Exit status, output and rows of a call."""
    (folder / "part_one.py").write_text(PART)
    (folder / "part_two.py").write_text(LATER)
    path = os.pathsep.join(map(str, (BENCHMARKS, folder)))
    command = [sys.executable, "-c", RUN, "--device", "cpu", "--small", "--out", str(folder / "r.json"), *options]
    environment = {**os.environ, "PYTHONPATH": path, "COUNT": str(folder / "count")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr, json.loads((folder / "r.json").read_text())["rows"]


def test_a_row_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("")
    status, output, rows = measured(tmp_path)
    one, two = rows["one"], rows["two"]
    assert status == 1, output
    assert one["first"]["values"] == {"images/s": 1234.4, "of the limit": 0.5}
    assert one["broken"]["error"] == "ValueError: a bad number"
    assert one["large"]["error"].startswith("out of memory")
    assert one["crash"]["error"] == "ended with status 9: the driver has gone"
    assert one["hang"]["error"].startswith("the row took too long")
    assert one["last"]["values"] == {"GiB": None}
    assert "No module named 'no_such_part'" in rows["absent"]["(start)"]["error"]
    assert two["no time"]["skipped"] == "less than 1000000 s were left" and two["there is"]["values"] == {"calls": 1}
    assert "| one: first | 1,234 images/s, 50.0% of the limit | a lot |" in output
    assert "| one: last | GiB: unknown |  |" in output and "5 row(s) failed" in output


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("")
    for options, times in (([], 1), ([], 1), (["--fresh"], 2)):
        measured(tmp_path, "--parts", "two", *options)
        assert (tmp_path / "count").read_text() == times * "x"


def test_parts_for_which_there_is_no_time_are_named(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("")
    status, output, rows = measured(tmp_path, "--minutes", "0.1")
    assert status == 0 and {row["skipped"] for part in rows.values() for row in part.values()} == {"no time was left"}
    assert "| two: (all that is missing) | skipped: no time was left |  |" in output
