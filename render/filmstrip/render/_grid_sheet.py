"""Grid sheets: the only place that knows how tiles are laid out on a picture. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from filmstrip.render._indices import Places, index_labels
from filmstrip.render._palette import BACKGROUND, colors
from filmstrip.render._sheet import (
    INDEX,
    Bar,
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
from filmstrip.render._tiles import Downsample, shape_of_grid, tile_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from filmstrip.render._scale import Scale

__all__ = ["TilePlan", "plan_tiles", "tile_sheet"]

WIDTH: Final = 1148  # design pixels for tiles: eight columns of 28 values at 5 pixels each
HEIGHT: Final = 1300
_MARGIN: Final = 56
_LABEL: Final = 16
_SMALLEST: Final = 10  # pixels a tile; below, a tile shows nothing
_NARROW: Final = 8  # values
_LABELLED: Final = 24  # pixels a tile, from which every one has its index


@dataclass(frozen=True, slots=True)
class TilePlan:
    """Sizes of a grid.

    Attributes
    ----------
    groups, inner : int
        How many are shown, at most as many as there are.
    columns : int
        Groups in one row.
    factor : int
        Values pooled into one, each way.
    zoom : int
        Pixels a pooled value, each way.
    gap, inner_gap : int
        Pixels between groups, and between the planes of one group.
    margins : bool
        Whether indices stand at the margins, because above tiles there is no room.
    """

    groups: int
    inner: int
    columns: int
    factor: int
    zoom: int
    gap: int
    inner_gap: int
    margins: bool

    def block(self, h: int, w: int) -> tuple[int, int]:
        """Return width and height in pixels of all tiles of ``h`` × ``w`` values."""
        rows = -(-self.groups // self.columns)
        across = self.columns * self.inner * -(-w // self.factor)
        return across * self.zoom, rows * -(-h // self.factor) * self.zoom


def plan_tiles(
    shape: Sequence[int],
    *,
    columns: int | None = None,
    padding: int = 4,
    downsample: Downsample = "absmax",
    ruler: Ruler,
) -> TilePlan:
    """Choose columns, zoom and pooling so that the grid fits.

    Parameters
    ----------
    shape : (group, inner, row, column)
        What there is.
    columns : int or None
        Groups in one row; None: near-square.
    padding : int
        Design pixels between tiles.
    downsample : {"absmax", "mean", "rms", "none"}
        With "none" tiles keep all their values, and the picture grows.
    ruler : Ruler

    Examples
    --------
    >>> plan = plan_tiles((64, 1, 28, 28), ruler=Ruler(200.0))
    >>> plan.columns, plan.zoom, plan.factor
    (8, 5, 1)
    """
    groups, inner, h, w = shape
    gap = ruler(padding) if padding else 0
    inner_gap = max(1, gap // 2) if inner > 1 and padding else 0
    least, width, height = ruler(_SMALLEST), ruler(WIDTH), ruler(HEIGHT)
    inner = _cap(inner, width // (max(least, min(w, least)) + inner_gap))
    across = max(1, width // (inner * (least + inner_gap) + gap))
    groups = _cap(groups, max(1, height // (least + gap)) * across)
    limited = columns is None
    # With an aspect far from square, the height of the label counts too.
    cols = shape_of_grid(groups, h / (inner * w))[1] if columns is None else min(columns, groups)
    if inner == 1 and limited and h > 2 * w and w <= _NARROW:
        gap *= 2  # or one could not tell where such a narrow tile ends
    if inner > 1 and cols > 1:
        gap *= 3  # or filters could not be told from their input channels
    largest = ruler({1: 480, 2: 400, 3: 320, 4: 320}.get(groups * inner, 160))

    def sized(cols: int) -> tuple[int, int, bool]:
        """Choose pooling and zoom for so many columns, and whether indices are at the margins."""
        rows = -(-groups // cols)
        box = width - (cols - 1) * gap - cols * (inner - 1) * inner_gap, height
        places = rows, cols, inner, h, w
        if cols > 1 or inner == 1:
            pitch = gap + ruler(_LABEL) if limited else None
            factor, zoom = _fit(places, box, pitch, downsample, largest)
            if -(-inner * w // factor) * zoom >= ruler(_LABELLED):
                return factor, zoom, False
        return *_fit(places, box, gap if limited else None, downsample, largest), True

    factor, zoom, margins = sized(cols)
    if limited and zoom == 1 and inner == 1:
        # Tiles far from square leave the square outline little room: take the one that has most.
        choices = sorted({-(-groups // rows) for rows in range(1, min(groups, 64) + 1)})
        best = max(choices, key=lambda n: sized(n)[1] / sized(n)[0])
        if sized(best)[1] / sized(best)[0] > zoom / factor:
            cols, (factor, zoom, margins) = best, sized(best)
    return TilePlan(groups, inner, cols, factor, zoom, gap, inner_gap, margins)


def _fit(
    places: tuple[int, int, int, int, int],
    box: tuple[int, int],
    pitch: int | None,
    downsample: Downsample,
    largest: int,
) -> tuple[int, int]:
    """Choose pooling and zoom; without ``pitch``, the pixels between rows, height is free."""
    rows, cols, inner, h, w = places
    width, height = max(1, box[0]), 10**9 if pitch is None else max(rows, box[1] - rows * pitch)
    factor = 1
    if downsample != "none":
        factor = max(-(-cols * inner * w // width), -(-rows * h // height), 1)
        factor = min(factor, max(h, w))
    h, w = -(-h // factor), -(-w // factor)
    side = math.sqrt(h * w)
    zoom = min(width // (cols * inner * w), height // (rows * h), int(largest / side))
    return factor, max(1, zoom)


def _cap(count: int, most: int) -> int:
    """As many as fit; a round number when not all do."""
    if count <= most:
        return count
    return next((n for n in (4096, 2048, 1024, 512, 256, 128, 64, 32, 16) if n <= most), most)


def tile_sheet(
    tiles: npt.NDArray[np.uint8],
    *,
    plan: TilePlan,
    scale: Scale,
    caption: Caption,
    names: Sequence[int],
    inner_names: Sequence[int],
    dead: Sequence[int],
    bad: Mapping[int, int],
    beside: npt.NDArray[np.uint8] | None = None,
    cmap: str,
    ruler: Ruler,
) -> Sheet:
    """Lay out a grid.

    Parameters
    ----------
    tiles : ndarray of uint8, shape (group, inner, h, w)
        Bytes of the palette, pooled. Inner planes that the plan has no place for are colours:
        red, green and blue.
    plan : TilePlan
    scale : Scale
    caption : Caption
    names, inner_names : sequence of int
        Index of each group, and of each inner plane.
    dead : sequence of int
        Positions of groups to be marked.
    bad : mapping of int to int
        Byte of the palette to how many values have it.
    beside : ndarray of uint8, shape (height, width), or None
        The image that the tiles were made of.
    cmap : str
    ruler : Ruler
    """
    strips = _strips(tiles, plan, cmap)
    rows, strip_height, block_width = strips.shape[:3]
    label_height = 0 if plan.margins else ruler(_LABEL)
    left = ruler(_MARGIN)
    if plan.margins:
        left = max(left, ruler(24) + max(ruler.text(str(n), INDEX) for n in names) + ruler(10))
    right = _right_of(left + block_width, ruler)
    column = right - left - block_width - ruler(34)  # of the colour bar
    text_width = max(right - left - ruler(20), ruler(620))
    if beside is not None:
        text_width = max(block_width, ruler(620))
    labels, bottom = heading(caption, x=left, width=text_width, ruler=ruler)
    top = bottom + ruler(24) + ruler(_LABEL)
    text_width += 0 if beside is None else right - ruler(20) - left - block_width
    pitch = strip_height + plan.gap + label_height
    block_height = rows * pitch - plan.gap - label_height
    patches = [Patch(left, top + r * pitch, strip) for r, strip in enumerate(strips)]
    bar_height = max(block_height, ruler(160))
    bar = bar_beside(left + block_width, top, bar_height, scale, caption, ruler)
    tick_labels, marks = bar_marks(bar, scale, ruler)
    labels += tick_labels
    if beside is not None:
        x = max(right, left + text_width + ruler(20)) - column
        patches.append(Patch(x, ruler(28), beside))
        labels.append(Label(x + beside.shape[1] + ruler(8), ruler(40), "input", INDEX))
    foot = top + max(block_height, bar_height) + ruler(_MARGIN)
    if bad:
        more, words = legend(bad, x=left, y=foot - ruler(28), ruler=ruler)
        patches += more
        labels += words
        foot += ruler(34)
    inner_pitch = tiles.shape[3] * plan.zoom + plan.inner_gap
    width = plan.inner * inner_pitch - plan.inner_gap
    places = Places(
        left=left,
        top=top,
        columns=plan.columns,
        width=width,
        height=strip_height,
        across=width + plan.gap,
        down=pitch,
        inner=inner_pitch,
        margins=plan.margins,
        ruler=ruler,
    )
    labels += places.dead(names, dead)
    chrome = Chrome(
        width=max(right, left + text_width + ruler(20)),
        height=foot,
        dpi=ruler.dpi,
        bar=bar,
        labels=index_labels(places, tuple(names), tuple(inner_names)),
    )
    return Sheet(chrome, cmap, tuple(patches), tuple(labels), marks, bad)


def _strips(tiles: npt.NDArray[np.uint8], plan: TilePlan, cmap: str) -> npt.NDArray[np.uint8]:
    """Rows of tiles: bytes of the palette, or with a last axis of red, green and blue."""

    def side_by_side(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return tile_rows(
            planes, columns=plan.columns, zoom=plan.zoom, gap=plan.gap, inner_gap=plan.inner_gap
        )

    if tiles.shape[1] == plan.inner:
        return side_by_side(tiles)
    worst = tiles.max(axis=1, keepdims=True)
    tiles = np.where(worst > BACKGROUND, worst, tiles)  # a pixel is no number when one of it is
    table = colors(cmap)
    planes = [table[side_by_side(tiles[:, [c]]), c] for c in range(tiles.shape[1])]
    return np.stack(planes, axis=-1)


def _right_of(block_end: int, ruler: Ruler) -> int:
    return block_end + ruler(34 + 18 + 150)


def bar_beside(x: int, y: int, height: int, scale: Scale, caption: Caption, ruler: Ruler) -> Bar:
    """Place a colour bar to the right of what ends at ``x``."""
    start = x + ruler(34)
    return Bar(
        x=start,
        y=y,
        width=ruler(18),
        height=height,
        lower=scale.below,
        upper=scale.above,
        label=caption.measure,
        label_x=start + ruler(18 + 92),
    )
