"""Summaries: the only place that names the statistics of a tensor and derives others from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

STATISTICS = ("count", "nan", "posinf", "neginf", "zeros", "min", "max", "sum", "sumsq")
"""What is stored of every tensor; the last four are of its finite values."""

Floats = npt.NDArray[np.float64]


def summarize(values: npt.ArrayLike) -> Floats:
    """Return the statistics of a tensor.

    Parameters
    ----------
    values : array_like
        Real numbers of any shape and dtype.

    Returns
    -------
    ndarray of float64, shape (9,)
        In the order of `STATISTICS`; sums in float64; extremes are NaN when nothing is finite.

    Examples
    --------
    >>> dict(zip(STATISTICS, summarize([0.0, 3.0, -4.0, np.nan]).tolist()))["sumsq"]
    25.0
    """
    array = np.asarray(values).reshape(-1)
    finite = array.astype(np.float64, copy=False)
    nan = posinf = neginf = 0
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        nan = int(np.isnan(array).sum())
        posinf = int((array == np.inf).sum())
        neginf = int((array == -np.inf).sum())
        finite = finite[np.isfinite(finite)]
    low, high = (finite.min(), finite.max()) if finite.size else (np.nan, np.nan)
    zeros = finite.size - np.count_nonzero(finite)
    with np.errstate(over="ignore"):
        total, squares = finite.sum(), np.dot(finite, finite)
    return np.array([array.size, nan, posinf, neginf, zeros, low, high, total, squares], np.float64)


def merge(parts: npt.NDArray[Any]) -> Floats:
    """Return the statistics of a tensor from those of its parts.

    Parameters
    ----------
    parts : ndarray of float64, shape (n_parts, ..., 9)
        In the order of `STATISTICS`.

    Returns
    -------
    ndarray of float64, shape (..., 9)
        Counts and sums added, extremes of all.

    Examples
    --------
    >>> parts = np.stack([summarize([1.0, 2.0]), summarize([np.inf])])
    >>> merge(parts).tolist()
    [3.0, 0.0, 1.0, 0.0, 0.0, 1.0, 2.0, 3.0, 5.0]
    """
    if len(parts) == 1:
        return np.asarray(parts[0], np.float64)
    merged = np.sum(parts, axis=0)
    low, high = STATISTICS.index("min"), STATISTICS.index("max")
    merged[..., low] = np.fmin.reduce(parts[..., low])
    merged[..., high] = np.fmax.reduce(parts[..., high])
    return np.asarray(merged, np.float64)


def merge_extremes(lows: npt.NDArray[Any], highs: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the least and the largest of values that may be NaN, NaN when all are."""
    if not lows.size:
        return np.nan, np.nan
    return float(np.fmin.reduce(lows)), float(np.fmax.reduce(highs))


def _finite(v: dict[str, Floats]) -> Floats:
    return v["count"] - v["nan"] - v["posinf"] - v["neginf"]


def _mean(v: dict[str, Floats]) -> Floats:
    return v["sum"] / _finite(v)


DERIVED: dict[str, Callable[[dict[str, Floats]], Floats]] = {
    "mean": _mean,
    "std": lambda v: np.sqrt(np.maximum(v["sumsq"] / _finite(v) - _mean(v) ** 2, 0.0)),
    "l2": lambda v: np.sqrt(v["sumsq"]),
    "rms": lambda v: np.sqrt(v["sumsq"] / _finite(v)),
    "dead": lambda v: v["zeros"] / _finite(v),
}
"""Statistics computed from the stored ones; std is the population's, dead the share of zeros."""


def derive(values: npt.NDArray[Any], name: str) -> Floats:
    """Return one statistic, stored or derived, of many tensors.

    Parameters
    ----------
    values : ndarray of float64, shape (..., 9)
        Stored statistics.
    name : str
        One of `STATISTICS` or `DERIVED`.

    Returns
    -------
    ndarray of float64, shape (...)
        The statistic; NaN where no value is finite.

    Raises
    ------
    KeyError
        If there is no such statistic.

    Examples
    --------
    >>> float(derive(summarize([1.0, 3.0]), "std"))
    1.0
    """
    if name in STATISTICS:
        return np.asarray(values[..., STATISTICS.index(name)], np.float64)
    named = {key: values[..., position] for position, key in enumerate(STATISTICS)}
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(DERIVED[name](named), np.float64)
