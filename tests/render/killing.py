"""Pictures that kill whatever draws them, as a defect in native code or a full memory does."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from filmstrip.render._batch import Batch
from filmstrip.render._draw import Drawn
from filmstrip.render._executors import Executor, Place
from filmstrip.render._task import run


class _Deadly:
    def __init__(self, executor: Executor, steps: set[int], times: int) -> None:
        self._executor, self._steps, self._left = executor, steps, times

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert fn is run
        batch: Batch = args[0]
        kills = any(getattr(job.spec, "step", None) in self._steps for job in batch.jobs)
        self._left -= kills
        return self._executor.submit(draw_or_die, batch, self._steps if self._left >= 0 else set())


def deadly(place: Place, *steps: int, times: int = 1_000_000) -> Place:
    """Return a place whose workers die at pictures of some steps, at most so many times."""
    return replace(place, executor=_Deadly(place.executor, set(steps), times))


def draw_or_die(batch: Batch, steps: set[int]) -> list[Drawn]:
    """Draw picture after picture."""
    results = []
    for job in batch.jobs:
        if getattr(job.spec, "step", None) in steps:
            os.kill(os.getpid(), signal.SIGKILL)
        results += run(replace(batch, jobs=(job,)))
    return results


def imported(name: str) -> bool:
    """Whether this process has imported a module."""
    return name in sys.modules


def variable(name: str) -> str | None:
    """Return a variable of this process's environment."""
    return os.environ.get(name)
