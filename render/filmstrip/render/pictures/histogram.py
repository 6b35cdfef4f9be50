"""The histogram: the values of layers at one step, or over steps, alone or side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from filmstrip.render import _text
from filmstrip.render._agg import default_settings
from filmstrip.render._figure import FRAME, line_color, new_figure
from filmstrip.render._histogram_views import (
    FULL,
    SMALL,
    VIEWS,
    compared,
    edges_of,
    smoothed,
    told_apart,
    zeros_drawn,
)
from filmstrip.render._image import Picture
from filmstrip.render._palette import TONES
from filmstrip.render._sheet import Caption
from filmstrip.render._spec import HistogramSpec
from filmstrip.render.errors import SourceError
from filmstrip.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from filmstrip.render._density import Counts
    from filmstrip.render._source import Source
    from filmstrip.render._spec import Spec

__all__ = ["counts_of", "draw", "draw_several", "of_sources"]

MOST: Final = {"overlay": 12}  # in one picture; of the other views 30 side by side
_FEW: Final = 8  # bins of stored counts, of which a finer histogram is a guess
_NAMED: Final = 0.07  # of the width; names of layers are longer than steps
_MOST_AXES: Final = 30
_NINE: Final = "lines: min, −1.5σ … +1.5σ, max as quantiles"
_SMOOTHED: Final = "smoothed over 3 bins"
# Height in inches, left edge, width and bottom of the axes, of the whole.
_PLACES: Final = {
    "single": (4.2, FRAME, 0.02, 0.86, 0.115),
    "ridge": (5.2, 0.045, 0.0, 0.86, 0.105),
    "overlay": (4.2, FRAME, 0.02, 0.77, 0.115),
    "heatmap": (4.5, 0.1, 0.0, 0.765, 0.11),
    "distribution": (4.2, FRAME, 0.02, 0.81, 0.115),
}


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
    counts = counts_of(source, spec)
    name = spec.layer or spec.kind if title is None else title
    parts = [spec.kind] if spec.kind else []
    caption = Caption(name, (*parts, *_words(counts, spec)), "")
    height, left, indent, width, bottom = _PLACES[spec.view]
    figure, top = new_figure(caption, height=height, dpi=spec.dpi, left=left)
    top -= 0.03 if spec.view == "heatmap" else 0  # for the name of the colour bar
    axes = figure.add_axes((left + indent, bottom, width, top - bottom))
    VIEWS[spec.view](axes, counts, spec, FULL)
    if spec.view == "heatmap":
        _density_bar(figure, figure.add_axes((0.935, bottom, 0.013, top - bottom)), axes)
    return Picture(drawn=figure, dpi=spec.dpi, nonfinite=counts.nonfinite)


@default_settings()
def draw_several(
    several: Sequence[tuple[str, Counts]],
    spec: HistogramSpec,
    *,
    title: str,
    missing: Sequence[str] = (),
) -> Picture:
    """Draw several layers, or a layer of several runs: as lines in one, or side by side.

    Parameters
    ----------
    several : sequence of (str, Counts)
        Names and what they hold.
    spec : HistogramSpec
        With the view "overlay", the last step of each is a line.
    title : str
    missing : sequence of str
        Names of those that hold nothing that can be drawn.

    Returns
    -------
    Picture
    """
    most = MOST.get(spec.view, _MOST_AXES)
    shown = several[:most]
    parts = [spec.kind] if spec.kind else []
    if len(several) > 1:
        count = f"{len(shown)} of {len(several)}" if len(several) > most else f"{len(several)}"
        lines = spec.view == "overlay"
        parts.append(f"{count} {'lines' if lines else 'side by side, each with its own range'}")
    parts += _common_words([counts for _, counts in shown], spec)
    parts += [f"nothing in {', '.join(missing[:3])}{' …' * (len(missing) > 3)}"] if missing else []
    caption = Caption(title, tuple(parts), "")
    if spec.view == "overlay":
        height, left, indent, width, bottom = _PLACES["overlay"]
        figure, top = new_figure(caption, height=height, dpi=spec.dpi, left=left)
        axes = figure.add_axes((left + indent, bottom, width - _NAMED, top - bottom))
        colors = [line_color(i, len(shown)) for i in range(len(shown))]
        compared(axes, _with_steps(shown), spec, colors)
        return Picture(drawn=figure, dpi=spec.dpi)
    return Picture(drawn=_page(caption, shown, spec), dpi=spec.dpi)


def _page(caption: Caption, shown: Sequence[tuple[str, Counts]], spec: HistogramSpec) -> Figure:
    """Draw small axes in rows, each below its name."""
    count = len(shown)
    columns = min(count, 2 if count <= 4 else 3 if count <= 9 else 4 if count <= 16 else 5)
    rows = -(-len(shown) // columns)
    left, right, gap = 0.045, 0.975, 0.06
    right -= 0.03 if spec.view == "ridge" else 0  # whose steps stand to the right
    tall = {1: 3.0, 2: 2.1, 3: 1.75, 4: 1.45, 5: 1.25}[columns]  # inches
    height = 0.95 + rows * tall
    figure, top = new_figure(caption, height=height, dpi=spec.dpi, left=left)
    across = (right - left + gap) / columns
    down = top / rows
    for i, (name, counts) in enumerate(shown):
        row, column = divmod(i, columns)
        x, y = left + column * across, top - (row + 1) * down
        room = 0.24 / height, 0.3 / height  # for its name above, for the labels below
        indent = 0.0 if spec.view == "ridge" else 0.025
        box = (x + indent, y + room[1], across - gap - indent, down - sum(room))
        axes = figure.add_axes(box)
        VIEWS[spec.view](axes, counts, spec, SMALL)
        limit = round((min(across, 1 - x) - 0.02) * 7.0 * _text.DPI)
        figure.text(
            x,
            y + down - 0.16 / height,
            _text.printable(_text.ellipsize(name, 6.5, limit, bold=True)),
            fontproperties=_text.font(6.5, True),
            color=TONES["ink"],
            parse_math=False,
        )
    return figure


def _with_steps(several: Sequence[tuple[str, Counts]]) -> Sequence[tuple[str, Counts]]:
    """Add steps to names where they differ."""
    if len({int(counts.steps[-1]) for _, counts in several}) == 1:
        return several
    return [(f"{name} · step {counts.steps[-1]}", counts) for name, counts in several]


def counts_of(source: Source, spec: HistogramSpec) -> Counts:
    """Return what a histogram shows.

    Raises
    ------
    SourceError
        If there is no finite value to draw.
    """
    counts = source.counts(spec)
    known = np.isfinite(counts.minimum) & np.isfinite(counts.maximum) & (counts.finite > 0)
    if not known.any():
        raise SourceError(f"{spec.layer or 'the array'} has no finite values at these steps")
    return counts


def _words(counts: Counts, spec: HistogramSpec) -> list[str]:
    """Say what one histogram shows, and how it came about."""
    if spec.view == "single":
        low, high = float(counts.minimum[0]), float(counts.maximum[0])
        parts = [f"step {counts.steps[0]}"] if spec.layer else []
        parts.append(f"{int(counts.bits.sum()):,} values".replace(",", "\u202f"))
        parts.append(f"{low:.4g} to {high:.4g}".replace("-", "−"))
    else:
        n = len(counts.steps)
        of = f"{n} of {counts.available}" if n < counts.available else f"{n}"
        parts = [f"{of} step{'s' * (of != '1')}"]
        parts[0] = f"a ridge a step, {parts[0]}" if spec.view == "ridge" else parts[0]
    parts += _view_words(spec)
    if spec.view != "distribution":
        kind = "" if spec.bin_scale == "linear" else f"{spec.bin_scale} "
        edges = edges_of(counts, spec)
        parts.append(f"{len(edges) - 1} {kind}bin{'s' * (len(edges) != 2)}")
        apart = told_apart(edges[0], edges[-1])
        if apart < _FEW:
            parts[-1] += f", counts tell {apart} apart"
    parts.append("from stored bit counts" if counts.stored else "from bit counts of frames")
    if spec.view != "distribution" and not zeros_drawn(counts):
        most = "up to " if len(counts.steps) > 1 else ""
        parts.append(f"exact zeros ({most}{100 * counts.zero_share:.0f} %) left out")
    return parts + _others([counts]) + _smoothing([counts], spec)


def _common_words(several: Sequence[Counts], spec: HistogramSpec) -> list[str]:
    """Say what holds for all of several histograms."""
    steps = sorted({int(counts.steps[-1]) for counts in several})
    which = f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
    parts = [which if spec.view in {"single", "overlay"} else f"up to {which}"]
    parts += _view_words(spec)
    stored = {counts.stored for counts in several}
    if len(stored) == 1:
        parts.append("from stored bit counts" if True in stored else "from bit counts of frames")
    if spec.view != "distribution" and not all(map(zeros_drawn, several)):
        parts.append("exact zeros left out where they are many")
    return parts + _others(several) + _smoothing(several, spec)


def _smoothing(several: Sequence[Counts], spec: HistogramSpec) -> list[str]:
    lines = spec.view in {"ridge", "overlay"}
    return [_SMOOTHED] if lines and any(smoothed(edges_of(one, spec)) for one in several) else []


def _view_words(spec: HistogramSpec) -> list[str]:
    return {
        "ridge": ["central 99.6 %", "each scaled to its own peak"],
        "overlay": ["central 99.6 %"],
        "heatmap": ["density, log colour", _NINE],
        "distribution": [_NINE],
    }.get(spec.view, [])


def _others(several: Sequence[Counts]) -> list[str]:
    """Count what is no number."""
    totals = np.array([counts.others for counts in several]).sum(axis=0).tolist()
    named = zip(totals, ("NaN", "+inf", "−inf"), strict=True)
    return [f"{name} ×{number:,}" for number, name in named if number]


def _density_bar(figure: Figure, bar: Axes, axes: Axes) -> None:
    from matplotlib.collections import QuadMesh

    mesh = next(drawn for drawn in axes.collections if isinstance(drawn, QuadMesh))
    colorbar = figure.colorbar(mesh, cax=bar)
    colorbar.outline.set_linewidth(0.4)
    colorbar.outline.set_edgecolor(TONES["faint"])
    low, high = mesh.get_clim()
    powers = range(int(np.ceil(np.log10(low))), int(np.floor(np.log10(high))) + 1)
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    labels = [f"10{str(p).translate(raised)}" for p in powers]
    bar.yaxis.set_ticks([10.0**p for p in powers], labels)
    bar.yaxis.set_ticks([], minor=True)
    bar.tick_params(length=2, width=0.5, color=TONES["mute"], labelcolor=TONES["mute"])
    for label in bar.get_yticklabels():
        label.set_fontproperties(_text.font(6))
    bar.set_title("density", fontproperties=_text.font(6.5), color=TONES["mute"], pad=6)


def of_sources(sources: Sequence[Source], spec: Spec) -> Picture:
    """Draw a layer of one run, or several of one or more."""
    assert isinstance(spec, HistogramSpec)
    if len(sources) == 1 and not spec.page:
        return draw(sources[0], spec)
    one = replace(spec, view="single") if spec.view == "overlay" else spec
    several: list[tuple[str, Counts]] = []
    missing: list[str] = []
    failed: list[SourceError | StoreError] = []
    for source in sources:
        for layer in _layers(source, spec, failed):
            words = [source.name] * (len(sources) > 1) + [layer] * spec.page
            try:
                several.append((" ".join(words), counts_of(source, replace(one, layer=layer))))
            except (SourceError, StoreError) as error:
                missing.append(" ".join(words))
                failed.append(error)
    if not several:
        raise failed[0]
    title = spec.layer
    if spec.page:
        title = f"all {spec.kind}" if spec.layer == "*" else spec.layer.replace(",", ", ")
    return draw_several(several, spec, title=title, missing=missing)


def _layers(
    source: Source, spec: HistogramSpec, failed: list[SourceError | StoreError]
) -> Sequence[str]:
    if not spec.page:
        return [spec.layer]
    try:
        return source.layers(spec.kind, spec.layer.split(","))
    except StoreError as error:
        failed.append(error)
        return []
