"""Writers: the only place that turns frames, statistics and scalars into rows of their groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, SupportsFloat

import numpy as np
import numpy.typing as npt

from filmstrip.store._arrays import ABSENT, ArrayForm
from filmstrip.store._bits import BINS
from filmstrip.store._codec import Codec, Compression, codec_for
from filmstrip.store._frame import FrameSpec, as_stored
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

_BATCHED_KINDS = frozenset({"activations", "inputs", "images"})


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

    def add(self, specs: Mapping[str, FrameSpec]) -> bool:
        """Take more layers.

        Returns
        -------
        bool
            Whether an array was made.

        Raises
        ------
        StoreError
            If the run holds other frames of a layer.
        ValueError
            If two layers have one name, or a frame is too large.
        """
        kept = self._kept()
        made = False
        for given, spec in specs.items():
            layer = canonical(given)
            taken = self._layers.get(layer)
            if taken is not None and taken[1].original != (spec.original or given):
                raise ValueError(f"layers {taken[1].original!r} and {given!r} are one: {layer!r}")
            spec = replace(
                spec,
                order=len(kept) if spec.order is None else spec.order,
                original=spec.original or given,
            )
            form = self._form(spec)
            if layer in kept:
                self._check_same(layer, kept[layer], form, spec)
            else:
                kept[layer] = self._make(layer, spec, form)
                made = True
            self._layers[layer] = (kept[layer], spec)
        return made

    def _kept(self) -> dict[str, str]:
        """Return the array names of the layers that the group has."""
        return {
            document["attributes"]["filmstrip"]["layer"]: name
            for name, document in self._group.documents.items()
            if document["attributes"]
        }

    def _make(self, layer: str, spec: FrameSpec, form: ArrayForm) -> str:
        name = array_name(layer, self._group.arrays)
        names = dimension_names(name, len(spec.shape) + 1)
        self._group.add(name, form, form.document(names, spec.attributes(self.kind, layer)))
        return name

    def _form(self, spec: FrameSpec) -> ArrayForm:
        dtype = spec.stored_dtype
        if not spec.shape and dtype.name in ABSENT:
            return ArrayForm.column(dtype)  # others have no value to spare for "not there"
        layout = lay_out(spec.shape, dtype.itemsize)
        block_bytes = math.prod(layout.block) * dtype.itemsize
        return ArrayForm.strip(
            dtype, layout, codec_for(self.kind, spec, block_bytes, self._compression)
        )

    def _check_same(self, layer: str, name: str, form: ArrayForm, spec: FrameSpec) -> None:
        document = self._group.documents[name]
        about = document["attributes"]["filmstrip"]
        old = ArrayForm.of(document, self._group.path / name)
        now = _described(form, spec.offset, spec.global_shape)
        before = _described(old, about.get("offset"), about.get("global_shape"))
        if now != before:
            raise StoreError(
                f"{self.kind} of {layer!r} are {now} now and were {before} in this run; "
                f"start a new one with if_exists='new'"
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
            By layer. Layers left out have no frame at this step. Those of weights and gradients are
            looked up when they are written, so that a mapping may read one at a time. Of other
            kinds, an array may be shorter along its first axis than the layer's spec, as the last
            batch of an epoch is. One whose other axes vary is cropped, or padded with NaN (0 for
            integers), and the strip says so.
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
        values: Mapping[str, npt.NDArray[Any]]
        short: dict[str, int] = {}
        if self.kind in _BATCHED_KINDS:
            values = {}
            for layer, frame in frames.items():
                name, spec = self._layer(layer)
                values[name] = array = self._stored(layer, frame)
                if spec.shape and len(array) < spec.shape[0]:
                    short[layer] = len(array)
        else:
            values = _InTurn(self, frames)
        if len(set(short.values()) | ({samples} if samples is not None else set())) > 1:
            lengths = ", ".join(f"{layer!r} {length}" for layer, length in short.items())
            given = "" if samples is None else f"; samples={samples}"
            raise ValueError(f"the short frames of a step need one length: {lengths}{given}")
        valid = next(iter(short.values()), samples)
        if valid is None:
            specs = [self._layer(layer)[1] for layer in frames]
            valid = max((spec.shape[0] for spec in specs if spec.batched), default=0)
        self._group.append(int(step), values, samples=int(valid), wall_time=wall_time)

    def close(self) -> None:
        """Commit what was appended, for every reader, without waiting; a second call does nothing.

        The run's own `close` seals the files.

        Raises
        ------
        StoreWriteError
            If the metadata could not be replaced. The rows stay pending.
        """
        self._group.commit()

    def _layer(self, layer: str) -> tuple[str, FrameSpec]:
        found = self._layers.get(layer) or self._layers.get(canonical(layer))
        if found is None:
            raise KeyError(f"layer {layer!r} was not announced to the writer of {self.kind}")
        return found

    def _stored(self, layer: str, frame: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return a frame as its array takes it."""
        name, spec = self._layer(layer)
        array = as_stored(frame, spec, layer)
        return array if array.shape == spec.shape else self._fitted(layer, name, array, spec)

    def _fitted(
        self, layer: str, name: str, array: npt.NDArray[Any], spec: FrameSpec
    ) -> npt.NDArray[Any]:
        """Return a frame cropped to its spec; what it is shorter by becomes fill."""
        if array.ndim != len(spec.shape) or self.kind not in _BATCHED_KINDS:
            raise ValueError(
                f"a frame of {layer!r} has shape {array.shape}; "
                f"its layer was announced with {spec.shape}"
            )
        lengths = zip(array.shape, spec.shape, strict=True)
        axes = [axis for axis, (length, wanted) in enumerate(lengths) if length != wanted]
        if axes != [0] or not spec.batched or len(array) > spec.shape[0]:
            about = self._group.documents[name]["attributes"]["filmstrip"]
            known = set(about.get("varies", ()))
            self._group.annotate(name, "varies", value=sorted(known.union(axes)))
        return np.ascontiguousarray(array[tuple(slice(length) for length in spec.shape)])


