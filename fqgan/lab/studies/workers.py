"""Jobs over several processes, one for each GPU: a job goes to whichever is free."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

import torch

from fqgan.base.errors import UserError
from fqgan.base.files import SURROUNDINGS, reason
from fqgan.base.printing import say
from fqgan.base.ranks import ranks
from fqgan.engine.stops import handling

_DONE, _REFUSED, _BROKEN = "done", "refused", "broken"


def check_alone() -> None:
    """`UserError` under torchrun."""
    if ranks().size > 1:
        raise UserError("start a study without torchrun: it has a process of its own for each GPU")


def spread(call: Callable[[Any], None], jobs: Sequence[Any], processes: int, gpus: int = 0) -> None:
    """Call `call` with every job, over `processes` processes; process i sees GPU i modulo `gpus` only.

    After an error nothing new is begun, and what is under way goes on to its end. Signals are passed on: training saves
    before it stops, and a later call resumes it.

    Args:
        call: a function of a module, which the new processes import.

    Raises:
        UserError: the first one of a job.
        RuntimeError: another error of a job, with its traceback.
    """
    if processes <= 1 or len(jobs) <= 1:
        for job in jobs:
            call(job)
        return
    context, waiting = multiprocessing.get_context("spawn"), list(jobs)
    workers: dict[Any, Any] = {}  # by our end of its pipe
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        for worker in workers.values():
            if worker.is_alive() and number == signal.SIGTERM:  # Ctrl-C reaches all processes of the terminal
                os.kill(worker.pid, number)

    failures: list[tuple[str, str]] = []
    with handling(stop, (signal.SIGTERM, signal.SIGINT)):
        for index in range(min(processes, len(jobs))):
            ours, theirs = context.Pipe()
            device = str(index % gpus) if gpus else ""
            threads = 0 if gpus else max(1, (os.cpu_count() or 1) // min(processes, len(jobs)))
            workers[ours] = context.Process(target=_work, args=(call, theirs, device, threads))
            workers[ours].start()
            theirs.close()
            ours.send(waiting.pop(0))
        busy = set(workers)
        while busy:
            ready: list[Any] = wait(list(busy))
            for connection in ready:
                try:
                    outcome, text = connection.recv()
                except EOFError:
                    outcome, text = _BROKEN, "a process of the study ended before its job did"
                if outcome != _DONE:
                    failures.append((outcome, text))
                    if busy - {connection} and not stopped:
                        *_, summary = text.strip().splitlines() or ["without a word"]
                        say(f"a row has failed ({summary}); what is under way goes on to its end", error=True)
                if waiting and not failures and not stopped:
                    connection.send(waiting.pop(0))
                else:
                    busy.discard(connection)
                    connection.close()
        for worker in workers.values():
            worker.join()
    if stopped:
        raise SystemExit(128 + stopped[0])
    for outcome, text in failures:
        raise UserError(text) if outcome == _REFUSED else RuntimeError(text)


def _work(call: Callable[[Any], None], connection: Connection, device: str, threads: int) -> None:
    """One process: jobs until the other side closes."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(device)
    if threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    # between jobs a signal means: no more of them; training has handlers of its own
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    while True:
        try:
            job = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            call(job)
            connection.send((_DONE, ""))
        except UserError as error:
            connection.send((_REFUSED, str(error)))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in SURROUNDINGS:
                connection.send((_REFUSED, f"{error.filename or 'a file'}: {reason(error.errno)}"))
                continue
            connection.send((_BROKEN, traceback.format_exc()))


def _visible(device: str) -> str:
    """The name of a GPU, counted among those that this process may see."""
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return seen[int(device)] if seen else device
