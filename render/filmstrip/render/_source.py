"""Sources: the only place that reads what a picture shows out of a run.

A task opens the run by its path and makes a `RunSource`; Python's functions wrap whatever they
are given. What draws cannot tell the two apart.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from filmstrip.render._counting import counts_of_frames, limit_steps, within
from filmstrip.render._density import Counts
from filmstrip.render._grid_words import kept_words
from filmstrip.render._picks import digest_of_steps, pick_steps
from filmstrip.render._scale import Spread, clipped_at
from filmstrip.render.errors import SourceError, nearest
from filmstrip.store import (
    STATISTICS,
    KindNotFoundError,
    LayerNotFoundError,
    Series,
    StatisticNotFoundError,
    open_run,
    select,
    summarize,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from filmstrip.render._spec import CurveSpec, GridSpec, HistogramSpec
    from filmstrip.store import Run, Statistics, Strip

__all__ = [
    "Frame",
    "Line",
    "RunSource",
    "Source",
    "names_apart",
    "open_sources",
]

# As the budget of a capture says what it left out.
_EVERY: Final = re.compile(r"every (\d+)\w* index of axis (\d+)")


@dataclass(frozen=True, slots=True)
class Frame:
    """One layer at one step, and what is known about it.

    ``step`` is None for a bare array; ``words`` go into the subtitle (a dtype, what was left out).
    Of the axis ``every[0]`` only each ``every[1]``-th entry was kept.
    """

    values: npt.NDArray[Any]
    layout: str | None
    kind: str
    step: int | None
    words: tuple[str, ...] = ()
    every: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: values over steps, or over seconds since the run's first row.

    NaN where nothing was logged. ``band`` is how far the shade reaches on both sides of it.
    """

    label: str
    x: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    band: npt.NDArray[np.float64] | None = None


class Source(Protocol):
    """What a picture is drawn from. Each picture calls one of the first three.

    An animation first asks for its steps, then for the spread of their values, then for frames.
    """

    @property
    def name(self) -> str:
        """Return what tells it from others: the name of a run."""

    def frame(self, spec: GridSpec) -> Frame:
        """Return the frame that a grid shows."""

    def counts(self, spec: HistogramSpec) -> Counts:
        """Return the distributions that a histogram shows."""

    def layers(self, kind: str, patterns: Sequence[str]) -> Sequence[str]:
        """Return the layers that a page shows."""

    def series(self, spec: CurveSpec) -> list[Line]:
        """Return the curves that a picture shows."""

    def input(self, spec: GridSpec) -> Frame | None:
        """Return the images that activations were made of, None when unknown."""

    def limits(self, spec: GridSpec) -> tuple[float, float] | None:
        """Return the smallest and largest value of the whole run, None when unknown."""

    def steps(self, spec: GridSpec) -> Sequence[int]:
        """Return the steps that have a frame."""

    def spread(self, spec: GridSpec, steps: Sequence[int]) -> Spread | None:
        """Return what is stored of the values at steps, None where only frames can tell."""


