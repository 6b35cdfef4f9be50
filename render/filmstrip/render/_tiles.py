"""Tiles: the only place for pooling planes and for putting them side by side. Pure numpy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from filmstrip.render._palette import BACKGROUND
from filmstrip.render.errors import SpecError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["DOWNSAMPLE", "Downsample", "mosaic_of", "pool", "shape_of_grid", "tile_rows"]

Downsample: TypeAlias = Literal["absmax", "mean", "rms", "none"]
_BAND: Final = 1 << 18  # values pooled at a time
DOWNSAMPLE: Final = ("absmax", "mean", "rms", "none")


def shape_of_grid(count: int, aspect: float = 1.0) -> tuple[int, int]:
    """Rows and columns of a near-square grid.

    Parameters
    ----------
    count : int
        Number of tiles.
    aspect : float
        Height of a tile over its width.

    Returns
    -------
    rows, columns : int
        The best compromise between a square outline and few empty places.

    Examples
    --------
    >>> shape_of_grid(64), shape_of_grid(10), shape_of_grid(3)
    ((8, 8), (3, 4), (2, 2))
    """

    def badness(columns: int) -> float:
        rows = -(-count // columns)
        skew = abs(math.log(rows * aspect / columns))
        return skew + 2.5 * (rows * columns - count) / (rows * columns)

    middle = max(1, round(math.sqrt(count * aspect)))
    last = min(count, 2 * middle + 1)
    candidates = range(max(1, min(middle // 2, last)), last + 1)
    columns = min(candidates, key=lambda c: (round(badness(c), 9), -c))
    return -(-count // columns), columns


def pool(
    plane: npt.NDArray[np.floating[Any]], factors: tuple[int, int], how: Downsample
) -> npt.NDArray[np.floating[Any]]:
    """Join blocks of values of the last two axes into one.

    Parameters
    ----------
    plane : ndarray of float, shape (…, h, w)
        Edges that fill no whole block make a smaller one.
    factors : tuple of int
        Values joined along rows' axis and columns' axis.
    how : {"absmax", "mean", "rms", "none"}
        ``absmax`` keeps the value that is farthest from zero, with its sign, so that
        outliers stay visible; NaN wins over everything.

    Returns
    -------
    ndarray of float, shape (…, ceil(h / factors[0]), ceil(w / factors[1]))

    Examples
    --------
    >>> pool(np.array([[1.0, -3.0], [2.0, 0.0]]), (2, 2), "absmax")
    array([[-3.]])
    """
    if factors == (1, 1) or how == "none":
        return plane
    h, w = plane.shape[-2:]
    rows_of_blocks = max(1, _BAND * h // max(plane.size * factors[0], 1))
    band = rows_of_blocks * factors[0]
    if band < h:  # in turn, so that what is read once is still in the cache
        bands = [pool(plane[..., i : i + band, :], factors, how) for i in range(0, h, band)]
        return np.concatenate(bands, axis=-2)
    if how == "absmax":
        # Two passes along one axis each: 4.6 times faster than one over four axes.
        high = _reduce(np.maximum, plane, factors)
        low = _reduce(np.minimum, plane, factors)
        return np.where(-low > high, low, high)
    with np.errstate(over="ignore", invalid="ignore"):
        total = _reduce(np.add, plane if how == "mean" else np.square(plane), factors)
        rows = np.minimum(factors[0], h - np.arange(0, h, factors[0]))
        columns = np.minimum(factors[1], w - np.arange(0, w, factors[1]))
        mean = total / (rows[:, None] * columns).astype(plane.dtype)
    return np.asarray(mean if how == "mean" else np.sqrt(mean), plane.dtype)


def _reduce(
    ufunc: np.ufunc, plane: npt.NDArray[np.floating[Any]], factors: tuple[int, int]
) -> npt.NDArray[np.floating[Any]]:
    """Join every so many rows, then every so many columns.

    A whole row, or column, of every block at a time: seven times faster than ``reduceat``.
    """
    out = plane
    for axis, factor in zip((-2, -1), factors, strict=True):
        whole = np.moveaxis(out, axis, 0)
        joined = whole[::factor].copy()
        for i in range(1, min(factor, len(whole))):
            part = whole[i::factor]
            with np.errstate(invalid="ignore"):
                ufunc(joined[: len(part)], part, out=joined[: len(part)])
        out = np.moveaxis(joined, 0, axis)
    return out


def tile_rows(
    tiles: npt.NDArray[np.uint8], *, columns: int, zoom: int, gap: int, inner_gap: int = 0
) -> npt.NDArray[np.uint8]:
    """Put tiles side by side, each value exactly ``zoom`` × ``zoom`` pixels.

    Parameters
    ----------
    tiles : ndarray of uint8, shape (group, inner, h, w)
        Bytes of the palette.
    columns : int
        Groups in one row.
    zoom : int
        Pixels a value, each way.
    gap, inner_gap : int
        Pixels of background between groups, and between the planes of one group.

    Returns
    -------
    ndarray of uint8, shape (rows, h · zoom, width)
        One strip of pixels for each row of groups. Places left over are background.

    Examples
    --------
    >>> tile_rows(np.ones((2, 1, 1, 1), np.uint8), columns=2, zoom=2, gap=1)[0, 0].tolist()
    [1, 1, 228, 1, 1]
    """
    count, inner, h, w = tiles.shape
    rows = -(-count // columns)
    pitch = inner * (w * zoom + inner_gap) - inner_gap + gap
    out = np.full((rows, h, columns * pitch), BACKGROUND, np.uint8)
    places = out.reshape(rows, h, columns, pitch)
    wide = tiles.repeat(zoom, axis=3) if zoom > 1 else tiles
    whole, rest = divmod(count, columns)
    for plane in range(inner):
        x = plane * (w * zoom + inner_gap)
        strip = wide[:, plane]
        full = strip[: whole * columns].reshape(whole, columns, h, w * zoom)
        places[:whole, :, :, x : x + w * zoom] = full.transpose(0, 2, 1, 3)
        if rest:
            last = strip[whole * columns :].transpose(1, 0, 2)
            places[whole, :, :rest, x : x + w * zoom] = last
    return out[:, :, : columns * pitch - gap].repeat(zoom, axis=1)


def mosaic_of(
    planes: npt.NDArray[np.floating[Any]], *, columns: int | None, padding: int
) -> npt.NDArray[np.float32]:
    """Put planes side by side as values, with NaN between them."""
    count, h, w = planes.shape
    if padding < 0:
        raise SpecError(f"padding is {padding}; it must be 0 or more pixels")
    if columns is not None and columns < 1:
        raise SpecError(f"columns is {columns}; it must be 1 or more")
    across = columns or shape_of_grid(count, h / w)[1]
    rows = -(-count // across)
    out = np.full((rows * (h + padding), across * (w + padding)), np.nan, np.float32)
    for i, plane in enumerate(planes):
        y, x = i // across * (h + padding), i % across * (w + padding)
        out[y : y + h, x : x + w] = plane
    return out[: rows * (h + padding) - padding, : across * (w + padding) - padding]
