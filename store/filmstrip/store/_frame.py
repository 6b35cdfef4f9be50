"""Frames: the only place that says what a frame is, and how its numbers are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from filmstrip.store._widen import NARROW, array_of, widened

# What Zarr readers can open as it is. Everything else is widened, without loss.
PLAIN = frozenset(
    [
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
        "complex64",
    ]
)


@dataclass(frozen=True, slots=True)
class FrameSpec:
    """What every frame of one layer looks like.

    Parameters
    ----------
    shape : tuple of int
        Shape of a frame, without the step axis.
    dtype : str
        dtype of the arrays that will be appended. ``"bfloat16"`` is stored as float32 and 8-bit
        floats, named as torch and ml_dtypes do, as float16; such frames are given as tensors,
        as ml_dtypes arrays, or as uint16 and uint8 views of their bits.
    layout : str, optional
        One letter an axis: ``"NCHW"``, ``"OIHW"``, ``"NC"``, …
    axes : tuple of str, optional
        Names of the axes, where a letter does not say enough.
    order : int, optional
        Position in the forward pass; layers are listed by it.
    original : str, optional
        The framework's own name, where it differs from the layer's.
    framework : str, optional
        ``"pytorch"``, ``"tensorflow"``, …
    source_dtype : str, optional
        dtype on the device; defaults to `dtype`.
    aliases : tuple of str
        Other names of the same tensor.
    take : str, optional
        What was taken of the whole tensor, in words.
    degraded : str, optional
        Why less was taken than asked for, in words.
    global_shape, offset : tuple of int, optional
        Of a sharded tensor: the shape of all of it, and where this rank's piece begins.
    mesh, placements : tuple of str, optional
        How it is sharded, in the framework's words.

    Raises
    ------
    ValueError
        If the dtype cannot be stored, or a length is negative, or the layout has another rank.

    Examples
    --------
    >>> FrameSpec((8, 64, 28, 28), "float32", layout="NCHW").nbytes
    1605632
    """

    shape: tuple[int, ...]
    dtype: str
    layout: str | None = None
    axes: tuple[str, ...] | None = None
    order: int | None = None
    original: str | None = None
    framework: str | None = None
    source_dtype: str | None = None
    aliases: tuple[str, ...] = ()
    take: str | None = None
    degraded: str | None = None
    global_shape: tuple[int, ...] | None = None
    offset: tuple[int, ...] | None = None
    mesh: tuple[str, ...] | None = None
    placements: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(length) for length in self.shape))
        if self.dtype not in NARROW:
            object.__setattr__(self, "dtype", _dtype_name(self.dtype))
        if self.dtype not in PLAIN and self.dtype not in NARROW:
            stored = ", ".join(sorted(PLAIN | set(NARROW)))
            raise ValueError(f"frames of dtype {self.dtype} cannot be stored; these can: {stored}")
        if any(length < 0 for length in self.shape):
            raise ValueError(f"a frame needs lengths of 0 or more; got shape {self.shape}")
        if self.layout is not None and len(self.layout) != len(self.shape):
            raise ValueError(f"layout {self.layout!r} does not fit shape {self.shape}")
        if (self.offset is None) != (self.global_shape is None):
            raise ValueError("a piece of a tensor needs both its offset and its global_shape")
        if self.offset is not None and self.global_shape is not None:
            ranks = len(self.shape) == len(self.offset) == len(self.global_shape)
            pieces = zip(self.offset, self.shape, self.global_shape, strict=False)
            if not ranks or not all(0 <= at <= at + n <= whole for at, n, whole in pieces):
                raise ValueError(
                    f"a piece of {self.shape} at {self.offset} does not fit {self.global_shape}"
                )

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Dtype of the array in the store, little-endian."""
        narrow = NARROW.get(self.dtype)
        return np.dtype(self.dtype if narrow is None else narrow.stored).newbyteorder("<")

    @property
    def batched(self) -> bool:
        """Whether the first axis is known to hold samples."""
        return self.layout is not None and self.layout[:1] == "N"

    @property
    def widened(self) -> bool:
        """Whether the store holds a wider dtype than the source."""
        return self.dtype in NARROW

    @property
    def nbytes(self) -> int:
        """Bytes of one frame as stored, uncompressed."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.stored_dtype.itemsize

    def attributes(self, kind: str, layer: str) -> dict[str, Any]:
        """Return what the array's metadata says of the layer."""
        known = {
            "kind": kind,
            "layer": layer,
            "original": self.original or layer,
            "framework": self.framework,
            "dtype": self.source_dtype or self.dtype,
            "layout": self.layout,
            "axes": list(self.axes) if self.axes else None,
            "order": self.order,
            "aliases": list(self.aliases) or None,
            "take": self.take,
            "degraded": self.degraded,
            "global_shape": self.global_shape,
            "offset": self.offset,
            "mesh": self.mesh,
            "placements": self.placements,
        }
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in known.items()
            if value is not None
        }


def _dtype_name(dtype: object) -> str:
    """Return numpy's name of a dtype, or what was given when numpy has none."""
    if dtype is None:  # which numpy takes for float64
        return "None"
    try:
        return np.dtype(dtype).name  # type: ignore[call-overload,no-any-return]
    except TypeError:
        return str(dtype)


def as_stored(frame: npt.ArrayLike, spec: FrameSpec, layer: str) -> npt.NDArray[Any]:
    """Return a frame in the stored dtype, C-contiguous; a copy only where needed.

    Parameters
    ----------
    frame : array_like
        Of ``spec.dtype``.
    spec : FrameSpec
        The layer's frames.
    layer : str
        For messages.

    Returns
    -------
    ndarray
        The same values in ``spec.stored_dtype``.

    Raises
    ------
    ValueError
        If it is no array, or has another dtype.

    Examples
    --------
    >>> as_stored(np.array([0x3FC0], np.uint16), FrameSpec((1,), "bfloat16"), "fc")
    array([1.5], dtype=float32)
    """
    try:
        array = array_of(frame)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"a frame of {layer!r} is not an array: {error}") from error
    narrow = NARROW.get(spec.dtype)
    wanted = spec.stored_dtype if narrow is None else np.dtype(narrow.bits)
    if array.dtype != wanted:
        bits = "" if narrow is None else f" (or {narrow.bits} bits)"
        raise ValueError(f"frames of {layer!r} are {spec.dtype}{bits}; got {array.dtype}")
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array if narrow is None else widened(array, spec.dtype)


def fill_value(dtype: np.dtype[Any]) -> complex | float | int | bool:
    """Return what stands where nothing was written: NaN, 0 or False."""
    if dtype.kind == "c":
        return complex("nan+nanj")
    if dtype.kind == "f":
        return float("nan")
    return False if dtype.kind == "b" else 0
