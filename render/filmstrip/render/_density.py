"""Density: the only place that makes a drawable histogram out of bit counts. Pure numpy.

A float's top bits make eight bins an octave. Re-binned linearly, their steps show as terraces
that are not in the data. The cumulative count is therefore interpolated by a monotone cubic: it
passes through every stored count, never falls, and has a continuous density. Its slopes are
log-linear between neighbouring densities, limited to three times the lower one (Fritsch and
Carlson 1980, https://doi.org/10.1137/0717021). Exact zeros are a point mass, kept apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from filmstrip.store import BINS, bin_edges

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["ZERO_BINS", "Counts", "density_counts", "edges_between", "monotone", "nonfinite_words"]

_BESIDE: Final = (BINS - (len(bin_edges()) - 1)) // 2  # bins for NaN and infinity, each side
_FINITE: Final = slice(_BESIDE, BINS - _BESIDE)
ZERO_BINS: Final = slice(2047, 2049)  # of −0 and +0
_LEAST: Final = 2.0**-20
_NARROWEST: Final = 1e-44  # about the least float32; nothing less can be told apart
_TINY: Final = 1e-42  # far less than the first bin beside zero


@dataclass(frozen=True, slots=True)
class Counts:
    """What is known about the values of one layer at several steps.

    Attributes
    ----------
    steps : ndarray of int64, shape (n,)
    bits : ndarray, shape (n, 4096)
        Ascending bit counts.
    minimum, maximum : ndarray of float64, shape (n,)
        Exact, of finite values; NaN where there are none.
    zeros : ndarray of int64, shape (n,)
        Values that are exactly zero.
    available : int
        Steps that there are, of which these were chosen.
    stored : bool
        Whether the counts were stored, rather than made from frames: they then are of the
        whole tensor, not of the samples that were kept.
    """

    steps: npt.NDArray[np.int64]
    bits: npt.NDArray[Any]
    minimum: npt.NDArray[np.float64]
    maximum: npt.NDArray[np.float64]
    zeros: npt.NDArray[np.int64]
    available: int
    stored: bool

    @property
    def finite(self) -> npt.NDArray[np.float64]:
        """Number of finite values of each step."""
        return np.asarray(self.bits[:, _FINITE].sum(axis=1), np.float64)

    @property
    def others(self) -> tuple[int, int, int]:
        """How many values were NaN, +infinity and −infinity, over all steps."""
        positive = int(self.bits[:, _FINITE.stop].sum())
        negative = int(self.bits[:, _FINITE.start - 1].sum())
        everything, finite = int(self.bits.sum()), int(self.finite.sum())
        return everything - finite - positive - negative, positive, negative

    @property
    def nonfinite(self) -> tuple[str, int] | None:
        """What of the values is no number, and the first step at which some are not."""
        bad = np.flatnonzero(self.bits.sum(axis=1) > self.finite)
        if not bad.size:
            return None
        nan, positive, negative = self.others
        return nonfinite_words(nan, positive + negative), int(self.steps[bad[0]])

    @property
    def zero_share(self) -> float:
        """Share of finite values that are exactly zero, at the step that has most of them."""
        finite = np.maximum(self.finite, 1)
        return float((self.zeros / finite).max()) if len(self.steps) else 0.0


def nonfinite_words(nan: int, infinite: int) -> str:
    """Name what is no number.

    Examples
    --------
    >>> nonfinite_words(3, 0), nonfinite_words(1, 2)
    ('NaN', 'NaN and infinities')
    """
    return " and ".join(["NaN"] * bool(nan) + ["infinities"] * bool(infinite))


def edges_between(low: float, high: float, bins: int, scale: str) -> npt.NDArray[np.float64]:
    """Edges of equal width, or of equal width under asinh.

    Parameters
    ----------
    low, high : float
        Ends.
    bins : int
        Number of bins.
    scale : {"linear", "symlog", "tensorboard"}
        ``symlog``: linear around zero, logarithmic beyond a thousandth of the larger end.
        ``tensorboard``: each edge a tenth farther from zero than the last, whatever ``bins``;
        what is less than a millionth of the larger end shares a bin.

    Examples
    --------
    >>> edges_between(0.0, 1.0, 4, "linear").tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if high - low < _NARROWEST:
        margin = abs(low) / 2 if abs(low) > _NARROWEST else 0.5
        low, high = low - margin, high + margin
    # Values that differ in their last digits only: the edges between them must differ, too.
    least = 8 * bins * float(np.spacing(max(abs(low), abs(high))))
    if high - low < least:
        middle = low + (high - low) / 2
        low, high = middle - least / 2, middle + least / 2
    if scale == "tensorboard":
        return _tensorboard(low, high)
    if scale == "linear":
        return np.linspace(low, high, bins + 1)
    linear = max(abs(low), abs(high)) / 1000
    first, last = float(np.arcsinh(low / linear)), float(np.arcsinh(high / linear))
    edges = np.asarray(np.sinh(np.linspace(first, last, bins + 1)) * linear, np.float64)
    edges[0], edges[-1] = low, high
    return edges