class RunSource:
    """What a run holds.

    Parameters
    ----------
    run : Run
    name : str
        What tells it from others; empty: the name of its folder, without its suffix.
    """

    def __init__(self, run: Run, *, name: str = "") -> None:
        self.run = run
        self.name = name or run.name.removesuffix(".zarr")
        self._strips: dict[tuple[str, str], Strip] = {}
        self._limits: dict[tuple[str, str], tuple[float, float] | None] = {}
        self._stored: dict[str, tuple[str, bool]] = {}
        self._input: Frame | None = None

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
        return self._described(strip, spec, step, strip.frame(step))

    def blank(self, spec: GridSpec) -> Frame:
        """Return a frame of the layer without reading one: it has the shape, but no values."""
        strip = self.strip(spec.kind, spec.layer)
        return self._described(strip, spec, spec.step, np.broadcast_to(np.float32(0), strip.shape))

    def _described(
        self, strip: Strip, spec: GridSpec, step: int, values: npt.NDArray[Any]
    ) -> Frame:
        source, stored = strip.source_dtype, str(strip.dtype)
        words = [] if source in {stored, "float32", None} else [str(source)]
        words += kept_words(strip.attributes)
        every = _EVERY.search(strip.attributes.get("degraded") or "")
        kept = (int(every[2]), int(every[1])) if every else None
        return Frame(values, spec.layout or strip.layout, spec.kind, step, tuple(words), kept)

    def input(self, spec: GridSpec) -> Frame | None:
        """Return the images that activations are of: the probe's, or of the step's batch."""
        step = spec.step
        for strip in self._inputs:
            if not set("HW") <= set(strip.layout or ""):
                continue
            if not _of_batch(strip):
                if self._input is None:
                    self._input = Frame(strip.frame(), strip.layout, "inputs", step)
                return self._input
            if step in strip.steps:
                return Frame(strip.frame(step), strip.layout, "inputs", step)
        return None

    @cached_property
    def _inputs(self) -> list[Strip]:
        if "inputs" not in self.run.kinds:
            return []
        strips = [self.strip("inputs", layer) for layer in self.run.layers("inputs")]
        return [strip for strip in strips if len(strip.steps)]

    def inputs_at(self, step: int) -> list[str]:
        """Return what tells the inputs that stand beside a step from others."""
        return [
            f"{strip.layer} {digest_of_steps([step] if _of_batch(strip) else strip.steps)}"
            for strip in self._inputs
            if not _of_batch(strip) or step in strip.steps
        ]

    def limits(self, spec: GridSpec) -> tuple[float, float] | None:
        """Return the range of the layer over the run, from statistics or else from all frames.

        Signed values are clipped as those of one frame are, where their bits were counted.
        """
        key = spec.kind, spec.layer
        if key not in self._limits:
            self._limits[key] = self._extremes(spec)
        return self._limits[key]

    def _extremes(self, spec: GridSpec) -> tuple[float, float] | None:
        statistics = self._statistics(spec.kind, spec.layer)
        if statistics is not None:
            low, high = statistics.range(spec.layer)
            if not (math.isfinite(low) and math.isfinite(high)):
                return None
            _, bits = statistics.bits(spec.layer)
            if low < 0 and len(bits):  # or one step that explodes would leave the others blank
                size = int(statistics[spec.layer, "count"].values.max())
                top = clipped_at(bits.sum(axis=0), max(-low, abs(high)), size, share=0.0)
                low, high = max(low, -top), min(high, top)
            return low, high
        strip = self.strip(spec.kind, spec.layer)
        extremes = [summarize(strip.frame(int(step)))[5:7] for step in strip.steps]
        known = [e for e in extremes if np.isfinite(e).all()]
        if not known:
            return None
        return float(min(e[0] for e in known)), float(max(e[1] for e in known))

    def steps(self, spec: GridSpec) -> list[int]:
        """Return the steps that have a frame."""
        return [int(step) for step in self.frame_steps(spec.kind, spec.layer)]

    def spread(self, spec: GridSpec, steps: Sequence[int]) -> Spread | None:
        """Return the spread of a layer's values at steps, from its statistics.

        None where some of the steps have none, and where frames come from another batch than
        statistics do: from a probe.
        """
        statistics = self._statistics(spec.kind, spec.layer)
        probed = not all(map(_of_batch, self._inputs))
        if statistics is None or (spec.kind == "activations" and probed):
            return None
        described, values = statistics.values(spec.layer)
        wanted = np.asarray(steps, np.int64)
        if not np.isin(wanted, described).all():
            return None
        rows = values[np.searchsorted(described, wanted)]
        stat = dict(zip(STATISTICS, rows.T, strict=True))
        if not (stat["min"] <= stat["max"]).any():
            return None
        least, most = float(np.nanmin(stat["min"])), float(np.nanmax(stat["max"]))
        bad = bool((stat["nan"] + stat["posinf"] + stat["neginf"]).any())
        if least >= 0 and spec.kind == "activations":  # not signed, and never clipped
            return Spread(least, most, most, bad)
        counted, bits = statistics.bits(spec.layer)
        if not np.isin(wanted, counted).all():
            return None
        total = bits[np.searchsorted(counted, wanted)].sum(axis=0)
        clip = clipped_at(total, max(abs(least), abs(most)), int(stat["count"].max()))
        return Spread(least, most, clip, bad)

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
                    minimum=within(low),
                    maximum=within(high),
                    zeros=np.nan_to_num(zeros).astype(np.int64),
                    available=len(steps),
                    stored=True,
                )
        strip = self.strip(spec.kind, spec.layer)
        available = strip.steps
        chosen = limit_steps(pick_steps(spec.step, available, layer=spec.layer), spec.view)
        return counts_of_frames(strip.frame, chosen, available=len(available))

    def series(self, spec: CurveSpec) -> list[Line]:
        """Read scalars, or one statistic of layers.

        Raises
        ------
        SourceError
            If nothing of that name was logged, with the nearest names.
        """
        if spec.stat is not None:
            return self._stats(spec, spec.stat)
        found = self.scalars(spec)
        return [self._line(name, series, "scalars", spec) for name, series in found.items()]

    def scalars(self, spec: CurveSpec) -> dict[str, Series]:
        """Return the scalars that a curve shows, by name.

        Raises
        ------
        SourceError
            If nothing of that name was logged, with the nearest names.
        """
        logged = self.run.scalars
        names = list(logged)
        if not names:
            raise SourceError(f"{self.run.name} has no scalars; log some with run.log or cap.log")
        found = _named(spec.name, names)
        if not found:
            raise SourceError(f"no scalar {spec.name!r}; nearest: {nearest(spec.name, names)}")
        return {name: logged[name] for name in found}

    def _stats(self, spec: CurveSpec, stat: str) -> list[Line]:
        statistics = self.run.statistics(spec.kind)
        whole = spec.name in statistics.layers  # though it holds a comma
        found = statistics.select(spec.name if whole else spec.name.split(","))
        if not found:
            known = nearest(spec.name, statistics.layers)
            raise SourceError(f"no layer {spec.name!r} in {spec.kind}; nearest: {known}")
        (group,) = (g for g in self.run.groups() if g.endswith(f"/{spec.kind}"))
        if stat == "norm":
            name = found[0] if len(found) == 1 else f"norm of {len(found)} layers"
            return [self._line(name, _norm(statistics, found), group, spec)]
        try:
            lines = [self._line(layer, statistics[layer, stat], group, spec) for layer in found]
        except StatisticNotFoundError as error:  # the store knows nothing of what is drawn only
            raise StatisticNotFoundError(error.name, (*error.names, "norm")) from None
        if spec.band:
            deviations = [statistics[layer, "std"].values for layer in found]
            lines = [replace(a, band=b) for a, b in zip(lines, deviations, strict=True)]
        return lines

    def _line(self, label: str, series: Series, group: str, spec: CurveSpec) -> Line:
        if spec.x == "step" or not len(series.steps):
            return Line(label, series.steps.astype(np.float64), series.values)
        view = self.run.view(group)
        rows = np.searchsorted(view.steps(), series.steps)
        start = view.wall_times(np.zeros(1, np.int64))
        return Line(label, view.wall_times(rows) - start, series.values)

    def _statistics(self, kind: str, layer: str | None = None) -> Statistics | None:
        try:
            statistics = self.run.statistics(kind)
        except KindNotFoundError:
            return None
        known = layer is None or layer in statistics.layers
        return statistics if known and len(statistics.steps) else None

    def has_statistics(self, kind: str) -> bool:
        """Return whether there are statistics of a kind."""
        return self._statistics(kind) is not None

    def layers(self, kind: str, patterns: Sequence[str]) -> list[str]:
        """Layers of a kind that have frames, or at least statistics.

        Raises
        ------
        KindNotFoundError, LayerNotFoundError, SourceError
            If there are none.
        """
        if kind == "scalars":
            raise SourceError(f"scalars are curves: filmstrip render curve {self.run.path}")
        try:
            return self.run.layers(kind, list(patterns) or "*")
        except (KindNotFoundError, LayerNotFoundError):
            try:
                found = self.run.statistics(kind).select(list(patterns) or "*")
            except KindNotFoundError:
                found = []
            if not found:
                raise
            return found

    def frame_steps(self, kind: str, layer: str) -> npt.NDArray[np.int64]:
        """Return steps that have a frame."""
        return self.strip(kind, layer).steps

    def described(self, kind: str, layer: str) -> int:
        """Count the steps whose values are described, or else kept, without reading counts."""
        statistics = self._statistics(kind, layer)
        steps = statistics.values(layer)[0] if statistics is not None else ()
        return len(steps) or len(self.frame_steps(kind, layer))

    def histogram_steps(self, kind: str, layer: str) -> npt.NDArray[np.int64]:
        """Return steps of which a histogram can be drawn."""
        statistics = self._statistics(kind, layer)
        steps = statistics.bits(layer)[0] if statistics is not None else np.empty(0, np.int64)
        return steps if len(steps) else self.frame_steps(kind, layer)

    @cached_property
    def _identity(self) -> tuple[str, list[dict[str, Any]]]:
        # Parsed once: a run of a thousand layers has megabytes of metadata.
        attributes = self.run.attributes
        return str(attributes["run_id"]), list(attributes.get("attempts", ()))

    @property
    def id(self) -> str:
        """Return the identity of the run."""
        return self._identity[0]

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Return what is known of each time that the run was written to."""
        return self._identity[1]

    def statistic_steps(self, kind: str) -> tuple[str, bool]:
        """Return what stands for the steps of statistics, and whether they have bits.

        Nothing of a layer is read for it.
        """
        if kind not in self._stored:
            statistics = self._statistics(kind)
            if statistics is None:
                self._stored[kind] = "", False
            else:
                counted = statistics.histogram_steps
                steps = f"{digest_of_steps(statistics.steps)} {digest_of_steps(counted)}"
                self._stored[kind] = steps, len(counted) > 0
        return self._stored[kind]


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


def _of_batch(inputs: Strip) -> bool:
    """Whether inputs are some of each training batch; of a probe, there are all."""
    return bool(inputs.attributes.get("take"))


def _norm(statistics: Statistics, layers: Sequence[str]) -> Series:
    """Return the norm of all layers taken as one vector, at the steps that all of them have."""
    each = [statistics[layer, "l2"] for layer in layers]
    steps = reduce(np.intersect1d, [series.steps for series in each])
    squares = [series.values[np.isin(series.steps, steps)] ** 2 for series in each]
    return Series(steps, np.sqrt(np.sum(squares, axis=0)))


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
