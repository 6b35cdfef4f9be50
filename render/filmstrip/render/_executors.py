"""Executors: the only place that decides where batches run.

A place offers the standard library's executor, so that one loop drives threads, processes, a
Dask scheduler's workers (`_dask`) and SLURM's jobs (`_slurm`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final, ParamSpec, Protocol, TypeVar

__all__ = ["Executor", "Place", "available_cpus", "processes", "reason", "threads"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


class Executor(Protocol):
    """What the driver needs: part of `concurrent.futures.Executor`, and of what Dask offers.

    1. ``submit``, for each batch, from the driver's thread; also after a worker died
    2. ``Future.result``, or ``Future.cancel``, of each
    """

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Start a call and return its future."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where batches run. The context manager that made it ends it.

    Attributes
    ----------
    executor : Executor
    workers : int
        How many tasks it runs at a time, or will.
    in_flight : int
        How many tasks it is given before one has come back.
    check : callable
        Called every few seconds with the number of pictures drawn so far; returns one line for
        the user, or "", and raises `ExecutorError` when no more results can come.
    """

    executor: Executor
    workers: int
    in_flight: int
    check: Callable[[int], str] = lambda _: ""


@contextmanager
def threads(jobs: int | None = None) -> Iterator[Place]:
    """Run on threads of this process.

    Parameters
    ----------
    jobs : int or None
        How many; None: as many as there are CPUs for this process.
    """
    workers = jobs or available_cpus()
    with ThreadPoolExecutor(workers, thread_name_prefix="filmstrip-render") as pool:
        yield Place(pool, workers, 2 * workers)


@contextmanager
def processes(jobs: int | None = None) -> Iterator[Place]:
    """Run in processes of this machine, started afresh rather than forked.

    Parameters
    ----------
    jobs : int or None
        How many; None: as many as there are CPUs for this process.
    """
    workers = jobs or available_cpus()
    pool = _Processes(workers)
    try:
        yield Place(pool, workers, 2 * workers)
    finally:
        pool.end()


class _Processes:
    """A pool of processes that is replaced when one of them was killed, which breaks it."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")  # threads and locks do not survive a fork
        return ProcessPoolExecutor(self._workers, mp_context=spawn, initializer=_follow_the_driver)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        try:
            return self._pool.submit(fn, *args, **kwargs)
        except BrokenExecutor:
            self.end()
            self._pool = self._start()
            return self._pool.submit(fn, *args, **kwargs)

    def end(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _follow_the_driver() -> None:
    """In a worker: leave Ctrl-C and SIGTERM to the driver, and end when that was killed."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    driver = multiprocessing.parent_process()
    if driver is not None:
        threading.Thread(target=_end_with, args=(driver.sentinel,), daemon=True).start()


def _end_with(sentinel: Any) -> None:
    wait([sentinel])
    os._exit(1)  # the pool's queues keep a worker waiting for a driver that is gone


def reason(error: BaseException) -> str:
    """Say in one line why a batch did not come back.

    Examples
    --------
    >>> reason(RuntimeError("no"))
    'RuntimeError: no'
    """
    name = type(error).__name__
    if name in {"BrokenProcessPool", "KilledWorker"}:
        return f"its worker was killed ({name}): out of memory, or a defect in what draws it"
    return " ".join(f"{name}: {error}".split())


def available_cpus() -> int:
    """CPUs that this process may use: affinity, the container's quota, SLURM's allotment.

    Examples
    --------
    >>> available_cpus() >= 1
    True
    """
    counts = [_affinity()]
    allotted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if allotted.isdigit():
        counts.append(int(allotted))
    try:
        quota, period = _QUOTA.read_text().split()
        if quota != "max":
            counts.append(-(-int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups here
        pass
    return max(1, min(counts))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
