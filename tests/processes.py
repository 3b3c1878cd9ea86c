"""Processes of their own that begin where Python and torch are loaded: a fork takes no time, an import seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["torch", "torch._dynamo", "torch.utils.tensorboard.writer"]
    + [f"fqgan.{kind}.task" for kind in ("tokenizer", "generator")]
    + [f"fqgan.commands.{name}" for name in ("train_tokenizer", "train_generator", "evaluate", "study")]
)

IN_FLOAT64 = """
import torch
from fqgan import cli
torch.set_default_dtype(torch.float64)
torch.Tensor.float = torch.Tensor.double
cli.run()
"""
"""The command with every float32 number a float64 one. Sums in two orders then stay alike past a discrete choice: in
float32 a near tie sooner or later gives another code, on one CPU or another, and all that follows from it."""


class Started:
    """`fqgan ARGUMENTS`, or `python -c CODE ARGUMENTS`, under way; with the part of `subprocess.Popen` that is used."""

    def __init__(self, arguments: list[str], code: str, environment: dict[str, str]) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the server too, which loads torch
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self._output = Path(name)
        self._process = _FORKS.Process(target=_run, args=(arguments, code, environment, name, os.getcwd()))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """Exit status, or the signal that ended it as a negative number; None before the end."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("fqgan", timeout or 0)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Everything that it wrote, once it has ended. One that does not end in time is killed: pytest would wait."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"not done after {timeout} s: {self._output.read_text()}") from None
        text = self._output.read_text()
        self._output.unlink()
        return text, None


def start(arguments: list[str], code: str = "", **env: str) -> Started:
    """A process with one thread: sums in the same order every time, and no fight over the cores."""
    return Started(arguments, code, {**os.environ, **env})


def finish(process: Started) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def on_two_ranks(arguments: list[str], status: int = 0, code: str = "") -> str:
    """What a command prints on two ranks, in the environment that torchrun gives them; torchrun itself takes as long to
    load as they do. Both have to end with this exit status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [start(arguments, code, RANK=rank, LOCAL_RANK=rank, **place) for rank in "01"]
    deadline = time.monotonic() + 300
    while any(rank.poll() is None for rank in ranks):
        time.sleep(0.01)
        if any(rank.poll() for rank in ranks):  # one that broke leaves the other waiting for it
            deadline = min(deadline, time.monotonic() + 20)
        if time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
    output = "".join(rank.communicate()[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [status, status], output
    return output


def wait_for(pattern: Path, process: Started) -> None:
    """Until something has this name, whose last part may hold `*`. Fails where the process ends, or minutes pass."""
    deadline = time.monotonic() + 300
    while not any(pattern.parent.glob(pattern.name)):
        assert process.poll() is None, process.communicate()[0]
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"no {pattern} within five minutes: {process.communicate()[0]}")
        time.sleep(0.005)


def _run(arguments: list[str], code: str, environment: dict[str, str], output: str, folder: str) -> None:
    from fqgan import cli

    multiprocessing.set_start_method("fork", force=True)  # as it was; a child of the server would use the server
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with open(output, "ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["fqgan", *arguments]
    if code:
        exec(code, {"__name__": "__main__"})
    else:
        cli.run()
