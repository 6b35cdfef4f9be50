"""The curve: scalars, or one statistic of layers, over steps."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Final

import numpy as np

from filmstrip.render import _text
from filmstrip.render._agg import default_settings
from filmstrip.render._figure import (
    FRAME,
    finish_axes,
    line_color,
    new_figure,
    round_ticks,
    step_ticks,
)
from filmstrip.render._image import Picture
from filmstrip.render._palette import TONES
from filmstrip.render._scale import ticks
from filmstrip.render._sheet import Caption
from filmstrip.render._source import Line
from filmstrip.render._spec import CurveSpec
from filmstrip.render.errors import SourceError
from filmstrip.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from matplotlib.axes import Axes

    from filmstrip.render._source import Source
    from filmstrip.render._spec import Spec

__all__ = ["draw", "of_sources", "smooth"]

_MEASURES: Final = {"dead": "dead (share of zeros)"}
_BESIDE: Final = 70  # pixels for the name of the values
_HEIGHT: Final = 4.2
_FEW: Final = 30  # points, of which each has a mark
_TIMES: Final = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "d"))


def smooth(values: npt.NDArray[np.float64], weight: float) -> npt.NDArray[np.float64]:
    """Average a curve exponentially, without the bias towards zero at its start.

    Parameters
    ----------
    values : ndarray of float64, shape (n,)
        NaN and infinities are passed over.
    weight : float
        Of the past, at least 0 and below 1.

    Returns
    -------
    ndarray of float64, shape (n,)
        As TensorBoard draws it: a running average divided by what its weights add up to.

    Examples
    --------
    >>> smooth(np.array([4.0, 4.0, 0.0]), 0.5).round(3).tolist()
    [4.0, 4.0, 1.714]
    """
    out = np.empty_like(values)
    average, weights = 0.0, 0.0
    for i, value in enumerate(values.tolist()):
        if math.isfinite(value):
            average = average * weight + (1 - weight) * value
            weights = weights * weight + (1 - weight)
            out[i] = average / weights
        else:
            out[i] = value
    return out


@default_settings()
def draw(
    lines: Sequence[Line],
    spec: CurveSpec,
    *,
    title: str | None = None,
    missing: Sequence[str] = (),
) -> Picture:
    """Draw curves.

    Parameters
    ----------
    lines : sequence of Line
        Of one run, or of several to be compared.
    spec : CurveSpec
    title : str or None
        None: the name of the scalar.
    missing : sequence of str
        Names of runs that hold nothing of the kind.

    Returns
    -------
    Picture

    Raises
    ------
    SourceError
        If no value is finite, or with a logarithmic axis none positive.
    """
    drawable = [_drawable(line, spec) for line in lines]
    values = np.concatenate([line.values for line in drawable]) if drawable else np.empty(0)
    finite = values[np.isfinite(values)]
    name = _name(spec) if title is None else title
    if not finite.size:
        positive = " above 0, which a logarithmic axis needs" if spec.log else ""
        raise SourceError(f"{name or 'the curve'} has no finite value{positive}")
    parts = _parts(lines, spec)
    parts += [f"none in {', '.join(missing)}"] if missing else []
    caption = Caption(name, tuple(parts), "")
    figure, top = new_figure(caption, height=_HEIGHT, dpi=spec.dpi)
    many = len(drawable) > 1
    right = FRAME + (0.7 if many else 0.88)
    axes = figure.add_axes((FRAME, 0.115, right - FRAME, top - 0.115))
    for i, line in enumerate(drawable):
        color = line_color(i, len(drawable))
        smoothed = smooth(line.values, spec.smoothing) if spec.smoothing else line.values
        if spec.smoothing:
            axes.plot(line.x, line.values, color=color, lw=0.7, alpha=0.28, zorder=2)
        if line.band is not None:
            spread = smooth(line.band, spec.smoothing) if spec.smoothing else line.band
            low = np.maximum(smoothed - spread, _least(finite) if spec.log else -np.inf)
            axes.fill_between(
                line.x, low, smoothed + spread, color=color, alpha=0.14, lw=0, zorder=1
            )
        marks = _marked(line.values)
        axes.plot(
            line.x, smoothed, color=color, lw=1.3, marker="o", markevery=marks, ms=2.4, zorder=3
        )
    x = np.concatenate([line.x for line in drawable])
    _limits(axes, x, _reached(drawable, finite, spec), spec)
    unit = _value_ticks(axes, spec)
    left = max(FRAME, _room(axes))
    axes.set_position((left, 0.115, right - left, top - 0.115))
    measure = _MEASURES.get(spec.stat or "", spec.stat or "")
    finish_axes(axes, x=_x_ticks(axes, x, spec), y=f"{measure} {unit}".strip())
    axes.grid(True, axis="y", color=TONES["faint"], lw=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    if many:
        _names(axes, drawable, spec)
    return Picture(drawn=figure, dpi=spec.dpi)


def _room(axes: Axes) -> float:
    """Return how much of the width the labels of the values need, with the name beside them."""
    wide = max((_text.width(one.get_text(), 8.0) for one in axes.get_yticklabels()), default=0)
    return (wide + _BESIDE) / (7.0 * _text.DPI)


def _least(finite: npt.NDArray[np.float64]) -> float:
    """Where a band ends that reaches below what a logarithmic axis can show."""
    return float(finite.min()) / 10


def _reached(
    lines: Sequence[Line], finite: npt.NDArray[np.float64], spec: CurveSpec
) -> npt.NDArray[np.float64]:
    """Values that the axis has to hold: those of the curves and of the edges of their bands."""
    edges = [
        line.values + side * line.band
        for line in lines
        if line.band is not None
        for side in (-1, 1)
    ]
    reached = np.concatenate([finite, *edges])
    reached = reached[np.isfinite(reached)]
    return np.asarray(np.maximum(reached, _least(finite)) if spec.log else reached)


def _name(spec: CurveSpec) -> str:
    if spec.stat is None:
        return spec.name.replace(",", ", ") if spec.name != "*" else "scalars"
    return f"{spec.name if spec.name != '*' else 'all layers'} · {spec.stat}"


def _marked(values: npt.NDArray[np.float64]) -> list[int]:
    """Points that are marked: those of a short line, and those that no line would show."""
    known = np.isfinite(values)
    if known.sum() > _FEW:
        beside = np.pad(known, 1)
        known &= ~(beside[:-2] | beside[2:])
    return [int(i) for i in np.flatnonzero(known)]


def _parts(lines: Sequence[Line], spec: CurveSpec) -> list[str]:
    parts = [spec.kind if spec.stat is not None else "scalars"] if _name(spec) != "scalars" else []
    count = max((len(line.x) for line in lines), default=0)
    parts.append(f"{count} step{'s' * (count != 1)}")
    if len(lines) > 1:
        parts.append(f"{len(lines)} curves")
    if spec.smoothing:
        parts.append(f"smoothing {spec.smoothing:g}, raw values faint")
    if spec.stat == "norm":
        parts += [line.label for line in lines if line.label.startswith("norm of")][:1]
    if any(line.band is not None for line in lines):
        parts.append("mean, band ± std")
    if spec.log:
        parts.append("log axis")
        hidden = sum(int((line.values <= 0).sum()) for line in lines)
        parts += [f"{hidden} value{'s' * (hidden != 1)} ≤ 0 not shown"] if hidden else []
    bad = sum(int((~np.isfinite(line.values)).sum()) for line in lines)
    return parts + ([f"{bad} value{'s' * (bad != 1)} not finite"] if bad else [])


def _drawable(line: Line, spec: CurveSpec) -> Line:
    shown = np.isfinite(line.values) & ((line.values > 0) | (not spec.log))
    return replace(line, values=np.where(shown, line.values, np.nan))


def _limits(
    axes: Axes, x: npt.NDArray[np.float64], values: npt.NDArray[np.float64], spec: CurveSpec
) -> None:
    first, last = float(x.min()), float(x.max())
    margin = 0.01 * (last - first) or 0.5
    axes.set_xlim(first - margin, last + margin)
    low, high = float(values.min()), float(values.max())
    if spec.log:
        axes.set_yscale("log")
        factor = max(1.05, (high / low) ** 0.04) if low > 0 else 1.05
        axes.set_ylim(low / factor, high * factor)
        return
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    axes.set_ylim(low - margin, high + margin)


def _x_ticks(axes: Axes, x: npt.NDArray[np.float64], spec: CurveSpec) -> str:
    """Set ticks to the right and return what they count."""
    low, high = axes.get_xlim()
    if spec.x == "time":
        # The largest unit of which there are two.
        second, unit = max(t for t in _TIMES if t[0] == 1 or 2 * t[0] <= high - low)
        marks, power = ticks(low / second, high / second, 8)
        axes.set_xticks([at * second for at, _ in marks], [label for _, label in marks])
        return f"time ({power} {unit})".replace("( ", "(")
    if (x == np.rint(x)).all():
        step_ticks(axes.xaxis, low, high, 8)
        return "step"
    return f"step {round_ticks(axes.xaxis, low, high, 8)}".rstrip()


def _value_ticks(axes: Axes, spec: CurveSpec) -> str:
    low, high = axes.get_ylim()
    if not spec.log:
        return round_ticks(axes.yaxis, low, high, 7)
    span = math.log10(high / low)
    factors = (1, 2, 5) if span < 2 else (1,)
    every = max(1, math.ceil(span / 8))
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    marks: list[tuple[float, str]] = []
    for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for factor in factors if power % every == 0 else ():
            value = factor * 10.0**power
            plain = f"{value:g}" if -4 < power < 5 else f"{factor}×10{str(power).translate(raised)}"
            if low <= value <= high:
                marks.append((value, plain.removeprefix("1×") if factor == 1 else plain))
    if len(marks) < 2:  # within a power of ten there are no others
        marks, _ = ticks(low, high, 7)
    axes.yaxis.set_ticks([v for v, _ in marks], [t for _, t in marks])
    axes.yaxis.set_ticks([], minor=True)
    return ""


def _names(axes: Axes, lines: Sequence[Line], spec: CurveSpec) -> None:
    """Write the name of each curve beside its end, moved apart where they would overlap."""
    figure = axes.figure
    ends: list[tuple[float, int]] = []
    for i, line in enumerate(lines):
        smoothed = smooth(line.values, spec.smoothing) if spec.smoothing else line.values
        known = smoothed[np.isfinite(smoothed)]
        if known.size:
            point = (float(axes.get_xlim()[1]), float(known[-1]))
            ends.append((float(axes.transData.transform(point)[1]), i))
    ends.sort(reverse=True)
    box = axes.bbox
    apart = 9.5 * float(figure.dpi) / 72
    shown = ends if len(ends) <= _most(box.height, apart) else _spread(ends, box.height, apart)
    limit = round(0.185 * 7.0 * _text.DPI)
    places = _apart([y for y, _ in shown], apart, box.y0, box.y1)
    labels = _shortened([line.label for line in lines], limit)
    for place, (_, i) in zip(places, shown, strict=True):
        axes.text(
            1.012,
            (place - box.y0) / box.height,
            _text.printable(labels[i]),
            transform=axes.transAxes,
            fontproperties=_text.font(7.0),
            color=line_color(i, len(lines)),
            va="center",
            parse_math=False,
        )


def _shortened(labels: Sequence[str], limit: int) -> list[str]:
    """Cut labels to a width, and what layers have in common first where they would look alike."""
    short = [_text.ellipsize(label, 7.0, limit) for label in labels]
    if len(set(short)) == len(set(labels)):
        return short
    parts = [label.split(".") for label in labels]
    first = _shared(parts)
    last = _shared([one[first:][::-1] for one in parts])
    middles = [".".join(one[first : len(one) - last]) for one in parts]
    framed = [f"{'…' * (first > 0)}{middle}{'…' * (last > 0)}" for middle in middles]
    return [_text.ellipsize(one, 7.0, limit) for one in framed]


def _shared(parts: Sequence[Sequence[str]]) -> int:
    """Count the parts that all begin with."""
    columns = zip(*parts, strict=False)
    return len(list(takewhile(lambda column: len(set(column)) == 1, columns)))


def _most(height: float, apart: float) -> int:
    return max(1, int(height // apart))


def _spread(ends: list[tuple[float, int]], height: float, apart: float) -> list[tuple[float, int]]:
    """As many as have room, evenly from top to bottom."""
    count = _most(height, apart)
    keep = np.unique(np.rint(np.linspace(0, len(ends) - 1, count)).astype(int))
    return [ends[int(i)] for i in keep]


def _apart(wanted: list[float], apart: float, low: float, high: float) -> list[float]:
    """Move heights, given from top to bottom, to at least a distance from each other."""
    places: list[float] = []
    for y in wanted:
        places.append(min(y, places[-1] - apart) if places else min(y, high))
    if places and places[-1] < low:
        places[-1] = low
        for i in range(len(places) - 2, -1, -1):
            places[i] = max(places[i], places[i + 1] + apart)
    return places


def of_sources(sources: Sequence[Source], spec: Spec) -> Picture:
    """Draw from one run, or compare several: the name of each run goes in front then."""
    assert isinstance(spec, CurveSpec)
    if len(sources) == 1:
        return draw(sources[0].series(spec), spec)
    lines: list[Line] = []
    failed: list[tuple[str, SourceError | StoreError]] = []
    for source in sources:
        try:
            found = source.series(spec)
        except (SourceError, StoreError) as error:
            failed.append((source.name, error))
            continue
        several = len(found) > 1
        lines += [
            replace(line, label=f"{source.name} {line.label}" if several else source.name)
            for line in found
        ]
    if not lines:
        raise failed[0][1]
    return draw(lines, spec, missing=[name for name, _ in failed])
