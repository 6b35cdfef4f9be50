"""Lazily: the only place that hands strips and statistics to dask, xarray and pandas."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from filmstrip.store._layout import together
from filmstrip.store._summary import DERIVED, STATISTICS, derive

if TYPE_CHECKING:
    import dask.array
    import pandas
    import xarray

    from filmstrip.store._statistics import Statistics
    from filmstrip.store._strip import Strip

_CHUNK_BYTES = 1 << 20


class StepReader:
    """A strip at fixed steps, indexed like an array; it opens the run where it is used.

    Parameters
    ----------
    strip : Strip
        The strip.
    """

    def __init__(self, strip: Strip) -> None:
        self._where = (strip.run.path, strip.kind, strip.layer)
        self._steps = strip.steps
        self.shape = (len(self._steps), *strip.shape)
        self.dtype = strip.dtype
        self.ndim = len(self.shape)

    @cached_property
    def _strip(self) -> Strip:
        from filmstrip.store._run import open_run

        path, kind, layer = self._where
        return open_run(path).strip(kind, layer)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_strip"}

    def __getitem__(self, index: tuple[Any, ...]) -> npt.NDArray[Any]:
        steps, *inside = index
        return self._strip.read(self._steps[steps], tuple(inside))


def to_dask(strip: Strip) -> dask.array.Array:
    """Return a strip as a dask array."""
    try:
        import dask.array
    except ImportError as error:
        raise ImportError("to_dask needs dask: pip install 'filmstrip[render]'") from error
    reader = StepReader(strip)
    # Some steps of a shard at most, so that one step never costs a whole one.
    steps = min(_CHUNK_BYTES // max(1, strip.nbytes), strip.rows_per_shard // 4)
    chunks = (max(1, steps), *_read_together(strip))
    array: dask.array.Array = dask.array.from_array(  # type: ignore[no-untyped-call]
        reader, chunks=chunks, asarray=False, fancy=False, name=False
    )
    return array


def _read_together(strip: Strip) -> tuple[int, ...]:
    """Return the shape of what a task reads of a frame: all of it, unless it is large."""
    layout = strip.pieces[0].form.layout
    if layout is None or layout.shape != strip.shape:
        return strip.shape
    return together(layout, strip.dtype.itemsize)


def strip_to_xarray(strip: Strip) -> xarray.DataArray:
    """Return a strip as a DataArray, over dask where that is there."""
    make = _data_array()
    layout = strip.layout or ""
    letters = list(layout) if len(set(layout)) == len(strip.shape) else []
    names = letters or [f"axis_{axis}" for axis in range(len(strip.shape))]
    steps = strip.steps
    data: Any
    try:
        data = to_dask(strip)
    except ImportError:
        data = strip.read(steps)
    about = {key: value for key, value in strip.attributes.items() if not isinstance(value, dict)}
    return make(data, {"step": steps}, ("step", *names), name=strip.layer, attrs=about)


def statistics_to_xarray(statistics: Statistics) -> xarray.DataArray:
    """Return the stored and derived statistics of all layers as a DataArray."""
    make = _data_array()
    steps, values = statistics.table()
    names = [*STATISTICS, *DERIVED]
    data = np.stack([derive(values, name) for name in names], axis=-1)
    coordinates = {"step": steps, "layer": list(statistics.layers), "stat": names}
    return make(data, coordinates, ("step", "layer", "stat"), name=statistics.kind)


def statistics_to_dataframe(statistics: Statistics) -> pandas.DataFrame:
    """Return the stored and derived statistics as a table, a row a step and layer."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_dataframe needs pandas: pip install 'filmstrip[xarray]'") from error
    steps, values = statistics.table()
    index = pandas.MultiIndex.from_product(
        [steps, list(statistics.layers)], names=["step", "layer"]
    )
    flat = values.reshape(-1, len(STATISTICS))
    columns = {name: derive(flat, name) for name in (*STATISTICS, *DERIVED)}
    return pandas.DataFrame(columns, index=index).dropna(subset=["count"])


def _data_array() -> type[xarray.DataArray]:
    try:
        import xarray
    except ImportError as error:
        raise ImportError("to_xarray needs xarray: pip install 'filmstrip[xarray]'") from error
    return xarray.DataArray
