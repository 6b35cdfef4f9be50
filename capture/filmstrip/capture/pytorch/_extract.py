"""Extraction: the only place that reduces a tensor of the host to statistics and a bit histogram.

A tensor is read in pieces that stay in the cache, as none of its reductions does alone what all of
them need. What is not finite is rare and told by the histogram: only then are values masked.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from filmstrip.capture.pytorch._sparse import add_zeros, entries

BINS = 4096
_PIECE = 1 << 17
_SMALL = 1 << 13  # values up to which NumPy, whose calls are shorter, costs less than torch
SHIFT = 20
INFINITE = 0x7F8  # sign-less code of infinity; the codes above it are NaN
NEGATIVE = 0x800  # code of −0, and the first with the sign
NAN = 0x7FC  # the canonical NaN
WITHIN_FLOAT32 = frozenset({torch.float32, torch.float16, torch.bfloat16})
_COMPARABLE = WITHIN_FLOAT32 | {torch.float64}  # torch has aminmax for these
_LARGEST = torch.finfo(torch.float32).max

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class Extractor:
    """Reduces tensors, one at a time, with memory that it allocates once.

    A temporary array of a megabyte is given back to the system when it is freed, and its pages cost
    ten times more to get again than it costs to fill them.

    Examples
    --------
    >>> values, counts = np.empty(9), np.empty(4096, np.int64)
    >>> Extractor().extract(torch.tensor([0.0, 3.0, -4.0, torch.inf]), values, counts)
    >>> values.tolist()
    [4.0, 0.0, 1.0, 0.0, 1.0, -4.0, 3.0, -1.0, 25.0]
    """

    def __init__(self) -> None:
        with torch.inference_mode(False):  # or they could be written in that mode only
            self._codes = torch.empty(_PIECE, dtype=torch.int32, device="cpu")
            self._double = torch.empty(_PIECE, dtype=torch.float64, device="cpu")

    def extract(self, tensor: torch.Tensor, values: Floats, counts: Counts | None) -> None:
        """Write the statistics of a tensor, and its histogram by bit pattern, into host arrays.

        Parameters
        ----------
        tensor : torch.Tensor
            Detached, of any shape, dtype and device, dense or sparse with one entry a place; of
            complex numbers, which have no order, the parts. It is read, not changed, and not kept.
        values : ndarray of float64, shape (9,)
            Receives count, nan, posinf, neginf, zeros, min, max, sum, sumsq; the last four of
            finite values, added up in float64.
        counts : ndarray of int64, shape (4096,) or None
            Receives how many values have each ``bits >> 20`` as float32.
        """
        held, absent = entries(tensor if tensor.device.type == "cpu" else tensor.cpu())
        flat = flatten(held)
        pieces = (flat,) if flat.numel() <= _PIECE else torch.split(flat, _PIECE)
        (bins, low, high, zeros, total, squares), *others = map(self._piece, pieces)
        for more_bins, smallest, largest, more_zeros, more, more_squares in others:
            bins += more_bins
            low, high = np.fmin(low, smallest), np.fmax(high, largest)
            zeros, total, squares = zeros + more_zeros, total + more, squares + more_squares
        nan = bins[NAN] + bins[NEGATIVE + NAN]
        infinite = bins[INFINITE], bins[NEGATIVE + INFINITE]
        values[:] = (flat.numel(), nan, *infinite, zeros, low, high, total, squares)
        if counts is not None:
            counts[:] = bins
        if absent:
            both = (values,) if counts is None else (values, counts)
            add_zeros(absent, *map(torch.from_numpy, both))

    def _piece(self, piece: torch.Tensor) -> tuple[Counts, float, float, int, float, float]:
        """Return a piece's histogram, min, max, zeros, sum and sum of squares."""
        single, double = single_of(piece), self._double[: piece.numel()].copy_(piece)
        bins = self._bins(single)
        # Only the bins of the smallest values can hold a zero; counting is skipped when they are
        # empty.
        zeros = 0
        if bins[0] or bins[NEGATIVE]:
            exact = single if piece.dtype in WITHIN_FLOAT32 else double
            zeros = int(np.count_nonzero(exact.numpy() == 0.0))
        if bins[INFINITE:NEGATIVE].any() or bins[NEGATIVE + INFINITE :].any():
            _canonical(bins, single)
            piece = double = double[torch.isfinite(piece)]
        if not double.numel():
            return bins, np.nan, np.nan, 0, 0.0, 0.0
        if double.numel() <= _SMALL:
            numbers = double.numpy()
            low, high, both = numbers.min(), numbers.max(), np.dot(numbers, numbers)
            return bins, float(low), float(high), zeros, float(numbers.sum()), float(both)
        smallest, largest = torch.aminmax(piece if piece.dtype in _COMPARABLE else double)
        total, squares = double.sum(), torch.dot(double, double)
        return bins, float(smallest), float(largest), zeros, float(total), float(squares)

    def _bins(self, single: torch.Tensor) -> Counts:
        """Return the histogram by bit pattern, every NaN in the bins of its own bits."""
        if single.numel() <= _SMALL:
            return np.bincount(single.numpy().view(np.uint32) >> SHIFT, minlength=BINS)
        codes = self._codes[: single.numel()]
        torch.bitwise_right_shift(single.view(torch.int32), SHIFT, out=codes)
        counts: Counts = torch.bincount(codes.bitwise_and_(BINS - 1), minlength=BINS).numpy()
        return counts


def flatten(tensor: torch.Tensor) -> torch.Tensor:
    """Return all values in memory order, without a copy where memory is dense."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    tensor = tensor.resolve_neg()
    if not tensor.is_contiguous():
        order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
        tensor = tensor.permute(order)
    return tensor.reshape(-1)


def single_of(piece: torch.Tensor) -> torch.Tensor:
    """Cast to float32; finite values that overflow become the largest finite ones."""
    if piece.dtype == torch.float32:
        return piece
    single = piece.float()
    if piece.dtype == torch.float64:
        overflown = torch.isinf(single) & torch.isfinite(piece)
        single = torch.where(overflown, single.sign() * _LARGEST, single)
    return single


def _canonical(bins: Counts, single: torch.Tensor) -> None:
    """Count every NaN as the canonical one, whatever its bits; it must not pass for an infinity."""
    bins[INFINITE:NEGATIVE] = bins[NEGATIVE + INFINITE :] = 0
    bins[NAN] = int(torch.isnan(single).sum())
    bins[INFINITE] = int((single == torch.inf).sum())
    bins[NEGATIVE + INFINITE] = int((single == -torch.inf).sum())
