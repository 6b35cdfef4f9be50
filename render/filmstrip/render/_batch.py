"""Batches: the only place that divides pictures among tasks. Pure.

A task holds pictures of one layer whose steps share one file of the store, so that the file is
opened and its index read once. At most 32, since a task is also what is lost with a worker; and
at least four tasks a worker, where there are enough pictures, so that none waits for the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from filmstrip.render._spec import GridSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from filmstrip.render._spec import Spec

__all__ = ["Batch", "Job", "divide"]

_MOST: Final = 32
_TASKS_A_WORKER: Final = 4


@dataclass(frozen=True, slots=True)
class Job:
    """One picture: its spec, its path below the output folder, and the file it reads.

    ``shard`` numbers the files of a layer; pictures over steps have -1.
    """

    spec: Spec
    path: str
    shard: int = -1


@dataclass(frozen=True, slots=True)
class Batch:
    """What one task draws: paths of the runs, output folder, pictures. Pickles."""

    runs: tuple[str, ...]
    out: str
    jobs: tuple[Job, ...]


def divide(jobs: Sequence[Job], *, runs: tuple[str, ...], out: str, workers: int) -> list[Batch]:
    """Divide pictures into batches, in their order.

    Examples
    --------
    >>> jobs = [Job(GridSpec(layer="a", step=s), f"{s}.png", s // 50) for s in range(100)]
    >>> [len(b.jobs) for b in divide(jobs, runs=("r",), out="o", workers=1)]
    [25, 25, 25, 25]
    """
    size = max(1, min(_MOST, math.ceil(len(jobs) / (_TASKS_A_WORKER * workers))))
    return [
        Batch(runs, out, tuple(piece))
        for _, group in groupby(jobs, key=_file)
        for piece in _pieces(list(group), size)
    ]


def _file(job: Job) -> tuple[str, str, int] | str:
    if isinstance(job.spec, GridSpec):
        return job.spec.kind, job.spec.layer, job.shard
    return job.path


def _pieces(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    """Pieces of nearly equal length, none longer than ``size``."""
    count = math.ceil(len(jobs) / size)
    for i in range(count):
        yield jobs[i * len(jobs) // count : (i + 1) * len(jobs) // count]
