"""Views: the only place that knows the state of one group as it is now, live or finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from filmstrip.store._metadata import Json, read_json
from filmstrip.store._names import METADATA, SAMPLES, STEP, WALL_TIME, chunk_key
from filmstrip.store._reader import ArrayReader
from filmstrip.store.errors import FormatError

Steps = npt.NDArray[np.int64]


class Series(NamedTuple):
    """Values over steps.

    Attributes
    ----------
    steps : ndarray of int64, shape (n_steps,)
        Optimizer steps, ascending.
    values : ndarray, shape (n_steps,)
        One value a step.
    """

    steps: Steps
    values: npt.NDArray[Any]


class GroupView:
    """One group of a run, read only; every question is answered from the disk as it is.

    Parameters
    ----------
    root : Path
        The store.
    name : str
        Path of the group inside it.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.name, self.path = name, root / name
        self._stamp: tuple[int, int, int] | None = None
        self._document: Json = {}
        self._readers: dict[str, ArrayReader] = {}

    def _refresh(self) -> Json:
        path = self.path / METADATA
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise FormatError(str(self.path), "its zarr.json is missing") from error
        stamp = (
            status.st_ino,
            status.st_mtime_ns,
            status.st_size,
        )  # replaced by rename, never in place
        if stamp != self._stamp:
            self._document = read_json(path) or {}
            self._readers.clear()
            self._stamp = stamp
        return self._document

    @property
    def attributes(self) -> Json:
        """What the group's metadata says."""
        attributes: Json = self._refresh()["attributes"].get("filmstrip", {})
        return attributes

    @property
    def documents(self) -> dict[str, Json]:
        """Metadata of the arrays, by array name."""
        documents: dict[str, Json] = self._refresh()["consolidated_metadata"]["metadata"]
        return documents

    def layers(self) -> dict[str, str]:
        """Return array names by layer, in forward order."""
        named = [
            (attributes.get("order", 0), position, attributes["layer"], name)
            for position, (name, document) in enumerate(self.documents.items())
            if (attributes := document["attributes"].get("filmstrip"))
        ]
        return {layer: name for _, _, layer, name in sorted(named)}

    def reader(self, name: str) -> ArrayReader:
        """Return the reader of an array."""
        documents = self.documents
        if name not in self._readers:
            self._readers[name] = ArrayReader(self.path / name, documents[name])
        return self._readers[name]

    def steps(self) -> Steps:
        """Return the steps of all complete rows."""
        per_file, found = self.reader(STEP).form.rows, []
        for chunk in range(1 << 31):
            try:
                steps = np.fromfile(self.path / STEP / chunk_key(chunk, 1), "<i8")
            except FileNotFoundError:
                break
            behind = np.flatnonzero(steps < 0)
            found.append(steps[: behind[0]] if behind.size else steps)
            if behind.size or len(steps) < per_file:
                break
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def samples(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return how many samples are valid in rows, 0 where that has no meaning."""
        return self.reader(SAMPLES).read(rows)

    def wall_times(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return when rows were written, in seconds since the epoch."""
        return self.reader(WALL_TIME).read(rows)

    def series(self, name: str) -> Series:
        """Return what a column of numbers holds."""
        steps = self.steps()
        rows = np.arange(len(steps))
        reader = self.reader(name)
        present = reader.present(rows)
        return Series(steps[present], reader.read(rows[present]))


def rows_of(steps: Steps, wanted: Sequence[int] | Steps) -> npt.NDArray[np.int64]:
    """Return the rows of steps that are all there."""
    return np.searchsorted(steps, np.asarray(wanted, np.int64))
