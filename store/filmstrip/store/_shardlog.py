"""ShardLog: the only place that writes a shard, in place.

At every instant the file is an ordinary Zarr shard: blocks, a hole, and an index of fixed length at
the end. Appending is one write of the blocks and one of the index, which lies inside one page.
Sealing writes the index behind the last block and cuts the file there; the spare room between keeps
that copy clear of the live one, so that a kill between the two calls leaves a valid shard too.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from filmstrip.store import _files
from filmstrip.store._codec import ChecksumError, Encoded

PAGE = 4096
_PIECE = 1 << 20
EMPTY = 0xFFFF_FFFF_FFFF_FFFF
DAMAGED_INDEX = (
    "its index is damaged; `filmstrip repair` may mend it, "
    "`filmstrip repair --set-aside` goes on without its frames"
)
_ENTRY = struct.Struct("<QQ")
_CHECKSUM = struct.Struct("<I")


def index_bytes(slots: int) -> int:
    """Return the length of an index: 16 bytes a slot and a checksum."""
    return slots * _ENTRY.size + _CHECKSUM.size


def parse_index(raw: bytes) -> list[tuple[int, int]]:
    """Return offset and length of every slot.

    Raises
    ------
    ChecksumError
        If the index is torn.
    """
    body = raw[: -_CHECKSUM.size]
    if google_crc32c.value(body) != _CHECKSUM.unpack(raw[-_CHECKSUM.size :])[0]:
        raise ChecksumError
    return list(_ENTRY.iter_unpack(body))


def packed_index(entries: Sequence[tuple[int, int]]) -> bytes:
    """Return an index, with its checksum, of the offset and length of every slot."""
    return _checked(bytearray(b"".join(_ENTRY.pack(*entry) for entry in entries)))


def live_bytes(slots: int, bound: int) -> int:
    """Return the length of a shard that is being written, whose blocks take ``bound`` at most."""
    index = index_bytes(slots)
    return -(-(slots * bound + index) // PAGE) * PAGE + index


def _checked(index: bytearray) -> bytes:
    body = bytes(index)
    return body + _CHECKSUM.pack(google_crc32c.value(body))


def _write_checked(fd: int, data: Encoded, offset: int) -> None:
    """Write a block and its checksum."""
    length = memoryview(data).nbytes
    if length <= _PIECE:
        _files.pwrite(fd, [data, _CHECKSUM.pack(google_crc32c.value(data))], offset)
        return
    # Written first: the copy leaves each piece in the cache, where the checksum reads it at twice
    # the speed of memory. Pieces end at pages of the file, so that no page is written twice.
    flat, checksum, start = np.frombuffer(data, np.uint8), 0, 0
    while start < length:
        stop = start + _PIECE - (offset + start) % PAGE
        piece = flat[start:stop]
        _files.pwrite(fd, [piece], offset + start)
        checksum = google_crc32c.extend(checksum, piece)
        start = stop
    _files.pwrite(fd, [_CHECKSUM.pack(checksum)], offset + length)


class ShardLog:
    """One shard file, written row by row.

    Parameters
    ----------
    path : Path
        The file; made with an empty index when it is not there.
    rows, blocks : int
        Rows of the shard and blocks of a row; at most 255 slots together.
    bound : int
        Most bytes that a block can take.
    descriptors : Descriptors
        Keeps the file open.
    keep : int
        Rows that are committed; what a crash left behind them is dropped and its room used again.

    Raises
    ------
    OSError
        If the file cannot be made or read.
    ChecksumError
        If there is a file whose index is damaged.
    """

    __slots__ = (
        "_blocks",
        "_descriptors",
        "_end",
        "_index",
        "_index_bytes",
        "_length",
        "_path",
        "_stale",
    )

    def __init__(
        self,
        path: Path,
        *,
        rows: int,
        blocks: int,
        bound: int,
        descriptors: _files.Descriptors,
        keep: int,
    ) -> None:
        slots = rows * blocks
        self._path = str(path)
        self._blocks = blocks
        self._descriptors = descriptors
        self._index_bytes = index_bytes(slots)
        self._length = live_bytes(slots, bound)
        self._index = bytearray(_ENTRY.pack(EMPTY, EMPTY) * slots)
        self._stale = False
        if not path.exists():
            empty = _checked(self._index)
            at = self._length - self._index_bytes
            _files.create(path, [(at, empty)], self._length, fsync=descriptors.fsync)
        else:
            self._reopen(slots, keep)
        self._end = self._find_end()

    def _reopen(self, slots: int, keep: int) -> None:
        fd = self._descriptors.get(self._path)
        size = os.fstat(fd).st_size
        raw = os.pread(fd, self._index_bytes, max(0, size - self._index_bytes))
        entries = parse_index(raw) if len(raw) == self._index_bytes else None
        if entries is None:
            raise ChecksumError
        kept = min(slots, keep * self._blocks)
        self._index[: kept * _ENTRY.size] = raw[: kept * _ENTRY.size]
        if size != self._length or any(offset != EMPTY for offset, _ in entries[kept:]):
            try:
                self._write_index()
            except BaseException:  # cut short, it would be neither the old index nor the new one
                if size == self._length:
                    _files.pwrite(fd, [raw], size - self._index_bytes)
                else:
                    _files.truncate(fd, size)
                raise

    def _find_end(self) -> int:
        ends = [
            offset + length for offset, length in _ENTRY.iter_unpack(self._index) if offset != EMPTY
        ]
        return -(-max(ends, default=0) // 64) * 64

    def put(self, row: int, blocks: Sequence[Encoded]) -> None:
        """Write the blocks of one row; it is there whole, or not at all.

        Raises
        ------
        OSError
            If the disk refuses. The shard is as it was.
        """
        fd = self._descriptors.get(self._path)
        end, slot = self._end, row * self._blocks
        before = bytes(self._index[slot * 16 : (slot + self._blocks) * 16])
        try:
            for number, block in enumerate(blocks):
                length = memoryview(block).nbytes + _CHECKSUM.size
                assert self._end + length + self._index_bytes <= self._length - self._index_bytes
                _write_checked(fd, block, self._end)
                _ENTRY.pack_into(self._index, (slot + number) * 16, self._end, length)
                # Aligned, or a checksum's odd end makes the next copy into the page cache slow.
                self._end += -(-length // 64) * 64
            self._write_index()
        except BaseException:
            self._index[slot * 16 : (slot + self._blocks) * 16] = before
            self._end, self._stale = end, True
            raise

    def drop(self, rows: Sequence[int]) -> None:
        """Take rows out of the index and use their room again."""
        for row in rows:
            start = row * self._blocks * 16
            self._index[start : start + self._blocks * 16] = (
                _ENTRY.pack(EMPTY, EMPTY) * self._blocks
            )
        self._end = self._find_end()
        self._stale = True
        self.mend()

    def mend(self) -> None:
        """Write the index again if the file may hold another one since a failure."""
        if self._stale:
            self._write_index()

    def _write_index(self) -> None:
        fd = self._descriptors.get(self._path)
        _files.pwrite(fd, [_checked(self._index)], self._length - self._index_bytes)
        self._stale = False

    def sync(self) -> None:
        """Wait until the shard is on the disk."""
        _files.sync(self._descriptors.get(self._path))

    def seal(self) -> None:
        """Make the file dense: the index moves behind the last block."""
        self.mend()
        assert self._end + self._index_bytes <= self._length - self._index_bytes
        fd = self._descriptors.get(self._path)
        _files.pwrite(fd, [_checked(self._index)], self._end)
        if self._descriptors.ordered:
            _files.sync(fd)  # or a power cut leaves a file that was cut and has no index
        _files.truncate(fd, self._end + self._index_bytes)
        self.close()

    def close(self) -> None:
        """Close the file as it is."""
        self._descriptors.drop(self._path)
