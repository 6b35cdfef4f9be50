"""The plan: the only place that turns a selection of layers and steps into pictures to draw."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from filmstrip.render._batch import Job
from filmstrip.render._layout import letters
from filmstrip.render._picks import pick_entries, pick_steps
from filmstrip.render._spec import AnimationSpec, CurveSpec, GridSpec, HistogramSpec, file_name
from filmstrip.render.errors import SourceError
from filmstrip.render.pictures.grid import shown
from filmstrip.store import LayerNotFoundError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from filmstrip.render._source import RunSource
    from filmstrip.render._spec import Format

__all__ = [
    "LeftOut",
    "about_bytes",
    "all_jobs",
    "animation_jobs",
    "curve_jobs",
    "grid_jobs",
    "histogram_jobs",
]

_KINDS: Final = ("activations", "weights", "gradients", "inputs", "images")
_BYTES: Final = {"grid": 50_000, "histogram": 120_000, "curve": 100_000}  # of a file
_DISTRIBUTED: Final = ("activations", "weights", "gradients")


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
    StoreError, SourceError, SpecError
        If there is no such kind, layer, step, sample or channel, or no colours.
    """
    found = _with_steps(source, spec.kind, layers, source.frame_steps)
    return [
        job
        for layer, _ in found
        for job in _grids(source, spec, layer, steps=steps, samples=samples)
    ]


def _check(source: RunSource, spec: GridSpec) -> None:
    """Refuse channels, colours and axes that frames of a layer lack, before any is drawn."""
    if spec.channels != "all" or spec.rgb or spec.layout:
        shown(source.blank(spec), spec)


def _grids(
    source: RunSource, spec: GridSpec, layer: str, *, steps: str, samples: str | None
) -> list[Job]:
    jobs = []
    strip, kept = source.strip(spec.kind, layer), source.frame_steps(spec.kind, layer)
    order = {int(step): i for i, step in enumerate(kept)}
    entries = _entries(source, spec, layer, samples)
    _check(source, replace(spec, layer=layer))
    for step in pick_steps(steps, kept, layer=layer):
        shard = order[step] // strip.rows_per_shard
        for entry in entries:
            whole = replace(spec, layer=layer, step=step, sample=entry)
            jobs.append(Job(whole, file_name(whole), shard))
    return jobs


def _entries(
    source: RunSource, spec: GridSpec, layer: str, samples: str | None
) -> Sequence[int | None]:
    """Entries of the batch that are asked for; None where a layout shows what it does by itself."""
    if samples is None or spec.kind in {"weights", "gradients"}:
        return [None]
    strip = source.strip(spec.kind, layer)
    axes = letters(spec.layout or strip.layout, len(strip.shape), spec.kind)
    if "N" not in axes:
        return [None]
    return pick_entries(samples, strip.shape[axes.index("N")], f"sample of {layer}")


def animation_jobs(
    source: RunSource, spec: AnimationSpec, *, layers: Sequence[str], samples: str | None
) -> list[Job]:
    """One job for each layer and sample.

    Raises
    ------
    StoreError, SourceError, SpecError
        If there is no such kind, layer, step, sample or channel, or no colours.
    """
    jobs = []
    for layer, kept in _with_steps(source, spec.kind, layers, source.frame_steps):
        pick_steps(spec.step, kept, layer=layer)
        _check(source, replace(spec.frame, layer=layer))
        for entry in _entries(source, spec.frame, layer, samples):
            whole = replace(spec, frame=replace(spec.frame, layer=layer, sample=entry))
            jobs.append(Job(whole, file_name(whole)))
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
    sources: Sequence[RunSource], spec: HistogramSpec, *, layers: Sequence[str], steps: str
) -> list[Job]:
    """One job for each layer, and for each step where a picture shows a single one.

    Parameters
    ----------
    sources : sequence of RunSource
        Layers and steps are those of the first; the others are drawn beside it.
    spec : HistogramSpec
        Layer and step are filled in.
    layers : sequence of str
        Selectors; none: all. On one page with ``spec.page``.
    steps : str
        As `pick_steps` reads it.

    Raises
    ------
    StoreError, SourceError
        If there is no such kind, layer or step.
    """
    source, versus = sources[0], [one.name for one in sources[1:]]
    if spec.page:
        source.layers(spec.kind, layers)
        whole = replace(spec, layer=",".join(layers) or "*", step=steps)
        return [Job(whole, file_name(whole, versus))]
    jobs = []
    for layer, kept in _with_steps(source, spec.kind, layers, source.histogram_steps):
        chosen = pick_steps(steps, kept, layer=layer, what="histogram")
        shown = [str(step) for step in chosen] if spec.view == "single" else [steps]
        for step in shown:
            whole = replace(spec, layer=layer, step=step)
            jobs.append(Job(whole, file_name(whole, versus)))
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


