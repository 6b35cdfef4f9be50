"""Statistics: the only place that answers questions from stored statistics and bit counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from filmstrip.store._bits import BINS, rebin
from filmstrip.store._names import HISTOGRAM, VALUES
from filmstrip.store._select import (
    Selector,
    known,
    nearest_names,
    nearest_steps,
    select,
    slice_steps,
)
from filmstrip.store._strip import histogram_edges
from filmstrip.store._summary import DERIVED, STATISTICS, derive, merge, merge_extremes
from filmstrip.store._view import GroupView, Series
from filmstrip.store.errors import (
    FormatError,
    FrameNotFoundError,
    LayerNotFoundError,
    StatisticNotFoundError,
)

if TYPE_CHECKING:
    import pandas
    import xarray

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]


class Statistics:
    """Statistics of all layers of one kind; obtained from `Run.statistics`.

    Indexed by layer and name, it returns a `Series`. Names are those of `STATISTICS` and
    ``mean``, ``std``, ``l2``, ``rms`` and ``dead`` (the share of zeros).

    Of the ranks that describe a layer, ``owners`` returns those that count: one of replicas, and
    none while a piece of the layer is described by no rank. ``aliases`` returns further names with
    the layers that they stand for.
    """

    def __init__(
        self,
        views: Sequence[tuple[int, GroupView]],
        kind: str,
        owners: Callable[[str, Sequence[int]], Sequence[int]],
        aliases: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.kind = kind
        self._views, self._owners, self._aliases = views, owners, aliases

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers described, in forward order."""
        return tuple(dict.fromkeys(name for _, view in self._views for name in _layers(view)))

    @property
    def steps(self) -> Steps:
        """Steps described on all ranks, ascending."""
        return _common([view.steps() for _, view in self._views])

    @property
    def histogram_steps(self) -> Steps:
        """Steps of which bits were counted, on all ranks, ascending."""
        return _common([view.rows(HISTOGRAM)[0] for _, view in self._views])

    def _groups(self, layer: str) -> list[tuple[GroupView, int]]:
        """Return the groups that describe a part of a layer, and its position in each."""
        name, found = known(layer, self.layers, self._aliases), {}
        if name is None:
            where = f"the statistics of {self.kind}"
            raise LayerNotFoundError(layer, where, nearest_names(layer, self.layers))
        for rank, view in self._views:
            layers = _layers(view)
            if name in layers:
                found[rank] = (view, layers.index(name))
        return [found[rank] for rank in self._owners(name, [*found])]

    def values(self, layer: str) -> tuple[Steps, Floats]:
        """Return all stored statistics of a layer, merged over ranks.

        Returns
        -------
        steps : ndarray of int64, shape (n_steps,)
            Steps at which the layer had a tensor, on all ranks that own a piece of it.
        values : ndarray of float64, shape (n_steps, 9)
            In the order of `STATISTICS`.
        """
        parts = []
        for view, position in self._groups(layer):
            steps = view.steps()
            values = view.read(VALUES, steps, np.arange(len(steps)), position)
            there = ~np.isnan(values[:, 0])
            parts.append((steps[there], values[there]))
        if not parts:
            return np.empty(0, np.int64), np.empty((0, len(STATISTICS)))
        steps, stacked = _aligned(parts)
        return steps, merge(stacked)

    def table(self) -> tuple[Steps, Floats]:
        """Return all stored statistics of all layers, merged over ranks.

        Returns
        -------
        steps : ndarray of int64, shape (n_steps,)
            Steps described.
        values : ndarray of float64, shape (n_steps, n_layers, 9)
            In the order of `layers` and `STATISTICS`; NaN where a layer had no tensor.
        """
        if len(self._views) == 1 and all(map(self._groups, self.layers)):
            view = self._views[0][1]
            steps = view.steps()
            return steps, view.read(VALUES, steps, np.arange(len(steps)))
        steps, layers = self.steps, self.layers
        table = np.full((len(steps), len(layers), len(STATISTICS)), np.nan)
        for position, layer in enumerate(layers):
            described, values = self.values(layer)
            there = np.isin(described, steps, assume_unique=True)
            table[np.searchsorted(steps, described[there]), position] = values[there]
        return steps, table

    def __getitem__(self, key: tuple[str, str]) -> Series:
        """Return one statistic of one layer over steps.

        Parameters
        ----------
        key : tuple of str
            Layer and statistic.

        Returns
        -------
        Series
            Steps and values.

        Raises
        ------
        LayerNotFoundError
            If the layer is not described.
        StatisticNotFoundError
            If there is no such statistic.
        """
        layer, name = key
        if name not in STATISTICS and name not in DERIVED:
            raise StatisticNotFoundError(name, [*STATISTICS, *DERIVED])
        steps, values = self.values(layer)
        return Series.named(f"{layer} · {name}", steps, derive(values, name))

    def range(self, layer: str) -> tuple[float, float]:
        """Return the extremes of a layer's finite values over all steps, NaN without any."""
        _, values = self.values(layer)
        return merge_extremes(derive(values, "min"), derive(values, "max"))

    def bits(self, layer: str) -> tuple[Steps, npt.NDArray[np.uint64]]:
        """Return the bit counts of a layer.

        Returns
        -------
        steps : ndarray of int64, shape (n_steps,)
            Steps that have them.
        counts : ndarray of uint64, shape (n_steps, 4096)
            Counts, ascending with the value.
        """
        parts = []
        for view, position in self._groups(layer):
            steps, rows = view.rows(HISTOGRAM)
            counts = view.read(HISTOGRAM, steps, rows, position)
            there = counts.any(axis=1)
            parts.append((steps[there], counts[there]))
        if not parts:
            return np.empty(0, np.int64), np.empty((0, BINS), np.uint64)
        steps, stacked = _aligned(parts)
        return steps, stacked.sum(axis=0, dtype=np.uint64)

    def histogram(
        self,
        layers: Selector,
        steps: int | slice | Sequence[int] = -1,
        bins: int | npt.ArrayLike = 50,
    ) -> tuple[Floats, Floats]:
        """Return the histogram of layers' tensors at steps, from their bit counts.

        Parameters
        ----------
        layers : str or iterable of str
            A layer, or a selector of several, whose counts are added.
        steps : int, slice or sequence of int
            By label; below 0, counted from the last one kept. Counts of several are added.
        bins : int or array_like of float
            How many bins between the exact extremes, or their edges.

        Returns
        -------
        counts : ndarray of float64, shape (n_bins,)
            Counts of finite values.
        edges : ndarray of float64, shape (n_bins + 1,)
            Edges.

        Raises
        ------
        LayerNotFoundError
            If no layer is selected.
        FrameNotFoundError
            If no histogram was kept at a step.
        """
        total = np.zeros(BINS, np.uint64)
        lows, highs = [], []
        for layer in self._selected(layers):
            kept, counts = self.bits(layer)
            chosen = _chosen(layer, kept, steps)
            total += counts[np.searchsorted(kept, chosen)].sum(axis=0, dtype=np.uint64)
            described, values = self.values(layer)
            rows = values[np.isin(described, chosen, assume_unique=True)]
            lows.append(derive(rows, "min"))
            highs.append(derive(rows, "max"))
        low, high = merge_extremes(np.concatenate(lows), np.concatenate(highs))
        edges = histogram_edges(bins, low, high)
        return rebin(total, edges, low, high), edges

    def to_xarray(self) -> xarray.DataArray:
        """Return all statistics, derived ones too, with axes step, layer and stat.

        Raises
        ------
        ImportError
            Without xarray.
        """
        from filmstrip.store._lazy import statistics_to_xarray

        return statistics_to_xarray(self)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return all statistics, derived ones too, a row for each step and layer.

        Raises
        ------
        ImportError
            Without pandas.
        """
        from filmstrip.store._lazy import statistics_to_dataframe

        return statistics_to_dataframe(self)

    def select(self, layers: Selector) -> list[str]:
        """Return the layers described that a selector matches; what has several names, once."""
        name = known(layers, self.layers, self._aliases) if isinstance(layers, str) else None
        if name is not None:
            return [name]
        aliases = None if isinstance(layers, str) else self._aliases()
        return select(layers, self.layers, aliases=aliases)

    def _selected(self, layers: Selector) -> list[str]:
        chosen = self.select(layers)
        if not chosen:
            shown = layers if isinstance(layers, str) else ", ".join(layers)
            where = f"the statistics of {self.kind}"
            raise LayerNotFoundError(shown, where, nearest_names(layers, self.layers))
        return chosen


def _layers(view: GroupView) -> list[str]:
    layers = view.attributes.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise FormatError(str(view.place), "its zarr.json does not name the layers")
    described = view.reader(VALUES).form.shape
    if described[1:] != (len(STATISTICS),) or len(layers) > described[0]:
        raise FormatError(str(view.place), f"it names {len(layers)} layers and has {described}")
    return layers


def _common(kept: Sequence[Steps]) -> Steps:
    """Return the steps that are in all of several."""
    steps = kept[0]
    for other in kept[1:]:
        steps = steps[np.isin(steps, other, assume_unique=True)]
    return steps


def _aligned(
    parts: Sequence[tuple[Steps, npt.NDArray[Any]]],
) -> tuple[Steps, npt.NDArray[Any]]:
    """Return the steps that all parts have, and the parts at these, stacked."""
    steps = _common([kept for kept, _ in parts])
    return steps, np.stack([values[np.isin(kept, steps)] for kept, values in parts])


def _chosen(layer: str, kept: Steps, steps: int | slice | Sequence[int]) -> Steps:
    if isinstance(steps, slice):
        chosen = slice_steps(kept, steps)
        if not chosen.size:
            raise FrameNotFoundError(layer, int(steps.start or 0), nearest_steps(kept, 0))
        return chosen
    wanted = []
    for step in np.atleast_1d(steps).tolist():
        found = kept[step] if -len(kept) <= step < 0 else step
        if found not in kept:
            raise FrameNotFoundError(layer, step, nearest_steps(kept, step))
        wanted.append(int(found))
    return np.unique(np.array(wanted, np.int64))
