"""Groups: the only place that appends a row to a group and makes it visible, or takes it back.

A row appears in this order: strips and columns; ``samples`` and ``wall_time``; ``step``, from which
on our own readers see it; then the group's and the root's zarr.json, for everybody else.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from filmstrip.store import _files
from filmstrip.store._arrays import Array, ArrayForm, ColumnArray, StripArray, write_metadata
from filmstrip.store._column import read_steps
from filmstrip.store._layout import FIRST_CAPACITY
from filmstrip.store._metadata import ArrayMetadata, Json, group_text, members_of, read_json
from filmstrip.store._names import METADATA, SAMPLES, STEP, WALL_TIME
from filmstrip.store._place import LocalPlace
from filmstrip.store.errors import StoreError, StoreWriteError

if TYPE_CHECKING:
    from filmstrip.store._publish import Publisher

_NO_STEP = -1
_INT64, _INT32, _FLOAT64 = struct.Struct("<q"), struct.Struct("<i"), struct.Struct("<d")
AXIS_COLUMNS: dict[str, tuple[str, int | None]] = {
    STEP: ("int64", _NO_STEP),
    WALL_TIME: ("float64", None),
    SAMPLES: ("int32", 0),
}


class GroupWriter:
    """Rows of one group: arrays that share a step axis.

    Parameters
    ----------
    publisher : Publisher
        The store; is told of every new row.
    name : str
        Path of the group inside the store.
    attributes : dict, optional
        What the metadata of a new group says; without it, the group is there already.
    """

    def __init__(self, publisher: Publisher, name: str, attributes: Json | None = None) -> None:
        self.name, self.path = name, publisher.root / name
        self.attributes: Json = dict(attributes or {})
        self.documents: dict[str, Json] = {}
        self.arrays: dict[str, Array] = {}
        self.rows = 0
        self._committed = 0  # rows that the group's zarr.json names
        self.last_step = _NO_STEP
        self._capacity = FIRST_CAPACITY
        self._publisher, self._descriptors = publisher, publisher.descriptors
        self._broken: list[tuple[str, int, bytes | None]] = []
        self._unpublished = False
        if attributes is not None:
            self._create()
        else:
            self._reopen(read_json(LocalPlace(self.path / METADATA)) or {})

    def _create(self) -> None:
        _files.remove_tree(self.path)  # what a killed start, or overwriting, left there
        for array in (WALL_TIME, SAMPLES, STEP):
            dtype, fill = AXIS_COLUMNS[array]
            form = ArrayForm.column(np.dtype(dtype))
            self.add(array, form, form.document([STEP], {}, fill=fill))

    def _reopen(self, document: Json) -> None:
        self.attributes, self.documents = members_of(document, self.path)
        for name, array_document in self.documents.items():
            form = ArrayForm.of(array_document, self.path / name)
            self.arrays[name] = self._array(name, form, array_document)
        steps = self._steps()
        self.rows = len(steps)
        self.last_step = int(steps[-1]) if len(steps) else _NO_STEP

    def _steps(self) -> npt.NDArray[np.int64]:
        form = ArrayForm.of(self.documents[STEP], self.path / STEP)
        return read_steps(LocalPlace(self.path / STEP), form.rows)

    def _array(self, name: str, form: ArrayForm, document: Json) -> Array:
        metadata = ArrayMetadata.of(document)
        if form.layout is not None:
            return StripArray(self.path / name, form, metadata, self._descriptors)
        fill = AXIS_COLUMNS.get(name, ("", None))[1]
        raw = None if fill is None else np.array(fill, form.dtype).tobytes()
        return ColumnArray(self.path / name, form, metadata, self._descriptors, fill=raw)

    def add(self, name: str, form: ArrayForm, document: Json) -> None:
        """Make an array; readers see it when the group is published next."""
        self._unpublished = True
        if (self.path / name).exists():  # a process was killed before anybody knew of its array
            _files.remove_tree(self.path / name)
        _files.make_directory(self.path / name)
        array = self._array(name, form, document)
        write_metadata(
            self.path / name, array.metadata, self._capacity, fsync=self._descriptors.fsync
        )
        self.arrays[name], self.documents[name] = array, document

    def annotate(self, name: str, key: str, *, value: Any) -> None:
        """Say one more thing of an array, for every reader at once."""
        with self._publisher.lock:
            self._publisher.check_open()
            about = self.documents[name]["attributes"]["filmstrip"]
            if about.get(key) != value:
                about[key] = value
                self.arrays[name].metadata = ArrayMetadata.of(self.documents[name])
                self._unpublished = True  # the row that comes next waits for it

    def check_step(self, step: int) -> None:
        """Raise if a step cannot be the next row's.

        Raises
        ------
        ValueError
            If it is negative, too large for 64 bits, or not behind the group's last one.
        """
        if not 0 <= step < 2**63:
            raise ValueError(f"a step lies between 0 and 2^63; got {step}")
        if step <= self.last_step:
            raise ValueError(f"steps of {self.name} must rise; {step} comes after {self.last_step}")

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
        ValueError
            If the step does not rise.
        StoreError
            If the run is closed.
        """
        with self._publisher.writing():
            self.check_step(step)
            row = self.rows
            axis = {
                SAMPLES: _INT32.pack(samples),
                WALL_TIME: _FLOAT64.pack(time.time() if wall_time is None else wall_time),
                STEP: _INT64.pack(step),
            }
            with self._taken_back(row) as begun:
                self._prepare()
                if row >= self._capacity:
                    self.set_capacity(2 * self._capacity)
                for name, value in values.items():
                    begun[name] = None
                    self.arrays[name].put(row, value)
                self._sync(values)
                begun |= dict.fromkeys(axis)
                for name, packed in axis.items():
                    self._put(name, row, packed)
                self._sync(axis)
                self.last_step, self.rows = step, row + 1
            self._publisher.pending(self)

    def amend(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write columns of the last row, left out of it or not.

        Raises
        ------
        StoreWriteError
            If they could not be written; all of them are then as they were.
        """
        with self._publisher.writing():
            row = self.rows - 1
            with self._taken_back(row) as begun:
                self._prepare()
                for name, value in values.items():
                    begun[name] = self._column(name).get(row)
                    self.arrays[name].put(row, value)
                self._sync(values)
            self._publisher.pending(self)

    def _prepare(self) -> None:
        """Do what must be done before a row: nobody may see one that is described nowhere."""
        self._mend()
        if self._unpublished:
            self._publisher.publish_now(self)

    @contextlib.contextmanager
    def _taken_back(self, row: int) -> Iterator[dict[str, bytes | None]]:
        """Yield a dict for the arrays begun and what they held; whatever goes wrong, they do."""
        rows, last_step = self.rows, self.last_step
        begun: dict[str, bytes | None] = {}
        try:
            yield begun
        except BaseException as error:
            if self.rows == rows:  # else an interrupt came when all was done
                self.last_step = last_step
                self._broken += [(name, row, before) for name, before in begun.items()]
                with contextlib.suppress(OSError, StoreError):
                    self._mend()
            if isinstance(error, OSError) and not isinstance(error, StoreError):
                raise StoreWriteError(error.errno or 0, str(self.path)) from error
            raise

    def _column(self, name: str) -> ColumnArray:
        column = self.arrays[name]
        assert isinstance(column, ColumnArray)
        return column

    def _put(self, name: str, row: int, value: bytes) -> None:
        self._column(name).put_bytes(row, value)

    def _mend(self) -> None:
        """Take back what a failed row left: the row that takes its place must not show it."""
        while self._broken:
            name, row, before = self._broken[-1]
            if before is None:
                self.arrays[name].drop(row)
            else:
                self._put(name, row, before)
            self._broken.pop()

    def set_capacity(self, capacity: int) -> None:
        """Write every array's own length, ``step`` last."""
        for name in sorted(self.arrays, key=lambda name: name == STEP):
            write_metadata(
                self.path / name,
                self.arrays[name].metadata,
                capacity,
                fsync=self._descriptors.fsync,
            )
        self._capacity = capacity

    def _sync(self, names: Iterable[str]) -> None:
        if self._descriptors.ordered:
            for name in names:
                self.arrays[name].sync()

    def members(self, prefix: str = "") -> dict[str, str]:
        """Return the metadata of every array at its committed length."""
        return {
            prefix + name: array.metadata.text(self._committed)
            for name, array in self.arrays.items()
        }

    def publish(self) -> None:
        """Replace the group's zarr.json: the commit of all rows so far."""
        before, self._committed = self._committed, self.rows
        try:
            text = group_text(self.attributes, self.members())
            self._publisher.put_metadata(self.path / METADATA, text)
        except BaseException:
            self._committed = before
            raise
        self._unpublished = False

    def commit(self) -> None:
        """Publish the rows so far, unless the run is closed, which has done so."""
        with self._publisher.lock:
            if self._publisher.is_open and self._committed < self.rows:
                self._publisher.publish()

    def shorten(self, first_step: int | None) -> list[int]:
        """Forget the rows from a step on; what is on disk stays until `truncate`.

        Returns
        -------
        list of int
            Their steps.
        """
        steps = self._steps()
        keep = len(steps) if first_step is None else int(np.searchsorted(steps, first_step))
        self.rows, self.last_step = keep, int(steps[keep - 1]) if keep else _NO_STEP
        self._committed = keep  # the root is to say so before the group does
        return [int(step) for step in steps[keep:]]

    def truncate(self) -> None:
        """Make everything behind the rows as if never written, and room for new ones."""
        # The step first: while it stands, the row must be whole.
        for name in sorted(self.arrays, key=lambda name: name != STEP):
            self.arrays[name].truncate(self.rows)
            _files.sweep(self.path / name)
        _files.sweep(self.path)
        capacity = FIRST_CAPACITY
        while capacity <= self.rows:
            capacity *= 2
        self.set_capacity(capacity)

    def closing(self) -> list[Callable[[], None]]:
        """Return what seals the strips and sets every array's own length to the committed one."""
        return [
            self._mend,
            *(array.close for array in self.arrays.values()),
            lambda: self.set_capacity(self.rows),
        ]
