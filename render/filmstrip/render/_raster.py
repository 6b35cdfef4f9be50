"""Raster: the only place where a sheet becomes bytes of the palette.

Matplotlib draws the chrome once for each geometry (27 ms); every step then copies it and
pastes tiles and text at exact pixels (2 ms). Templates are kept for each thread, because
one matplotlib figure must not be drawn by two.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import numpy as np

from filmstrip.render import _text
from filmstrip.render._agg import default_settings, figure_pixels
from filmstrip.render._palette import BACKGROUND, TONES, colors, grey_bytes, tone_table
from filmstrip.render._sheet import TICK, bar_pixels

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.figure import Figure

    from filmstrip.render._sheet import Axes, Bar, Chrome, Label, Sheet

__all__ = ["draw_axes", "draw_bar", "rasterise"]

_KEPT: Final = 16
_KEPT_BYTES: Final = 64_000_000  # of one thread, unless a single one is larger
_local = threading.local()


def rasterise(sheet: Sheet) -> npt.NDArray[np.uint8]:
    """Draw a sheet.

    Returns
    -------
    ndarray of uint8, shape (height, width) or (height, width, 3)
        Bytes of the palette; red, green and blue where tiles have colours of their own.
    """
    out = _template(sheet.chrome).copy()
    colored = [patch for patch in sheet.patches if patch.pixels.ndim == 3]
    for patch in sheet.patches:
        if patch.pixels.ndim == 2:
            h, w = patch.pixels.shape
            out[patch.y : patch.y + h, patch.x : patch.x + w] = patch.pixels
    bar = sheet.chrome.bar
    length = max(2, round(bar.width * 0.28))
    thickness = max(1, round(sheet.chrome.dpi / 130))
    start = bar.x + bar.width + 1
    mark = tone_table("mute")[200]
    for row in sheet.marks:
        out[row : row + thickness, start : start + length] = mark
    for label in sheet.labels:
        _write(out, label, sheet.chrome.dpi)
    if colored:
        out = colors(sheet.cmap)[out]
        for patch in colored:
            h, w = patch.pixels.shape[:2]
            out[patch.y : patch.y + h, patch.x : patch.x + w] = patch.pixels
    return out


def _template(chrome: Chrome) -> npt.NDArray[np.uint8]:
    kept: OrderedDict[Chrome, npt.NDArray[np.uint8]] | None
    kept = getattr(_local, "kept", None)
    if kept is None:
        kept = _local.kept = OrderedDict()
    if chrome not in kept:
        kept[chrome] = _draw(chrome)
        while len(kept) > _KEPT or (
            len(kept) > 1 and sum(drawn.nbytes for drawn in kept.values()) > _KEPT_BYTES
        ):
            kept.popitem(last=False)
    kept.move_to_end(chrome)
    return kept[chrome]


@default_settings()
def _draw(chrome: Chrome) -> npt.NDArray[np.uint8]:
    from matplotlib.figure import Figure

    size = (chrome.width / chrome.dpi, chrome.height / chrome.dpi)
    figure = Figure(figsize=size, dpi=chrome.dpi, facecolor="white", edgecolor="white")
    draw_bar(figure, chrome.bar, chrome)
    if chrome.axes is not None:
        draw_axes(figure, chrome.axes, chrome)
    drawn = figure_pixels(figure)[..., 1]
    out = np.full((chrome.height, chrome.width), BACKGROUND, np.uint8)
    h, w = min(drawn.shape[0], chrome.height), min(drawn.shape[1], chrome.width)
    out[:h, :w] = grey_bytes(drawn[:h, :w])
    box = bar_pixels(chrome.bar)
    y, x = chrome.bar.y, chrome.bar.x
    filled = box != BACKGROUND
    out[y : y + box.shape[0], x : x + box.shape[1]][filled] = box[filled]
    for label in chrome.labels:
        _write(out, label, chrome.dpi)
    return out


def _write(out: npt.NDArray[np.uint8], label: Label, dpi: float) -> None:
    """Paste one line of text; what would lie outside of the picture is cut."""
    coverage, ascent = _text.line(label.text, label.size, bold=label.bold, dpi=dpi)
    rows = np.flatnonzero(coverage.any(axis=1))
    if not rows.size:
        return
    # Only rows with ink, or a line would wipe out its neighbours' descenders.
    coverage = coverage[rows[0] : rows[-1] + 1]
    pad = max(2, round(label.size * dpi / 72 * 0.2))
    length = coverage.shape[1] - 2 * pad
    shift = {"left": 0, "middle": length // 2, "right": length}[label.anchor]
    x, y = label.x - shift - pad, label.y - ascent + int(rows[0])
    cut_x, cut_y = max(0, -x), max(0, -y)
    there = out[max(0, y) : y + coverage.shape[0], max(0, x) : x + coverage.shape[1]]
    inked = coverage[cut_y:, cut_x:][: there.shape[0], : there.shape[1]]
    there[...] = tone_table(label.tone)[inked]


def draw_bar(figure: Figure, bar: Bar, chrome: Chrome) -> None:
    """Draw the outline of the colour bar and what it measures."""
    from matplotlib.patches import Polygon

    left, right = bar.x - 0.5, bar.x + bar.width + 0.5
    middle = (left + right) / 2
    top, bottom = bar.inside
    points: list[tuple[float, float]] = [(right, top), (right, bottom), (left, bottom), (left, top)]
    if bar.lower:
        points.insert(2, (middle, bar.y + bar.height + 0.5))
    if bar.upper:
        points.append((middle, bar.y - 0.5))
    corners = [(x / chrome.width, 1 - y / chrome.height) for x, y in points]
    outline = Polygon(
        corners,
        closed=True,
        fill=False,
        edgecolor=TONES["faint"],
        linewidth=0.4,
        joinstyle="miter",
        transform=figure.transFigure,
        figure=figure,
    )
    figure.add_artist(outline)
    figure.text(
        bar.label_x / chrome.width,
        1 - (bar.y + bar.height / 2) / chrome.height,
        _text.printable(bar.label),
        fontproperties=_text.font(TICK + 0.5),
        color=TONES["mute"],
        rotation=90,
        ha="center",
        va="center",
        parse_math=False,
    )


def draw_axes(figure: Figure, box: Axes, chrome: Chrome) -> None:
    """Draw the ticks and names of a matrix's axes."""
    from matplotlib.ticker import MaxNLocator

    where = (
        box.x / chrome.width,
        1 - (box.y + box.height) / chrome.height,
        box.width / chrome.width,
        box.height / chrome.height,
    )
    axes = figure.add_axes(where, facecolor="none")
    axes.set_xlim(-0.5, box.columns - 0.5)
    axes.set_ylim(box.rows - 0.5, -0.5)
    for axis, extent, name, numbers, spacing in (
        (axes.xaxis, box.width, box.column_name, box.column_numbers or range(box.columns), 90),
        (axes.yaxis, box.height, box.row_name, box.row_numbers or range(box.rows), 55),
    ):
        count = max(1, min(9, int(extent / (spacing * chrome.dpi / _text.DPI))))
        locator = MaxNLocator(count, integer=True, steps=[1, 2, 5, 10])
        found = sorted({round(float(v)) for v in locator.tick_values(0, len(numbers) - 1)})
        inside = [at for at in found if 0 <= at < len(numbers)] or [0]
        axis.set_ticks(inside, [str(numbers[at]) for at in inside])
        axis.set_tick_params(
            length=3, width=0.6, color=TONES["mute"], labelcolor=TONES["mute"], pad=2.5
        )
        for text in axis.get_ticklabels():
            text.set_fontproperties(_text.font(TICK - 0.5))
        axis.label.set(text=name, color=TONES["mute"], fontproperties=_text.font(TICK + 0.5))
    if box.rows == 1:
        axes.yaxis.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
