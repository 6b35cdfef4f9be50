"""Groups: the only place that appends a row to a group and makes it visible, or takes it back.

A row appears in this order: strips and columns; ``samples`` and ``wall_time``; ``step``, from which
on our own readers see it; then the group's and the root's zarr.json, for everybody else.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from filmstrip.store import _files
from filmstrip.store._arrays import (
    Array,
    ArrayForm,
    ColumnArray,
    StripArray,
    write_metadata,
)
from filmstrip.store._layout import FIRST_CAPACITY
from filmstrip.store._metadata import ArrayMetadata, Json, group_text, read_json
from filmstrip.store._names import METADATA, SAMPLES, STEP, WALL_TIME, chunk_key
from filmstrip.store.errors import StoreWriteError

_NO_STEP = -1
_INT64, _INT32, _FLOAT64 = struct.Struct("<q"), struct.Struct("<i"), struct.Struct("<d")
_AXIS_COLUMNS: dict[str, tuple[str, int | None]] = {
    STEP: ("int64", _NO_STEP),
    WALL_TIME: ("float64", None),
    SAMPLES: ("int32", 0),
}


class Publisher(Protocol):
    """Whoever publishes groups; called under the store's lock."""

    def pending(self, group: GroupWriter) -> None:
        """Publish the group soon."""


