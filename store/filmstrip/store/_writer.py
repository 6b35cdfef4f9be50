"""Writers: the only place that turns frames, statistics and scalars into rows of their groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
import numpy.typing as npt

from filmstrip.store._arrays import ArrayForm
from filmstrip.store._bits import BINS
from filmstrip.store._codec import Codec, Compression, codec_for
from filmstrip.store._frame import FrameSpec, widen
from filmstrip.store._group import GroupWriter
from filmstrip.store._layout import lay_out
from filmstrip.store._names import (
    HISTOGRAM,
    STEP,
    VALUES,
    array_name,
    canonical,
    dimension_names,
)
from filmstrip.store._summary import STATISTICS
from filmstrip.store.errors import StoreError


class KindWriter:
    """Frames of one kind.

    Made by `RunWriter.writer`.
    """

    def __init__(self, group: GroupWriter, kind: str, compression: Compression | None) -> None:
        self.kind = kind
        self._group, self._compression = group, compression
        self._layers: dict[str, tuple[str, FrameSpec]] = {}

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that this writer takes."""
        return tuple(self._layers)

    def add(self, specs: Mapping[str, FrameSpec]) -> None:
        """Take more layers.

        Raises
        ------
        StoreError
            If the run holds other frames of a layer.
        """
        kept = {
            document["attributes"]["filmstrip"]["layer"]: name for name, document in self._strips()
        }
        for position, (given, spec) in enumerate(specs.items(), start=len(self._layers)):
            layer = canonical(given)
            if spec.order is None or spec.original is None:
                spec = _completed(spec, position, given)
            form = self._form(spec)
            if layer in kept:
                self._check_same(layer, kept[layer], form)
            else:
                name = array_name(layer, self._group.arrays)
                names = dimension_names(name, len(spec.shape) + 1)
                attributes = spec.attributes(self.kind, layer)
                self._group.add(name, form, form.document(names, attributes))
                kept[layer] = name
            self._layers[layer] = (kept[layer], spec)

    def _strips(self) -> list[tuple[str, dict[str, Any]]]:
        return [item for item in self._group.documents.items() if item[1]["attributes"]]

    def _form(self, spec: FrameSpec) -> ArrayForm:
        if not spec.shape:
            return ArrayForm.column(spec.stored_dtype)
        layout = lay_out(spec.shape, spec.stored_dtype.itemsize)
        block_bytes = math.prod(layout.block) * spec.stored_dtype.itemsize
        codec = codec_for(self.kind, spec, block_bytes, self._compression)
        return ArrayForm.strip(spec.stored_dtype, layout, codec)

    def _check_same(self, layer: str, name: str, form: ArrayForm) -> None:
        old = ArrayForm.of(self._group.documents[name])
        if (old.shape, old.dtype) != (form.shape, form.dtype):
            raise StoreError(
                f"{self.kind} of {layer!r} are {form.dtype.name} {form.shape} now and were "
                f"{old.dtype.name} {old.shape} in this run; start a new one with if_exists='new'"
            )

    def append(
        self,
        step: int,
        frames: Mapping[str, npt.ArrayLike],
        *,
        samples: int | None = None,
        wall_time: float | None = None,
    ) -> None:
        """Write the frames of one step; they become visible together.

        Parameters
        ----------
        step : int
            Optimizer steps completed before this one; larger than in the call before.
        frames : mapping of str to array_like
            By layer. Layers left out have no frame at this step. An array may be shorter along its
            first axis than the layer's spec, as the last batch of an epoch is.
        samples : int, optional
            Samples that are valid along the first axis; by default those of the shortest frame.
        wall_time : float, optional
            Seconds since the epoch; now by default.

        Raises
        ------
        StoreWriteError
            If the row could not be written. The store is as it was; the next append may succeed.
        ValueError
            If a frame is not what the layer's spec says, or the step does not rise.
        KeyError
            If a layer was not announced.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> from filmstrip.store import FrameSpec, create_run, open_run
        >>> folder = tempfile.mkdtemp()
        >>> with create_run(f"{folder}/run.zarr") as run:
        ...     writer = run.writer("activations", {"conv1": FrameSpec((2, 3), "float32")})
        ...     writer.append(0, {"conv1": np.ones((2, 3), np.float32)})
        >>> open_run(f"{folder}/run.zarr").activations["conv1"].frame(0).sum()
        np.float32(6.0)
        """
        step = self._group.check_step(step)
        values: dict[str, npt.NDArray[Any]] = {}
        valid = samples
        longest = 0
        for layer, frame in frames.items():
            name, spec = self._layer(layer)
            array = widen(np.asarray(frame), spec)
            if array.shape != spec.shape:
                _check_short(layer, array.shape, spec.shape)
                if samples is None:
                    valid = len(array) if valid is None else min(valid, len(array))
            if spec.layout is not None and spec.layout[:1] == "N":
                longest = max(longest, spec.shape[0])
            values[name] = array
        self._group.append(
            step, values, samples=longest if valid is None else valid, wall_time=wall_time
        )

    def _layer(self, layer: str) -> tuple[str, FrameSpec]:
        found = self._layers.get(layer) or self._layers.get(canonical(layer))
        if found is None:
            raise KeyError(f"layer {layer!r} was not announced to the writer of {self.kind}")
        return found

    def close(self) -> None:
        """Do nothing: the run's `close` seals all its writers together."""


