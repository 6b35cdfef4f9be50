"""Blocks: the only place that handles the stored blocks of a shard file as they are, undecoded.

It looks at a file that may be damaged, verifies every checksum, writes a shard whole from blocks of
others, and finds out which block belongs to which slot when the index is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from filmstrip.store import _files
from filmstrip.store._arrays import ArrayForm
from filmstrip.store._codec import ChecksumError
from filmstrip.store._shardlog import EMPTY, index_bytes, live_bytes, packed_index, parse_index
from filmstrip.store.errors import FormatError

Entry = tuple[int, int]
"""Offset and length of a block, both `EMPTY` where there is none."""

NOTHING: Entry = (EMPTY, EMPTY)
ALIGNMENT = 64
_CHECKSUM = 4
_BLOSC_HEADER = struct.Struct("<4xIII")  # uncompressed, block, compressed bytes
_TRIES = 4
_TOGETHER = 1 << 20  # bytes written at once, where blocks are small


def aligned(position: int) -> int:
    """Return the next place where a block may start."""
    return -(-position // ALIGNMENT) * ALIGNMENT


class ShardFile:
    """A shard file, read only, looked at as it is now.

    Parameters
    ----------
    path : Path
        The file.
    form : ArrayForm
        Form of the array, a strip.

    Attributes
    ----------
    size : int
        Bytes, holes included.
    entries : list of tuple or None
        Offset and length of every slot; None when the index is damaged.
    """

    def __init__(self, path: Path, form: ArrayForm) -> None:
        assert form.layout is not None
        self.path, self.form = path, form
        self.blocks, self.slots = form.layout.blocks, form.layout.slots
        self.block_bytes = form.dtype.itemsize
        for length in form.layout.block:
            self.block_bytes *= length
        self.index_bytes = index_bytes(self.slots)
        self._found: list[Entry] | None = None
        self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        self.refresh()

    def refresh(self) -> None:
        """Look at the index again."""
        self.entries: list[Entry] | None = None
        for _ in range(_TRIES):
            self.size = os.fstat(self._fd).st_size
            self._raw = self.pread(self.index_bytes, max(0, self.size - self.index_bytes))
            if len(self._raw) == self.index_bytes:
                with contextlib.suppress(ChecksumError):  # torn, or cut: a writer is at it
                    self.entries = parse_index(self._raw)
                    return

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pread(self, length: int, offset: int) -> bytes:
        """Return bytes of the file, fewer where it ends."""
        return os.pread(self._fd, length, offset)

    @property
    def live(self) -> bool:
        """Whether the file has the length of one that is being written."""
        return self.size == live_bytes(self.slots, self._bound())

    @property
    def on_disk(self) -> int:
        """Bytes that the file takes on the disk."""
        return os.fstat(self._fd).st_blocks * 512

    def _bound(self) -> int:
        return self.form.codec.bound(self.block_bytes)

    def row(self, position: int) -> list[Entry]:
        """Return the entries of one row."""
        assert self.entries is not None
        return self.entries[position * self.blocks : (position + 1) * self.blocks]

    def lies(self) -> str:
        """Return what of a whole index cannot be true, "" when all can."""
        assert self.entries is not None
        end = self.size - self.index_bytes
        raw = self.form.codec.compressor == "none"
        for start in range(0, self.slots, self.blocks):
            row = self.entries[start : start + self.blocks]
            held = [entry for entry in row if entry[0] != EMPTY]
            if held and len(held) < len(row):
                return f"row {start // self.blocks} has {len(held)} of {len(row)} blocks"
            for offset, length in held:
                if offset + length > end:
                    return f"a block lies outside the file, at {offset}"
                if (raw and length != self.block_bytes + _CHECKSUM) or length > self._bound():
                    return f"a block of {length} bytes cannot be one of this layer"
        held = sorted(entry for entry in self.entries if entry[0] != EMPTY)
        for (offset, length), (behind, _) in itertools.pairwise(held):
            if offset + length > behind:
                return f"two blocks overlap, at {behind}"
        return ""

    def whole(self, entry: Entry) -> bool:
        """Return whether a block is as it was written."""
        offset, length = entry
        if length <= _CHECKSUM or self._plausible(self.pread(16, offset)) != length:
            return False
        checksum, end = 0, offset + length - _CHECKSUM
        for start in range(offset, end, _TOGETHER):  # a block may be larger than there is room for
            piece = self.pread(min(_TOGETHER, end - start), start)
            if not piece:
                return False
            checksum = google_crc32c.extend(checksum, piece)
        return self.pread(_CHECKSUM, end) == checksum.to_bytes(_CHECKSUM, "little")

    def _plausible(self, head: bytes) -> int:
        """Return the length of a block that begins like that, 0 when none does."""
        if self.form.codec.compressor == "none":
            return self.block_bytes + _CHECKSUM
        if len(head) < 16:
            return 0
        raw, part, compressed = _BLOSC_HEADER.unpack(head)
        fits = part <= raw == self.block_bytes and 16 <= compressed <= self.block_bytes + 16
        return compressed + _CHECKSUM if fits else 0

    def found(self) -> list[Entry]:
        """Return all whole blocks in the file in their order, without trusting the index."""
        if self._found is not None:
            return self._found
        step = ALIGNMENT
        if self.form.codec.compressor == "none":
            step = aligned(self.block_bytes + _CHECKSUM)
        blocks, offset = list[Entry](), 0
        while offset < self.size:
            length = self._plausible(self.pread(16, offset))
            if length and offset + length <= self.size and self.whole((offset, length)):
                blocks.append((offset, length))
                offset = aligned(offset + length)
                continue
            offset += step
            try:  # what nobody wrote takes no time
                data = os.lseek(self._fd, min(offset, self.size), os.SEEK_DATA)
            except OSError:
                break
            offset = max(offset, data // step * step)
        self._found = blocks
        return blocks

    def recovered(self, committed: int) -> list[Entry] | None:
        """Return the entries that a damaged index must have had, None when that is not certain.

        Parameters
        ----------
        committed : int
            Rows of this shard that are committed.

        Returns
        -------
        list of tuple or None
            Blocks are appended in the order of rows. Of a sealed shard every block counts; of one
            that was being written, those at the end may have been taken back. What is left of the
            index, entry by entry, says where rows without a frame are.
        """
        blocks = self.found()
        there = set(blocks)
        claims = [
            struct.unpack_from("<QQ", self._raw, 16 * slot)
            for slot in range(self.slots if len(self._raw) == self.index_bytes else 0)
        ]
        if not claims:
            return None
        entries: list[Entry] = [claim if claim in there else NOTHING for claim in claims]
        anchored = [entry for entry in entries if entry != NOTHING]
        open_slots = [
            slot
            for slot, claim in enumerate(claims)
            if claim not in there and claim != NOTHING and slot < committed * self.blocks
        ]
        loose = [block for block in blocks if block not in set(anchored)]
        if not self._sealed(blocks):
            if not self.live:
                return None
            last = max((offset for offset, _ in anchored), default=-1)
            loose = [block for block in loose if block[0] < last]
            if len(loose) != len(open_slots):
                return None
        elif loose and len(loose) != len(open_slots):
            return None
        if loose:
            for slot, block in zip(open_slots, loose, strict=True):
                entries[slot] = block
        held = [entry for entry in entries if entry != NOTHING]
        if held != sorted(set(held)):
            return None
        whole_rows = all(
            len({entry == NOTHING for entry in entries[start : start + self.blocks]}) == 1
            for start in range(0, self.slots, self.blocks)
        )
        return entries if whole_rows else None

    def _sealed(self, blocks: list[Entry]) -> bool:
        """Return whether blocks fill the file from its start to its index."""
        end = 0
        for offset, length in blocks:
            if offset != end:
                return False
            end = aligned(offset + length)
        return end == self.size - self.index_bytes


def incomplete(
    form: ArrayForm, files: Mapping[tuple[int, int], Path]
) -> Iterator[tuple[int, int, int]]:
    """Yield rows of which some parts are there and others are not.

    Parameters
    ----------
    form : ArrayForm
        Form of the array, a strip.
    files : mapping
        Its files by their position along the step axis and the part that they hold.

    Yields
    ------
    index, position, parts : int
        Position of the files along the step axis, and of the row in them; parts that are there.
    """
    for index in sorted({index for index, _ in files} if form.parts > 1 else ()):
        found = np.zeros(form.rows, np.int64)
        for part in range(form.parts):
            if (index, part) in files:
                with ShardFile(files[index, part], form) as shard:
                    found += [
                        shard.entries is None or shard.row(position)[0][0] != EMPTY
                        for position in range(form.rows)
                    ]
        for position in np.flatnonzero((found > 0) & (found < form.parts)).tolist():
            yield index, position, int(found[position])


def _checks(stored: bytes) -> bool:
    """Return whether the checksum behind a block fits it."""
    body = np.frombuffer(stored, np.uint8)[:-_CHECKSUM]
    checksum = int.from_bytes(stored[-_CHECKSUM:], "little")
    return bool(google_crc32c.value(body) == checksum)


@dataclass(frozen=True, slots=True)
class Stored:
    """One block in some shard file."""

    path: Path
    entry: Entry


class BlockReader:
    """Reads blocks of many files, verified; keeps the last file open."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._fd = -1

    def read(self, block: Stored) -> bytes:
        """Return the bytes of a block, checksum included.

        Raises
        ------
        FormatError
            If it is not as it was written.
        """
        offset, length = block.entry
        for _ in range(_TRIES):
            if block.path != self._path:
                self.close()
                try:
                    self._fd = os.open(block.path, os.O_RDONLY)
                except FileNotFoundError:
                    break
                self._path = block.path
            stored = os.pread(self._fd, length, offset)
            if len(stored) == length and _checks(stored):
                return stored
            self.close()
        raise FormatError(str(block.path), f"its block at {offset} is damaged, or was taken back")

    def close(self) -> None:
        """Close the file that is open."""
        if self._fd >= 0:
            os.close(self._fd)
        self._path, self._fd = None, -1


