"""Views: the only place that knows the state of one group as it is now, live or finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from filmstrip.store._column import read_steps
from filmstrip.store._metadata import Json, MetadataFile, members_of
from filmstrip.store._names import METADATA, SAMPLES, STEP, WALL_TIME
from filmstrip.store._place import LocalPlace, Place
from filmstrip.store._reader import ArrayReader, Index
from filmstrip.store.errors import FormatError

if TYPE_CHECKING:
    from filmstrip.store._run import Run

Steps = npt.NDArray[np.int64]


class _Pair(NamedTuple):
    steps: Steps
    values: npt.NDArray[Any]


class Series(_Pair):
    """Values over steps.

    Attributes
    ----------
    steps : ndarray of int64, shape (n_steps,)
        Optimizer steps, ascending.
    values : ndarray, shape (n_steps,)
        One value a step.
    name : str
        What they are values of, empty when nobody said.
    run : Run or None
        The run that logged them, None for other values.

    Examples
    --------
    >>> steps, values = Series.named("loss", np.arange(2), np.ones(2))
    """

    name = ""
    run: Run | None = None

    @classmethod
    def named(
        cls, name: str, steps: Steps, values: npt.NDArray[Any], run: Run | None = None
    ) -> Self:
        """Return values with the name of what they are values of."""
        series = cls(steps, values)
        series.name, series.run = name, run
        return series


class GroupView:
    """One group of a run, read only; every question is answered from the disk as it is.

    Parameters
    ----------
    root : Place
        The store.
    name : str
        Path of the group inside it.
    """

    def __init__(self, root: Place, name: str) -> None:
        self.name, self.place = name, root / name
        self._file = MetadataFile(self.place / METADATA)
        self._known: Json | None = None
        self._members: tuple[Json, dict[str, Json]] = ({}, {})
        self._layers: dict[str, str] = {}
        self._readers: dict[str, ArrayReader] = {}
        if isinstance(self.place, LocalPlace):
            self.place.check_inside()

    def _refresh(self) -> tuple[Json, dict[str, Json]]:
        document = self._file.read()
        if document is None:
            raise FormatError(str(self.place), "its zarr.json is missing")
        if document is not self._known:
            self._members = members_of(document, self.place)
            self._layers = _in_order(self._members[1])
            self._readers = {}
            self._known = document
        return self._members

    @property
    def attributes(self) -> Json:
        """What the group's metadata says."""
        return self._refresh()[0]

    @property
    def documents(self) -> dict[str, Json]:
        """Metadata of the arrays, by array name."""
        return self._refresh()[1]

    def layers(self) -> dict[str, str]:
        """Return array names by layer, in forward order."""
        self._refresh()
        return self._layers

    def reader(self, name: str) -> ArrayReader:
        """Return the reader of an array."""
        documents = self.documents
        reader = self._readers.get(name)
        if reader is None:
            if name not in documents:
                raise FormatError(str(self.place), f"its zarr.json does not have {name!r}")
            reader = self._readers[name] = ArrayReader(self.place / name, documents[name])
        return reader

    def steps(self) -> Steps:
        """Return the steps of all complete rows."""
        form = self.reader(STEP).form
        if form.dtype != np.dtype("<i8") or form.shape:
            raise FormatError(str(self.place / STEP), "it holds no steps")
        return read_steps(self.place / STEP, form.rows, self.documents[STEP]["shape"][0])

    def rows(self, name: str) -> tuple[Steps, Steps]:
        """Return the steps at which an array holds something, and their rows."""
        steps = self.steps()
        rows = np.flatnonzero(self.reader(name).present(np.arange(len(steps))))
        return steps[rows], rows

    def read(self, name: str, steps: Steps, rows: Steps, index: Index = ()) -> npt.NDArray[Any]:
        """Read rows of an array whose steps are known, also while a rewind rewrites them.

        Parameters
        ----------
        name : str
            Array.
        steps, rows : ndarray of int64, shape (n_rows,)
            Rows, ascending, and the steps that they were found to have.
        index : optional
            A numpy index into a row.

        Returns
        -------
        ndarray, shape (n_rows, *indexed)
            What the array holds at these steps.

        Raises
        ------
        FormatError
            If the rows have other steps each time.
        """
        for _ in range(4):
            failed, values = None, np.empty(0)
            try:
                values = self.reader(name).read(rows, index)
            except FormatError as error:  # what is being taken back may look like damage
                failed = error
            now = self.steps()
            if len(rows) == 0 or (rows[-1] < len(now) and np.array_equal(now[rows], steps)):
                if failed is not None:
                    raise failed
                return values
            rows = np.searchsorted(now, steps)
            rows = rows[rows < len(now)]
        raise FormatError(str(self.place), "its steps were taken back meanwhile")

    def samples(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return how many samples are valid in rows, 0 where that has no meaning."""
        return self.reader(SAMPLES).read(rows)

    def wall_times(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return when rows were written, in seconds since the epoch."""
        return self.reader(WALL_TIME).read(rows)

    def series(self, name: str) -> Series:
        """Return what a column of numbers holds."""
        steps, rows = self.rows(name)
        return Series(steps, self.read(name, steps, rows))


def _in_order(documents: dict[str, Json]) -> dict[str, str]:
    """Return array names by layer, in forward order."""
    named = [
        (attributes.get("order", 0), position, attributes["layer"], name)
        for position, (name, document) in enumerate(documents.items())
        if (attributes := document["attributes"].get("filmstrip"))
    ]
    return {layer: name for _, _, layer, name in sorted(named)}
