"""Bits: the only place that bins floats by their bits, and turns such counts into anything else.

The top twelve bits of a float32 (sign, exponent, three bits of mantissa) number 4,096 bins. They
need no range, so one pass suffices and counts add up over blocks, steps, ranks and runs. Bins
ascend with the value; −0 and +0 have bins 2047 and 2048, infinities and NaN have their own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 4096
_SHIFT, _HALF = 20, 2048
_INFINITE = 0x7F8  # sign-less code of infinity; the codes above it are NaN
_CANONICAL_NAN = np.uint32(0x7FC00000)
_PIECE = 1 << 16  # values at a time, so that what is derived from them stays in the cache

Counts = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]


def bit_histogram(values: npt.ArrayLike) -> Counts:
    """Count values by the bits of their float32.

    Parameters
    ----------
    values : array_like
        Real numbers of any shape and dtype. They are cast to float32; finite values that overflow
        count in the last finite bin.

    Returns
    -------
    ndarray of uint64, shape (4096,)
        Counts, ascending with the value.

    Raises
    ------
    TypeError
        If the values are complex or not numbers.

    Examples
    --------
    >>> counts = bit_histogram([0.0, 1.0, 1.01, np.nan])
    >>> counts[2048], counts.max(), counts.sum()
    (np.uint64(1), np.uint64(2), np.uint64(4))
    """
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"a bit histogram needs real numbers; got {array.dtype}")
    flat = array.reshape(-1)
    raw = np.zeros(BINS, np.int64)
    for start in range(0, flat.size, _PIECE):
        raw += _counted(_single(flat[start : start + _PIECE]))
    return ascending(raw)


def _single(piece: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Cast to float32; finite values that overflow become the largest finite ones."""
    if piece.dtype == np.float32:
        return np.ascontiguousarray(piece)
    with np.errstate(over="ignore"):
        single = piece.astype(np.float32)
    overflown = np.isinf(single) & np.isfinite(piece)
    if overflown.any():
        largest = np.finfo(np.float32).max
        single[overflown] = np.copysign(largest, single[overflown])
    return single


