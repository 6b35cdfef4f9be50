"""Matrix sheets: the only place that knows how one plane is laid out, with axes and margins.

Beside the plane stand the root mean squares of its rows and columns: they show dead and hot
rows that pixels hide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from filmstrip.render._grid_sheet import bar_beside
from filmstrip.render._palette import BACKGROUND, tone_table
from filmstrip.render._sheet import (
    INDEX,
    Axes,
    Caption,
    Chrome,
    Label,
    Patch,
    Ruler,
    Sheet,
    bar_marks,
    heading,
    legend,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from filmstrip.render._scale import Scale
    from filmstrip.render._tiles import Downsample

__all__ = ["MatrixPlan", "matrix_sheet", "plan_matrix"]

WIDTH: Final = 1152  # design pixels for the plane
HEIGHT: Final = 1152
_LARGEST: Final = 40  # pixels a value
_ROW: Final = 24  # pixels a row may be stretched to, where there are few
_LOW: Final = 160  # pixels; a lower plane is stretched
_RMS: Final = 60
_LEFT: Final = 110
_LEAST: Final = 1e-12


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """Sizes of a matrix.

    Attributes
    ----------
    wrap : int or None
        Values in one row, where a vector is too long for one.
    factors : tuple of int
        Values pooled into one, along rows' axis and columns' axis.
    zoom_y, zoom_x : int
        Pixels a pooled value.
    margins : bool
        Whether row and column root mean squares stand beside it.
    """

    wrap: int | None
    factors: tuple[int, int]
    zoom_y: int
    zoom_x: int
    margins: bool

    def block(self, h: int, w: int) -> tuple[int, int]:
        """Return width and height in pixels of a plane of ``h`` × ``w`` values."""
        if self.wrap is not None:
            h, w = -(-w // self.wrap), self.wrap
        return -(-w // self.factors[1]) * self.zoom_x, -(-h // self.factors[0]) * self.zoom_y


def plan_matrix(h: int, w: int, *, downsample: Downsample, ruler: Ruler) -> MatrixPlan:
    """Choose zoom and pooling so that a plane of ``h`` × ``w`` values fits.

    Examples
    --------
    >>> plan_matrix(4096, 4096, downsample="absmax", ruler=Ruler(200.0)).factors
    (4, 4)
    >>> plan_matrix(64, 1568, downsample="absmax", ruler=Ruler(200.0)).factors
    (1, 2)
    >>> plan_matrix(1, 64, downsample="absmax", ruler=Ruler(200.0))
    MatrixPlan(wrap=None, factors=(1, 1), zoom_y=40, zoom_x=18, margins=False)
    """
    width, height, largest = ruler(WIDTH), ruler(HEIGHT), ruler(_LARGEST)
    wrap = None
    if h == 1 and w > width // 2:
        wrap = next(n for n in (256, 512, 1024, w) if w <= n * n or n == w)
        h, w = -(-w // wrap), wrap
    factors = (1, 1)
    if downsample != "none":
        factor = max(-(-w // width), -(-h // height), 1)
        # An axis that would become short keeps its values: it is stretched, not squeezed.
        factors = (_factor(h, factor, ruler(_LOW)), _factor(w, factor, ruler(_LOW)))
    h, w = -(-h // factors[0]), -(-w // factors[1])
    zoom_x = max(1, min(width // w, largest))
    zoom_y = max(1, min(width // w, height // h, largest))
    zoom_x = min(zoom_x, zoom_y)
    if h == 1:
        zoom_y, zoom_x = largest, max(1, min(width // w, largest))
    else:
        zoom_y = max(zoom_y, min(ruler(_ROW), ruler(_LOW) // h))
        zoom_x = max(zoom_x, min(ruler(_ROW), ruler(_LOW) // w))
    return MatrixPlan(wrap, factors, zoom_y, zoom_x, h > 1 and w > 1 and wrap is None)


def _factor(length: int, factor: int, low: int) -> int:
    return factor if length // factor >= low else -(-length // low)


def matrix_sheet(
    plane: npt.NDArray[np.uint8],
    values: npt.NDArray[np.floating[Any]],
    *,
    plan: MatrixPlan,
    scale: Scale,
    caption: Caption,
    axes: tuple[str, str],
    numbers: tuple[tuple[int, ...], tuple[int, ...]],
    bad: Mapping[int, int],
    cmap: str,
    ruler: Ruler,
) -> Sheet:
    """Lay out one plane.

    Parameters
    ----------
    plane : ndarray of uint8, shape (h, w)
        Bytes of the palette, pooled.
    values : ndarray of float, shape (H, W)
        What was pooled; its root mean squares are drawn.
    plan : MatrixPlan
    scale : Scale
    caption : Caption
    axes : (str, str)
        What rows and columns count.
    numbers : (tuple of int, tuple of int)
        Numbers of the rows and of the columns; empty: from 0.
    bad : mapping of int to int
        Byte of the palette to how many values have it.
    cmap : str
    ruler : Ruler
    """
    pixels = plane.repeat(plan.zoom_y, axis=0).repeat(plan.zoom_x, axis=1)
    block_height, block_width = pixels.shape
    left = ruler(_LEFT) if plane.shape[0] > 1 else ruler(56)
    margin = ruler(_RMS + 8) if plan.margins else 0
    bar_left = left + block_width + margin
    right = bar_left + ruler(34 + 18 + 150)
    text_width = max(right - left - ruler(20), ruler(620))
    labels, bottom = heading(caption, x=left, width=text_width, ruler=ruler)
    top = bottom + ruler(28) + margin
    patches = [Patch(left, top, pixels)]
    bar_height = max(block_height, ruler(110))
    bar = bar_beside(bar_left, top, bar_height, scale, caption, ruler)
    if plan.margins:
        patches += _margins(values, plan, left, top, pixels.shape, ruler)
        x = left + block_width + ruler(8)
        labels.append(Label(x, top - ruler(42), "row, col", INDEX))
        labels.append(Label(x, top - ruler(22), "RMS", INDEX))
    tick_labels, marks = bar_marks(bar, scale, ruler)
    labels += tick_labels
    foot = top + max(block_height + ruler(44), bar_height) + ruler(48)
    if bad:
        more, words = legend(bad, x=left, y=foot - ruler(6), ruler=ruler)
        patches += more
        labels += words
        foot += ruler(44)
    rows, columns = values.shape
    box = Axes(left, top, block_width, block_height, rows, columns, *axes, *numbers)
    width = max(right, left + text_width + ruler(20))
    chrome = Chrome(width=width, height=foot, dpi=ruler.dpi, bar=bar, axes=box)
    return Sheet(chrome, cmap, tuple(patches), tuple(labels), marks, bad)


def _margins(
    values: npt.NDArray[np.floating[Any]],
    plan: MatrixPlan,
    left: int,
    top: int,
    shape: tuple[int, ...],
    ruler: Ruler,
) -> list[Patch]:
    """Bars of the root mean squares: columns above the plane, rows to its right."""
    length = ruler(_RMS)
    squarable, largest = _squarable(values)
    patches = []
    columns = (0, plan.factors[1], plan.zoom_x, shape[1])
    rows = (1, plan.factors[0], plan.zoom_y, shape[0])
    for axis, factor, zoom, pixels in (columns, rows):
        rms = _root_mean_squares(squarable, axis) / largest
        # The hottest of those that share a pixel, since a mean would hide it.
        rms = np.maximum.reduceat(rms, np.arange(0, len(rms), factor)).repeat(zoom)
        top_value = float(rms.max()) or 1.0
        filled = np.rint(rms / top_value * length).astype(int)[:pixels]
        grid = np.arange(length)[:, None] < filled[None, :]
        drawn = np.where(grid, tone_table("bar")[255], BACKGROUND).astype(np.uint8)
        if axis == 0:
            patches.append(Patch(left, top - ruler(8) - length, drawn[::-1]))
        else:
            patches.append(Patch(left + shape[1] + ruler(8), top, drawn.T))
    return patches


def _squarable(
    values: npt.NDArray[np.floating[Any]],
) -> tuple[npt.NDArray[np.floating[Any]], float]:
    """Return values whose squares are finite, no number being zero, and the largest of them."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        values = np.where(np.isfinite(values), values, 0)
        low, high = float(values.min()), float(values.max())
    largest = max(abs(low), abs(high)) or 1.0
    if _LEAST < largest < 1 / _LEAST:
        return values, largest
    return (values / largest).astype(np.float64), 1.0


def _root_mean_squares(
    values: npt.NDArray[np.floating[Any]], axis: int
) -> npt.NDArray[np.floating[Any]]:
    sums = np.einsum("ij,ij->j" if axis == 0 else "ij,ij->i", values, values)
    return np.asarray(np.sqrt(sums / values.shape[axis]))
