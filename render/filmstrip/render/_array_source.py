"""Arrays as sources: the only place that takes arrays and tensors of any library.

No framework is imported: a tensor is known by its methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from filmstrip.render._counting import counts_of_frames, limit_steps
from filmstrip.render._picks import pick_steps
from filmstrip.render._source import Frame, Line
from filmstrip.render.errors import SourceError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from filmstrip.render._density import Counts
    from filmstrip.render._scale import Spread
    from filmstrip.render._spec import CurveSpec, GridSpec, HistogramSpec

__all__ = ["ArraySource", "StepsSource", "as_array", "is_column", "lines_of"]


class ArraySource:
    """One array instead of a run.

    Parameters
    ----------
    values : ndarray
    layout : str or None
        One letter an axis.
    """

    def __init__(self, values: npt.NDArray[Any], layout: str | None) -> None:
        self.values, self.layout = values, layout
        self.name = "array"

    def frame(self, spec: GridSpec) -> Frame:
        """Return the array; it has no step."""
        return Frame(self.values, self.layout, spec.kind, None)

    def counts(self, spec: HistogramSpec) -> Counts:
        """Count the array, its first axis being steps unless the view shows a single one."""
        if spec.view == "single":
            return counts_of_frames(lambda _: self.values, [0], available=1)
        if self.values.ndim < 2:
            raise SpecError(
                f"a {spec.view} needs steps as the first of two or more axes; "
                f"the array has shape {self.values.shape}"
            )
        count = len(self.values)
        chosen = limit_steps(pick_steps(spec.step, range(count), layer="the array"), spec.view)
        return counts_of_frames(self.values.__getitem__, chosen, available=count)

    def layers(self, kind: str, patterns: Sequence[str]) -> Sequence[str]:
        """Return a single nameless one."""
        return [""]

    def series(self, spec: CurveSpec) -> list[Line]:
        """Return the array as one curve."""
        return lines_of(self.values)

    def input(self, spec: GridSpec) -> Frame | None:
        """Return None: an array does not tell what it was made of."""
        return None

    def limits(self, spec: GridSpec) -> tuple[float, float] | None:
        """Return None: an array is all there is."""
        return None

    def steps(self, spec: GridSpec) -> range:
        """Return the entries of the first axis."""
        return range(len(self.values))

    def spread(self, spec: GridSpec, steps: Sequence[int]) -> Spread | None:
        """Return None: nothing is stored beside an array."""
        return None


class StepsSource(ArraySource):
    """One array whose first axis are steps, each of which is a frame."""

    def frame(self, spec: GridSpec) -> Frame:
        """Return one entry of the first axis."""
        return Frame(self.values[spec.step], self.layout, spec.kind, spec.step)


def as_array(x: object) -> npt.NDArray[Any]:
    """Take an array of numbers from anything that holds one.

    Parameters
    ----------
    x : array_like or tensor
        numpy, torch (on any device, bfloat16 too), TensorFlow, JAX, lists. What is masked is NaN.

    Returns
    -------
    ndarray
        float32 or float64, or complex.

    Raises
    ------
    SpecError
        If it holds no numbers.

    Examples
    --------
    >>> as_array([[1, 2], [3, 4]]).dtype
    dtype('float64')
    """
    if isinstance(x, np.ma.MaskedArray):
        x = _filled(x)
    if hasattr(x, "detach"):
        try:
            x = _numpy_of(x.detach())
        except RuntimeError as error:  # a tensor without data, or of a backend that keeps it
            raise SpecError(f"this tensor cannot be read: {str(error).splitlines()[0]}") from error
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise SpecError(f"not an array of numbers: {error}") from error
    return as_real(array)


def _filled(x: np.ma.MaskedArray[Any, Any]) -> npt.NDArray[Any]:
    """Put NaN where values are masked."""
    if x.dtype.kind not in "biufc":
        raise SpecError(f"not an array of numbers: its dtype is {x.dtype}")
    filled: npt.NDArray[Any] = as_real(x.data)
    if np.ma.is_masked(x):
        filled = np.where(np.ma.getmaskarray(x), filled.dtype.type(np.nan), filled)
    return filled


def is_column(x: object) -> bool:
    """Return whether something is a series of pandas, or like one: values with an index.

    It has keys as a mapping has, but they name no curves.
    """
    return hasattr(x, "index") and hasattr(x, "to_numpy") and getattr(x, "ndim", 0) == 1


def _numpy_of(tensor: Any) -> object:
    """Take a tensor's values without importing its library."""
    if "strided" not in str(getattr(tensor, "layout", "strided")):  # of which there are several
        tensor = tensor.to_dense()
    tensor = tensor.cpu()
    if tensor.is_complex():
        tensor = tensor.resolve_conj()
    try:
        return tensor.resolve_neg().numpy()
    except TypeError:  # bfloat16, float8 and complex32 have no counterpart in numpy
        return (tensor.cfloat() if tensor.is_complex() else tensor.float()).numpy()


def as_real(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Convert to the float that drawing works in, without losing a value."""
    if array.dtype.kind == "c" or array.dtype in (np.float32, np.float64):
        return array
    if array.dtype == np.float16 or array.dtype.kind == "b":
        return array.astype(np.float32)
    if array.dtype.kind in "iuf":
        return array.astype(np.float64)
    if array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize <= 2:
        return array.astype(np.float32)  # bfloat16 and float8 of ml_dtypes
    raise SpecError(f"not an array of numbers: its dtype is {array.dtype}")


def lines_of(x: object, label: str = "") -> list[Line]:
    """Take curves from a series, pairs, a mapping of names to either, or plain values.

    A column of pandas runs over its index where that holds whole numbers.

    Raises
    ------
    SpecError
        If there is nothing to draw, or steps and values differ in number.
    SourceError
        If a mapping is empty.

    Examples
    --------
    >>> [line.label for line in lines_of({"a": [1.0, 2.0], "b": [3.0, 1.0]})]
    ['a', 'b']
    """
    if is_column(x):
        index, values = np.asarray(x.index), as_array(x.to_numpy())  # type: ignore[attr-defined]
        name = getattr(x, "name", None)
        named = label or ("" if name is None else str(name))
        return lines_of((index, values) if index.dtype.kind in "iu" else values, named)
    if hasattr(x, "keys") and hasattr(x, "__getitem__"):
        names = list(x.keys())
        if not names:
            raise SourceError("there are no curves: the mapping is empty")
        return [line for name in names for line in lines_of(x[name], str(name))]
    pair = isinstance(x, tuple) and len(x) == 2 and np.ndim(x[0]) == 1 and np.ndim(x[1]) == 1
    if isinstance(x, tuple) and pair:
        steps, values = as_array(x[0]), as_array(x[1])
    else:
        values = as_array(x)
        steps = np.arange(values.size)
    if values.ndim != 1 or not values.size or len(steps) != len(values):
        raise SpecError(
            f"a curve needs one value for each step; got steps {steps.shape}, values {values.shape}"
        )
    if np.iscomplexobj(values) or np.iscomplexobj(steps) or not np.isfinite(steps).all():
        raise SpecError("a curve needs real values at finite steps")
    label = label or str(getattr(x, "name", None) or "")
    return [Line(label, steps.astype(np.float64), values.astype(np.float64))]