def _completed(spec: FrameSpec, position: int, given: str) -> FrameSpec:
    from dataclasses import replace

    order = position if spec.order is None else spec.order
    return replace(spec, order=order, original=spec.original or given)


def _check_short(layer: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    shorter = len(shape) == len(wanted) > 0 and shape[1:] == wanted[1:] and shape[0] <= wanted[0]
    if not shorter:
        raise ValueError(
            f"a frame of {layer!r} has shape {shape}; its layer was announced with {wanted}"
        )


class StatisticsWriter:
    """Statistics and bit histograms of all layers of one kind.

    Made by `RunWriter.statistics_writer`.
    """

    def __init__(self, group: GroupWriter, layers: Sequence[str]) -> None:
        self._group = group
        self._layers = len(layers)
        if VALUES in group.arrays:
            return
        values = ArrayForm.column(np.dtype("<f8"), (self._layers, len(STATISTICS)))
        group.add(VALUES, values, values.document([STEP, "layer", "stat"], {}))
        dtype = np.dtype("<u8")
        together = max(8, -(-self._layers // 16))
        layout = lay_out(
            (self._layers, BINS),
            dtype.itemsize,
            (min(together, max(1, self._layers)), BINS),
        )
        histogram = ArrayForm.strip(dtype, layout, Codec("zstd", dtype.itemsize))
        group.add(HISTOGRAM, histogram, histogram.document([STEP, "layer", "bin"], {}))

    def append(
        self,
        step: int,
        values: npt.NDArray[np.float64],
        histograms: npt.NDArray[Any] | None = None,
        *,
        wall_time: float | None = None,
    ) -> None:
        """Write the statistics of one step.

        Parameters
        ----------
        step : int
            Larger than in the call before.
        values : ndarray of float64, shape (n_layers, 9)
            In the order of `STATISTICS`; a row of NaN for a layer that had no tensor at this step.
        histograms : ndarray of int, shape (n_layers, 4096), optional
            Bit counts, ascending; left out when only statistics were due.
        wall_time : float, optional
            Seconds since the epoch; now by default.

        Raises
        ------
        StoreWriteError
            If the row could not be written. The store is as it was.
        ValueError
            If the shapes do not fit the layers, or the step does not rise.
        """
        step = self._group.check_step(step)
        row = {VALUES: np.ascontiguousarray(values, "<f8")}
        _check_rows("statistics", row[VALUES].shape, (self._layers, len(STATISTICS)))
        if histograms is not None:
            row[HISTOGRAM] = np.ascontiguousarray(histograms, "<u8")
            _check_rows("histograms", row[HISTOGRAM].shape, (self._layers, BINS))
        self._group.append(step, row, wall_time=wall_time)

    def close(self) -> None:
        """Do nothing: the run's `close` seals all its writers together."""


def _check_rows(what: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise ValueError(f"{what} need shape {wanted}; got {shape}")


class ScalarWriter:
    """Named numbers by step: one column a name, a row for every step in which one was logged."""

    def __init__(self, group: GroupWriter, kind: str) -> None:
        self._group, self._kind = group, kind
        self._columns = {
            document["attributes"]["filmstrip"]["original"]: name
            for name, document in group.documents.items()
            if document["attributes"]
        }

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> bool:
        """Write numbers of one step; a later call at the same step adds to it.

        Returns
        -------
        bool
            Whether a column was made.

        Raises
        ------
        StoreWriteError
            If they could not be written.
        ValueError
            If the step is before the last one.
        TypeError
            If a value is not a number.
        """
        numbers = {name: _number(name, value) for name, value in values.items()}
        new = [name for name in numbers if name not in self._columns]
        for name in new:
            self._add(name)
        row = {self._columns[name]: value for name, value in numbers.items()}
        if int(step) == self._group.last_step:
            self._group.amend(row)
        else:
            self._group.append(self._group.check_step(step), row)
        return bool(new)

    def _add(self, name: str) -> None:
        array = array_name(canonical(name), self._group.arrays)
        spec = FrameSpec((), "float64", original=name)
        form = ArrayForm.column(spec.stored_dtype)
        attributes = spec.attributes(self._kind, canonical(name))
        self._group.add(array, form, form.document([STEP], attributes))
        self._columns[name] = array


def _number(name: str, value: object) -> npt.NDArray[np.float64]:
    try:
        number = np.float64(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = None
    if number is None or np.ndim(number) != 0:
        raise TypeError(f"a scalar is one number; {name!r} is {value!r}")
    return np.array(
        np.nan if np.isnan(number) else number, "<f8"
    )  # NaN with a payload means "not logged"
