"""The tests of tests/test_cuda.py, a row a test: on a GPU those marked `cuda`, in a dry run the same on the CPU."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from gpu_parts.bench import Bench
from gpu_parts.results import PASSED

SECONDS = 90.0
"""A test may take."""


class Recorder:
    """A plugin of pytest that writes each test's outcome as it comes, and leaves out those that have one."""

    def __init__(self, bench: Bench, stdout: Any):
        self.bench, self.stdout, self.bad = bench, stdout, ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        missing = [item for item in items if _name(item.nodeid) not in self.bench.rows]
        items[:] = sorted(
            missing, key=lambda item: "compiled" in item.name or "defaults" in item.name
        )  # slow ones last

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.bad = ""
        self.bench.start(_name(nodeid), SECONDS)

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = _name(report.nodeid)
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            lines = (crash.message if crash else str(report.longrepr)).strip().splitlines()
            self.bad = f"{report.when}: {lines[0] if crash else lines[-1]}"[:300]
        elif report.skipped:
            self.bad = "skipped"
            self._put(name, {"skipped": str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else "")})
        if report.when == "teardown" and self.bad != "skipped":
            self._put(name, {"error": self.bad} if self.bad else {"values": PASSED})

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._put("collection", {"error": str(report.longrepr).strip().splitlines()[-1][:300]})

    def _put(self, name: str, row: dict[str, Any]) -> None:
        with redirect_stdout(self.stdout):
            self.bench._put(name, row, "")


def run(bench: Bench) -> None:
    import pytest

    tests = Path(__file__).parents[2] / "tests" / "test_cuda.py"
    mark = "cuda" if bench.device.type == "cuda" else "not cuda"
    options = ["-m", mark, "-p", "no:cacheprovider", "--tb=short", "-rN", f"--rootdir={tests.parents[1]}"]
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):  # the part's log
        status = pytest.main([str(tests), *options], plugins=[Recorder(bench, stdout)])
    if int(status) > 1 and int(status) != 5:  # 5: all of them were done before
        raise RuntimeError(f"pytest ended with status {int(status)}")


def _name(nodeid: str) -> str:
    return nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
