"""Columns: the only place that writes small rows, in place in files of many rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from filmstrip.store import _files
from filmstrip.store._names import chunk_key, chunk_position
from filmstrip.store._place import Place
from filmstrip.store.errors import DeniedError, FormatError


class Column:
    """The chunk files of one array with small rows.

    Parameters
    ----------
    path : Path
        Folder of the array.
    fill : bytes
        One row as it is where nothing was written.
    rows : int
        Rows in a file.
    ndim : int
        Axes of the array, the step axis counted.
    descriptors : Descriptors
        Keeps the files open.
    """

    __slots__ = ("_chunk", "_descriptors", "_file", "_fill", "_inside", "_path", "_rows")

    def __init__(
        self,
        path: Path,
        *,
        fill: bytes,
        rows: int,
        ndim: int,
        descriptors: _files.Descriptors,
    ) -> None:
        self._path, self._fill, self._rows = path, fill, rows
        self._inside = (0,) * (ndim - 1)
        self._descriptors = descriptors
        self._chunk, self._file = -1, ""

    def put(self, row: int, value: bytes) -> None:
        """Write one row.

        Raises
        ------
        OSError
            If the disk refuses.
        """
        _files.pwrite(self._descriptors.get(self._of(row)), [value], self._offset(row))

    def get(self, row: int) -> bytes:
        """Return one row."""
        descriptor = self._descriptors.get(self._of(row))
        return os.pread(descriptor, len(self._fill), self._offset(row))

    def _offset(self, row: int) -> int:
        return row % self._rows * len(self._fill)

    def _of(self, row: int) -> str:
        if row // self._rows != self._chunk:
            self._open(row // self._rows)
        return self._file

    def _open(self, chunk: int) -> None:
        self.close()
        path = self._path / chunk_key(chunk, *self._inside)
        if not path.exists():
            parts = [(0, self._filled(self._rows))] if any(self._fill) else []  # else: a hole
            length = self._rows * len(self._fill)
            _files.create(path, parts, length, fsync=self._descriptors.fsync)
        self._chunk, self._file = chunk, str(path)

    def _filled(self, rows: int) -> bytes:
        return self._fill * rows

    def truncate(self, keep: int) -> None:
        """Leave the first rows and make everything behind them as if never written."""
        self.close()
        for path in list(self._path.iterdir()):
            chunk, *inside = chunk_position(path.name) or (None,)
            if chunk is None or tuple(inside) != self._inside or (chunk + 1) * self._rows <= keep:
                continue
            if chunk * self._rows >= keep:
                _files.unlink(path)
                continue
            with path.open("rb") as file:
                data = file.read(self._rows * len(self._fill))
            kept = (keep - chunk * self._rows) * len(self._fill)
            refilled = data[:kept] + self._filled(self._rows)[kept:]
            if refilled != data:
                _files.replace(path, refilled, fsync=self._descriptors.fsync)

    def sync(self) -> None:
        """Wait until the last file written is on the disk."""
        if self._file:
            _files.sync(self._descriptors.get(self._file))

    def close(self) -> None:
        """Close the file."""
        self._descriptors.drop(self._file)
        self._chunk, self._file = -1, ""


def read_steps(place: Place, rows_per_file: int, committed: int = 0) -> npt.NDArray[np.int64]:
    """Return the steps of all complete rows of a group.

    Parameters
    ----------
    place : Place
        Folder of its step column.
    rows_per_file : int
        Rows in a file.
    committed : int
        Rows that are there for certain. A file behind them may be absent, which not every bucket
        admits.

    Returns
    -------
    ndarray of int64, shape (n_rows,)
        The longest prefix without a gap.

    Raises
    ------
    StoreError
        If a file cannot be read, or the steps do not rise.
    """
    found: list[npt.NDArray[np.int64]] = []
    while True:
        try:
            with (place / chunk_key(len(found))).open() as blob:
                raw = blob.read(0, rows_per_file * 8)
        except FileNotFoundError:
            break
        except DeniedError:
            if len(found) * rows_per_file < committed:
                raise
            break
        steps = np.frombuffer(raw[: len(raw) // 8 * 8], "<i8")
        behind = np.flatnonzero(steps < 0)
        found.append(steps[: behind[0]] if behind.size else steps)
        if behind.size or len(steps) < rows_per_file:
            break
    steps = np.concatenate(found) if found else np.empty(0, np.int64)
    if not (np.diff(steps) > 0).all():
        raise FormatError(str(place), "its steps do not rise")
    return steps
