"""Scale: the only place that decides which values a colour map spans. Pure numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from filmstrip.render.errors import SpecError
from filmstrip.store import quantiles

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["SCALES", "Scale", "ScaleMode", "Spread", "choose_scale", "clipped_at", "ticks"]

ScaleMode: TypeAlias = Literal["shared", "each", "run"]
SCALES: Final = ("shared", "each", "run")
CLIP: Final = 0.999
_WHOLE_RUN: Final = "scale of the whole run"
_SAMPLED: Final = 0.99  # quantile, of every so many values
_EVERY: Final = 64
_PIECE: Final = 1 << 16  # values at a time, which stay in the cache
_TOO_FEW: Final = 10_000  # values; of fewer, the quantile would cut a handful of good ones
_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True, slots=True)
class Scale:
    """The range of a colour map, and whether values lie outside.

    Attributes
    ----------
    low, high : float
        Ends of the range; of the widest tile where every tile has its own.
    lows, highs : ndarray of float64, shape (group, 1, 1, 1), or None
        Ends for each group, with ``mode="each"``.
    mode : {"shared", "each", "run"}
    diverging : bool
        Whether zero is in the middle.
    below, above : bool
        Whether finite values lie under ``low`` or over ``high``.
    words : str
        The policy, for the subtitle.
    """

    low: float
    high: float
    lows: npt.NDArray[np.float64] | None
    highs: npt.NDArray[np.float64] | None
    mode: ScaleMode
    diverging: bool
    below: bool
    above: bool
    words: str


@dataclass(frozen=True, slots=True)
class Spread:
    """What is known of the values of all frames of an animation, before the first is drawn.

    Attributes
    ----------
    least, most : float
        Smallest and largest finite value; 0, 0 when there is none.
    clip : float
        Where signed values are clipped, as `choose_scale` does for one frame.
    bad : bool
        Whether some may be NaN or infinite.
    lows, highs : ndarray of float64, shape (group, 1, 1, 1), or None
        Smallest and largest of each group; needed with ``mode="each"``.
    """

    least: float
    most: float
    clip: float
    bad: bool
    lows: npt.NDArray[np.float64] | None = None
    highs: npt.NDArray[np.float64] | None = None


def choose_scale(
    values: npt.NDArray[np.floating[Any]],
    *,
    mode: ScaleMode = "shared",
    signed: bool | None = None,
    limits: tuple[float, float] | None = None,
    spread: Spread | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Scale:
    r"""Choose a range.

    Parameters
    ----------
    values : ndarray of float, shape (group, inner, row, column)
        NaN and infinities are left out of account.
    mode : {"shared", "each", "run"}
        One range for the picture, one for each group, or ``limits``.
    signed : bool or None
        Whether to centre at zero; None: when any value is negative.
    limits : (float, float) or None
        Smallest and largest finite value of the whole run.
    spread : Spread or None
        Of all frames of an animation, in place of what ``values`` have.
    vmin, vmax : float or None
        Fixed ends; both beat everything else.

    Returns
    -------
    Scale
        Signed values: ± the 99.9 % quantile of \|x\|. Others: from 0, or from the smallest
        value where all of them are large, to the largest.

    Raises
    ------
    SpecError
        If ``vmin`` is not below ``vmax``.

    Examples
    --------
    >>> scale = choose_scale(np.array([[[[-1.0, 3.0]]]]))
    >>> scale.low, scale.high, scale.diverging
    (-3.0, 3.0, True)
    """
    least, most = _extent(values) if spread is None else (spread.least, spread.most)
    diverging = least < 0 if signed is None else signed
    words = "shared scale" if spread is None else "one scale over all steps"
    lows = highs = None
    if mode == "run" and limits is not None:
        low, high = _span(*limits, diverging or limits[0] < 0)
        diverging = diverging or limits[0] < 0
        words = _WHOLE_RUN
    elif mode == "each":
        lows, highs = _spans_each(values, diverging, spread)
        low, high = float(lows.min()), float(highs.max())
        words = "each tile its own scale" + ", one over all steps" * (spread is not None)
    elif diverging:
        top = max(abs(least), abs(most))
        top = _clipped(values, top) if spread is None else spread.clip
        low, high = -top, top
    else:
        low, high = _span(least, most, False)
    if vmin is not None or vmax is not None:
        lows = highs = None
        mode = "shared" if mode == "each" else mode
        low, high = _fixed(low, high, vmin, vmax, diverging)
        # Without zero in the middle, the middle of two colours would say what is not so.
        diverging = diverging and low == -high
        words = f"scale {low:g} to {high:g}".replace("-", "−")
    elif diverging and mode == "shared" and high < max(abs(least), abs(most)):
        words = "scale ± q99.9 of |x|" + " over all steps" * (spread is not None)
    low, high = _widened(low, high, diverging)
    below, above = (False, False) if mode == "each" else (least < low, most > high)
    if words == _WHOLE_RUN and (below or above):
        words += " without outliers"
    return Scale(low, high, lows, highs, mode, diverging, below, above, words)


def _extent(values: npt.NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Smallest and largest finite value; 0, 0 when there is none."""
    low, high = float(values.min()), float(values.max())
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _span(low: float, high: float, diverging: bool) -> tuple[float, float]:
    if diverging:
        top = max(abs(low), abs(high))
        return -top, top
    if low < 0 or (low > 0 and low >= high / 2):
        return low, high
    return 0.0, high


