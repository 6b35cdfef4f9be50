"""Arrays: the only place that makes, reopens and rewinds the arrays of a group on disk.

An array whose rows are frames is a strip: sharded, a row one or more blocks. An array whose rows
are single numbers, or short vectors of them, is a column: uncompressed, many rows in a file.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from filmstrip.store import _files
from filmstrip.store._codec import ChecksumError, Codec, Encoded, codec_from
from filmstrip.store._column import Column
from filmstrip.store._frame import PLAIN, fill_value
from filmstrip.store._layout import (
    COLUMN_BYTES,
    COLUMN_ROWS,
    LARGEST_BLOCK,
    LARGEST_COLUMN,
    MOST_PARTS,
    SLOTS,
    Layout,
    column_rows,
    times,
)
from filmstrip.store._metadata import ArrayMetadata, Json, array_document, sharding
from filmstrip.store._names import METADATA, chunk_key, chunk_position
from filmstrip.store._shardlog import DAMAGED_INDEX, ShardLog, live_bytes
from filmstrip.store.errors import FormatError

# "Nothing was logged" differs from a logged NaN, 0x7ff8000000000000, in its payload.
ABSENT = {"float64": 0x7FF8000000F11A11, "float32": 0x7FCF1A11, "float16": 0x7E1A}

_RAW: list[Json] = [{"name": "bytes", "configuration": {"endian": "little"}}]


class Array(Protocol):
    """What a group's writer needs of an array; all calls come from under its lock."""

    metadata: ArrayMetadata

    def put(self, row: int, values: npt.NDArray[Any]) -> None:
        """Write one row; on OSError the row is as if never written, or `drop` makes it so."""

    def drop(self, row: int) -> None:
        """Make a row written before as if never written."""

    def truncate(self, keep: int) -> None:
        """Leave the first rows and make everything behind them as if never written."""

    def sync(self) -> None:
        """Wait until what was written is on the disk."""

    def close(self) -> None:
        """Leave the files as readers like them best."""