def _described(form: ArrayForm, offset: object, global_shape: object) -> str:
    described = f"{form.dtype.name} {form.shape}"
    if offset is None:
        return described
    return f"{described} at {list(offset)} of {list(global_shape)}"  # type: ignore[call-overload]


class _InTurn(Mapping[str, npt.NDArray[Any]]):
    """Frames by array name, each asked for when its turn has come: no two are in memory."""

    def __init__(self, writer: KindWriter, frames: Mapping[str, npt.ArrayLike]) -> None:
        self._writer, self._frames = writer, frames
        self._layers = {writer._layer(layer)[0]: layer for layer in frames}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        layer = self._layers[name]
        return self._writer._stored(layer, self._frames[layer])

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


class StatisticsWriter:
    """Statistics and bit histograms of all layers of one kind.

    Made by `RunWriter.statistics_writer`.
    """

    def __init__(self, group: GroupWriter, layers: int) -> None:
        self._group, self._layers = group, layers
        if VALUES not in group.arrays:
            values = ArrayForm.column(np.dtype("<f8"), (layers, len(STATISTICS)))
            group.add(VALUES, values, values.document([STEP, "layer", "stat"], {}))
        if HISTOGRAM not in group.arrays:
            self._add_histogram()

    def _add_histogram(self) -> None:
        dtype = np.dtype("<u8")
        together = max(8, -(-self._layers // 16))
        layout = lay_out(
            (self._layers, BINS),
            dtype.itemsize,
            (min(together, max(1, self._layers)), BINS),
        )
        histogram = ArrayForm.strip(dtype, layout, Codec("zstd", dtype.itemsize))
        self._group.add(HISTOGRAM, histogram, histogram.document([STEP, "layer", "bin"], {}))

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
        row = {VALUES: np.ascontiguousarray(values, "<f8")}
        _check_rows("statistics", row[VALUES].shape, (self._layers, len(STATISTICS)))
        if histograms is not None:
            row[HISTOGRAM] = np.ascontiguousarray(histograms, "<u8")
            _check_rows("histograms", row[HISTOGRAM].shape, (self._layers, BINS))
        self._group.append(int(step), row, wall_time=wall_time)

    def close(self) -> None:
        """Commit what was appended, for every reader, without waiting; a second call does nothing.

        The run's own `close` seals the files.

        Raises
        ------
        StoreWriteError
            If the metadata could not be replaced. The rows stay pending.
        """
        self._group.commit()


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
        step = int(step)
        again = self._group.rows > 0 and step == self._group.last_step
        if not again:
            self._group.check_step(step)
        numbers = {name: _number(name, value) for name, value in values.items()}
        new = [name for name in numbers if name not in self._columns]
        for name in new:
            self._add(name)
        row = {self._columns[name]: value for name, value in numbers.items()}
        if again:
            self._group.amend(row)
        else:
            self._group.append(step, row)
        return bool(new)

    def _add(self, name: str) -> None:
        array = array_name(canonical(name), self._group.arrays)
        spec = FrameSpec((), "float64", original=name)
        form = ArrayForm.column(spec.stored_dtype)
        attributes = spec.attributes(self._kind, canonical(name))
        self._group.add(array, form, form.document([STEP], attributes))
        self._columns[name] = array


def _number(name: str, value: SupportsFloat) -> npt.NDArray[np.float64]:
    try:
        number = float(value) if not isinstance(value, str | bytes) else None
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = None
    if number is None:
        raise TypeError(f"a scalar is one number; {name!r} is {value!r}")
    # A NaN with a payload means "not logged".
    return np.array(math.nan if math.isnan(number) else number, "<f8")