def _fixed(
    low: float, high: float, vmin: float | None, vmax: float | None, diverging: bool
) -> tuple[float, float]:
    """Replace one end or both; a single one is mirrored where zero stays between the two."""
    if vmin is not None and vmax is not None:
        if not vmin < vmax:
            raise SpecError(f"vmin {vmin:g} must be below vmax {vmax:g}")
        return vmin, vmax
    if vmin is not None:
        high = -vmin if diverging and vmin < 0 else high
        return vmin, high if high > vmin else vmin + (abs(vmin) or 1.0)
    assert vmax is not None
    low = -vmax if diverging and vmax > 0 else low
    return low if low < vmax else vmax - (abs(vmax) or 1.0), vmax


def _widened(low: float, high: float, diverging: bool) -> tuple[float, float]:
    """Give a range without extent one, so that a constant has a colour and the bar ticks."""
    if low < high:
        return low, high
    if low == 0:
        return (-1.0, 1.0) if diverging else (0.0, 1.0)
    return low - abs(low) / 2, high + abs(high) / 2


def _clipped(values: npt.NDArray[np.floating[Any]], top: float) -> float:
    """99.9 % quantile of |x| over finite values, or the maximum of small arrays."""
    if values.size < _TOO_FEW:
        return top
    flat = values.ravel()
    # Only the largest are sorted: those above what a sample says few are above.
    sample = np.abs(flat[::_EVERY])
    sample = np.sort(sample[np.isfinite(sample)])
    few_above = sample[int(_SAMPLED * len(sample))] if len(sample) else -1.0
    count, kept = 0, []
    for start in range(0, flat.size, _PIECE):
        piece = np.abs(flat[start : start + _PIECE])
        if not math.isfinite(piece.max()):
            piece = piece[np.isfinite(piece)]
        count += piece.size
        kept.append(piece[piece > few_above])
    if not count:
        return _unless_sparse(0.0, top)
    last = count - min(count - 1, math.ceil(CLIP * count) - 1)  # counted from the largest
    largest = np.concatenate(kept)
    if last > largest.size:
        largest = np.abs(flat[np.isfinite(flat)])
    rank = largest.size - last
    return _unless_sparse(float(np.partition(largest, rank)[rank]), top)


def _unless_sparse(clip: float, top: float, share: float = 1e-3) -> float:
    # 99.9 % zeros would otherwise leave no range at all.
    return clip if clip > top * share else top


