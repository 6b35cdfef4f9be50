"""Batches: the only place that divides pictures among commands and tasks. Pure.

A task holds pictures of one layer whose steps share one file of the store, so that the file is
opened and its index read once. At most 32, since a task is also what is lost with a worker; and
at least four tasks a worker, where there are enough pictures, so that none waits for the last.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from typing import TYPE_CHECKING, Final

from filmstrip.render._spec import CurveSpec, GridSpec
from filmstrip.render.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from filmstrip.render._spec import Spec

__all__ = ["Batch", "Job", "Part", "divide", "part_of"]

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
    """What one task draws: paths of the runs, output folder, pictures. Pickles.

    ``version`` is that of the command, which a worker's must equal: of another one, the same
    digest may stand for another picture.
    """

    runs: tuple[str, ...]
    out: str
    jobs: tuple[Job, ...]
    version: str = version("filmstrip")


@dataclass(frozen=True, slots=True)
class Part:
    """One of several commands that divide the same pictures: ``index`` of ``count``, from 1.

    Examples
    --------
    >>> Part.read("2/4")
    Part(index=2, count=4)
    >>> Part.read("array", {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0",
    ...                     "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_COUNT": "4"})
    Part(index=1, count=4)
    """

    index: int
    count: int

    @classmethod
    def read(cls, text: str, environment: Mapping[str, str] = os.environ) -> Part:
        """Read ``I/N``, or ``array``: this task of a SLURM job array.

        Raises
        ------
        SpecError
            If it is neither.
        """
        if text == "array":
            return cls._of_array(environment)
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise SpecError(f"--part {text!r} is not I/N with I from 1 to N, nor array")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def _of_array(cls, environment: Mapping[str, str]) -> Part:
        try:
            task, first, last, count = (
                int(environment[f"SLURM_ARRAY_TASK_{word}"])
                for word in ("ID", "MIN", "MAX", "COUNT")
            )
        except (KeyError, ValueError) as error:
            raise SpecError("--part array is for tasks of `sbatch --array`; give I/N") from error
        stride, rest = divmod(last - first, max(1, count - 1))
        if rest or (task - first) % max(1, stride):
            raise SpecError("--part array needs an array without gaps; give I/N")
        return cls((task - first) // max(1, stride) + 1, count)


def part_of(jobs: Sequence[Job], part: Part | None) -> list[Job]:
    """Choose the pictures of one part; each belongs to exactly one.

    The pictures of a layer are dealt in turn, each layer beginning with another part. Since a
    run that goes on adds to the end of a layer's steps, commands that begin at different times
    still agree on whose a picture is.

    Examples
    --------
    >>> jobs = [Job(GridSpec(layer="a", step=s), f"{s}.png") for s in range(7)]
    >>> [job.spec.step for job in part_of(jobs, Part(2, 3))]
    [1, 4]
    """
    if part is None:
        return list(jobs)
    layers: dict[tuple[str, ...], int] = {}
    dealt: Counter[int] = Counter()
    chosen = []
    for job in jobs:
        layer = layers.setdefault(_strip(job), len(layers))
        if (layer + dealt[layer]) % part.count == part.index - 1:
            chosen.append(job)
        dealt[layer] += 1
    return chosen


def _strip(job: Job) -> tuple[str, ...]:
    spec = job.spec
    name = spec.name if isinstance(spec, CurveSpec) else spec.layer
    return spec.picture, spec.kind, name


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
