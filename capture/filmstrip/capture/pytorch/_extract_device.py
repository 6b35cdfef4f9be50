"""Extraction on a device: the only place that reduces a tensor without ever waiting for it.

The host learns nothing on the way, so that what is rare is looked for every time, and every shape
is known beforehand. The results are tensors of the device. Counts are whole numbers, whose sums do
not depend on the order in which threads add them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from filmstrip.capture.pytorch._extract import (
    BINS,
    INFINITE,
    NAN,
    NEGATIVE,
    SHIFT,
    WITHIN_FLOAT32,
    flatten,
    single_of,
)
from filmstrip.capture.pytorch._sparse import add_zeros, entries

_PIECE = 1 << 20  # bounds temporary memory: up to 50 bytes for each value of a piece
_LANES = 32  # threads of a warp count apart, or they would wait for each other at a frequent bin


@dataclass(frozen=True, slots=True)
class _Constants:
    """What is the same for all tensors of a device."""

    lanes: torch.Tensor
    one: torch.Tensor


class DeviceExtractor:
    """Reduces tensors where they lie.

    Parameters
    ----------
    wide : torch.dtype, optional
        In which sums are added up and statistics are returned. None: float64, or float32 where the
        device has no float64 (MPS), which rounds counts above 2^24 and sums as pairwise summation
        does.

    Examples
    --------
    >>> values, counts = DeviceExtractor().extract(torch.tensor([0.0, 3.0, -4.0, torch.inf]))
    >>> values.tolist(), counts.sum()
    ([4.0, 0.0, 1.0, 0.0, 1.0, -4.0, 3.0, -1.0, 25.0], tensor(4))
    """

    def __init__(self, wide: torch.dtype | None = None) -> None:
        self._wide = wide
        self._constants: dict[torch.device, _Constants] = {}

    def extract(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the statistics of a tensor, and its histogram by bit pattern.

        Parameters
        ----------
        tensor : torch.Tensor
            As for ``Extractor.extract``. It is read on the current stream, and not kept.

        Returns
        -------
        values : torch.Tensor of float64 or float32, shape (9,)
            Count, nan, posinf, neginf, zeros, min, max, sum, sumsq.
        counts : torch.Tensor of int64, shape (4096,)
            How many values have each ``bits >> 20`` as float32.
        """
        held, absent = entries(tensor)
        flat = flatten(held)
        wide = self._wide or (torch.float32 if flat.device.type == "mps" else torch.float64)
        lanes = flat.new_zeros(_LANES * BINS, dtype=torch.int32)
        pieces = torch.split(flat, _PIECE) if flat.numel() > _PIECE else (flat,)
        results = [self._piece(piece, lanes, wide) for piece in pieces]
        low, high, zeros, total, squares = (
            column[0] if len(column) == 1 else torch.stack(column)
            for column in map(list, zip(*results, strict=True))
        )
        counts = lanes.view(_LANES, BINS).sum(0)
        nan, above, below = (
            counts.select(0, code) for code in (NAN, INFINITE, NEGATIVE + INFINITE)
        )
        number = counts.sum()
        none = number - nan - above - below == 0
        values = (
            number,
            nan,
            above,
            below,
            zeros.sum(),
            torch.where(none, torch.nan, low.amin().to(wide)),
            torch.where(none, torch.nan, high.amax().to(wide)),
            total.sum(),
            squares.sum(),
        )
        statistics = torch.stack([value.to(wide) for value in values])
        add_zeros(absent, statistics, counts)
        return statistics, counts

    def _piece(
        self, piece: torch.Tensor, lanes: torch.Tensor, wide: torch.dtype
    ) -> tuple[torch.Tensor, ...]:
        """Count a piece in its bins; return min, max, zeros, sum and sum of squares."""
        single = single_of(piece)
        exact = single if piece.dtype in WITHIN_FLOAT32 else piece.to(wide)
        known = self._known(piece)
        bits = torch.where(torch.isnan(single), torch.nan, single).view(torch.int32)
        codes = torch.bitwise_right_shift(bits, SHIFT).bitwise_and_(BINS - 1)
        bins = torch.add(codes, known.lanes.narrow(0, 0, piece.numel()))
        lanes.scatter_add_(0, bins, known.one.expand(piece.numel()))
        finite = torch.isfinite(exact)
        clean = torch.where(finite, exact, 0.0).to(wide)
        if not piece.numel():
            nothing = clean.sum()
            return nothing, nothing, nothing, nothing, nothing
        return (
            torch.where(finite, exact, torch.inf).amin(),
            torch.where(finite, exact, -torch.inf).amax(),
            (exact == 0).sum(),
            clean.sum(),
            clean.square().sum(),
        )

    def _known(self, piece: torch.Tensor) -> _Constants:
        known = self._constants.get(piece.device)
        if known is None:
            with torch.inference_mode(False):  # or they could be used in that mode only
                numbers = torch.arange(_PIECE, dtype=torch.int64, device=piece.device)
                one = torch.ones((), dtype=torch.int32, device=piece.device)
            known = _Constants(numbers.remainder_(_LANES).mul_(BINS), one)
            self._constants[piece.device] = known
        return known
