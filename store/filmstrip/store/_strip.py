"""Strips: the only place that answers questions about one layer of one kind over all its steps."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from filmstrip.store._bits import bit_histogram, rebin
from filmstrip.store._pieces import Assembly, Piece
from filmstrip.store._reader import Index
from filmstrip.store._select import nearest_steps, slice_steps
from filmstrip.store._summary import STATISTICS, summarize
from filmstrip.store.errors import (
    FrameNotFoundError,
    KindNotFoundError,
    LayerNotFoundError,
    StoreError,
)

if TYPE_CHECKING:
    import dask.array
    import xarray

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

    def __init__(self, run: Run, kind: str, layer: str, pieces: Sequence[Piece]) -> None:
        self.run, self.kind, self.layer = run, kind, layer
        self._assembly = Assembly(kind, pieces)

    def __repr__(self) -> str:
        steps = len(self.steps)
        return f"<Strip {self.kind}/{self.layer} {self.dtype.name} {self.shape}, {steps} steps>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a frame, the global one of a sharded tensor."""
        return self._assembly.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the arrays that `frame` returns."""
        return self._assembly.dtype

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What each rank holds: one piece, unless the tensor is sharded or replicated."""
        return self._assembly.pieces

    @property
    def nbytes(self) -> int:
        """Bytes of one frame, uncompressed."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def attributes(self) -> dict[str, Any]:
        """What the store says of the layer."""
        return dict(self.pieces[0].attributes)

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
        return self.pieces[0].form.rows

    @property
    def steps(self) -> Steps:
        """Steps that have a frame, on all ranks that own a piece of it; ascending."""
        return self._assembly.steps

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
        return self._assembly.frame(self._find(operator.index(step), nearest=nearest))

    def _find(self, step: int, *, nearest: bool = False) -> int:
        """Return a step that has a frame."""
        if not self._assembly.complete:
            ranks = ", ".join(str(piece.rank) for piece in self.pieces)
            raise StoreError(
                f"{self.kind} of {self.layer!r} lack pieces of ranks that have not written; "
                f"those of rank {ranks} are in strip.pieces"
            )
        if step < 0:
            kept = self._assembly.last(-step)
            if len(kept) < -step:
                raise FrameNotFoundError(self.layer, step, kept[:1].tolist())
            return int(kept[0])
        if self._assembly.present(np.array([step], np.int64))[0]:
            return step
        kept = self.steps
        if not nearest or not kept.size:
            raise FrameNotFoundError(self.layer, step, nearest_steps(kept, step))
        return int(kept[np.argmin(np.abs(kept - step))])

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
        if isinstance(steps, slice):
            wanted = slice_steps(self.run.steps(self.kind), steps)
            return self._assembly.read(wanted[self._assembly.present(wanted)], index)
        given = np.array([self._labelled(step) for step in np.atleast_1d(steps).tolist()], np.int64)
        unique, order = np.unique(given, return_inverse=True)
        missing = unique[~self._assembly.present(unique)]
        if missing.size:
            step = int(missing[0])
            raise FrameNotFoundError(self.layer, step, nearest_steps(self.steps, step))
        return self._assembly.read(unique, index)[order]

    def _labelled(self, step: int) -> int:
        return self._find(step) if step < 0 else step

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

    def to_dask(self) -> dask.array.Array:
        """Return the strip as a dask array over the steps that it has now.

        Returns
        -------
        dask.array.Array, shape (n_steps, *shape)
            In chunks of whole frames, of frames above 64 MiB in parts of them; one step never reads
            a whole shard.

        Raises
        ------
        ImportError
            Without dask.
        """
        from filmstrip.store._lazy import to_dask

        return to_dask(self)

    def to_xarray(self) -> xarray.DataArray:
        """Return the strip with its steps as a coordinate, and its axes named by its layout.

        Raises
        ------
        ImportError
            Without xarray.
        """
        from filmstrip.store._lazy import strip_to_xarray

        return strip_to_xarray(self)


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
