"""Drawing a batch: the only place where specs become files."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from filmstrip.render._executors import reason
from filmstrip.render._source import open_sources
from filmstrip.render._spec import CurveSpec, command, digest
from filmstrip.render._state import state_of
from filmstrip.render.errors import OutputError, RenderError, SourceError, SpecError
from filmstrip.render.pictures import PICTURES
from filmstrip.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filmstrip.render._batch import Batch, Job
    from filmstrip.render._source import RunSource
    from filmstrip.render._spec import Spec

__all__ = ["Drawn", "describe", "draw_batch"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of one picture: its digest and seconds, or one line of why not.

    ``fatal`` is set where the others would fail as well: nothing can be written. ``nothing`` is
    set where nothing went wrong, but there is nothing that such a picture could show.
    ``nonfinite`` is what drawing found to be no number, and at which step.
    """

    job: Job
    digest: str = ""
    seconds: float = 0.0
    error: str = ""
    fatal: bool = False
    nothing: bool = False
    nonfinite: tuple[str, int | None] | None = None


def draw_batch(batch: Batch) -> list[Drawn]:
    """Draw the pictures of a batch, each into its own file.

    Opens the runs itself, so that a batch is small and another process can take it. A picture
    that fails leaves no file and does not keep the others from being drawn, unless it is the
    output folder that fails.
    """
    if batch.version != version("filmstrip"):
        error = f"{socket.gethostname()} has filmstrip {version('filmstrip')} and the command"
        error = f"{error} {batch.version}; install the same where the workers run"
        return [Drawn(batch.jobs[0], error=error, fatal=True)]
    if not Path(batch.out).is_dir():  # the driver made it
        error = f"{socket.gethostname()} does not see the output folder {batch.out}; choose one"
        return [Drawn(batch.jobs[0], error=f"{error} that all workers share", fatal=True)]
    try:
        sources = open_sources(batch.runs)
    except StoreError as error:
        return [Drawn(job, error=str(error)) for job in batch.jobs]
    results: list[Drawn] = []
    for job in batch.jobs:
        results.append(_draw(job, sources, Path(batch.out)))
        if results[-1].fatal:
            break
    return results


def _draw(job: Job, sources: Sequence[RunSource], out: Path) -> Drawn:
    start = time.perf_counter()
    try:
        metadata = describe(job.spec, sources)
        picture = PICTURES[job.spec.picture](sources, job.spec).with_metadata(metadata)
        picture.save(out / job.path)
    except OutputError as error:
        return Drawn(job, error=str(error), fatal=True)
    except (SourceError, SpecError) as error:
        return Drawn(job, error=str(error), nothing=True)
    except (RenderError, StoreError) as error:
        return Drawn(job, error=str(error))
    except Exception as error:  # the rim: a defect in one picture must not end all others
        return Drawn(job, error=reason(error))
    seconds = time.perf_counter() - start
    found = metadata["filmstrip-digest"]
    return Drawn(job, found, seconds, nonfinite=picture.nonfinite)


def describe(spec: Spec, sources: Sequence[RunSource]) -> dict[str, str]:
    """Metadata of a picture: what it shows, and how to draw it again."""
    state = " ".join(state_of(source, spec) for source in sources)
    runs = tuple(os.fspath(source.run.path) for source in sources)
    return {
        "Software": "filmstrip",
        "Title": spec.name if isinstance(spec, CurveSpec) else spec.layer,
        "filmstrip-run": " ".join(source.id for source in sources),
        "filmstrip-step": "all" if isinstance(spec, CurveSpec) else str(spec.step),
        "filmstrip-command": command(spec, runs),
        # At the very end of some formats: a file that was cut lacks it.
        "filmstrip-digest": digest(spec, state),
    }
