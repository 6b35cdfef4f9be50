"""The driver: the only loop that submits batches and collects what became of them.

Files are the truth: a picture whose file carries the digest is done, whoever drew it. A batch
that dies with its worker is submitted again when all others are done, one picture at a time and
nothing beside it, so that one bad picture costs itself only and is known for certain.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from filmstrip.render._batch import Job, Part, divide, part_of
from filmstrip.render._draw import Drawn, describe
from filmstrip.render._executors import Place, reason
from filmstrip.render._image import digest_of, remove_partials
from filmstrip.render._manifest import Report, write_manifest
from filmstrip.render._progress import Progress, Silence
from filmstrip.render._spec import digest
from filmstrip.render._task import run
from filmstrip.render.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from filmstrip.render._batch import Batch
    from filmstrip.render._source import RunSource

__all__ = ["Existing", "check_folder", "drive", "split"]

Existing: TypeAlias = Literal["digest", "keep", "force"]
_TICK: Final = 2.0  # seconds between two looks at the place
_ALONE: Final = 2  # times that a picture is drawn alone before it is blamed
_NOT_TRIED: Final = "not tried"
_HOPELESS: Final = 8  # workers that died one after the other, with nothing drawn between


def split(
    jobs: Sequence[Job],
    sources: Sequence[RunSource],
    out: Path,
    existing: Existing,
    part: Part | None = None,
) -> tuple[list[Job], list[Drawn]]:
    """Divide jobs into those to draw and those whose files are done.

    Parameters
    ----------
    jobs : sequence of Job
    sources : sequence of RunSource
        The runs that the pictures show.
    out : Path
        Output folder.
    existing : {"digest", "keep", "force"}
        What makes a file done: its digest, that it is there, nothing.
    part : Part or None
        Leave out what other parts draw.

    Returns
    -------
    missing : list of Job
    kept : list of Drawn
    """
    missing: list[Job] = []
    kept: list[Drawn] = []
    for job in part_of(_distinct(jobs), part):
        path = out / job.path
        if existing == "force" or not _is_file(path):
            missing.append(job)
            continue
        found = digest_of(path)
        if existing == "keep" or found == describe(job.spec, sources)["filmstrip-digest"]:
            kept.append(Drawn(job, found or ""))
        else:
            missing.append(job)
    return missing, kept


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, which is said when it is written
        return False


def _distinct(jobs: Sequence[Job]) -> list[Job]:
    """Leave out what is asked for twice, and keep apart what would have the same file."""
    distinct: dict[str, Job] = {}
    for job in jobs:
        other = distinct.setdefault(job.path, job)
        if other.spec != job.spec:
            path = Path(job.path)
            apart = path.with_stem(f"{path.stem}~{digest(job.spec, '')[:8]}").as_posix()
            distinct.setdefault(apart, replace(job, path=apart))
    return list(distinct.values())


def check_folder(out: Path) -> None:
    """Make the output folder, and a file in it, before anything is drawn.

    Raises
    ------
    OutputError
        If it is a file, or cannot be written into.
    """
    try:
        other = out.exists() and not out.is_dir()
        if not other:
            out.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=out).close()
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"cannot write into {out}: {reason}; choose another with -o") from error
    if other:
        raise OutputError(f"the output folder {out} is a file; choose another with -o")


def drive(
    missing: Sequence[Job],
    kept: Sequence[Drawn],
    *,
    runs: tuple[str, ...],
    out: Path,
    place: Place,
    progress: Progress | None = None,
    everything: bool = False,
) -> Report:
    """Draw what is missing and write the manifest, also when it is interrupted.

    Parameters
    ----------
    missing, kept
        From `split`.
    runs : tuple of str
        Paths of the runs; workers open them.
    out : Path
        Output folder; must exist.
    place : Place
        Where it is drawn.
    progress : Progress or None
    everything : bool
        Whether these are all pictures that there are to be in the folder.

    Returns
    -------
    Report

    Raises
    ------
    OutputError
        If a picture cannot be written; what was drawn before stays and is in the manifest.
    ExecutorError
        If there is no worker any more; the same holds.
    """
    start = time.perf_counter()
    told = progress or Silence()
    report = Report(str(out), kept=list(kept), runs=runs)
    jobs = (*missing, *(one.job for one in kept))
    if everything:
        report.everything = frozenset(job.path for job in jobs)
    told.start(len(missing))
    try:
        for folder in {out, *((out / job.path).parent for job in jobs)}:
            remove_partials(folder)
        # Workers may run in other folders.
        there = tuple(path if "://" in path else str(Path(path).absolute()) for path in runs)
        batches = divide(missing, runs=there, out=str(out.absolute()), workers=place.workers)
        lost = _collect(batches, place, report, told, at_once=place.in_flight)
        for _ in range(_ALONE):  # once may be another's fault: a node, or the memory of all
            singly = [replace(b, jobs=(job,)) for b in lost for job in b.jobs]
            lost = _collect(singly, place, report, told, at_once=1)
            if any(error.startswith(_NOT_TRIED) for error in lost.values()):
                break
        for batch, error in lost.items():
            report.failed += [Drawn(job, error=error) for job in batch.jobs]
    finally:
        told.stop()
        report.seconds = time.perf_counter() - start
        write_manifest(report)
    return report


def _collect(
    batches: Sequence[Batch], place: Place, report: Report, told: Progress, *, at_once: int
) -> dict[Batch, str]:
    """Run batches; return those that died, with the reason of each."""
    waiting = deque(batches)
    running: dict[Future[list[Drawn]], Batch] = {}
    lost: dict[Batch, str] = {}
    died, looked = 0, time.monotonic()
    try:
        while running or waiting:
            while waiting and len(running) < at_once and died < _HOPELESS:
                batch = waiting.popleft()
                running[place.executor.submit(run, batch)] = batch
            done, _ = wait(running, timeout=_TICK, return_when=FIRST_COMPLETED)
            drawn = 0
            for future in done:
                batch = running.pop(future)
                if error := _enter(future, report):
                    lost[batch] = error
                else:
                    drawn += len(batch.jobs)
            told.advance(drawn)
            if drawn:
                died = 0
            elif done:
                died += 1
            if died or time.monotonic() - looked >= _TICK:
                looked = time.monotonic()
                told.note(place.check(len(report.drawn)))
            if died >= _HOPELESS and not running:
                error = f"{_NOT_TRIED}: {died} workers in a row were lost before it"
                return lost | dict.fromkeys(waiting, error)
    except BaseException:
        # Interrupted: what runs is finished and entered, so that the manifest knows its files.
        for future in running:
            if not future.cancel():
                with suppress(Exception):
                    _enter(future, report)
        raise
    return lost


def _enter(future: Future[list[Drawn]], report: Report) -> str:
    """Enter the results of a batch into the report; return why it died, if it did."""
    try:
        results = future.result()
    except Exception as error:  # its worker died, or was not reached
        return reason(error)
    report.drawn += [one for one in results if not one.error]
    report.failed += [one for one in results if one.error]
    for one in results:
        if one.fatal:
            raise OutputError(one.error)
    return ""
