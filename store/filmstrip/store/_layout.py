"""Layout: the only place that decides blocks, shards and slots; (row, block) becomes (file, slot).

A frame is cut into blocks along its leading axes only, so that a block is one contiguous piece of
memory: it is written without being copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SLOTS = 255  # an index of 255 entries and its checksum fit one 4 KiB page
BLOCK_BYTES = 4 << 20
LARGEST_BLOCK = 1 << 30  # blosc refuses 2 GiB
SHARD_BYTES = 64 << 20
COLUMN_BYTES = 1 << 20
COLUMN_ROWS = 16_384
LARGEST_COLUMN = 256 << 20  # of a file; one row of a million layers' statistics is 72 MB
FIRST_CAPACITY = 4_096


@dataclass(frozen=True, slots=True)
class Layout:
    """How the rows of a strip lie in shard files.

    Attributes
    ----------
    shape : tuple of int
        Shape of a frame.
    block : tuple of int
        Shape of a block; its trailing axes are the frame's.
    grid : tuple of int
        Blocks along each axis of the frame.
    rows : int
        Rows in one shard file.
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]
    grid: tuple[int, ...]
    rows: int

    @property
    def blocks(self) -> int:
        """Blocks of one row."""
        return math.prod(self.grid)

    @property
    def slots(self) -> int:
        """Blocks of one shard file."""
        return self.rows * self.blocks

    @property
    def shard(self) -> tuple[int, ...]:
        """Shape of a shard: rows, then the frame rounded up to whole blocks."""
        return (self.rows, *(b * g for b, g in zip(self.block, self.grid, strict=True)))


def lay_out(shape: tuple[int, ...], itemsize: int, block: tuple[int, ...] | None = None) -> Layout:
    """Return how frames of a shape are cut into blocks and gathered into shards.

    Parameters
    ----------
    shape : tuple of int
        Shape of a frame, at least one axis.
    itemsize : int
        Bytes of one value.
    block : tuple of int, optional
        Shape of a block, where it is not to be chosen here.

    Returns
    -------
    Layout
        Blocks of the whole frame up to 4 MiB, else of 1 to 4 MiB; shards of about 64 MiB.

    Raises
    ------
    ValueError
        If one row needs more than 255 blocks of 1 GiB.

    Examples
    --------
    >>> lay_out((32, 64, 56, 56), 4).block
    (4, 64, 56, 56)
    >>> lay_out((64, 28, 28), 4).rows
    255
    """
    extents = tuple(max(1, length) for length in shape)  # an axis of length 0 has chunks of 1
    chosen = block or _block(extents, itemsize)
    blocks = _blocks(extents, chosen)
    if blocks > SLOTS:
        raise ValueError(f"frames of shape {shape} are too large: {blocks} blocks, at most {SLOTS}")
    grid = tuple(-(-extent // length) for extent, length in zip(extents, chosen, strict=True))
    frame_bytes = math.prod(extents) * itemsize
    rows = max(1, min(SHARD_BYTES // frame_bytes, SLOTS // blocks))
    return Layout(shape, chosen, grid, rows)


def _blocks(extents: tuple[int, ...], block: tuple[int, ...]) -> int:
    return math.prod(-(-extent // length) for extent, length in zip(extents, block, strict=True))


def _block(extents: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the smallest block from 4 MiB on with which a row fits the slots of a shard."""
    largest, block = min(BLOCK_BYTES, LARGEST_BLOCK), extents
    while True:
        for dividing in (True, False):
            block = _cut(extents, itemsize, largest, dividing=dividing)
            if _blocks(extents, block) <= SLOTS:
                return block
        if largest == LARGEST_BLOCK:
            return block
        largest = min(2 * largest, LARGEST_BLOCK)


def _cut(
    extents: tuple[int, ...], itemsize: int, largest: int, *, dividing: bool
) -> tuple[int, ...]:
    """Return a block of at most so many bytes: leading axes of 1, then a cut, then whole axes."""
    block = list(extents)
    for axis, extent in enumerate(extents):
        inner = math.prod(extents[axis + 1 :]) * itemsize
        if extent * inner <= largest:
            break
        most = largest // inner
        if most >= 1:
            block[axis] = _even(extent, most, dividing=dividing)
            break
        block[axis] = 1
    return tuple(block)


def _even(extent: int, most: int, *, dividing: bool) -> int:
    """Return a length that divides the axis, if there is one near; else that with least padding."""
    if dividing:
        for length in range(most, most // 2, -1):
            if extent % length == 0:
                return length
    return -(-extent // -(-extent // most))


def column_rows(row_bytes: int) -> int:
    """Return the rows in one chunk file of a column.

    Parameters
    ----------
    row_bytes : int
        Bytes of one row.

    Returns
    -------
    int
        16,384 for rows of up to 8 bytes, else the power of two nearest to 1 MiB.

    Examples
    --------
    >>> column_rows(8), column_rows(2160)
    (16384, 512)
    """
    if row_bytes <= 8:
        return COLUMN_ROWS
    return min(COLUMN_ROWS, 1 << max(0, round(math.log2(COLUMN_BYTES / row_bytes))))
