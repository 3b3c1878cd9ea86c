"""Jobs over several processes, one for each GPU: a job goes to whichever is free."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from types import FrameType
from typing import Any

import torch

from fqgan.base.errors import UserError
from fqgan.base.files import SURROUNDINGS, reason
from fqgan.base.printing import say
from fqgan.base.ranks import ranks
from fqgan.engine.stops import handling


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
    context, waiting, count = multiprocessing.get_context("spawn"), list(jobs), min(processes, len(jobs))
    threads = 0 if gpus else max(1, (os.cpu_count() or 1) // count)
    others = multiprocessing.active_children()
    stopped: list[int] = []
    failures: list[BaseException] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        for worker in multiprocessing.active_children():
            if worker not in others and number == signal.SIGTERM:  # Ctrl-C reaches all processes of the terminal
                worker.terminate()

    with handling(stop, (signal.SIGTERM, signal.SIGINT)), ExitStack() as pools:
        # a pool each: where one process is lost, the others go on
        free = [
            pools.enter_context(ProcessPoolExecutor(1, context, _prepare, (index % gpus if gpus else None, threads)))
            for index in range(count)
        ]
        busy: dict[Future[None], ProcessPoolExecutor] = {}
        while True:
            while free and waiting and not failures and not stopped:
                pool = free.pop()
                busy[pool.submit(_work, call, waiting.pop(0))] = pool
            if not busy:
                break
            for done in wait(busy, return_when=FIRST_COMPLETED).done:
                free.append(busy.pop(done))
                if error := done.exception():
                    known = type(error) in (UserError, RuntimeError)
                    failures.append(error if known else RuntimeError("a process of the study ended before its job did"))
                    if busy and not stopped:
                        *_, summary = str(failures[-1]).strip().splitlines() or ["without a word"]
                        say(f"a row has failed ({summary}); what is under way goes on to its end", error=True)
    if stopped:
        raise SystemExit(128 + stopped[0])
    if failures:
        raise failures[0] from None


def _prepare(gpu: int | None, threads: int) -> None:
    """A new process."""
    if gpu is not None:
        seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[gpu] if seen else str(gpu)
    if threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    # between jobs a signal means: no more of them; training has handlers of its own
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _work(call: Callable[[Any], None], job: Any) -> None:
    """One job; its errors as those that can be sent to another process."""
    try:
        call(job)
    except UserError as error:
        raise UserError(str(error)) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in SURROUNDINGS:
            raise UserError(f"{error.filename or 'a file'}: {reason(error.errno)}") from None
        raise RuntimeError(traceback.format_exc()) from None