def _counted(single: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Count values by bit pattern."""
    bits = single.view(np.uint32)
    raw = np.bincount(bits >> _SHIFT, minlength=BINS)
    if raw.reshape(2, _HALF)[:, _INFINITE:].any():  # a NaN must not pass for an infinity
        bits = np.where(np.isnan(single), _CANONICAL_NAN, bits)
        raw = np.bincount(bits >> _SHIFT, minlength=BINS)
    return raw


def ascending(raw: npt.NDArray[Any]) -> Counts:
    """Return counts by bit pattern (sign bit first) in ascending order of the value.

    Parameters
    ----------
    raw : ndarray of int, shape (..., 4096)
        Counts by ``bits >> 20``.

    Returns
    -------
    ndarray of uint64, shape (..., 4096)
        Counts in the order of the store.

    Examples
    --------
    >>> raw = np.zeros(4096, np.int64)
    >>> raw[0x800] = 3  # −0
    >>> int(ascending(raw)[2047])
    3
    """
    positive, negative = raw[..., :_HALF], raw[..., _HALF:]
    return np.concatenate([negative[..., ::-1], positive], axis=-1).astype(np.uint64)


@cache
def bin_edges() -> Floats:
    """Return the values at which finite bins begin and end.

    Returns
    -------
    ndarray of float64, shape (4081,)
        Edge i is the lower edge of bin ``8 + i`` and the upper edge of bin ``7 + i``: the finite
        bins are 8 to 4087, between −2^128 and 2^128.

    Examples
    --------
    >>> edges = bin_edges()
    >>> float(edges[2040]), float(edges[-1]) == 2.0**128
    (0.0, True)
    """
    codes = np.arange(_INFINITE, dtype=np.uint32) << _SHIFT
    positive = np.append(codes.view(np.float32).astype(np.float64), 2.0**128)
    edges = np.concatenate([-positive[:0:-1], positive])
    edges.setflags(write=False)
    return edges


_ZERO = _INFINITE  # among the finite bins
FINITE = slice(_HALF - _INFINITE, _HALF + _INFINITE)
"""The bins of finite values."""


def non_finite(counts: Counts) -> tuple[int, int, int]:
    """Return how many values were NaN, +infinity and −infinity.

    Examples
    --------
    >>> non_finite(bit_histogram([np.inf, -np.inf, np.inf, 1.0, np.nan]))
    (1, 2, 1)
    """
    positive = int(counts[..., _HALF + _INFINITE].sum())
    negative = int(counts[..., _HALF - 1 - _INFINITE].sum())
    everything = int(counts.sum())
    finite = int(counts[..., FINITE].sum())
    return everything - finite - positive - negative, positive, negative


def rebin(
    counts: npt.NDArray[Any],
    edges: npt.ArrayLike,
    minimum: npt.ArrayLike | None = None,
    maximum: npt.ArrayLike | None = None,
) -> Floats:
    """Turn bit counts into a histogram with any edges.

    The cumulative count is interpolated linearly at the wanted edges; the outermost occupied bins
    are clipped to the exact extremes, so that nothing leaks past them. Values that are not finite
    are left out.

    Parameters
    ----------
    counts : ndarray of int, shape (4096,) or (n, 4096)
        Bit counts.
    edges : array_like of float, shape (m + 1,)
        Wanted edges, ascending. The last bin includes its upper edge.
    minimum, maximum : array_like of float, shape () or (n,), optional
        Exact extremes of the finite values.

    Returns
    -------
    ndarray of float64, shape (m,) or (n, m)
        Counts; fractions of a count appear where an edge cuts a bin.

    Raises
    ------
    ValueError
        If the edges do not ascend.

    Examples
    --------
    >>> rebin(bit_histogram([0.25, 0.5, 3.0]), [0, 1, 4], 0.25, 3.0)
    array([2., 1.])
    """
    wanted = np.asarray(edges, np.float64)
    if wanted.ndim != 1 or wanted.size < 2 or not (np.diff(wanted) > 0).all():
        raise ValueError(f"edges must ascend and be two or more; got {edges!r}")
    rows = np.atleast_2d(counts)
    lows = np.broadcast_to(np.nan if minimum is None else minimum, len(rows))
    highs = np.broadcast_to(np.nan if maximum is None else maximum, len(rows))
    result = np.zeros((len(rows), wanted.size - 1))
    for row, low, high, target in zip(rows, lows, highs, result, strict=True):
        curve = _cumulative(row, float(low), float(high))
        if curve is not None:
            at, total = curve
            reached = np.interp(wanted, at, total, left=0.0, right=total[-1])
            if wanted[0] <= low:
                reached[0] = 0.0
            if wanted[-1] >= (at[-1] if np.isnan(high) else high):  # the last bin is closed
                reached[-1] = total[-1]
            target[:] = np.diff(reached)
    return result[0] if np.ndim(counts) == 1 else result


def _cumulative(row: npt.NDArray[Any], low: float, high: float) -> tuple[Floats, Floats] | None:
    """Return positions and the count of values at or below them, None when nothing is finite."""
    finite = row[FINITE].astype(np.float64)
    finite[_ZERO] += finite[_ZERO - 1]  # −0 equals 0, and what equals an edge is on its right
    finite[_ZERO - 1] = 0.0
    occupied = np.flatnonzero(finite)
    if occupied.size == 0:
        return None
    first, last = int(occupied[0]), int(occupied[-1])
    at = bin_edges()[first : last + 2].copy()
    total = np.concatenate([[0.0], np.cumsum(finite[first : last + 1])])
    # A bin without width is a step: it gets a width that no edge can fall into.
    if not np.isnan(low):
        if low < at[1]:
            at[0] = low
        else:  # all of it lies on the bin's upper edge
            at[0], at[1] = low, np.nextafter(low, np.inf)
    if not np.isnan(high):
        at[-1] = high if high > at[-2] else np.nextafter(at[-2], np.inf)
    return at, total


def quantiles(
    counts: npt.NDArray[Any],
    q: npt.ArrayLike,
    minimum: npt.ArrayLike | None = None,
    maximum: npt.ArrayLike | None = None,
) -> Floats:
    """Return quantiles of the finite values behind bit counts.

    Parameters
    ----------
    counts : ndarray of int, shape (4096,) or (n, 4096)
        Bit counts.
    q : array_like of float, shape (k,)
        Quantiles between 0 and 1.
    minimum, maximum : array_like of float, shape () or (n,), optional
        Exact extremes of the finite values.

    Returns
    -------
    ndarray of float64, shape (k,) or (n, k)
        Values; NaN where nothing is finite.

    Raises
    ------
    ValueError
        If a quantile is outside 0 to 1.

    Examples
    --------
    >>> quantiles(bit_histogram(np.arange(1001)), [0.0, 1.0], 0, 1000)
    array([   0., 1000.])
    """
    wanted = np.atleast_1d(np.asarray(q, np.float64))
    if ((wanted < 0) | (wanted > 1)).any():
        raise ValueError(f"quantiles lie between 0 and 1; got {q!r}")
    rows = np.atleast_2d(counts)
    lows = np.broadcast_to(np.nan if minimum is None else minimum, len(rows))
    highs = np.broadcast_to(np.nan if maximum is None else maximum, len(rows))
    result = np.full((len(rows), wanted.size), np.nan)
    for row, low, high, target in zip(rows, lows, highs, result, strict=True):
        curve = _cumulative(row, float(low), float(high))
        if curve is not None:
            at, total = curve
            rising = np.append(True, np.diff(total) > 0)
            rising[:-1] |= rising[1:]  # keep both ends of a bin that holds something
            found = np.interp(wanted * total[-1], total[rising], at[rising])
            target[:] = np.fmax(np.fmin(found, high), low)
    return result[0] if np.ndim(counts) == 1 else result