@dataclass(frozen=True, slots=True)
class ArrayForm:
    """The shape of an array on disk, as its metadata tells it.

    Attributes
    ----------
    dtype : dtype
        As stored, little-endian.
    shape : tuple of int
        Shape of a row.
    layout : Layout or None
        Of a strip; None for a column.
    codec : Codec
        How a block becomes bytes.
    rows : int
        Rows in one file.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    layout: Layout | None
    codec: Codec
    rows: int

    @classmethod
    def strip(cls, dtype: np.dtype[Any], layout: Layout, codec: Codec) -> ArrayForm:
        """Return the form of a strip."""
        return cls(dtype, layout.shape, layout, codec, layout.rows)

    @classmethod
    def column(cls, dtype: np.dtype[Any], shape: tuple[int, ...] = ()) -> ArrayForm:
        """Return the form of a column."""
        rows = column_rows(math.prod(shape) * dtype.itemsize)
        return cls(dtype, shape, None, Codec("none", dtype.itemsize), rows)

    @classmethod
    def of(cls, document: Json, where: object) -> ArrayForm:
        """Return the form that an array's metadata describe; `where` it is stands in messages.

        Raises
        ------
        FormatError
            If no version of filmstrip writes arrays like that.
        """
        try:
            dtype = np.dtype(document["data_type"]).newbyteorder("<")
            _, *lengths = _extents(document["shape"])  # the steps, and what a frame has
            shape = tuple(lengths)
            rows, *extents = _extents(document["chunk_grid"]["configuration"]["chunk_shape"])
            _check_keys(document["chunk_key_encoding"])
            first = document["codecs"][0]
            if first["name"] != "sharding_indexed":
                _check_codecs(document["codecs"], "bytes")
                form = cls(dtype, shape, None, Codec("none", dtype.itemsize), rows)
            else:
                inner = first["configuration"]
                row, *lengths = _extents(inner["chunk_shape"])
                block = tuple(lengths)
                _check_shard(row, extents, block, inner.get("index_location", "end"))
                _check_codecs(document["codecs"], "sharding_indexed")
                _check_codecs(inner["index_codecs"], "bytes crc32c")
                _check_codecs(inner["codecs"], "bytes crc32c", "bytes blosc crc32c")
                grid = tuple(e // length for e, length in zip(extents, block, strict=True))
                codec = codec_from(inner["codecs"], dtype.itemsize)
                layout = Layout(shape, block, grid, times(shape, extents), rows)
                form = cls.strip(dtype, layout, codec)
            form.check()
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise FormatError(str(where), f"its zarr.json is not understood ({error!r})") from error
        return form

    def check(self) -> None:
        """Raise ValueError if no version of filmstrip writes arrays of this form."""
        if self.dtype.name not in PLAIN:
            raise ValueError(f"dtype {self.dtype}")
        if self.layout is None:
            row = math.prod(self.shape) * self.dtype.itemsize
            # A file has 1 MiB, give or take, or a single row.
            most = 2 * COLUMN_BYTES if self.rows > 1 else LARGEST_COLUMN
            if not 1 <= self.rows <= COLUMN_ROWS or self.rows * row > most:
                raise ValueError(f"a column's file of {self.rows} rows of {self.shape}")
            return
        if not (_leading(self.layout.block, self.layout.whole)
                and _leading(self.layout.grid, self.layout.files)):  # fmt: skip
            raise ValueError(f"blocks {self.layout.block} of frames {self.shape}")
        if self.layout.parts > MOST_PARTS:
            raise ValueError(f"frames of {self.shape} in {self.layout.parts} files")
        block_bytes = math.prod(self.layout.block) * self.dtype.itemsize
        if not 1 <= self.layout.slots <= SLOTS or block_bytes > LARGEST_BLOCK:
            raise ValueError(f"{self.layout.slots} blocks of {block_bytes} bytes in a shard")

    @property
    def parts(self) -> int:
        """Files that one row lies in."""
        return 1 if self.layout is None else self.layout.parts

    def key(self, index: int, part: int = 0) -> str:
        """Return the name of the file that holds a part of the index-th rows."""
        inside = (0,) * len(self.shape) if self.layout is None else self.layout.position(part)
        return chunk_key(index, *inside)

    def where(self, name: str) -> tuple[int, int] | None:
        """Return which file has a name: index and part; None when it is none of this array."""
        index, *inside = chunk_position(name) or (None,)
        files = (1,) * len(self.shape) if self.layout is None else self.layout.files
        if index is None or len(inside) != len(files):
            return None
        part = 0
        for at, count in zip(inside, files, strict=True):
            if at >= count:
                return None
            part = part * count + at
        return index, part

    def document(self, names: list[str], attributes: Json, *, fill: Any = None) -> Json:
        """Return the metadata of an array of this form, with no length yet."""
        if self.layout is None:
            chunk, codecs = (self.rows, *self.shape), _RAW
        else:
            chunk = self.layout.shard
            codecs = sharding((1, *self.layout.block), self.codec.metadata())
        if fill is None:
            fill = self._json_fill()
        name = self.dtype.name
        return array_document((0, *self.shape), chunk, name, fill, codecs, names, attributes)

    def _json_fill(self) -> Any:
        if self.layout is None and self.dtype.name in ABSENT:
            return f"0x{ABSENT[self.dtype.name]:0{2 * self.dtype.itemsize}x}"
        if self.dtype.kind == "f":
            return "NaN"
        return ["NaN", "NaN"] if self.dtype.kind == "c" else fill_value(self.dtype)

    def absent(self) -> bytes:
        """Return a column's row as it is where nothing was written."""
        values = math.prod(self.shape)
        bits = ABSENT.get(self.dtype.name)
        if bits is not None:
            return bits.to_bytes(self.dtype.itemsize, "little") * values
        return np.full(values, fill_value(self.dtype), self.dtype).tobytes()