def clipped_at(
    bits: npt.NDArray[np.integer[Any]], top: float, size: int, *, share: float = 1e-3
) -> float:
    """Return where signed values are clipped, from bit counts of many frames.

    Parameters
    ----------
    bits : ndarray of int, shape (4096,)
        Counts, as `filmstrip.store.bit_histogram` has them.
    top : float
        Largest finite |x|.
    size : int
        Values of one frame.
    share : float
        Of ``top``. What is less tells of many zeros, and nothing is clipped then.
    """
    if size < _TOO_FEW or top == 0:
        return top
    half = len(bits) // 2
    folded = np.zeros_like(bits)
    folded[half:] = bits[half:] + bits[:half][::-1]
    return _unless_sparse(float(quantiles(folded, [CLIP], 0.0, top)[0]), top, share)


def extremes_each(
    values: npt.NDArray[np.floating[Any]],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Smallest and largest finite value of each group; inf, −inf where there is none."""
    axes = (1, 2, 3)
    finite = np.isfinite(values)
    low = np.where(finite, values, np.inf).min(axis=axes, keepdims=True).astype(np.float64)
    high = np.where(finite, values, -np.inf).max(axis=axes, keepdims=True).astype(np.float64)
    return low, high


def _spans_each(
    values: npt.NDArray[np.floating[Any]], diverging: bool, spread: Spread | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if spread is not None and spread.lows is not None and spread.highs is not None:
        low, high = spread.lows[: len(values)].copy(), spread.highs[: len(values)].copy()
    else:
        low, high = extremes_each(values)
    none = low > high
    low[none] = high[none] = 0.0
    if diverging:
        high = np.maximum(np.abs(low), np.abs(high))
        low = -high
    return low, high


def ticks(low: float, high: float, most: int = 8) -> tuple[list[tuple[float, str]], str]:
    """Choose round values between two ends, and how to write them.

    Parameters
    ----------
    low, high : float
        Ends of the axis.
    most : int
        At most so many ticks.

    Returns
    -------
    marks : list of (float, str)
        Position and label.
    unit : str
        ``"×10⁻⁵"`` when the labels leave a power of ten out, else empty.

    Examples
    --------
    >>> ticks(0.0, 1.9, 5)
    ([(0.0, '0.0'), (0.5, '0.5'), (1.0, '1.0'), (1.5, '1.5')], '')
    >>> [label for _, label in ticks(-0.042, 0.042, 3)[0]]
    ['−0.04', '−0.02', '0.00', '0.02', '0.04']
    >>> ticks(-2e-6, 2e-6, 5)[1]
    '×10⁻⁶'
    """
    top = max(abs(low), abs(high))
    if not (math.isfinite(top) and top > 1e-300 and high > low):
        return [(low, f"{low:g}")], ""
    power = math.floor(math.log10(top))
    power = power if power < -3 or power > 4 else 0
    # Scaled by a division: ten to a large negative power is no float, its inverse is.
    unit = 10.0 ** (abs(power))
    first, last = (low / unit, high / unit) if power > 0 else (low * unit, high * unit)
    if not (math.isfinite(first) and math.isfinite(last) and last > first):
        return [(low, f"{low:.3g}"), (high, f"{high:.3g}")], ""
    step = _round_step((last - first) / max(1, most - 1))
    start, end = math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9)
    if end - start < 2 <= most - 1:
        # One or two ticks do not make a scale; a few more than asked for do no harm.
        step = _round_step(step / 2.6)
        start, end = math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    places += not math.isclose(round(step, places), step, rel_tol=1e-6)
    marks = []
    for i in range(start, end + 1):
        at = i * step
        label = f"{at:.{min(places, 12)}f}".replace("-", "−")
        marks.append((at * unit if power > 0 else at / unit, label))
    return marks, f"×10{str(power).translate(_SUPERSCRIPTS)}" if power else ""


def _round_step(rough: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(magnitude * m for m in (1, 2, 2.5, 5, 10) if magnitude * m >= rough * (1 - 1e-9))
