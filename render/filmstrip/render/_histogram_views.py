"""Histogram views: the only place that draws distributions into axes.

A view draws into whatever axes it is given, which fill a picture or are one of many in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from filmstrip.render import _text
from filmstrip.render._density import Counts, density_counts, edges_between
from filmstrip.render._figure import add_note, finish_axes, round_ticks, step_ticks
from filmstrip.render._picks import evenly
from filmstrip.store import bin_edges, quantiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import LinearSegmentedColormap

    from filmstrip.render._spec import HistogramSpec

__all__ = [
    "FULL",
    "SMALL",
    "VIEWS",
    "Look",
    "compared",
    "edges_of",
    "smoothed",
    "told_apart",
    "zeros_drawn",
]

BINS: Final = {"single": 50, "ridge": 160, "overlay": 160, "heatmap": 200, "distribution": 1}
CENTRE: Final = (0.002, 0.998)
_DECADES: Final = 4  # of density that a heat map tells apart
# TensorBoard's nine quantiles: the ends, and whole and half standard deviations of a normal.
_QUANTILES: Final = (0.0, 0.0668, 0.1587, 0.3085, 0.5, 0.6915, 0.8413, 0.9332, 1.0)
_NAMES: Final = ("min", "−1.5σ", "−1σ", "−½σ", "median", "+½σ", "+1σ", "+1.5σ", "max")
_FADED: Final = (1.0, 0.75, 0.75, 0.45)  # lines from the median outwards
_FINER: Final = 4  # bins, for one of those that were counted
_FEWEST_SMOOTHED: Final = 16  # bins
_MANY_ZEROS: Final = 0.02
_RIDGES: Final = ("#fde2c8", "#f6a26b", "#d9542b", "#7a1f12")
_FILL: Final = "#d9542b"


@dataclass(frozen=True, slots=True)
class Look:
    """How much room axes have: at most so many ticks, points of their labels, and notes or none."""

    ticks: int
    size: float
    notes: bool


FULL: Final = Look(7, 8.0, True)
SMALL: Final = Look(3, 5.5, False)


def zeros_drawn(counts: Counts) -> bool:
    """Whether exact zeros belong to the shape, rather than being a point mass that dwarfs it."""
    share = counts.zero_share
    return share < _MANY_ZEROS or bool((counts.zeros >= counts.finite).all())


def edges_of(counts: Counts, spec: HistogramSpec) -> npt.NDArray[np.float64]:
    """Choose the edges of the bins that a view shows, shape (bins + 1,)."""
    bins = spec.bins or BINS[spec.view]
    if spec.view in {"ridge", "overlay"}:
        low, high = _centre(counts)
    elif spec.view == "distribution":
        lines = _quantiles(counts)[1]
        low, high, bins = float(np.nanmin(lines)), float(np.nanmax(lines)), 1
    else:
        low, high = float(np.nanmin(counts.minimum)), float(np.nanmax(counts.maximum))
    if spec.bins is None and spec.view != "distribution":
        bins = min(bins, _FINER * told_apart(low, high))
        if low == high:
            bins |= 1  # an only value is in the middle of a bin
    return edges_between(low, high, bins, spec.bin_scale)


def told_apart(low: float, high: float) -> int:
    """In how many bins bit counts divide a range.

    Examples
    --------
    >>> told_apart(1.0, 1.1), told_apart(-1.0, 1.0) > 1000
    (1, True)
    """
    edges = bin_edges()
    return int(np.count_nonzero((edges > low) & (edges < high))) + 1


def _single(axes: Axes, counts: Counts, spec: HistogramSpec, look: Look) -> None:
    edges = edges_of(counts, spec)
    heights = density_counts(counts, edges, zeros=zeros_drawn(counts))[0]
    x = _positions(edges, spec)
    axes.stairs(heights, x, fill=True, color=_FILL, alpha=0.85, linewidth=0)
    axes.stairs(heights, x, color=_RIDGES[-1], linewidth=0.6, baseline=None)
    _density_axes(axes, float(heights.max()), edges, spec, look, "values in a bin")


def _density_axes(
    axes: Axes,
    highest: float,
    edges: npt.NDArray[np.float64],
    spec: HistogramSpec,
    look: Look,
    name: str,
) -> None:
    """Set limits and ticks where values run to the right and how many there are upwards."""
    x = _positions(edges, spec)
    top = highest * 1.05 or 1.0
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(0, top)
    _zero_line(axes, _positions(np.zeros(1), spec, like=edges)[0])
    unit = round_ticks(axes.yaxis, 0, top, look.ticks)
    words = f"{name} {unit}".rstrip() if look.notes else unit
    finish_axes(axes, x=_value_ticks(axes.xaxis, edges, spec, look), y=words, size=look.size)


def _ridge(axes: Axes, counts: Counts, spec: HistogramSpec, look: Look) -> None:
    edges = edges_of(counts, spec)
    x = _positions(edges, spec)
    density = _smooth(density_counts(counts, edges, zeros=zeros_drawn(counts)) / np.diff(x))
    peaks = density.max(axis=1, keepdims=True)
    shape = density / np.where(peaks > 0, peaks, 1)
    shape[shape < 0.003] = 0  # a third of a pixel, which would be drawn as hair lines
    n = len(counts.steps)
    colors = ridge_colors()
    middle = (x[1:] + x[:-1]) / 2
    overlap = max(1.0, 0.14 * n)
    base = np.arange(n)[::-1].astype(float)
    outline = np.concatenate([x[:1], middle, x[-1:]])
    for i in range(n):
        y = base[i] + overlap * shape[i]
        points = np.concatenate([[base[i]], y, [base[i]]])
        rgb = colors(i / (n - 1) if n > 1 else 1.0)[:3]
        axes.fill(outline, points, fc=(*rgb, 0.92), ec="none", zorder=2 * i + 2, clip_on=False)
        # Only where there is something: a white line along the floor would cut the ridge behind.
        crest = np.where(shape[i] > 0.002, y, np.nan)
        width = 0.7 if look.notes else 0.35
        axes.plot(middle, crest, color="white", lw=width, zorder=2 * i + 3, clip_on=False)
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(-0.025 * (n + overlap), (base + overlap * shape.max(axis=1)).max() + 0.1)
    _zero_line(axes, _positions(np.zeros(1), spec, like=edges)[0])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    named = evenly(n, look.ticks + 1)
    axes.set_yticks(base[named], [str(step) for step in counts.steps[named]])
    name = _value_ticks(axes.xaxis, edges, spec, look)
    step = "step" if look.notes else ""
    finish_axes(axes, x=name, y=step, spines=("bottom",), size=look.size)
    axes.tick_params(axis="y", length=0)


def _overlay(axes: Axes, counts: Counts, spec: HistogramSpec, look: Look) -> None:
    edges = edges_of(counts, spec)
    n = len(counts.steps)
    colors = [ridge_colors()(0.3 + 0.7 * (i + 1) / n) for i in range(n)]
    names = [f"step {step}" for step in counts.steps]
    density = _shares(counts, edges, spec)
    _lines(axes, density, edges, spec, look, colors, names)


def compared(
    axes: Axes, several: Sequence[tuple[str, Counts]], spec: HistogramSpec, colors: Sequence[str]
) -> None:
    """Draw the last step of several layers or runs as lines in the same axes."""
    ends = np.array([_centre(counts) for _, counts in several])
    bins = spec.bins or BINS[spec.view]
    edges = edges_between(float(ends[:, 0].min()), float(ends[:, 1].max()), bins, spec.bin_scale)
    density = np.stack([_shares(counts, edges, spec)[-1] for _, counts in several])
    _lines(axes, density, edges, spec, FULL, colors, [name for name, _ in several])


def _shares(
    counts: Counts, edges: npt.NDArray[np.float64], spec: HistogramSpec
) -> npt.NDArray[np.float64]:
    """Densities of which each adds up to one, shape (step, bin)."""
    inside = density_counts(counts, edges, zeros=zeros_drawn(counts))
    share = inside / np.maximum(counts.finite, 1)[:, None]
    return _smooth(share / np.diff(_positions(edges, spec)))


def _lines(
    axes: Axes,
    density: npt.NDArray[np.float64],
    edges: npt.NDArray[np.float64],
    spec: HistogramSpec,
    look: Look,
    colors: Sequence[object],
    names: Sequence[str],
) -> None:
    x = _positions(edges, spec)
    middle, n = (x[1:] + x[:-1]) / 2, len(density)
    limit = round(0.14 * 7.0 * _text.DPI)
    for i, (line, color) in enumerate(zip(density, colors, strict=True)):
        axes.fill_between(middle, line, color=color, alpha=0.1, lw=0, zorder=i)
        axes.plot(middle, line, color=color, lw=1.2 if look.notes else 0.7, zorder=n + i)
        if look.notes:
            y = 0.97 - 0.065 * i
            key = [1.02, 1.05], [y, y]
            axes.plot(*key, color=color, lw=2, transform=axes.transAxes, clip_on=False)
            name = _text.ellipsize(names[i], 7.0, limit)
            add_note(axes, 1.05, y, name, size=7.0, inside=False)
    _density_axes(axes, float(density.max()), edges, spec, look, "density")


def ridge_colors() -> LinearSegmentedColormap:
    """Colours of steps, from the first to the last."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ridges", _RIDGES)


