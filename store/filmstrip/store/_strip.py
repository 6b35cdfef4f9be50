"""Strips: the only place that answers questions about one layer of one kind over all its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from filmstrip.store._bits import bit_histogram, rebin
from filmstrip.store._reader import Index
from filmstrip.store._select import nearest_steps, slice_steps
from filmstrip.store._summary import STATISTICS, summarize
from filmstrip.store._view import GroupView, rows_of
from filmstrip.store.errors import FrameNotFoundError, KindNotFoundError

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
        steps = self._group.steps()
        return steps[self._group.reader(self._array).present(np.arange(len(steps)))]

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
        step, row = self._find(int(step), nearest=nearest)
        rows = np.array([row], np.int64)
        frame: npt.NDArray[Any] = self._group.reader(self._array).read(rows)[0]
        return frame[: self._valid(rows)[0]] if self._batched() else frame

    def _find(self, step: int, *, nearest: bool) -> tuple[int, int]:
        steps = self._group.steps()
        reader = self._group.reader(self._array)
        if step >= 0:
            row = int(np.searchsorted(steps, step))
            if row < len(steps) and steps[row] == step and reader.present(np.array([row]))[0]:
                return step, row
        rows = np.flatnonzero(reader.present(np.arange(len(steps))))
        kept = steps[rows]
        if step < 0:
            if -step > len(kept):
                raise FrameNotFoundError(self.layer, step, kept[:1].tolist())
            return int(kept[step]), int(rows[step])
        if not nearest or not len(kept):
            raise FrameNotFoundError(self.layer, step, nearest_steps(kept, step))
        best = int(np.argmin(np.abs(kept - step)))
        return int(kept[best]), int(rows[best])

    def _batched(self) -> bool:
        """Return whether the first axis holds samples, as far as is known."""
        if not self.shape or self.kind in ("weights", "gradients"):
            return False
        layout = self.layout
        if layout is not None:
            return layout[0] == "N"
        samples = self._group.samples(np.arange(len(self._group.steps())))
        return self.shape[0] == int(samples.max(initial=0))

    def _valid(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        samples = self._group.samples(rows).astype(np.int64)
        return np.where(samples > 0, np.minimum(samples, self.shape[0]), self.shape[0])

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
        kept = np.flatnonzero(reader.present(np.arange(len(everything))))
        if isinstance(steps, slice):
            wanted = slice_steps(everything[kept], steps)
        else:
            wanted = np.array(
                [self._find(int(step), nearest=False)[0] for step in np.atleast_1d(steps)]
            )
        rows = rows_of(everything, wanted)
        order = np.argsort(rows, kind="stable")
        read = reader.read(rows[order], index)
        result = np.empty_like(read)
        result[order] = read
        return result if result.dtype.isnative else result.astype(self.dtype)

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
        """
        try:
            return self.run.statistics(self.kind).histogram(self.layer, step, bins)
        except (KindNotFoundError, KeyError):
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
    if low == high:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, int(bins) + 1)