class GroupWriter:
    """Rows of one group: arrays that share a step axis.

    Parameters
    ----------
    root : Path
        The store.
    name : str
        Path of the group inside the store.
    publisher : Publisher
        Is told of every new row.
    lock : RLock
        The store's lock.
    descriptors : Descriptors
        Keeps files open.
    attributes : dict, optional
        What the group's metadata says, for a new group.
    fsync : bool
        Whether a row must outlive a loss of power.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        *,
        publisher: Publisher,
        lock: threading.RLock,
        descriptors: _files.Descriptors,
        attributes: Json | None = None,
        fsync: bool = False,
    ) -> None:
        self.name, self.path = name, root / name
        self.attributes: Json = dict(attributes or {})
        self.documents: dict[str, Json] = {}
        self.arrays: dict[str, Array] = {}
        self.rows = 0
        self.last_step = _NO_STEP
        self._capacity = FIRST_CAPACITY
        self._publisher, self._lock, self._descriptors = publisher, lock, descriptors
        self._fsync = fsync
        self._broken: list[tuple[str, int]] = []
        document = read_json(self.path / METADATA)
        if document is None:
            self._create()
        else:
            self._reopen(document)

    def _create(self) -> None:
        for array in (WALL_TIME, SAMPLES, STEP):
            dtype, fill = _AXIS_COLUMNS[array]
            form = ArrayForm.column(np.dtype(dtype))
            self.add(array, form, form.document([STEP], {}, fill=fill))

    def _reopen(self, document: Json) -> None:
        self.attributes = document["attributes"].get("filmstrip", {})
        self.documents = document["consolidated_metadata"]["metadata"]
        for name, array_document in self.documents.items():
            self.arrays[name] = self._array(name, ArrayForm.of(array_document), array_document)
        steps = self._steps_on_disk()
        self.rows = len(steps)
        self.last_step = int(steps[-1]) if len(steps) else _NO_STEP

    def _steps_on_disk(self) -> npt.NDArray[np.int64]:
        """Return the longest complete prefix of the step column."""
        rows, found = ArrayForm.of(self.documents[STEP]).rows, []
        for chunk in range(1 << 31):
            path = self.path / STEP / chunk_key(chunk, 1)
            if not path.exists():
                break
            steps = np.fromfile(path, "<i8")
            behind = np.flatnonzero(steps == _NO_STEP)
            found.append(steps[: behind[0]] if behind.size else steps)
            if behind.size or len(steps) < rows:
                break
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _array(self, name: str, form: ArrayForm, document: Json) -> Array:
        metadata = ArrayMetadata.of(document)
        if form.layout is not None:
            return StripArray(self.path / name, form, metadata, self._descriptors)
        fill = _AXIS_COLUMNS.get(name, ("", None))[1]
        raw = None if fill is None else np.array(fill, form.dtype).tobytes()
        return ColumnArray(self.path / name, form, metadata, self._descriptors, fill=raw)

    def add(self, name: str, form: ArrayForm, document: Json) -> None:
        """Make an array; readers see it when the group is published next."""
        _files.make_directory(self.path / name)
        array = self._array(name, form, document)
        write_metadata(self.path / name, array.metadata, self._capacity, fsync=self._fsync)
        self.arrays[name], self.documents[name] = array, document

    def check_step(self, step: int) -> int:
        """Return a step as int.

        Raises
        ------
        ValueError
            If it is negative, too large for 64 bits, or not behind the group's last one.
        """
        number = int(step)
        if not 0 <= number < 2**63:
            raise ValueError(f"a step lies between 0 and 2^63; got {number}")
        if number <= self.last_step:
            raise ValueError(
                f"steps of {self.name} must rise; {number} comes after {self.last_step}"
            )
        return number

    def append(
        self,
        step: int,
        values: Mapping[str, npt.NDArray[Any]],
        *,
        samples: int = 0,
        wall_time: float | None = None,
    ) -> None:
        """Write one row.

        Parameters
        ----------
        step : int
            Larger than that of the row before.
        values : mapping of array name to ndarray
            C-contiguous, in the stored dtypes; arrays that are not named keep their fill.
        samples : int
            Valid samples of the row, 0 where that has no meaning.
        wall_time : float, optional
            Seconds since the epoch; now by default.

        Raises
        ------
        StoreWriteError
            If the row could not be written. The group is as it was.
        """
        with self._lock:
            row = self.rows
            begun: list[str] = []
            try:
                self._mend()
                if row >= self._capacity:
                    self._grow()
                for name, value in values.items():
                    begun.append(name)
                    self.arrays[name].put(row, value)
                if self._fsync:
                    self._sync(begun)
                self._put(SAMPLES, row, _INT32.pack(samples))
                self._put(
                    WALL_TIME,
                    row,
                    _FLOAT64.pack(time.time() if wall_time is None else wall_time),
                )
                self._put(STEP, row, _INT64.pack(step))
                if self._fsync:
                    self._sync([SAMPLES, WALL_TIME, STEP])
            except OSError as error:
                self._broken += [(name, row) for name in (*begun, STEP)]
                with contextlib.suppress(OSError):
                    self._mend()
                raise StoreWriteError(error.errno or 0, str(self.path)) from error
            self.rows, self.last_step = row + 1, step
            self._publisher.pending(self)

    def amend(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write columns of the last row that were left out of it."""
        with self._lock:
            try:
                for name, value in values.items():
                    self.arrays[name].put(self.rows - 1, value)
            except OSError as error:
                raise StoreWriteError(error.errno or 0, str(self.path)) from error
            self._publisher.pending(self)

    def _put(self, name: str, row: int, value: bytes) -> None:
        column = self.arrays[name]
        assert isinstance(column, ColumnArray)
        column.put_bytes(row, value)

    def _mend(self) -> None:
        """Take back what a failed row left: it must not show up in the row that takes its place."""
        while self._broken:
            name, row = self._broken[-1]
            self.arrays[name].drop(row)
            self._broken.pop()

    def _grow(self) -> None:
        self.set_capacity(2 * self._capacity)

    def set_capacity(self, capacity: int) -> None:
        """Write every array's own length, ``step`` last."""
        for name in sorted(self.arrays, key=lambda name: name == STEP):
            write_metadata(
                self.path / name, self.arrays[name].metadata, capacity, fsync=self._fsync
            )
        self._capacity = capacity

    def _sync(self, names: Sequence[str]) -> None:
        for name in names:
            self.arrays[name].sync()

    def text(self) -> str:
        """Return the group's zarr.json."""
        return group_text(self.attributes, self.members())

    def members(self, prefix: str = "") -> dict[str, str]:
        """Return the metadata of every array at its committed length."""
        return {
            prefix + name: array.metadata.text(self.rows) for name, array in self.arrays.items()
        }

    def publish(self) -> None:
        """Replace the group's zarr.json: the commit of all rows so far."""
        _files.replace(self.path / METADATA, self.text().encode(), fsync=self._fsync)

    def rows_before(self, step: int | None) -> int:
        """Return how many rows lie before a step, all of them for None."""
        steps = self._steps_on_disk()
        return len(steps) if step is None else int(np.searchsorted(steps, step))

    def steps_behind(self, keep: int) -> npt.NDArray[np.int64]:
        """Return the steps of the rows behind the first ones."""
        return self._steps_on_disk()[keep:]

    def shorten(self, keep: int) -> None:
        """Forget rows in memory; what is on disk stays until `truncate`."""
        steps = self._steps_on_disk()[:keep]
        self.rows, self.last_step = keep, int(steps[-1]) if keep else _NO_STEP

    def truncate(self) -> None:
        """Make everything behind the rows as if never written, and room for new ones."""
        for array in self.arrays.values():
            array.truncate(self.rows)
        capacity = FIRST_CAPACITY
        while capacity <= self.rows:
            capacity *= 2
        self.set_capacity(capacity)

    def close(self) -> None:
        """Seal the strips and set every array's own length to the committed one."""
        with self._lock:
            for array in self.arrays.values():
                array.close()
            self.set_capacity(self.rows)
