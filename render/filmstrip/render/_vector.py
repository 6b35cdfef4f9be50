"""Vector: the only place where a sheet becomes an ordinary matplotlib figure.

For SVG and PDF, and for whoever wants to change a picture by hand. Text is text, cells are
the very pixels of the PNG, one image for each row of tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from filmstrip.render import _text
from filmstrip.render._agg import default_settings
from filmstrip.render._palette import BACKGROUND, TONES, colors
from filmstrip.render._raster import draw_axes, draw_bar
from filmstrip.render._sheet import Patch, bar_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from filmstrip.render._sheet import Label, Sheet

__all__ = ["figure_of"]


@default_settings()
def figure_of(sheet: Sheet) -> Figure:
    """Draw a sheet as a figure, of the same size and with the same pixels in its cells."""
    from matplotlib.figure import Figure

    chrome = sheet.chrome
    figure = Figure(
        figsize=(chrome.width / chrome.dpi, chrome.height / chrome.dpi),
        dpi=chrome.dpi,
        facecolor="white",
        edgecolor="white",
    )
    table = np.concatenate(
        [colors(sheet.cmap), np.full((256, 1), 255, np.uint8)], axis=1, dtype=np.uint8
    )
    table[BACKGROUND, 3] = 0
    bar = chrome.bar
    for patch in (*sheet.patches, Patch(bar.x, bar.y, bar_pixels(bar))):
        h, w = patch.pixels.shape[:2]
        box = (
            patch.x / chrome.width,
            1 - (patch.y + h) / chrome.height,
            w / chrome.width,
            h / chrome.height,
        )
        axes = figure.add_axes(box)
        axes.axis("off")
        own = patch.pixels.ndim == 3
        axes.imshow(
            patch.pixels if own else table[patch.pixels], interpolation="none", aspect="auto"
        )
    draw_bar(figure, bar, chrome)
    if chrome.axes is not None:
        draw_axes(figure, chrome.axes, chrome)
    _marks(figure, sheet)
    for label in (*_uncovered(sheet), *sheet.labels):
        figure.text(
            label.x / chrome.width,
            1 - label.y / chrome.height,
            _text.printable(label.text),
            fontproperties=_text.font(label.size, label.bold),
            color=TONES[label.tone],
            ha={"left": "left", "middle": "center", "right": "right"}[label.anchor],
            va="baseline",
            parse_math=False,
        )
    return figure


def _uncovered(sheet: Sheet) -> list[Label]:
    """Labels of the chrome, without those that the step writes over."""
    written = {(label.x, label.y) for label in sheet.labels}
    return [a for a in sheet.chrome.labels if (a.x, a.y) not in written]


def _marks(figure: Figure, sheet: Sheet) -> None:
    from matplotlib.lines import Line2D

    chrome, bar = sheet.chrome, sheet.chrome.bar
    start = bar.x + bar.width + 1
    stop = start + max(2, round(bar.width * 0.28))
    for row in sheet.marks:
        y = 1 - (row + 0.5) / chrome.height
        figure.add_artist(
            Line2D(
                [start / chrome.width, stop / chrome.width],
                [y, y],
                color=TONES["mute"],
                linewidth=0.6,
                transform=figure.transFigure,
            )
        )
