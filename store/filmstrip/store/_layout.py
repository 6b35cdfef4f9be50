"""Layout: the only place that decides blocks, shards and slots; (row, block) becomes (file, slot).

A frame is cut along its leading axes only: into blocks, and, where these are more than the index of
a file can hold, into parts that have a file each. So both are contiguous in memory, and are written
without being copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SLOTS = 255  # an index of 255 entries and its checksum fit one 4 KiB page
BLOCK_BYTES = 4 << 20
LARGEST_BLOCK = 1 << 30  # blosc refuses 2 GiB
MOST_PARTS = 1 << 16
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
        Blocks along each axis of a part of the frame: of what one shard file holds of it.
    files : tuple of int
        Parts along each axis of the frame; nearly always one.
    rows : int
        Rows in one shard file.
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]
    grid: tuple[int, ...]
    files: tuple[int, ...]
    rows: int

    @property
    def parts(self) -> int:
        """Shard files that one row lies in."""
        return math.prod(self.files)

    def position(self, part: int) -> tuple[int, ...]:
        """Return where a part, counted in C order, stands among the parts of a frame."""
        along = list[int]()
        for count in reversed(self.files):
            part, at = divmod(part, count)
            along.insert(0, at)
        return tuple(along)

    def box(self, part: int) -> list[tuple[int, int]]:
        """Return where a part begins and ends along each axis of the frame, filled up or not."""
        extents = self.shard[1:]
        return [(p * e, (p + 1) * e) for p, e in zip(self.position(part), extents, strict=True)]

    @property
    def blocks(self) -> int:
        """Blocks of one row in one shard file."""
        return math.prod(self.grid)

    @property
    def slots(self) -> int:
        """Blocks of one shard file."""
        return self.rows * self.blocks

    @property
    def shard(self) -> tuple[int, ...]:
        """Shape of a shard: rows, then a part of the frame rounded up to whole blocks."""
        return (self.rows, *(b * g for b, g in zip(self.block, self.grid, strict=True)))

    @property
    def whole(self) -> tuple[int, ...]:
        """Blocks along each axis of the frame."""
        return tuple(g * f for g, f in zip(self.grid, self.files, strict=True))


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
        If a frame is larger than any machine's memory.

    Examples
    --------
    >>> lay_out((32, 64, 56, 56), 4).block
    (4, 64, 56, 56)
    >>> lay_out((64, 28, 28), 4).rows
    255
    """
    extents = tuple(max(1, length) for length in shape)  # an axis of length 0 has chunks of 1
    chosen = block or _block(extents, itemsize)
    whole = times(extents, chosen)
    grid = _cut(whole, 1, SLOTS, dividing=True)
    files = times(whole, grid)
    if math.prod(files) > MOST_PARTS:
        raise ValueError(f"frames of shape {shape} are too large for any file system")
    frame_bytes = math.prod(extents) * itemsize
    rows = max(1, min(SHARD_BYTES // frame_bytes, SLOTS // math.prod(grid)))
    return Layout(shape, chosen, grid, files, rows)


def times(extents: Sequence[int], lengths: Sequence[int]) -> tuple[int, ...]:
    """Return how often lengths fit extents, rounded up, along each axis; once at least.

    Examples
    --------
    >>> times((7, 0, 4), (3, 1, 4))
    (3, 1, 1)
    """
    return tuple(-(-max(1, e) // n) for e, n in zip(extents, lengths, strict=True))


def together(layout: Layout, itemsize: int) -> tuple[int, ...]:
    """Return the shape of what is best read at once of a frame: whole blocks, of 64 MiB at most.

    Examples
    --------
    >>> together(lay_out((64, 28, 28), 4), 4), together(lay_out((1024, 1024, 256), 4), 4)
    ((64, 28, 28), (64, 1024, 256))
    """
    block_bytes = math.prod(layout.block) * itemsize
    grid = _cut(layout.whole, block_bytes, max(SHARD_BYTES, block_bytes), dividing=False)
    extents = (g * b for g, b in zip(grid, layout.block, strict=True))
    return tuple(min(e, n) for e, n in zip(extents, layout.shape, strict=True))


def _block(extents: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the smallest block from 4 MiB on with which a row fits the slots of a shard."""
    largest, block = min(BLOCK_BYTES, LARGEST_BLOCK), extents
    while True:
        for dividing in (True, False):
            block = _cut(extents, itemsize, largest, dividing=dividing)
            if math.prod(times(extents, block)) <= SLOTS:
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
