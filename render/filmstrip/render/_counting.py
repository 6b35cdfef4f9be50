"""Counting: the only place that counts the values of frames whose bits were not stored."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from filmstrip.render._density import ZERO_BINS, Counts
from filmstrip.render._picks import evenly
from filmstrip.store import STATISTICS, bin_edges, bit_histogram, summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

__all__ = ["counts_of_frames", "limit_steps", "within"]

_Ends: TypeAlias = tuple[float, float]

_READERS: Final = 3
MOST_STEPS: Final = {"single": 1, "overlay": 8, "ridge": 30, "heatmap": 400, "distribution": 2000}


def within(extremes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Extremes within float32, of whose bits counts are: what lies beyond is in the last bins."""
    return np.clip(extremes, bin_edges()[0], bin_edges()[-1])


def limit_steps(chosen: Sequence[int], view: str) -> list[int]:
    """Thin steps out evenly to as many as a view can show; ``single`` shows the last."""
    if view == "single":
        return [chosen[-1]]
    return [chosen[i] for i in evenly(len(chosen), MOST_STEPS[view])]


def counts_of_frames(
    read: Callable[[int], npt.NDArray[Any]], steps: Sequence[int], *, available: int
) -> Counts:
    """Count the bits of frames, of which four are in memory at a time.

    Three threads read ahead while another counts, which numpy's ``bincount`` lets only one do.

    Parameters
    ----------
    read : callable
        Returns the frame of a step; called by several threads.
    steps : sequence of int
    available : int
        Steps that there are, of which these were chosen.
    """

    def look(step: int) -> tuple[npt.NDArray[Any], _Ends]:
        frame = read(step)
        real = np.abs(frame) if np.iscomplexobj(frame) else frame
        return real, _ends(real)

    bits: list[npt.NDArray[np.uint64]] = []
    ends: list[_Ends] = []
    zeros: list[int] = []
    with ThreadPoolExecutor(_READERS) as readers:
        left = iter(steps)
        ahead = deque(readers.submit(look, step) for step in islice(left, _READERS))
        while ahead:
            values, found = ahead.popleft().result()
            ahead.extend(readers.submit(look, step) for step in islice(left, 1))
            bits.append(bit_histogram(values))
            ends.append(found)
            zeros.append(int(np.count_nonzero(values == 0)) if bits[-1][ZERO_BINS].any() else 0)
    low, high = np.array(ends).T
    return Counts(
        steps=np.asarray(steps, np.int64),
        bits=np.stack(bits),
        minimum=within(low),
        maximum=within(high),
        zeros=np.asarray(zeros, np.int64),
        available=available,
        stored=False,
    )


def _ends(values: npt.NDArray[Any]) -> _Ends:
    """Smallest and largest finite value."""
    if values.size:
        low, high = float(values.min()), float(values.max())
        if math.isfinite(low) and math.isfinite(high):
            return low, high
    known = dict(zip(STATISTICS, summarize(values).tolist(), strict=True))
    return known["min"], known["max"]
