"""The histogram: the values of one layer at one step, or over steps in one of four views."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from filmstrip.render import _text
from filmstrip.render._agg import default_settings
from filmstrip.render._density import Counts, density_counts, edges_between
from filmstrip.render._figure import (
    FRAME,
    add_note,
    finish_axes,
    new_figure,
    round_ticks,
    step_ticks,
)
from filmstrip.render._image import Picture
from filmstrip.render._palette import TONES
from filmstrip.render._picks import evenly
from filmstrip.render._sheet import Caption
from filmstrip.render._spec import HistogramSpec
from filmstrip.render.errors import SourceError
from filmstrip.store import quantiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    from filmstrip.render._source import Source
    from filmstrip.render._spec import Spec

__all__ = ["draw", "of_sources"]

BINS: Final = {"single": 50, "ridge": 160, "overlay": 160, "heatmap": 200, "distribution": 0}
CENTRE: Final = (0.002, 0.998)
# TensorBoard's nine quantiles: the ends, and whole and half standard deviations of a normal.
_QUANTILES: Final = (0.0, 0.0668, 0.1587, 0.3085, 0.5, 0.6915, 0.8413, 0.9332, 1.0)
_NAMES: Final = ("min", "−1.5σ", "−1σ", "−½σ", "median", "+½σ", "+1σ", "+1.5σ", "max")
_NINE: Final = "lines: min, −1.5σ … +1.5σ, max as quantiles"
_MANY_ZEROS: Final = 0.02
_RIDGES: Final = ("#fde2c8", "#f6a26b", "#d9542b", "#7a1f12")
_FILL: Final = "#d9542b"


@default_settings()
def draw(source: Source, spec: HistogramSpec, *, title: str | None = None) -> Picture:
    """Draw a histogram.

    Parameters
    ----------
    source : Source
    spec : HistogramSpec
    title : str or None
        None: the layer.

    Returns
    -------
    Picture

    Raises
    ------
    SourceError
        If there is no finite value to draw.
    """
    counts = source.counts(spec)
    known = np.isfinite(counts.minimum) & np.isfinite(counts.maximum) & (counts.finite > 0)
    if not known.any():
        raise SourceError(f"{spec.layer or 'the array'} has no finite values at these steps")
    name = spec.layer or spec.kind if title is None else title
    bins = spec.bins or BINS[spec.view]
    return Picture(drawn=_VIEWS[spec.view](counts, spec, bins, name), dpi=spec.dpi)


def _common(
    counts: Counts, spec: HistogramSpec, edges: npt.NDArray[np.float64], zeros: bool
) -> list[str]:
    """Say how the bins came about."""
    kind = "" if spec.bin_scale == "linear" else f"{spec.bin_scale} "
    return [f"{len(edges) - 1} {kind}bins", *_origin(counts, zeros)]


def _steps(counts: Counts) -> str:
    n = len(counts.steps)
    of = f"{n} of {counts.available}" if n < counts.available else f"{n}"
    return f"{of} step{'s' * (of != '1')}"


def _origin(counts: Counts, zeros: bool) -> list[str]:
    """Say what was counted, and what is not in the shape."""
    parts = ["from stored bit counts" if counts.stored else "from bit counts of frames"]
    if not zeros:
        most = "up to " if len(counts.steps) > 1 else ""
        parts.append(f"exact zeros ({most}{100 * counts.zero_share:.0f} %) left out")
    for number, name in zip(counts.others, ("NaN", "+inf", "−inf"), strict=True):
        if number:
            parts.append(f"{name} ×{number:,}")
    return parts


def _zeros_drawn(counts: Counts) -> bool:
    """Whether exact zeros belong to the shape, rather than being a point mass that dwarfs it."""
    share = counts.zero_share
    return share < _MANY_ZEROS or bool((counts.zeros >= counts.finite).all())


def _single(counts: Counts, spec: HistogramSpec, bins: int, name: str) -> Figure:
    zeros = _zeros_drawn(counts)
    low, high = float(counts.minimum[0]), float(counts.maximum[0])
    edges = edges_between(low, high, bins, spec.bin_scale)
    heights = density_counts(counts, edges, zeros=zeros)[0]
    total = int(counts.bits.sum())
    parts = [spec.kind] if spec.kind else []
    parts += [f"step {counts.steps[0]}"] if spec.layer else []
    parts += [
        f"{total:,} values".replace(",", "\u202f"),
        f"{low:.4g} to {high:.4g}".replace("-", "−"),
    ]
    caption = Caption(name, (*parts, *_common(counts, spec, edges, zeros)), "")
    figure, top = new_figure(caption, height=4.2, dpi=spec.dpi)
    axes = figure.add_axes((FRAME + 0.02, 0.115, 0.86, top - 0.115))
    x = _positions(edges, spec)
    axes.stairs(heights, x, fill=True, color=_FILL, alpha=0.85, linewidth=0)
    axes.stairs(heights, x, color="#7a1f12", linewidth=0.6, baseline=None)
    highest = float(heights.max()) * 1.05 or 1.0
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(0, highest)
    _zero_line(axes, _positions(np.zeros(1), spec, like=edges)[0])
    unit = round_ticks(axes.yaxis, 0, highest, 7)
    name = _value_ticks(axes.xaxis, edges, spec)
    finish_axes(axes, x=name, y=f"values in a bin {unit}".rstrip())
    return figure


def _ridge(counts: Counts, spec: HistogramSpec, bins: int, name: str) -> Figure:
    zeros = _zeros_drawn(counts)
    edges = edges_between(*_centre(counts), bins, spec.bin_scale)
    x = _positions(edges, spec)
    density = _smooth(density_counts(counts, edges, zeros=zeros) / np.diff(x))
    peaks = density.max(axis=1, keepdims=True)
    shape = density / np.where(peaks > 0, peaks, 1)
    shape[shape < 0.003] = 0  # a third of a pixel, which would be drawn as hair lines
    n = len(counts.steps)
    parts = [spec.kind] if spec.kind else []
    parts += [f"a ridge a step, {_steps(counts)}", "central 99.6 %", "each scaled to its own peak"]
    caption = Caption(
        name, (*parts, *_common(counts, spec, edges, zeros), "smoothed over 3 bins"), ""
    )
    left = 0.045
    figure, top = new_figure(caption, height=5.2, dpi=spec.dpi, left=left)
    axes = figure.add_axes((left, 0.105, 0.86, top - 0.105))
    colors = _ridge_colors()
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
        axes.plot(middle, crest, color="white", lw=0.7, zorder=2 * i + 3, clip_on=False)
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(-0.025 * (n + overlap), (base + overlap * shape.max(axis=1)).max() + 0.1)
    _zero_line(axes, _positions(np.zeros(1), spec, like=edges)[0])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    named = evenly(n, 8)
    axes.set_yticks(base[named], [str(step) for step in counts.steps[named]])
    finish_axes(axes, x=_value_ticks(axes.xaxis, edges, spec), y="step", spines=("bottom",))
    axes.tick_params(axis="y", length=0)
    return figure


def _overlay(counts: Counts, spec: HistogramSpec, bins: int, name: str) -> Figure:
    zeros = _zeros_drawn(counts)
    edges = edges_between(*_centre(counts), bins, spec.bin_scale)
    x = _positions(edges, spec)
    share = density_counts(counts, edges, zeros=zeros) / np.maximum(counts.finite, 1)[:, None]
    density = _smooth(share / np.diff(x))
    n = len(counts.steps)
    parts = [spec.kind] if spec.kind else []
    parts += [_steps(counts), "central 99.6 %", *_common(counts, spec, edges, zeros)]
    figure, top = new_figure(
        Caption(name, (*parts, "smoothed over 3 bins"), ""), height=4.2, dpi=spec.dpi
    )
    axes = figure.add_axes((FRAME + 0.02, 0.115, 0.77, top - 0.115))
    middle = (x[1:] + x[:-1]) / 2
    for i in range(n):
        color = _ridge_colors()(0.3 + 0.7 * (i + 1) / n)
        axes.fill_between(middle, density[i], color=color, alpha=0.1, lw=0, zorder=i)
        axes.plot(middle, density[i], color=color, lw=1.2, zorder=n + i)
        y = 0.97 - 0.065 * i
        axes.plot([1.02, 1.05], [y, y], color=color, lw=2, transform=axes.transAxes, clip_on=False)
        add_note(axes, 1.05, y, f"step {counts.steps[i]}", size=7.0, inside=False)
    highest = float(density.max()) * 1.05 or 1.0
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(0, highest)
    _zero_line(axes, _positions(np.zeros(1), spec, like=edges)[0])
    unit = round_ticks(axes.yaxis, 0, highest, 7)
    finish_axes(axes, x=_value_ticks(axes.xaxis, edges, spec), y=f"density {unit}".rstrip())
    return figure


def _ridge_colors() -> LinearSegmentedColormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("ridges", _RIDGES)


def _smooth(density: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weigh each bin with its neighbours, 1 : 2 : 1; mirrored at the ends, where a ReLU stops."""
    padded = np.pad(density, ((0, 0), (1, 1)), mode="symmetric")
    return (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4


def _heatmap(counts: Counts, spec: HistogramSpec, bins: int, name: str) -> Figure:
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    zeros = _zeros_drawn(counts)
    low, high = float(np.nanmin(counts.minimum)), float(np.nanmax(counts.maximum))
    edges = edges_between(low, high, bins, spec.bin_scale)
    y = _positions(edges, spec)
    inside = density_counts(counts, edges, zeros=zeros)
    share = inside / np.maximum(counts.finite, 1)[:, None] / np.diff(y)
    # Less than half a value in a bin is the tail of an interpolation, not something seen.
    dense = np.ma.masked_where(inside < 1e-3, share)
    parts = [spec.kind] if spec.kind else []
    parts += [_steps(counts), "density, log colour", _NINE]
    caption = Caption(name, (*parts, *_common(counts, spec, edges, zeros)), "")
    left = 0.1
    figure, upper = new_figure(caption, height=4.5, dpi=spec.dpi, left=left)
    upper -= 0.03  # for the name of the colour bar
    axes = figure.add_axes((left, 0.11, 0.765, upper - 0.11))
    shades = matplotlib.colormaps["magma_r"](np.linspace(0.06, 1, 256))
    cmap = LinearSegmentedColormap.from_list("heat", shades)
    borders = _borders(counts.steps.astype(float))
    top = float(dense.max()) if dense.count() else 1.0
    norm = LogNorm(top * 1e-4, top, clip=True)
    mesh = axes.pcolormesh(borders, y, dense.T, cmap=cmap, norm=norm, rasterized=True)
    at, lines = _quantiles(counts)
    lines = _positions(lines, spec, like=edges)
    _quantile_lines(axes, at, lines)
    axes.set_xlim(borders[0], borders[-1])
    margin = 0.02 * (y[-1] - y[0])
    axes.set_ylim(y[0] - margin, y[-1] + margin)
    step_ticks(axes.xaxis, float(counts.steps[0]), float(counts.steps[-1]), 8)
    finish_axes(axes, x="step", y=_value_ticks(axes.yaxis, edges, spec))
    _quantile_names(axes, borders[-1], lines[-1])
    bar = figure.add_axes((0.935, 0.11, 0.013, upper - 0.11))
    _density_bar(figure, bar, mesh, top)
    return figure


def _distribution(counts: Counts, spec: HistogramSpec, bins: int, name: str) -> Figure:
    at, lines = _quantiles(counts)
    edges = edges_between(float(np.nanmin(lines)), float(np.nanmax(lines)), 1, spec.bin_scale)
    y = _positions(edges, spec)
    parts = [spec.kind] if spec.kind else []
    parts += [_steps(counts), _NINE, *_origin(counts, True)]
    figure, top = new_figure(Caption(name, tuple(parts), ""), height=4.2, dpi=spec.dpi)
    axes = figure.add_axes((FRAME + 0.02, 0.115, 0.81, top - 0.115))
    lines = _positions(lines, spec, like=edges)
    for j, alpha in enumerate((0.16, 0.22, 0.3, 0.4)):
        axes.fill_between(at, lines[:, j], lines[:, 8 - j], color=_FILL, alpha=alpha, lw=0)
    axes.plot(at, lines[:, 4], color=_RIDGES[-1], lw=1.3)
    axes.set_xlim(at[0], at[-1])
    margin = 0.02 * (y[-1] - y[0])
    axes.set_ylim(y[0] - margin, y[-1] + margin)
    step_ticks(axes.xaxis, float(counts.steps[0]), float(counts.steps[-1]), 8)
    finish_axes(axes, x="step", y=_value_ticks(axes.yaxis, edges, spec))
    _quantile_names(axes, float(at[-1]), lines[-1])
    return figure


def _quantiles(counts: Counts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return where along the steps the nine quantiles are drawn, and these."""
    lines = np.asarray(quantiles(counts.bits, _QUANTILES, counts.minimum, counts.maximum))
    if len(lines) == 1:  # one step is as wide as a step
        return _borders(counts.steps.astype(float)), lines.repeat(2, axis=0)
    return counts.steps.astype(float), lines


def _quantile_lines(
    axes: Axes, steps: npt.NDArray[np.float64], lines: npt.NDArray[np.float64]
) -> None:
    widths = (0.5, 0.5, 0.6, 0.7, 1.2, 0.7, 0.6, 0.5, 0.5)
    for j, width in enumerate(widths):
        inner = 2 <= j <= 6
        color, alpha = ("white", 1.0 if j == 4 else 0.75) if inner else ("#4b5563", 0.6)
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


def _density_bar(figure: Figure, bar: Axes, mesh: object, top: float) -> None:
    from matplotlib.cm import ScalarMappable

    assert isinstance(mesh, ScalarMappable)
    colorbar = figure.colorbar(mesh, cax=bar)
    colorbar.outline.set_linewidth(0.4)
    colorbar.outline.set_edgecolor(TONES["faint"])
    powers = range(int(np.ceil(np.log10(top * 1e-4))), int(np.floor(np.log10(top))) + 1)
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    labels = [f"10{str(p).translate(raised)}" for p in powers]
    bar.yaxis.set_ticks([10.0**p for p in powers], labels)
    bar.yaxis.set_ticks([], minor=True)
    bar.tick_params(length=2, width=0.5, color=TONES["mute"], labelcolor=TONES["mute"])
    for label in bar.get_yticklabels():
        label.set_fontproperties(_text.font(6))
    bar.set_title("density", fontproperties=_text.font(6.5), color=TONES["mute"], pad=6)


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


def _value_ticks(axis: Axis, edges: npt.NDArray[np.float64], spec: HistogramSpec) -> str:
    """Set the ticks of the value axis; return its name, with a power of ten or symlog."""
    names = {"activations": "activation", "weights": "weight", "gradients": "gradient"}
    name = names.get(spec.kind, "value")
    if spec.bin_scale == "linear":
        return f"{name} {round_ticks(axis, float(edges[0]), float(edges[-1]), 7)}".rstrip()
    power = int(np.floor(np.log10(_linear(edges) * 1000)))
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    marks = [(0.0, "0")]
    decades = range(power - 2, power + 1)
    if spec.bin_scale == "tensorboard":
        decades = range(power - 4, power + 1, 2)
    for exponent in decades:
        text = f"10{str(exponent).translate(raised)}"
        marks += [(10.0**exponent, text), (-(10.0**exponent), f"−{text}")]
    inside = [(v, t) for v, t in marks if edges[0] <= v <= edges[-1]]
    at = _positions(np.array([v for v, _ in inside]), spec, like=edges)
    axis.set_ticks(list(at), [t for _, t in inside])
    return f"{name}, {spec.bin_scale}"


def _zero_line(axes: Axes, zero: float) -> None:
    low, high = axes.get_xlim()
    if low < zero < high:
        axes.axvline(zero, color="#9aa1ab", lw=0.5, ls=(0, (2, 2)), zorder=0)


_VIEWS: Final = {
    "single": _single,
    "ridge": _ridge,
    "overlay": _overlay,
    "heatmap": _heatmap,
    "distribution": _distribution,
}


def of_sources(sources: Sequence[Source], spec: Spec) -> Picture:
    """Draw from the only source there is."""
    assert isinstance(spec, HistogramSpec)
    (source,) = sources
    return draw(source, spec)