def _tensorboard(low: float, high: float) -> npt.NDArray[np.float64]:
    """Edges of TensorBoard's histograms, 1e-12 times powers of 1.1, between two ends."""
    limit = max(abs(low), abs(high)) / 1e-12
    last = math.ceil(math.log(limit, 1.1))
    powers = 1e-12 * 1.1 ** np.arange(last - 145, last, dtype=np.float64)
    edges = np.concatenate([-powers[::-1], powers])
    inside = edges[(edges > low) & (edges < high)]
    return np.concatenate([[low], inside, [high]])


def density_counts(
    counts: Counts, edges: npt.NDArray[np.float64], *, zeros: bool
) -> npt.NDArray[np.float64]:
    """Count the finite values between edges, for each step.

    Parameters
    ----------
    counts : Counts
    edges : ndarray of float64, shape (m + 1,)
        Ascending.
    zeros : bool
        Whether exact zeros are counted; they stand in one bin then.

    Returns
    -------
    ndarray of float64, shape (n, m)
        Rows sum to the number of finite values between the outer edges.
    """
    out = np.empty((len(counts.steps), len(edges) - 1))
    at_zero = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, len(edges) - 2))
    holds_zero = edges[0] <= 0.0 <= edges[-1]
    for row in range(len(counts.steps)):
        bits = counts.bits[row].astype(np.float64)
        exact = float(counts.zeros[row])
        # Zeros sit in the bins of -0 and +0, beside denormals that are kept.
        for one in (ZERO_BINS.start, ZERO_BINS.stop - 1):
            gone = min(bits[one], exact)
            bits[one] -= gone
            exact -= gone
        total = monotone(bits, counts.minimum[row], counts.maximum[row], edges)
        out[row] = np.diff(total)
        if zeros and holds_zero:
            out[row, at_zero] += float(counts.zeros[row]) - exact
    return out


def monotone(
    bits: npt.NDArray[np.float64],
    minimum: float,
    maximum: float,
    at: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Interpolate how many values are at most ``at``.

    Parameters
    ----------
    bits : ndarray, shape (4096,)
        Ascending bit counts.
    minimum, maximum : float
        Exact ends of the finite values.
    at : ndarray of float64, shape (m,)
        Ascending.

    Returns
    -------
    ndarray of float64, shape (m,)
        From 0 to the number of finite values, never falling.

    Examples
    --------
    >>> from filmstrip.store import bit_histogram
    >>> bits = bit_histogram(np.linspace(1, 2, 1000)).astype(float)
    >>> monotone(bits, 1.0, 2.0, np.array([0.0, 1.5, 9.0])).round().tolist()
    [0.0, 500.0, 1000.0]
    """
    finite = bits[_FINITE]
    occupied = np.flatnonzero(finite)
    if not occupied.size:
        return np.zeros(len(at))
    if minimum == maximum:
        # A point mass: right of an inner edge, but within a range that ends with it.
        passed = (at > minimum) | (np.arange(len(at)) == len(at) - 1) & (at == minimum)
        return np.asarray(finite.sum() * passed, np.float64)
    first, last = int(occupied[0]), int(occupied[-1])
    x = bin_edges()[first : last + 2].astype(np.float64)
    y = np.concatenate([[0.0], np.cumsum(finite[first : last + 1])])
    # The outermost bins end where the values do, or counts leak past the ends.
    # A bin of which all values are its border keeps a little width, for the slopes' sake.
    if np.isfinite(minimum):
        x[0] = np.clip(minimum, x[0], x[1] - max(abs(x[1]) * _LEAST, _TINY))
    if np.isfinite(maximum):
        x[-1] = np.clip(maximum, x[-2] + max(abs(x[-2]) * _LEAST, _TINY), x[-1])
    h, d = np.diff(x), np.diff(y) / np.diff(x)
    slope = np.empty_like(x)
    if len(d) == 1:
        slope[:] = d[0]
    else:
        left, right = d[:-1], d[1:]
        both = (left > 0) & (right > 0)
        # Tails fall by factors: interpolate the logarithm between the middles of both bins.
        nearer = h[1:] / (h[1:] + h[:-1])
        log_left, log_right = (np.log(np.where(both, v, 1.0)) for v in (left, right))
        between = np.exp(nearer * log_left + (1 - nearer) * log_right)
        slope[1:-1] = np.where(both, np.minimum(between, 3 * np.minimum(left, right)), 0.0)
        # One-sided at the ends: no steeper than three secants keeps it monotone.
        slope[0] = np.clip(((2 * h[0] + h[1]) * d[0] - h[0] * d[1]) / (h[0] + h[1]), 0, 3 * d[0])
        slope[-1] = np.clip(
            ((2 * h[-1] + h[-2]) * d[-1] - h[-1] * d[-2]) / (h[-1] + h[-2]), 0, 3 * d[-1]
        )
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(d) - 1)
    t = np.clip((at - x[i]) / h[i], 0.0, 1.0)
    u = 1 - t
    inside = (
        y[i] * (1 + 2 * t) * u * u
        + h[i] * slope[i] * t * u * u
        + y[i + 1] * t * t * (3 - 2 * t)
        - h[i] * slope[i + 1] * t * t * u
    )
    inside[at <= minimum], inside[at >= maximum] = 0.0, y[-1]
    return np.maximum.accumulate(np.clip(inside, 0.0, y[-1]))