def smoothed(edges: npt.NDArray[np.float64]) -> bool:
    """Whether lines over so many bins are smoothed; a few values would be spread over all."""
    return len(edges) > _FEWEST_SMOOTHED


def _smooth(density: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weigh each bin with its neighbours, 1 : 2 : 1; mirrored at the ends, where a ReLU stops."""
    if density.shape[1] < _FEWEST_SMOOTHED:
        return density
    padded = np.pad(density, ((0, 0), (1, 1)), mode="symmetric")
    return (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4


def _heatmap(axes: Axes, counts: Counts, spec: HistogramSpec, look: Look) -> None:
    """Draw densities as colours, the densest step and value being the darkest."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    edges = edges_of(counts, spec)
    y = _positions(edges, spec)
    inside = density_counts(counts, edges, zeros=zeros_drawn(counts))
    share = inside / np.maximum(counts.finite, 1)[:, None] / np.diff(y)
    # Less than half a value in a bin is the tail of an interpolation, not something seen.
    dense = np.ma.masked_where(inside < 1e-3, share)
    shades = matplotlib.colormaps["magma_r"](np.linspace(0.06, 1, 256))
    cmap = LinearSegmentedColormap.from_list("heat", shades)
    borders = _borders(counts.steps.astype(float))
    top = float(dense.max()) if dense.count() else 1.0
    norm = LogNorm(top / 10**_DECADES, top, clip=True)
    axes.pcolormesh(borders, y, dense.T, cmap=cmap, norm=norm, rasterized=True)
    at, lines = _quantiles(counts)
    lines = _positions(lines, spec, like=edges)
    _quantile_lines(axes, at, lines, look)
    axes.set_xlim(borders[0], borders[-1])
    _step_axes(axes, counts, edges, spec, look, lines[-1])


def _distribution(axes: Axes, counts: Counts, spec: HistogramSpec, look: Look) -> None:
    at, lines = _quantiles(counts)
    edges = edges_of(counts, spec)
    lines = _positions(lines, spec, like=edges)
    for j, alpha in enumerate((0.16, 0.22, 0.3, 0.4)):
        axes.fill_between(at, lines[:, j], lines[:, 8 - j], color=_FILL, alpha=alpha, lw=0)
    axes.plot(at, lines[:, 4], color=_RIDGES[-1], lw=1.3 if look.notes else 0.8)
    axes.set_xlim(at[0], at[-1])
    _step_axes(axes, counts, edges, spec, look, lines[-1])


def _step_axes(
    axes: Axes,
    counts: Counts,
    edges: npt.NDArray[np.float64],
    spec: HistogramSpec,
    look: Look,
    last: npt.NDArray[np.float64],
) -> None:
    """Set limits and ticks where steps run to the right and values upwards."""
    y = _positions(edges, spec)
    margin = 0.02 * (y[-1] - y[0])
    axes.set_ylim(y[0] - margin, y[-1] + margin)
    step_ticks(axes.xaxis, float(counts.steps[0]), float(counts.steps[-1]), look.ticks + 1)
    step = "step" if look.notes else ""
    finish_axes(axes, x=step, y=_value_ticks(axes.yaxis, edges, spec, look), size=look.size)
    if look.notes:
        _quantile_names(axes, axes.get_xlim()[1], last)


def _quantiles(counts: Counts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return where along the steps the nine quantiles are drawn, and these."""
    lines = np.asarray(quantiles(counts.bits, _QUANTILES, counts.minimum, counts.maximum))
    if len(lines) == 1:  # one step is as wide as a step
        return _borders(counts.steps.astype(float)), lines.repeat(2, axis=0)
    return counts.steps.astype(float), lines


def _quantile_lines(
    axes: Axes, steps: npt.NDArray[np.float64], lines: npt.NDArray[np.float64], look: Look
) -> None:
    widths = np.array((0.5, 0.5, 0.6, 0.7, 1.2, 0.7, 0.6, 0.5, 0.5)) * (1 if look.notes else 0.6)
    for j, width in enumerate(widths):
        inner = 1 <= j <= 7
        color, alpha = ("white", _FADED[abs(j - 4)]) if inner else ("#4b5563", 0.6)
        axes.plot(steps, lines[:, j], color=color, lw=width, alpha=alpha)


def _quantile_names(axes: Axes, x: float, last: npt.NDArray[np.float64]) -> None:
    """Name the lines at their right ends; of those that lie close, the more telling ones."""
    low, high = axes.get_ylim()
    apart = 0.035 * (high - low)
    written: list[float] = []
    for j in (4, 8, 0, 6, 2):
        if np.isfinite(last[j]) and all(abs(last[j] - other) >= apart for other in written):
            add_note(axes, x, float(last[j]), _NAMES[j])
            written.append(float(last[j]))


def _centre(counts: Counts) -> tuple[float, float]:
    """Return the range that holds the central 99.6 % of the values of nearly every step."""
    known = np.flatnonzero(counts.finite > 0)
    bits, low, high = counts.bits[known], counts.minimum[known], counts.maximum[known]
    ends = np.atleast_2d(quantiles(bits, CENTRE, low, high))
    first, last = float(np.quantile(ends[:, 0], 0.05)), float(np.quantile(ends[:, 1], 0.95))
    if not first < last:
        first, last = float(low.min()), float(high.max())
    margin = 0.04 * (last - first)
    first, last = max(first - margin, low.min()), min(last + margin, high.max())
    return float(first), float(last)


def _borders(steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Edges half way between steps; the outer ones as far from the first and last step."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    first, last = steps[0] - (middle[0] - steps[0]), steps[-1] + (steps[-1] - middle[-1])
    return np.concatenate([[first], middle, [last]])


def _positions(
    values: npt.NDArray[np.float64],
    spec: HistogramSpec,
    like: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]:
    """Where values lie on the axis: themselves, or where edges ``like`` are equally far apart."""
    edges = values if like is None else like
    if spec.bin_scale == "linear":
        return values
    if spec.bin_scale == "tensorboard":
        return np.interp(values, edges, np.arange(len(edges)))
    return np.arcsinh(values / _linear(edges))


def _linear(edges: npt.NDArray[np.float64]) -> float:
    return float(max(abs(edges[0]), abs(edges[-1]))) / 1000


def _value_ticks(
    axis: Axis, edges: npt.NDArray[np.float64], spec: HistogramSpec, look: Look
) -> str:
    """Set the ticks of the value axis; return its name, with a power of ten or symlog."""
    names = {"activations": "activation", "weights": "weight", "gradients": "gradient"}
    name = names.get(spec.kind, "value") if look.notes else ""
    if spec.bin_scale == "linear":
        unit = round_ticks(axis, float(edges[0]), float(edges[-1]), look.ticks)
        return f"{name} {unit}".strip()
    power = int(np.floor(np.log10(_linear(edges) * 1000)))
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    marks = [(0.0, "0")]
    decades = range(power - 2, power + 1) if look.notes else (power,)
    if spec.bin_scale == "tensorboard" and look.notes:
        decades = range(power - 4, power + 1, 2)
    for exponent in decades:
        text = f"10{str(exponent).translate(raised)}"
        marks += [(10.0**exponent, text), (-(10.0**exponent), f"−{text}")]
    inside = [(v, t) for v, t in marks if edges[0] <= v <= edges[-1]]
    at = _positions(np.array([v for v, _ in inside]), spec, like=edges)
    axis.set_ticks(list(at), [t for _, t in inside])
    return f"{name}, {spec.bin_scale}" if look.notes else ""


def _zero_line(axes: Axes, zero: float) -> None:
    low, high = axes.get_xlim()
    if low < zero < high:
        axes.axvline(zero, color="#9aa1ab", lw=0.5, ls=(0, (2, 2)), zorder=0)


VIEWS: Final = {
    "single": _single,
    "ridge": _ridge,
    "overlay": _overlay,
    "heatmap": _heatmap,
    "distribution": _distribution,
}