def _extents(lengths: Any) -> tuple[int, ...]:
    # `type`, since True is an int to isinstance.
    if not all(type(length) is int and 0 <= length < 2**48 for length in lengths):
        raise ValueError("lengths that no array has")
    return tuple(lengths)


def _check_codecs(codecs: Any, *known: str) -> None:
    """Raise ValueError unless codecs are those, by name and in order; numbers little-endian."""
    names = " ".join(codec["name"] for codec in codecs)
    if names not in known:
        raise ValueError(f"codecs {names}")
    for codec in codecs:
        if codec["name"] == "bytes" and codec["configuration"]["endian"] != "little":
            raise ValueError("numbers that are not little-endian")


def _check_shard(row: int, shard: list[int], block: tuple[int, ...], index: Any) -> None:
    if row != 1 or index != "end" or any(e % n for e, n in zip(shard, block, strict=True)):
        raise ValueError(f"shards of {shard} in blocks of {(row, *block)}, index at {index!r}")


def _leading(lengths: tuple[int, ...], counts: tuple[int, ...]) -> bool:
    """Return whether what is cut so often in such lengths is cut along leading axes only."""
    cut = [axis for axis, count in enumerate(counts) if count > 1]
    return not cut or all(length == 1 for length in lengths[: cut[-1]])


def _check_keys(encoding: Any) -> None:
    if encoding["name"] != "default" or encoding["configuration"]["separator"] != ".":
        raise ValueError(f"chunk keys {encoding}")


class StripArray:
    """A strip being written.

    Parameters
    ----------
    path : Path
        Folder of the array.
    form : ArrayForm
        Its form, with a layout.
    metadata : ArrayMetadata
        The text of its zarr.json.
    descriptors : Descriptors
        Keeps files open.
    """

    __slots__ = (
        "_blocks", "_bound", "_codec", "_descriptors", "_dtype", "_extents", "_form", "_logs",
        "_path", "_regions", "_rows", "_shard", "metadata",
    )  # fmt: skip

    def __init__(
        self,
        path: Path,
        form: ArrayForm,
        metadata: ArrayMetadata,
        descriptors: _files.Descriptors,
    ) -> None:
        assert form.layout is not None
        self.metadata = metadata
        self._path, self._descriptors = path, descriptors
        self._form, self._codec, self._dtype = form, form.codec, form.dtype
        self._rows, self._blocks = form.layout.rows, form.layout.blocks
        self._extents = form.layout.shard[1:]
        self._bound = form.codec.bound(math.prod(form.layout.block) * form.dtype.itemsize)
        self._regions = [
            tuple(slice(*span) for span in form.layout.box(part)) for part in range(form.parts)
        ]
        self._shard = -1
        self._logs: list[ShardLog] = []

    def put(self, row: int, values: npt.NDArray[Any]) -> None:
        """Write one row: a C-contiguous array of the stored dtype, not longer than the frame."""
        if 0 in values.shape:
            return
        shard, position = divmod(row, self._rows)
        if shard != self._shard:
            self._open(shard, position)
        if len(self._logs) == 1:
            self._logs[0].put(position, self._encoded(values))
            return
        for log, region in zip(self._logs, self._regions, strict=True):
            log.put(position, self._encoded(values[region]))

    def _encoded(self, values: npt.NDArray[Any]) -> list[Encoded]:
        if values.shape != self._extents:
            whole = np.full(self._extents, fill_value(self._dtype), self._dtype)
            whole[tuple(slice(length) for length in values.shape)] = values
            values = whole
        if self._blocks == 1:
            return [self._codec.encode(values)]
        # Only leading axes are cut, so every block is one piece of the flat array.
        return [self._codec.encode(block) for block in values.reshape(self._blocks, -1)]

    def _shard_log(self, path: Path, keep: int) -> ShardLog:
        try:
            return ShardLog(
                path,
                rows=self._rows,
                blocks=self._blocks,
                bound=self._bound,
                descriptors=self._descriptors,
                keep=keep,
            )
        except ChecksumError as error:
            raise FormatError(str(path), DAMAGED_INDEX) from error

    def _open(self, shard: int, keep: int) -> None:
        self.close()
        for part in range(self._form.parts):
            self._logs.append(self._shard_log(self._path / self._form.key(shard, part), keep))
        self._shard = shard

    def drop(self, row: int) -> None:
        """Take a row out of the open shard."""
        shard, position = divmod(row, self._rows)
        for log in self._logs if shard == self._shard else ():
            log.drop([position])

    def truncate(self, keep: int) -> None:
        """Unlink shards wholly behind, drop rows of the one that straddles, seal what is live."""
        self._logs, self._shard = [], -1
        for shard, path in self._swept():
            self._descriptors.drop(str(path))
            rows = keep - shard * self._rows
            if rows <= 0:
                _files.unlink(path)
            elif rows < self._rows:
                self._shard_log(path, rows).seal()
            elif path.stat().st_size == self._live_length():
                with contextlib.suppress(FormatError):  # nothing is written to it any more
                    self._shard_log(path, rows).seal()

    def _swept(self) -> Iterator[tuple[int, Path]]:
        """Yield the shard files, rows ascending."""
        found = ((self._form.where(file.name), file) for file in self._path.iterdir())
        for where, file in sorted((where, file) for where, file in found if where is not None):
            yield where[0], file

    def _live_length(self) -> int:
        return live_bytes(self._rows * self._blocks, self._bound)

    def sync(self) -> None:
        """Wait until the open shard is on the disk."""
        for log in self._logs:
            log.sync()

    def close(self) -> None:
        """Seal the open shard."""
        self._shard = -1
        while self._logs:
            self._logs[-1].seal()
            self._logs.pop()


