"""Sources: the only place that reads what a picture shows out of a run.

A task opens the run by its path and makes a `RunSource`; Python's functions wrap whatever they
are given. What draws cannot tell the two apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from filmstrip.render._density import Counts
from filmstrip.render._picks import evenly, pick_steps
from filmstrip.render._spec import CurveSpec, GridSpec, HistogramSpec
from filmstrip.render.errors import SourceError, nearest
from filmstrip.store import (
    KindNotFoundError,
    LayerNotFoundError,
    bin_edges,
    bit_histogram,
    open_run,
    select,
    summarize,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from filmstrip.render._spec import Spec
    from filmstrip.store import Run, Series, Statistics, Strip

__all__ = [
    "Frame",
    "Line",
    "RunSource",
    "Source",
    "counts_of_frames",
    "limit_steps",
    "names_apart",
    "open_sources",
]

MOST_STEPS: Final = {"single": 1, "overlay": 8, "ridge": 30, "heatmap": 400, "distribution": 2000}


@dataclass(frozen=True, slots=True)
class Frame:
    """One layer at one step, and what is known about it.

    ``step`` is None for a bare array; ``words`` go into the subtitle (a dtype, a modulus).
    """

    values: npt.NDArray[Any]
    layout: str | None
    kind: str
    step: int | None
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: values over steps, or over seconds since the run's first row.

    NaN where nothing was logged.
    """

    label: str
    x: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]


class Source(Protocol):
    """What a picture is drawn from. Each picture calls one of the first three."""

    @property
    def name(self) -> str:
        """Return what tells it from others: the name of a run."""

    def frame(self, spec: GridSpec) -> Frame:
        """Return the frame that a grid shows."""

    def counts(self, spec: HistogramSpec) -> Counts:
        """Return the distributions that a histogram shows."""

    def series(self, spec: CurveSpec) -> list[Line]:
        """Return the curves that a picture shows."""

    def limits(self, spec: GridSpec) -> tuple[float, float] | None:
        """Return the smallest and largest value of the whole run, None when unknown."""