class LeftOut(NamedTuple):
    """What has no picture, and why."""

    kind: str
    layer: str
    why: str


def all_jobs(
    source: RunSource,
    *,
    kinds: Sequence[str],
    layers: Sequence[str],
    steps: str,
    form: Format,
    dpi: float,
) -> tuple[list[Job], list[LeftOut]]:
    """Jobs for everything that a run holds.

    A grid of each layer at each of the steps; how its values are distributed, over steps where
    there are several; the size of all tensors of a kind over steps; and every scalar.

    Parameters
    ----------
    source : RunSource
    kinds : sequence of str
        None: all, and the scalars.
    layers : sequence of str
        Selectors; none: all, and the scalars.
    steps : str
        Of grids, as `pick_steps` reads it.
    form : {"png", "svg", "pdf"}
    dpi : float

    Returns
    -------
    jobs : list of Job
    left_out : list of LeftOut
        Layers, and what of them was not drawn.

    Raises
    ------
    StoreError, SourceError
        If there is no such kind or layer, or nothing at all to draw.
    """
    jobs: list[Job] = []
    left_out: list[LeftOut] = []
    for kind, layer in _everything(source, kinds, layers):
        grid = GridSpec(kind=kind, format=form, dpi=dpi)
        histogram = HistogramSpec(kind=kind, view="heatmap", format=form, dpi=dpi)
        drawn: list[Callable[[], list[Job]]] = [
            partial(_grids, source, grid, layer, steps=steps, samples=None)
        ]
        if kind in _DISTRIBUTED:
            drawn.append(partial(_histograms, source, histogram, layer))
        for jobs_of in drawn:
            try:
                jobs += jobs_of()
            except (StoreError, SourceError) as error:
                left_out.append(LeftOut(kind, layer, str(error)))
    for kind in dict.fromkeys(job.spec.kind for job in jobs if isinstance(job.spec, HistogramSpec)):
        sizes = CurveSpec(name="*", stat="l2", kind=kind, log=True, format=form, dpi=dpi)
        if not layers and source.has_statistics(kind):
            jobs += curve_jobs([source], sizes, names=(), stats=[("*", "l2")])
    if "scalars" in kinds or not (kinds or layers):
        for name, series in source.run.scalars.items():
            if np.isfinite(series.values).any():
                spec = CurveSpec(format=form, dpi=dpi)
                jobs += curve_jobs([source], spec, names=[name], stats=())
            else:
                left_out.append(LeftOut("scalars", name, f"{name} has no finite value"))
    if not jobs:
        why = left_out[0].why if left_out else "it holds no frames, statistics or scalars"
        raise SourceError(f"nothing of {source.run.name} can be drawn: {why}")
    return jobs, left_out


def about_bytes(jobs: Iterable[Job]) -> int:
    """Guess the size of pictures, from what such pictures mostly have.

    Examples
    --------
    >>> spec = GridSpec(layer="conv1", dpi=100)
    >>> about_bytes([Job(spec, file_name(spec))])
    12500
    """
    return sum(
        round(_BYTES[job.spec.picture] * (job.spec.dpi / 200) ** 2)
        for job in jobs
        if not isinstance(job.spec, AnimationSpec)
    )


def _everything(
    source: RunSource, kinds: Sequence[str], layers: Sequence[str]
) -> list[tuple[str, str]]:
    """Kinds and layers; a kind that was named must be there, of the others one."""
    found: list[tuple[str, str]] = []
    failed: list[StoreError] = []
    if "scalars" in kinds and layers:
        raise SourceError("scalars have no layers: draw them with --kind scalars alone")
    if "scalars" in kinds and not source.run.scalars:
        raise SourceError(f"{source.run.name} has no scalars")
    for kind in kinds or _KINDS:
        if kind == "scalars":  # curves, of no layer
            continue
        try:
            found += [(kind, layer) for layer in source.layers(kind, layers)]
        except StoreError as error:
            if kinds:
                raise
            failed.append(error)
    if layers and not found:
        raise next((e for e in failed if isinstance(e, LayerNotFoundError)), failed[0])
    return found


def _histograms(source: RunSource, spec: HistogramSpec, layer: str) -> list[Job]:
    """One picture over all steps; of a single one, its own."""
    whole = replace(spec, layer=layer)
    if source.described(spec.kind, layer) < 2:
        kept = source.histogram_steps(spec.kind, layer)
        (step,) = pick_steps("-1", kept, layer=layer, what="histogram")
        whole = replace(whole, view="single", step=str(step))
    return [Job(whole, file_name(whole))]
