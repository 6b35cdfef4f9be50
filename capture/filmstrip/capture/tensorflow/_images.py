"""Images: the only place that turns what is given by hand into an array to be written whole."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from filmstrip.capture._images import whole_array
from filmstrip.capture._row import Kept
from filmstrip.capture.keras._layers import underlying
from filmstrip.capture.tensorflow._stage import host, numbers
from filmstrip.store import FrameSpec

ImageLike: TypeAlias = "tf.Tensor | npt.NDArray[Any]"


class Later:
    """A tensor, which never changes, that the writer thread turns into an array or a number."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        self.nbytes = int(np.prod(tensor.shape)) * max(4, tensor.dtype.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Wait for the device, and copy to the host."""
        array = host(self._tensor)
        return np.asarray(array if array.dtype.kind == "c" else numbers(array), dtype)

    def __float__(self) -> float:
        """Wait for the device, and return the number."""
        return float(host(self._tensor).item())


def constant(x: object) -> Any:
    """Return a variable's present value as a tensor, and anything else as it is."""
    x = underlying(x)
    return tf.identity(x) if isinstance(x, tf.Variable) else x


def whole_frame(x: Any, layout: str | None) -> tuple[Kept, FrameSpec]:
    """Return an array that will not change, and what it is.

    Examples
    --------
    >>> array, spec = whole_frame(tf.ones((2, 3), tf.bfloat16), "NC")
    >>> spec.shape, spec.dtype, spec.source_dtype
    ((2, 3), 'float32', 'bfloat16')
    """
    x = constant(x)
    if not isinstance(x, tf.Tensor):
        return whole_array(x, layout)
    if tf.is_symbolic_tensor(x):
        raise TypeError("it is a tensor of a graph; return it from the train step first")
    source = x.dtype.name
    name = source if np.dtype(x.dtype.as_numpy_dtype).kind in "fiubc" else "float32"
    return Later(x), FrameSpec(tuple(x.shape), name, layout=layout, source_dtype=source)