class RunSource:
    """What a run holds.

    Parameters
    ----------
    run : Run
    layout : str or None
        One letter an axis, in place of the stored layouts.
    name : str
        What tells it from others; empty: the name of its folder, without its suffix.
    """

    def __init__(self, run: Run, layout: str | None = None, *, name: str = "") -> None:
        self.run, self.layout = run, layout
        self.name = name or run.name.removesuffix(".zarr")
        self._strips: dict[tuple[str, str], Strip] = {}
        self._limits: dict[tuple[str, str], tuple[float, float] | None] = {}
        self._lengths: dict[str, str] = {}

    def strip(self, kind: str, layer: str) -> Strip:
        """Return a strip, the same for all frames of a batch: opening one costs as a frame."""
        key = kind, layer
        if key not in self._strips:
            self._strips[key] = self.run.strip(kind, layer)
        return self._strips[key]

    def frame(self, spec: GridSpec) -> Frame:
        """Read one frame.

        Raises
        ------
        KindNotFoundError, LayerNotFoundError, FrameNotFoundError
            If the run does not hold it.
        """
        strip = self.strip(spec.kind, spec.layer)
        step = spec.step
        if step < 0:
            (step,) = pick_steps(str(step), strip.steps, layer=spec.layer)
        values = strip.frame(step)
        source, stored = strip.source_dtype, str(strip.dtype)
        words = () if source in {stored, "float32", None} else (str(source),)
        return Frame(values, self.layout or strip.layout, spec.kind, step, words)

    def limits(self, spec: GridSpec) -> tuple[float, float] | None:
        """Return the range of the layer over the run, from statistics or else from all frames."""
        key = spec.kind, spec.layer
        if key not in self._limits:
            self._limits[key] = self._extremes(spec)
        return self._limits[key]

    def _extremes(self, spec: GridSpec) -> tuple[float, float] | None:
        statistics = self._statistics(spec.kind, spec.layer)
        if statistics is not None:
            low, high = statistics.range(spec.layer)
            return (low, high) if math.isfinite(low) and math.isfinite(high) else None
        strip = self.strip(spec.kind, spec.layer)
        extremes = [summarize(strip.frame(int(step)))[5:7] for step in strip.steps]
        known = [e for e in extremes if np.isfinite(e).all()]
        if not known:
            return None
        return float(min(e[0] for e in known)), float(max(e[1] for e in known))

    def counts(self, spec: HistogramSpec) -> Counts:
        """Read bit counts where they are stored, else make them from frames."""
        statistics = self._statistics(spec.kind, spec.layer)
        if statistics is not None:
            steps, bits = statistics.bits(spec.layer)
            if len(steps):
                chosen = pick_steps(spec.step, steps, layer=spec.layer, what="histogram")
                keep = np.searchsorted(steps, limit_steps(chosen, spec.view))
                low, high, zeros = (
                    _at(statistics, spec.layer, name, steps[keep])
                    for name in ("min", "max", "zeros")
                )
                return Counts(
                    steps=steps[keep],
                    bits=bits[keep],
                    minimum=_within(low),
                    maximum=_within(high),
                    zeros=np.nan_to_num(zeros).astype(np.int64),
                    available=len(steps),
                    stored=True,
                )
        strip = self.strip(spec.kind, spec.layer)
        available = strip.steps
        chosen = limit_steps(pick_steps(spec.step, available, layer=spec.layer), spec.view)
        frames = (strip.frame(step) for step in chosen)
        return counts_of_frames(frames, chosen, available=len(available))

    def series(self, spec: CurveSpec) -> list[Line]:
        """Read scalars, or one statistic of layers.

        Raises
        ------
        SourceError
            If nothing of that name was logged, with the nearest names.
        """
        if spec.stat is not None:
            return self._stats(spec, spec.stat)
        scalars = self.run.scalars
        names = list(scalars)
        if not names:
            raise SourceError(f"{self.run.name} has no scalars; log some with run.log or cap.log")
        found = _named(spec.name, names)
        if not found:
            raise SourceError(f"no scalar {spec.name!r}; nearest: {nearest(spec.name, names)}")
        return [self._line(name, scalars[name], "scalars", spec) for name in found]

    def _stats(self, spec: CurveSpec, stat: str) -> list[Line]:
        statistics = self.run.statistics(spec.kind)
        found = _named(spec.name, statistics.layers)
        if not found:
            known = nearest(spec.name, statistics.layers)
            raise SourceError(f"no layer {spec.name!r} in {spec.kind}; nearest: {known}")
        (group,) = (g for g in self.run.groups() if g.endswith(f"/{spec.kind}"))
        return [self._line(layer, statistics[layer, stat], group, spec) for layer in found]

    def _line(self, label: str, series: Series, group: str, spec: CurveSpec) -> Line:
        if spec.x == "step" or not len(series.steps):
            return Line(label, series.steps.astype(np.float64), series.values)
        view = self.run.view(group)
        rows = np.searchsorted(view.steps(), series.steps)
        start = view.wall_times(np.zeros(1, np.int64))
        return Line(label, view.wall_times(rows) - start, series.values)

    def _statistics(self, kind: str, layer: str) -> Statistics | None:
        try:
            statistics = self.run.statistics(kind)
        except KindNotFoundError:
            return None
        return statistics if layer in statistics.layers and len(statistics.steps) else None

    def layers(self, kind: str, patterns: Sequence[str]) -> list[str]:
        """Layers of a kind that have frames, or at least statistics.

        Raises
        ------
        KindNotFoundError, LayerNotFoundError
            If there are none.
        """
        try:
            return self.run.layers(kind, list(patterns) or "*")
        except (KindNotFoundError, LayerNotFoundError):
            try:
                known = self.run.statistics(kind).layers
            except KindNotFoundError:
                known = ()
            found = select(list(patterns) or "*", known)
            if not found:
                raise
            return found

    def frame_steps(self, kind: str, layer: str) -> npt.NDArray[np.int64]:
        """Return steps that have a frame."""
        return self.strip(kind, layer).steps

    def histogram_steps(self, kind: str, layer: str) -> npt.NDArray[np.int64]:
        """Return steps of which a histogram can be drawn."""
        statistics = self._statistics(kind, layer)
        steps = statistics.bits(layer)[0] if statistics is not None else np.empty(0, np.int64)
        return steps if len(steps) else self.frame_steps(kind, layer)

    def state(self, spec: Spec) -> str:
        """Name the run and how far it had come in what a picture shows, for its digest."""
        if isinstance(spec, GridSpec):
            return self._state(spec.step, "" if spec.scale != "run" else self._length(spec.kind))
        if isinstance(spec, CurveSpec) and spec.stat is None:
            ends = [
                int(series.steps[-1]) for series in self.run.scalars.values() if len(series.steps)
            ]
            return self._state(max(ends, default=0), str(ends))
        if isinstance(spec, HistogramSpec) and spec.view == "single":
            return self._state(int(spec.step), "")
        length = self._length(spec.kind)
        return self._state(2**62, length)

    def _state(self, step: int, length: str) -> str:
        # An attempt that rewound the run to before a step has written that step anew.
        identity, attempts = self._identity
        rewinds = [
            int(attempt["number"])
            for attempt in attempts
            if attempt["number"] > 1
            and attempt["first_step"] is not None
            and attempt["first_step"] <= step
        ]
        return f"{identity}:{max(rewinds, default=0)}:{length}"

    @cached_property
    def _identity(self) -> tuple[str, list[dict[str, Any]]]:
        # Parsed once: a run of a thousand layers has megabytes of metadata.
        attributes = self.run.attributes
        return str(attributes["run_id"]), list(attributes.get("attempts", ()))

    @property
    def id(self) -> str:
        """Return the identity of the run."""
        return self._identity[0]

    def _length(self, kind: str) -> str:
        """Count committed steps of a kind, of its frames and of its statistics."""
        if kind not in self._lengths:
            self._lengths[kind] = self._count(kind)
        return self._lengths[kind]

    def _count(self, kind: str) -> str:
        lengths = [len(self.run.steps(kind)) if kind in self.run.groups() else 0]
        try:
            lengths.append(len(self.run.statistics(kind).steps))
        except KindNotFoundError:
            lengths.append(0)
        return str(lengths)


