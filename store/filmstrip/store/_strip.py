"""Strips: the only place that answers questions about one layer of one kind over all its steps."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from filmstrip.store._bits import bit_histogram, rebin
from filmstrip.store._reader import Index
from filmstrip.store._select import nearest_steps, slice_steps
from filmstrip.store._summary import STATISTICS, summarize
from filmstrip.store._view import GroupView
from filmstrip.store.errors import (
    FrameNotFoundError,
    KindNotFoundError,
    LayerNotFoundError,
)

if TYPE_CHECKING:
    from filmstrip.store._run import Run

Steps = npt.NDArray[np.int64]


class Strip:
    """One layer of one kind over all captured steps; obtained from a `Run`.

    Attributes
    ----------
    run : Run
        Where it belongs.
    kind, layer : str
        What it is.
    """

    def __init__(self, run: Run, group: GroupView, kind: str, layer: str, array: str) -> None:
        self.run, self.kind, self.layer = run, kind, layer
        self._group, self._array = group, array
        self._form = group.reader(array).form

    def __repr__(self) -> str:
        steps = len(self.steps)
        return f"<Strip {self.kind}/{self.layer} {self.dtype.name} {self.shape}, {steps} steps>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a frame."""
        return self._form.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the arrays that `frame` returns."""
        return self._form.dtype.newbyteorder("=")

    @property
    def nbytes(self) -> int:
        """Bytes of one frame, uncompressed."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def attributes(self) -> dict[str, Any]:
        """What the store says of the layer."""
        attributes: dict[str, Any] = self._group.documents[self._array]["attributes"]["filmstrip"]
        return dict(attributes)

    @property
    def layout(self) -> str | None:
        """One letter an axis, as ``"NCHW"``; None where nobody said."""
        return self.attributes.get("layout")

    @property
    def source_dtype(self) -> str:
        """Dtype that the tensor had on its device."""
        return str(self.attributes["dtype"])

    @property
    def rows_per_shard(self) -> int:
        """Steps that share one file."""
        return self._form.rows

    @property
    def steps(self) -> Steps:
        """Steps that have a frame, ascending."""
        return self._group.rows(self._array)[0]

    def frame(self, step: int = -1, *, nearest: bool = False) -> npt.NDArray[Any]:
        """Return the frame of one step.

        Parameters
        ----------
        step : int
            Optimizer step; below 0, counted from the last one kept.
        nearest : bool
            Take the nearest step kept, the earlier of two, instead of raising.

        Returns
        -------
        ndarray
            Of the strip's shape; shorter along the first axis when the batch was.

        Raises
        ------
        FrameNotFoundError
            If no frame was kept at the step. Names the nearest kept ones.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> from filmstrip.store import FrameSpec, create_run, open_run
        >>> folder = tempfile.mkdtemp()
        >>> with create_run(f"{folder}/run.zarr") as run:
        ...     writer = run.writer("weights", {"fc": FrameSpec((2,), "float32")})
        ...     for step in (0, 100):
        ...         writer.append(step, {"fc": np.full(2, step, np.float32)})
        >>> open_run(f"{folder}/run.zarr").weights["fc"].frame(90, nearest=True)
        array([100., 100.], dtype=float32)
        """
        steps, rows = self._find(operator.index(step), nearest=nearest)
        frame: npt.NDArray[Any] = self._group.read(self._array, steps, rows)[0]
        if not self._batched():
            return frame
        samples = int(self._group.samples(rows)[0])
        return frame[:samples] if 0 < samples < len(frame) else frame

    def _find(self, step: int, *, nearest: bool) -> tuple[Steps, Steps]:
        """Return one step that has a frame, and its row."""
        steps = self._group.steps()
        reader = self._group.reader(self._array)
        if step < 0:
            rows = reader.last_present(len(steps), -step)
            if len(rows) < -step:
                raise FrameNotFoundError(self.layer, step, steps[rows[:1]].tolist())
            return steps[rows[:1]], rows[:1]
        rows = np.flatnonzero(steps == step)
        if rows.size and reader.present(rows)[0]:
            return steps[rows], rows
        kept, rows = self._group.rows(self._array)
        if not nearest or not kept.size:
            raise FrameNotFoundError(self.layer, step, nearest_steps(kept, step))
        best = slice(at := int(np.argmin(np.abs(kept - step))), at + 1)
        return kept[best], rows[best]

    def _batched(self) -> bool:
        """Return whether the first axis holds samples: by its layout, or since one was short."""
        about = self.attributes
        return (about.get("layout") or "").startswith("N") or bool(about.get("varies"))

    def read(
        self, steps: int | slice | Sequence[int] | Steps = slice(None), index: Index = ()
    ) -> npt.NDArray[Any]:
        """Read many steps at once, and of every frame only what an index picks.

        Parameters
        ----------
        steps : int, slice or sequence of int
            By label. A slice is half open and takes the steps that are there; one with a stride k
            those that are start + i·k. Steps named singly must all be there.
        index : optional
            A numpy index into a frame; blocks outside it are not read.

        Returns
        -------
        ndarray, shape (n_steps, *indexed)
            A short batch is padded with NaN, or 0 for integers.

        Raises
        ------
        FrameNotFoundError
            If a step named singly was not kept.
        SelectionError
            If a slice has no meaning.
        IndexError
            If the index does not fit the frame.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> from filmstrip.store import FrameSpec, create_run, open_run
        >>> folder = tempfile.mkdtemp()
        >>> with create_run(f"{folder}/run.zarr") as run:
        ...     writer = run.writer("weights", {"fc": FrameSpec((4, 2), "float32")})
        ...     for step in range(0, 50, 10):
        ...         writer.append(step, {"fc": np.full((4, 2), step, np.float32)})
        >>> open_run(f"{folder}/run.zarr").weights["fc"].read(slice(10, 40), index=(0, 1))
        array([10., 20., 30.], dtype=float32)
        """
        everything = self._group.steps()
        reader = self._group.reader(self._array)
        if isinstance(steps, slice):
            wanted = slice_steps(everything, steps)
            rows = np.searchsorted(everything, wanted)
            there = reader.present(rows)
            return self._native(self._group.read(self._array, wanted[there], rows[there], index))
        wanted = np.array([self._known(everything, step) for step in np.atleast_1d(steps).tolist()])
        unique, order = np.unique(wanted.astype(np.int64), return_inverse=True)
        rows = np.searchsorted(everything, unique)
        missing = unique[~reader.present(rows)]
        if missing.size:
            kept = self.steps
            step = int(missing[0])
            raise FrameNotFoundError(self.layer, step, nearest_steps(kept, step))
        return self._native(self._group.read(self._array, unique, rows, index)[order])

    def _known(self, everything: Steps, step: int) -> int:
        if step < 0:
            return int(self._find(step, nearest=False)[0][0])
        at = int(np.searchsorted(everything, step))
        if at == len(everything) or everything[at] != step:
            raise FrameNotFoundError(self.layer, step, nearest_steps(self.steps, step))
        return step

    def _native(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return values if values.dtype.isnative else values.astype(self.dtype)

    def histogram(
        self, step: int = -1, bins: int | npt.ArrayLike = 50
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the histogram of the layer's tensor at one step.

        Parameters
        ----------
        step : int
            Optimizer step; below 0, counted from the last one kept.
        bins : int or array_like of float
            How many bins between the extremes, or their edges.

        Returns
        -------
        counts : ndarray of float64, shape (n_bins,)
            From the stored bit counts of the whole tensor, or from the frame without any.
        edges : ndarray of float64, shape (n_bins + 1,)
            Edges.

        Raises
        ------
        FrameNotFoundError
            If neither a histogram nor a frame was kept at the step.
        TypeError
            If the values are complex.
        """
        if self.dtype.kind == "c":
            raise TypeError(f"complex values of {self.layer!r} have no histogram")
        try:
            return self.run.statistics(self.kind).histogram(self.layer, step, bins)
        except (KindNotFoundError, LayerNotFoundError, FrameNotFoundError):
            frame = self.frame(step)
            values = dict(zip(STATISTICS, summarize(frame).tolist(), strict=True))
            edges = histogram_edges(bins, values["min"], values["max"])
            return rebin(bit_histogram(frame), edges, values["min"], values["max"]), edges


def histogram_edges(bins: int | npt.ArrayLike, low: float, high: float) -> npt.NDArray[np.float64]:
    """Return bin edges between two extremes, or those that were given.

    Raises
    ------
    ValueError
        If the number of bins is not positive.
    """
    if not isinstance(bins, int | np.integer):
        return np.asarray(bins, np.float64)
    if bins < 1:
        raise ValueError(f"a histogram needs 1 bin or more; got {bins}")
    if not np.isfinite([low, high]).all():
        low, high = 0.0, 1.0
    edges = np.linspace(low, high, int(bins) + 1)
    if (np.diff(edges) > 0).all() and np.isfinite(edges).all():
        return edges
    # One value, or a range that floats cannot divide so finely: wide enough that they can.
    middle, half = low / 2 + high / 2, max(0.5, 1e-9 * bins * max(abs(low), abs(high)))
    reach = np.finfo(np.float64).max / 4
    middle = min(max(middle, -reach), reach)
    return np.linspace(middle - half, middle + half, int(bins) + 1)
