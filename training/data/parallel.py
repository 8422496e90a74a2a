"""Many small jobs in processes or threads: few wait at a time, and an interruption ends them within a job's time."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import cv2

_Job = TypeVar("_Job", bound=tuple[object, ...])
_Result = TypeVar("_Result")


def run_in_processes(
    function: Callable[..., _Result], jobs: Iterable[_Job], *, processes: int
) -> Generator[tuple[_Job, _Result]]:
    """Run a function on each job's arguments, and give each job with its result as they are done.

    Jobs are asked for while others run, so that they can depend on results so far, and 100,000 of them need no more
    memory than ten. Close the generator to end early (`contextlib.closing`): jobs at work are waited for.

    Args:
        function: Importable by name; what it raises is raised here.
        jobs: Arguments of one call each.
        processes: How many; with 1 the jobs run in this process.

    Raises:
        BrokenProcessPool: A process was ended from outside.
    """
    if processes == 1:
        for job in jobs:
            yield job, function(*job)
        return
    # Spawned, not forked: OpenCV's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_process) as pool:
        yield from _as_done(pool, function, jobs, ahead=2 * processes)


def run_in_threads(
    function: Callable[..., _Result], jobs: Iterable[_Job], *, threads: int
) -> Generator[tuple[_Job, _Result]]:
    """As `run_in_processes`, for a function that waits for the disk or lets go of the interpreter's lock."""
    with ThreadPoolExecutor(threads) as pool:
        yield from _as_done(pool, function, jobs, ahead=4 * threads)


def usable_cores() -> int:
    """The number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: honours taskset and the CPU sets of containers
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _as_done(
    pool: Executor, function: Callable[..., _Result], jobs: Iterable[_Job], *, ahead: int
) -> Generator[tuple[_Job, _Result]]:
    waiting: dict[Future[_Result], _Job] = {}
    try:
        for job in jobs:
            with _interrupts_held():
                waiting[pool.submit(function, *job)] = job
            if len(waiting) >= ahead:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)
    finally:
        for future in waiting:
            future.cancel()


def _finished(waiting: dict[Future[_Result], _Job]) -> Iterator[tuple[_Job, _Result]]:
    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
        yield waiting.pop(future), future.result()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C back for a moment: a process that starts meanwhile inherits that, and cannot die of it half-way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_process() -> None:
    """Let the parent alone answer Ctrl-C, so that a child finishes its file; one thread, as there are many children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's processes wait for work for ever, even when their parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