def open_sources(paths: Sequence[str]) -> list[RunSource]:
    """Open runs, and name them so that they can be told apart.

    Raises
    ------
    StoreError
        If one of them is no run.
    """
    runs = [open_run(path) for path in paths]
    names = names_apart([str(run.path) for run in runs])
    return [RunSource(run, name=name) for run, name in zip(runs, names, strict=True)]


def names_apart(paths: Sequence[str]) -> list[str]:
    """Last parts of paths without their suffix, as many as tell the paths apart.

    Examples
    --------
    >>> names_apart(["/a/run.zarr", "/b/run.zarr", "/b/run.zarr"])
    ['a/run', 'b/run', 'b/run']
    """
    parts = [tuple(path.split("/")) for path in paths]
    names: list[str] = []
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(one[-count:]).removesuffix(".zarr") for one in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _named(patterns: str, names: Iterable[str]) -> list[str]:
    """Names that patterns match; a name that holds a comma or a wildcard is first of all itself."""
    known = list(names)
    return [patterns] if patterns in known else select(patterns.split(","), known)


def _at(
    statistics: Statistics, layer: str, name: str, steps: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Values of a statistic at steps, NaN where there is none."""
    series = statistics[layer, name]
    position = np.searchsorted(series.steps, steps).clip(max=max(0, len(series.steps) - 1))
    return np.where(series.steps[position] == steps, series.values[position], np.nan)


def _within(extremes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Extremes within float32, of whose bits counts are: what lies beyond is in the last bins."""
    return np.clip(extremes, bin_edges()[0], bin_edges()[-1])


def limit_steps(chosen: Sequence[int], view: str) -> list[int]:
    """Thin steps out evenly to as many as a view can show; ``single`` shows the last."""
    if view == "single":
        return [chosen[-1]]
    return [chosen[i] for i in evenly(len(chosen), MOST_STEPS[view])]


def counts_of_frames(
    frames: Iterable[npt.NDArray[Any]], steps: Sequence[int], *, available: int
) -> Counts:
    """Count the bits of frames, one at a time."""
    bits, summaries = [], []
    for frame in frames:
        real = np.abs(frame) if np.iscomplexobj(frame) else frame
        bits.append(bit_histogram(real))
        summaries.append(summarize(real))
    table = np.array(summaries)
    return Counts(
        steps=np.asarray(steps, np.int64),
        bits=np.stack(bits),
        minimum=_within(table[:, 5]),
        maximum=_within(table[:, 6]),
        zeros=table[:, 4].astype(np.int64),
        available=available,
        stored=False,
    )