class ColumnArray:
    """A column being written.

    Parameters
    ----------
    path : Path
        Folder of the array.
    form : ArrayForm
        Its form, without a layout.
    metadata : ArrayMetadata
        The text of its zarr.json.
    descriptors : Descriptors
        Keeps files open.
    fill : bytes, optional
        A row where nothing was written, where it is not the usual one.
    """

    __slots__ = ("_column", "_fill", "metadata")

    def __init__(
        self,
        path: Path,
        form: ArrayForm,
        metadata: ArrayMetadata,
        descriptors: _files.Descriptors,
        *,
        fill: bytes | None = None,
    ) -> None:
        self.metadata = metadata
        self._fill = form.absent() if fill is None else fill
        ndim = len(form.shape) + 1
        self._column = Column(
            path, fill=self._fill, rows=form.rows, ndim=ndim, descriptors=descriptors
        )

    def put(self, row: int, values: npt.NDArray[Any]) -> None:
        """Write one row of the stored dtype."""
        self._column.put(row, values.tobytes())

    def get(self, row: int) -> bytes:
        """Return the bytes of a row."""
        return self._column.get(row)

    def put_bytes(self, row: int, value: bytes) -> None:
        """Write one row given as its bytes."""
        self._column.put(row, value)

    def drop(self, row: int) -> None:
        """Write a row as it is where nothing was written."""
        self._column.put(row, self._fill)

    def truncate(self, keep: int) -> None:
        """Unlink files that lie wholly behind, refill rows of the one that straddles."""
        self._column.truncate(keep)

    def sync(self) -> None:
        """Wait until the last rows are on the disk."""
        self._column.sync()

    def close(self) -> None:
        """Close the file."""
        self._column.close()


def write_metadata(
    path: Path, metadata: ArrayMetadata, capacity: int, *, fsync: bool = False
) -> None:
    """Write an array's own zarr.json."""
    _files.replace(path / METADATA, metadata.text(capacity).encode(), fsync=fsync)
