"""The plan: the only place that turns a selection of layers and steps into pictures to draw."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from filmstrip.render._batch import Job
from filmstrip.render._layout import letters
from filmstrip.render._picks import pick_entries, pick_steps
from filmstrip.render._spec import CurveSpec, GridSpec, HistogramSpec, file_name
from filmstrip.render.errors import SourceError
from filmstrip.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from filmstrip.render._source import RunSource

__all__ = ["curve_jobs", "grid_jobs", "histogram_jobs"]


def grid_jobs(
    source: RunSource, spec: GridSpec, *, layers: Sequence[str], steps: str, samples: str | None
) -> list[Job]:
    """One job for each layer, step and sample.

    Parameters
    ----------
    source : RunSource
    spec : GridSpec
        Layer, step and sample are filled in.
    layers : sequence of str
        Selectors; none: all.
    steps : str
        As `pick_steps` reads it.
    samples : str or None
        As `pick_entries` reads it; None: what a layout shows by itself.

    Raises
    ------
    StoreError, SourceError
        If there is no such kind, layer, step or sample.
    """
    jobs = []
    for layer, kept in _with_steps(source, spec.kind, layers, source.frame_steps):
        strip = source.strip(spec.kind, layer)
        order = {int(step): i for i, step in enumerate(kept)}
        entries: list[int | None] = [None]
        if samples is not None and spec.kind not in {"weights", "gradients"}:
            axes = letters(strip.layout, len(strip.shape), spec.kind)
            if "N" in axes:
                count = strip.shape[axes.index("N")]
                entries = list(pick_entries(samples, count, f"sample of {layer}"))
        for step in pick_steps(steps, kept, layer=layer):
            shard = order[step] // strip.rows_per_shard
            for entry in entries:
                whole = replace(spec, layer=layer, step=step, sample=entry)
                jobs.append(Job(whole, file_name(whole), shard))
    return jobs


def _with_steps(
    source: RunSource,
    kind: str,
    layers: Sequence[str],
    steps_of: Callable[[str, str], npt.NDArray[np.int64]],
) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Layers and their steps; of those that a pattern found, the ones that have any."""
    found = [(layer, steps_of(kind, layer)) for layer in source.layers(kind, layers)]
    return [one for one in found if len(one[1]) or one[0] in layers] or found


def histogram_jobs(
    source: RunSource, spec: HistogramSpec, *, layers: Sequence[str], steps: str
) -> list[Job]:
    """One job for each layer, and for each step where a picture shows a single one.

    Raises
    ------
    StoreError, SourceError
        If there is no such kind, layer or step.
    """
    jobs = []
    for layer, kept in _with_steps(source, spec.kind, layers, source.histogram_steps):
        chosen = pick_steps(steps, kept, layer=layer, what="histogram")
        shown = [str(step) for step in chosen] if spec.view == "single" else [steps]
        for step in shown:
            whole = replace(spec, layer=layer, step=step)
            jobs.append(Job(whole, file_name(whole)))
    return jobs


def curve_jobs(
    sources: Sequence[RunSource],
    spec: CurveSpec,
    *,
    names: Sequence[str],
    stats: Sequence[tuple[str, str]],
) -> list[Job]:
    """One job for each name and each statistic; without any, one for each scalar of the runs.

    Raises
    ------
    StoreError, SourceError
        If no run has what a name asks for.
    """
    wanted = [replace(spec, name=name) for name in names]
    wanted += [replace(spec, name=layers, stat=stat) for layers, stat in stats]
    if not wanted:
        logged = {name: None for source in sources for name in source.run.scalars}
        if not logged:
            named = ", ".join(source.run.name for source in sources)
            raise SourceError(f"{named} has no scalars; log some, or draw a statistic with --stat")
        wanted = [replace(spec, name=name) for name in logged]
    for one in wanted:
        failures: list[StoreError | SourceError] = []
        for source in sources:
            try:
                source.series(one)
            except (StoreError, SourceError) as error:
                failures.append(error)
        if len(failures) == len(sources):
            raise failures[0]
    versus = [source.name for source in sources[1:]]
    return [Job(one, file_name(one, versus)) for one in wanted]
