"""Reading: the only place that fetches rows and blocks of one array.

A live shard is read between two writes of its owner. What does not fit together (a torn index, a
file cut shorter meanwhile) is read again, with a fresh look at the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from filmstrip.store._arrays import ArrayForm
from filmstrip.store._codec import ChecksumError
from filmstrip.store._frame import fill_value
from filmstrip.store._layout import Layout
from filmstrip.store._metadata import Json
from filmstrip.store._place import Blob, LocalPlace, Place
from filmstrip.store._shardlog import DAMAGED_INDEX, EMPTY, index_bytes, parse_index
from filmstrip.store.errors import FormatError, StoreError

_TRIES = 4
_SMALL = 16 << 10
"""Bytes of a block up to which blocks that lie close together are read at once."""
_GAPS = 4
"""How many times more rows than are wanted may lie between them."""
T = TypeVar("T")
Entries = list[tuple[int, int]]
Rows = npt.NDArray[np.int64]
Box = Sequence[tuple[int, int]]
"""Where something begins and ends along each axis."""
Index = Any
"""Whatever numpy takes as an index."""


class _DamagedIndexError(FormatError):
    """Raised when nobody can tell which rows a shard holds."""


class _TornIndexError(ChecksumError):
    """Raised when an index is not whole at this moment."""


class ArrayReader:
    """One array of a run, read only.

    Parameters
    ----------
    place : Place
        Folder of the array.
    document : dict
        Its metadata.

    Raises
    ------
    FormatError
        If the metadata describe no array of ours, or a link leads out of the run.
    """

    def __init__(self, place: Place, document: Json) -> None:
        self.form = ArrayForm.of(document, place)
        if isinstance(place, LocalPlace):
            place.check_inside()
        self._place = place

    def present(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Return which rows hold something.

        Parameters
        ----------
        rows : ndarray of int64, shape (n_rows,)
            Committed rows, ascending.

        Returns
        -------
        ndarray of bool, shape (n_rows,)
            True where a frame was written, by its first part, and where that cannot be told, since
            the index of the shard is damaged: whoever reads such a row is told so.
        """
        if self.form.layout is None:
            return self._present_in_column(rows)
        if 0 in self.form.shape:  # nothing can be written of such a frame
            return np.ones(len(rows), bool)
        found = np.zeros(len(rows), bool)
        for shard, where in _by_file(rows, self.form.rows):
            try:
                entries = self._index(shard)
            except _DamagedIndexError:
                found[where] = True
                continue
            if entries is not None:
                first = (rows[where] - shard * self.form.rows) * self.form.layout.blocks
                found[where] = [entries[slot][0] != EMPTY for slot in first]
        return found

    def _present_in_column(self, rows: Rows) -> npt.NDArray[np.bool_]:
        absent = np.frombuffer(self.form.absent(), np.uint8)
        if not absent.any():  # integers have no value to spare: every row counts
            return np.ones(len(rows), bool)
        raw = self.read(rows).view(np.uint8).reshape(len(rows), absent.size)
        return np.asarray((raw != absent).any(axis=1))

    def read(self, rows: Rows, index: Index = ()) -> npt.NDArray[Any]:
        """Read rows, and of these what an index picks.

        Parameters
        ----------
        rows : ndarray of int64, shape (n_rows,)
            Committed rows, ascending.
        index : optional
            A numpy index into a frame. Blocks outside it are not read where it begins with
            integers and slices.

        Returns
        -------
        ndarray, shape (n_rows, *indexed)
            Fill where nothing was written.

        Raises
        ------
        IndexError
            If the index does not fit the frame.
        FormatError
            If the data are damaged.
        """
        if self.form.layout is None:
            return indexed(self._column(rows, index), index)
        box, inside = box_of(index, self.form.shape, self.form.dtype)
        out = room((len(rows), *(high - low for low, high in box)), self.form.dtype)
        if out.size:
            for shard, where in _by_file(rows, self.form.rows):
                local = rows[where] - shard * self.form.rows
                for part in _touched(self.form.layout, box):
                    self._read_part(shard, part, local, box, out[where])
        return indexed(out, inside)

    def last_present(self, rows: int, count: int) -> Rows:
        """Return the last rows that hold something, ascending; no file before them is opened.

        Parameters
        ----------
        rows : int
            Committed rows.
        count : int
            How many to return at most.

        Returns
        -------
        ndarray of int64, shape (n_found,)
            Their numbers.
        """
        found: list[Rows] = []
        stop = rows
        while stop > 0 and sum(map(len, found)) < count:
            start = (stop - 1) // self.form.rows * self.form.rows
            some = np.arange(start, stop)
            found.insert(0, some[self.present(some)])
            stop = start
        return np.concatenate(found)[-count:] if found else np.empty(0, np.int64)

    def _column(self, rows: Rows, index: Index = ()) -> npt.NDArray[Any]:
        out = room((len(rows), *self.form.shape), self.form.dtype)
        for chunk, where in _by_file(rows, self.form.rows):
            place = self._place / self.form.key(chunk)
            local = rows[where] - chunk * self.form.rows
            try:
                with place.open() as blob:
                    # Mapped: of a row that describes all layers, one layer's part is read.
                    stored = blob.map(self.form.dtype, (self.form.rows, *self.form.shape))
                    picked = (slice(None), *_tuple(index)) if _is_basic(index) else ()
                    some = stored[local[0] : local[-1] + 1][picked]
                    out[where][picked] = some[local - local[0]]
            except FileNotFoundError:
                absent = np.frombuffer(self.form.absent(), self.form.dtype)
                out[where] = absent.reshape(self.form.shape)
            except ValueError as error:
                raise FormatError(str(place), "it is too short") from error
        return out

    def _index(self, shard: int) -> Entries | None:
        """Return offset and length of every slot of a shard, None when there is no file."""
        return self._retried(self.form.key(shard), self._read_index)

    def _read_index(self, blob: Blob) -> Entries:
        assert self.form.layout is not None
        length, size = index_bytes(self.form.layout.slots), blob.size
        raw = blob.read(max(0, size - length), length)
        if len(raw) != length:
            raise _TornIndexError
        try:
            return parse_index(raw)
        except ChecksumError:
            raise _TornIndexError from None

    def _retried(self, name: str, read: Callable[[Blob], T]) -> T | None:
        place = self._place / name
        torn = False
        for _ in range(_TRIES):
            try:
                with place.open() as blob:
                    return read(blob)
            except FileNotFoundError:
                return None
            except ChecksumError as error:
                torn = isinstance(error, _TornIndexError)
        if torn:
            raise _DamagedIndexError(str(place), DAMAGED_INDEX)
        raise FormatError(str(place), "a checksum does not fit")

    def _read_part(
        self, shard: int, part: int, rows: Rows, box: Box, out: npt.NDArray[Any]
    ) -> None:
        """Fill what a box has of one part of the frames of some rows of a shard."""
        layout = self.form.layout
        assert layout is not None
        whole = layout.box(part)
        common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, whole, strict=True)]
        inside = [(a - c, b - c) for (a, b), (c, _) in zip(common, whole, strict=True)]
        here = [slice(a - c, b - c) for (a, b), (c, _) in zip(common, box, strict=True)]
        target = out[(slice(None), *here)]
        # Calls for each of many small rows would cost more than the bytes between them.
        together = (
            layout.blocks == 1
            and len(rows) > 1
            and _GAPS * len(rows) > rows[-1] - rows[0]
            and target.shape[1:] == layout.shard[1:]
            and self.form.codec.compressor == "none"
            and target[0].nbytes <= _SMALL
        )

        def read(blob: Blob) -> list[bool]:
            entries = self._read_index(blob)
            if together:
                return self._read_together(blob, [entries[row] for row in rows.tolist()], target)
            return [  # the ellipsis makes a view of a number, too
                self._read_row(blob, entries, row, inside, target[number, ...])
                for number, row in enumerate(rows.tolist())
            ]

        name = self.form.key(shard, part)
        held = np.array(self._retried(name, read) or [False] * len(rows))
        if self.form.parts > 1:
            there = self.present(shard * self.form.rows + rows)
            if (there & ~held).any():
                raise FormatError(str(self._place / name), "a part of a frame is missing")
            held = there
        target[~held] = fill_value(self.form.dtype)

    def _read_together(self, blob: Blob, entries: Entries, target: npt.NDArray[Any]) -> list[bool]:
        """Fill rows of one small raw block each from a single read; return which are there."""
        codec, there = self.form.codec, [entry for entry in entries if entry[0] != EMPTY]
        start = min((offset for offset, _ in there), default=0)
        stop = max((offset + length for offset, length in there), default=0)
        if stop - start > _GAPS * len(entries) * codec.bound(_SMALL):
            raise ChecksumError
        stored = np.frombuffer(blob.read(start, stop - start), np.uint8)
        if len(stored) != stop - start:
            raise ChecksumError
        for number, (offset, length) in enumerate(entries):
            if offset != EMPTY:
                codec.decode(stored[offset - start : offset - start + length], target[number, ...])
        return [offset != EMPTY for offset, _ in entries]

    def _read_row(
        self,
        blob: Blob,
        entries: Entries,
        row: int,
        box: Box,
        target: npt.NDArray[Any],
    ) -> bool:
        """Fill what a box has of a row in one shard file; return whether the row is there."""
        layout = self.form.layout
        assert layout is not None
        first = row * layout.blocks
        if entries[first][0] == EMPTY:
            return False
        if target.shape == layout.shard[1:]:  # whole blocks only: they are pieces of the flat frame
            for number, piece in enumerate(target.reshape(layout.blocks, -1)):
                self._read_block(blob, entries[first + number], piece)
            return True
        low = [start // length for (start, _), length in zip(box, layout.block, strict=True)]
        high = [-(-stop // length) for (_, stop), length in zip(box, layout.block, strict=True)]
        extents = [(h - lo) * length for lo, h, length in zip(low, high, layout.block, strict=True)]
        region = np.empty(extents, self.form.dtype)
        block = np.empty(layout.block, self.form.dtype)
        for position in itertools.product(*map(range, low, high)):
            number = int(np.ravel_multi_index(position, layout.grid))
            self._read_block(blob, entries[first + number], block)
            corner = [(p - lo) * n for p, lo, n in zip(position, low, layout.block, strict=True)]
            region[tuple(slice(c, c + n) for c, n in zip(corner, layout.block, strict=True))] = (
                block
            )
        crop = [
            slice(start - lo * length, stop - lo * length)
            for (start, stop), lo, length in zip(box, low, layout.block, strict=True)
        ]
        target[...] = region[tuple(crop)]
        return True

    def _read_block(self, blob: Blob, entry: tuple[int, int], out: npt.NDArray[Any]) -> None:
        offset, length = entry
        if length > self.form.codec.bound(out.nbytes) or offset + length > blob.size:
            raise ChecksumError
        stored = blob.read(offset, length)
        if len(stored) != length:
            raise ChecksumError
        self.form.codec.decode(np.frombuffer(stored, np.uint8), out)


def _touched(layout: Layout, box: Box) -> Iterator[int]:
    """Yield the parts of a frame that have something of a box."""
    spans = [
        range(low // extent, -(-high // extent))
        for (low, high), extent in zip(box, layout.shard[1:], strict=True)
    ]
    for position in itertools.product(*spans):
        yield int(np.ravel_multi_index(position, layout.files)) if position else 0


def _by_file(rows: Rows, per_file: int) -> Iterator[tuple[int, slice]]:
    """Yield each file's number and where its rows stand among the rows, which ascend."""
    files = rows // per_file
    starts = np.flatnonzero(np.diff(files, prepend=-1)).tolist()
    for start, stop in itertools.pairwise([*starts, len(rows)]):
        yield int(files[start]), slice(start, stop)


def room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return an empty array.

    Raises
    ------
    StoreError
        If there is no memory for it.
    """
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:  # the latter where no machine has so much
        raise StoreError(f"frames of {shape} {dtype.name} do not fit into memory") from error


def _tuple(index: Index) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _is_basic(index: Index) -> bool:
    """Return whether an index is one of integers and slices, which keeps the order of axes."""
    return all(
        item is None
        or item is Ellipsis
        or (isinstance(item, slice | int | np.integer) and not isinstance(item, bool))
        for item in _tuple(index)
    )


def indexed(out: npt.NDArray[Any], index: Index) -> npt.NDArray[Any]:
    """Apply an index to every row."""
    if _is_basic(index):
        result: npt.NDArray[Any] = out[(slice(None), *_tuple(index))]
        return result
    if not len(out):  # numpy tells the shape
        return np.empty((0, *np.empty(out.shape[1:], out.dtype)[index].shape), out.dtype)
    return np.stack([row[index] for row in out])


def box_of(
    index: Index, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[list[tuple[int, int]], Index]:
    """Return the smallest box that holds what an index picks, and the index inside it."""
    np.broadcast_to(np.empty((), dtype), shape)[index]  # raises as numpy does
    whole = [(0, length) for length in shape]
    if not _is_basic(index) or None in _tuple(index):
        return whole, index
    items = _tuple(index)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        missing = len(shape) - (len(items) - 1)
        items = (*items[:at], *([slice(None)] * missing), *items[at + 1 :])
    box, inside = list(whole), list[slice | int]()
    for axis, item in enumerate(items):
        if isinstance(item, slice):
            picked = range(*item.indices(shape[axis]))
            if not picked:
                return whole, index
            low, stop = min(picked), picked.stop - min(picked)
            inside.append(slice(picked.start - low, stop if stop >= 0 else None, picked.step))
            box[axis] = (low, max(picked) + 1)
        else:
            position = int(item) % shape[axis]
            box[axis] = (position, position + 1)
            inside.append(0)
    return box, tuple(inside)
