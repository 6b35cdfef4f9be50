"""Numbers: the only place of ingest that describes a weight: its statistics, its histogram."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from filmstrip.store._bits import bit_histogram
from filmstrip.store._summary import merge, summarize

_PIECE = 1 << 20  # values at a time, since float64 copies of them are made


def described(
    array: npt.NDArray[Any],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint64]]:
    """Return the statistics and the bit histogram of a weight; of complex numbers, of their parts.

    Parameters
    ----------
    array : ndarray, C-contiguous
        In its stored dtype.

    Returns
    -------
    tuple of ndarray of float64, shape (9,), and ndarray of uint64, shape (4096,)
        In the order of the store.

    Examples
    --------
    >>> values, counts = described(np.array([[0.0, 3.0], [-4.0, np.inf]], np.float32))
    >>> values.tolist(), int(counts.sum())
    ([4.0, 0.0, 1.0, 0.0, 1.0, -4.0, 3.0, -1.0, 25.0], 4)
    """
    flat = array.reshape(-1)
    if flat.dtype.kind == "c":
        flat = flat.view(flat.real.dtype)
    pieces = [flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE)] or [flat]
    return merge(np.stack([summarize(piece) for piece in pieces])), bit_histogram(flat)