def dense_entries(blocks: Sequence[Stored | None]) -> list[Entry]:
    """Return where blocks lie in a shard that is written whole."""
    entries, offset = list[Entry](), 0
    for block in blocks:
        entries.append(NOTHING if block is None else (offset, block.entry[1]))
        if block is not None:
            offset = aligned(offset + block.entry[1])
    return entries


def write_shard(
    path: Path, blocks: Sequence[Stored | None], reader: BlockReader, *, fsync: bool = False
) -> None:
    """Put a sealed shard in place whole, made of blocks of other shards, or of the one it replaces.

    Parameters
    ----------
    path : Path
        The file.
    blocks : sequence of Stored or None
        By slot.
    reader : BlockReader
        Reads them, one at a time.
    fsync : bool
        Whether it must be on the disk before it takes its place.

    Raises
    ------
    FormatError
        If a block is damaged. Nothing was changed.
    OSError
        If the disk refuses. Nothing was changed.
    """
    entries = dense_entries(blocks)
    end = aligned(max((o + length for o, length in entries if o != EMPTY), default=0))
    index = packed_index(entries)

    def parts() -> Iterator[tuple[int, bytes]]:
        start, together = 0, bytearray()
        for block, (offset, _) in zip(blocks, entries, strict=True):
            if block is None:
                continue
            if len(together) + block.entry[1] >= _TOGETHER:
                if together:
                    yield start, bytes(together)
                yield offset, reader.read(block)
                start, together = aligned(offset + block.entry[1]), bytearray()
            else:
                together += bytes(offset - start - len(together))
                together += reader.read(block)
        yield start, bytes(together) + bytes(end - start - len(together)) + index

    _files.create(path, parts(), end + len(index), fsync=fsync)
