"""Statistics: the only place that answers questions from stored statistics and bit counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from filmstrip.store._bits import rebin
from filmstrip.store._names import HISTOGRAM, VALUES, canonical
from filmstrip.store._select import nearest_names, nearest_steps
from filmstrip.store._strip import histogram_edges
from filmstrip.store._summary import DERIVED, STATISTICS, derive
from filmstrip.store._view import GroupView, Series
from filmstrip.store.errors import (
    FrameNotFoundError,
    LayerNotFoundError,
    StatisticNotFoundError,
)

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]


class Statistics:
    """Statistics of all layers of one kind; obtained from `Run.statistics`.

    Indexed by layer and name, it returns a `Series`. Names are those of `STATISTICS` and
    ``mean``, ``std``, ``l2``, ``rms`` and ``dead`` (the share of zeros).
    """

    def __init__(self, group: GroupView, kind: str) -> None:
        self.kind = kind
        self._group = group

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers described, in forward order."""
        return tuple(self._group.attributes["layers"])

    @property
    def steps(self) -> Steps:
        """Steps described, ascending."""
        return self._group.steps()

    def _position(self, layer: str) -> int:
        layers = self.layers
        if canonical(layer) in layers:
            return layers.index(canonical(layer))
        raise LayerNotFoundError(
            layer, f"the statistics of {self.kind}", nearest_names(layer, layers)
        )

    def values(self, layer: str) -> tuple[Steps, Floats]:
        """Return all stored statistics of a layer.

        Returns
        -------
        steps : ndarray of int64, shape (n_steps,)
            Steps at which the layer had a tensor.
        values : ndarray of float64, shape (n_steps, 9)
            In the order of `STATISTICS`.
        """
        steps, rows = self._group.rows(VALUES)
        values = self._group.read(VALUES, steps, rows, self._position(layer))
        there = ~np.isnan(values[:, 0])
        return steps[there], values[there]

    def table(self) -> tuple[Steps, Floats]:
        """Return all stored statistics of all layers.

        Returns
        -------
        steps : ndarray of int64, shape (n_steps,)
            Steps described.
        values : ndarray of float64, shape (n_steps, n_layers, 9)
            In the order of `layers` and `STATISTICS`; NaN where a layer had no tensor.
        """
        steps, rows = self._group.rows(VALUES)
        return steps, self._group.read(VALUES, steps, rows)

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
        return Series(steps, derive(values, name))

    def range(self, layer: str) -> tuple[float, float]:
        """Return the extremes of a layer's finite values over all steps, NaN without any."""
        _, values = self.values(layer)
        low, high = derive(values, "min"), derive(values, "max")
        low, high = low[~np.isnan(low)], high[~np.isnan(high)]
        return (float(low.min()), float(high.max())) if low.size else (np.nan, np.nan)

    def bits(self, layer: str) -> tuple[Steps, npt.NDArray[np.uint64]]:
        """Return the bit counts of a layer.

        Returns
        -------
        steps : ndarray of int64, shape (n_steps,)
            Steps that have them.
        counts : ndarray of uint64, shape (n_steps, 4096)
            Counts, ascending with the value.
        """
        position = self._position(layer)
        steps, rows = self._group.rows(HISTOGRAM)
        counts = self._group.read(HISTOGRAM, steps, rows, position)
        there = counts.any(axis=1)
        return steps[there], counts[there]

    def histogram(
        self, layer: str, step: int = -1, bins: int | npt.ArrayLike = 50
    ) -> tuple[Floats, Floats]:
        """Return the histogram of a layer's tensor at one step, from its bit counts.

        Parameters
        ----------
        layer : str
            The layer.
        step : int
            Optimizer step; below 0, counted from the last one kept.
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
        FrameNotFoundError
            If no histogram was kept at the step.
        """
        position = self._position(layer)
        kept, rows = self._group.rows(HISTOGRAM)
        if step >= 0:
            at = np.flatnonzero(kept == step)
        else:
            at = np.arange(len(kept))[step:][:1] if -step <= len(kept) else np.empty(0, np.int64)
        counts = self._group.read(HISTOGRAM, kept[at], rows[at], position)
        if not counts.any():
            raise FrameNotFoundError(layer, step, nearest_steps(self.bits(layer)[0], step))
        values = self._group.read(VALUES, kept[at], rows[at], position)[0]
        low, high = float(derive(values, "min")), float(derive(values, "max"))
        edges = histogram_edges(bins, low, high)
        return rebin(counts[0], edges, low, high), edges
