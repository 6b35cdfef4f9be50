"""The driver: the only loop that submits batches and collects what became of them.

Files are the truth: a picture whose file carries the digest is done, whoever drew it. A batch
that dies with its worker is submitted again, one picture at a time, so that one bad picture
costs itself only.
"""

from __future__ import annotations

import time
from concurrent.futures import as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Literal, TypeAlias

from filmstrip.render._batch import Batch, Job, divide
from filmstrip.render._draw import Drawn, describe, draw_batch
from filmstrip.render._image import digest_of
from filmstrip.render._manifest import Report, write_manifest
from filmstrip.render._progress import Progress, Silence
from filmstrip.render._spec import digest
from filmstrip.render.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from filmstrip.render._executors import Executor
    from filmstrip.render._source import RunSource

__all__ = ["Existing", "check_folder", "drive", "split"]

Existing: TypeAlias = Literal["digest", "keep", "force"]


def split(
    jobs: Sequence[Job], sources: Sequence[RunSource], out: Path, existing: Existing
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

    Returns
    -------
    missing : list of Job
    kept : list of Drawn
    """
    missing: list[Job] = []
    kept: list[Drawn] = []
    for job in _distinct(jobs):
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
    executor: Executor,
    workers: int,
    progress: Progress | None = None,
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
    executor : Executor
        Is shut down at the end.
    workers : int
        How many tasks it runs at a time.
    progress : Progress or None

    Returns
    -------
    Report

    Raises
    ------
    OutputError
        If a picture cannot be written; what was drawn before stays and is in the manifest.
    """
    start = time.perf_counter()
    told = progress or Silence()
    report = Report(str(out), kept=list(kept))
    told.start(len(missing))
    try:
        batches = divide(missing, runs=runs, out=str(out), workers=workers)
        lost = _collect(batches, executor, report, told)
        singly = [Batch(b.runs, b.out, (job,)) for b in lost for job in b.jobs]
        for batch, error in _collect(singly, executor, report, told).items():
            report.failed += [Drawn(job, error=error) for job in batch.jobs]
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        told.stop()
        report.seconds = time.perf_counter() - start
        write_manifest(report)
    return report


def _collect(
    batches: Sequence[Batch], executor: Executor, report: Report, told: Progress
) -> dict[Batch, str]:
    """Run batches; return those that died, with the reason of each."""
    futures: dict[Future[list[Drawn]], Batch] = {
        executor.submit(draw_batch, batch): batch for batch in batches
    }
    lost: dict[Batch, str] = {}
    try:
        for future in as_completed(list(futures)):
            error = _enter(future, report)
            told.advance(len(futures[future].jobs) if not error else 0)
            if error:
                lost[futures[future]] = error
            del futures[future]
    except BaseException:
        # Interrupted: what runs is finished and entered, so that the manifest knows its files.
        executor.shutdown(wait=True, cancel_futures=True)
        for future in futures:
            if not future.cancelled():
                with suppress(OutputError):
                    _enter(future, report)
        raise
    return lost


def _enter(future: Future[list[Drawn]], report: Report) -> str:
    """Enter the results of a batch into the report; return why it died, if it did."""
    try:
        results = future.result()
    except Exception as error:  # the rim: one picture must not end all others
        return f"{type(error).__name__}: {error}"
    report.drawn += [one for one in results if not one.error]
    report.failed += [one for one in results if one.error]
    for one in results:
        if one.fatal:
            raise OutputError(one.error)
    return ""
