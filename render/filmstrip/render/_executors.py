"""Executors: the only place that decides where batches run.

All of them speak the standard library's protocol, so that one loop drives them.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["Executor", "available_cpus", "threads"]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")


class Executor(Protocol):
    """What the driver needs: `concurrent.futures.Executor`, and what Dask's client offers.

    1. ``submit``, once for each batch, from the driver's thread
    2. ``shutdown``, once, after the last result or the first interrupt
    """

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Start a call and return its future."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> Any:
        """End; with ``cancel_futures``, drop what has not started."""


def threads(jobs: int | None = None) -> Executor:
    """Threads of this process.

    Parameters
    ----------
    jobs : int or None
        How many; None: as many as there are CPUs for this process.
    """
    return ThreadPoolExecutor(jobs or available_cpus(), thread_name_prefix="filmstrip-render")


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
