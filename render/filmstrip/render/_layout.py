"""Layouts: the only place that knows what the axes of a frame mean.

Letters: N sample, C channel or unit, O output, I input, D H W space, L T position, Q K the
two sides of attention. An arrangement reorders a frame to ``(group, inner, row, column)``;
whatever is drawn later sees only that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from filmstrip.render.errors import SourceError, SpecError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Arrangement", "arrange", "letters"]

_PARAMETERS: Final = {0: "", 1: "C", 2: "OI", 3: "OIW", 4: "OIHW", 5: "OIDHW"}
_ACTIVATIONS: Final = {0: "", 1: "C", 2: "NC", 3: "NLC", 4: "NCHW", 5: "NCDHW"}
_PLAIN: Final = {0: "", 1: "C", 2: "HW", 3: "CHW", 4: "NCHW", 5: "NCDHW"}
_BY_KIND: Final = {
    "weights": _PARAMETERS,
    "gradients": _PARAMETERS,
    "activations": _ACTIVATIONS,
}
_LETTERS: Final = frozenset("NCOIDHWLTQK")
_FILTER_ORDER: Final = "OIDHW"
_IMAGE_ORDER: Final = "CDHW"
_NAMES: Final = {
    "N": "sample",
    "C": "unit",
    "O": "out features",
    "I": "in features",
    "D": "depth",
    "H": "row",
    "W": "column",
    "L": "position",
    "T": "position",
    "Q": "query",
    "K": "key",
}


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A frame, ready to be cut into tiles.

    Attributes
    ----------
    values : ndarray, shape (group, inner, row, column)
        Groups are channels of an activation or filters of a kernel; the inner planes of a
        filter are its input channels.
    flat : bool
        Whether there is one plane only, which has axes of its own: a matrix or a vector.
    filters : bool
        Whether groups are filters.
    row_name, column_name : str
        What the axes of the plane count.
    sample : int or None
        The sample that was taken, None where all or none are shown.
    """

    values: npt.NDArray[Any]
    flat: bool
    filters: bool
    row_name: str
    column_name: str
    sample: int | None


def letters(layout: str | None, ndim: int, kind: str) -> str:
    """Name the axes, from the layout where it fits, else from the number of axes and the kind.

    Examples
    --------
    >>> letters("NHWC", 4, "activations"), letters(None, 4, "weights"), letters(None, 2, "")
    ('NHWC', 'OIHW', 'HW')
    """
    if layout is not None:
        axes = layout.upper()
        if not axes or not _LETTERS.issuperset(axes) or len(set(axes)) != len(axes):
            raise SpecError(
                f"layout {layout!r} is not one: use letters of NCOIDHWLTQK, each once, "
                "such as NCHW, NHWC, OIHW or HWIO"
            )
        if len(axes) == ndim:
            return axes
        if axes[0] == "N" and len(axes) == ndim + 1:
            return axes[1:]
        if kind not in _BY_KIND:
            raise SpecError(f"layout {layout!r} has {len(axes)} axes, the array {ndim}")
    table = _BY_KIND.get(kind, _PLAIN)
    if ndim not in table:
        raise SpecError(
            f"an array with {ndim} axes has no grid; take a part of it, or name its layout"
        )
    return table[ndim]


def arrange(
    frame: npt.NDArray[Any], layout: str | None, *, kind: str = "", sample: int | None = None
) -> Arrangement:
    """Reorder a frame so that planes come last.

    Parameters
    ----------
    frame : ndarray
        One layer at one step.
    layout : str or None
        One letter an axis; None: chosen by the number of axes and the kind.
    kind : str
        ``activations``, ``weights``, …; empty for an array of unknown origin.
    sample : int or None
        Which entry of N to show; None: the first, or all where they are rows of a matrix.

    Raises
    ------
    SpecError
        If the layout does not fit or nothing is left to draw.
    SourceError
        If there is no such sample.

    Examples
    --------
    >>> import numpy as np
    >>> arrange(np.zeros((8, 28, 28, 64)), "NHWC").values.shape
    (64, 1, 28, 28)
    >>> arrange(np.zeros((3, 3, 16, 32)), "HWIO").values.shape
    (32, 16, 3, 3)
    """
    axes = letters(layout, frame.ndim, kind)
    if frame.size == 0:
        raise SpecError(f"nothing to draw: the array has shape {_shape(frame.shape)}")
    taken: int | None = None
    if "N" in axes and (sample is not None or len(axes) != 2):
        at = axes.index("N")
        taken = sample or 0
        if not -frame.shape[at] <= taken < frame.shape[at]:
            raise SourceError(
                f"no sample {taken}: the frame has {frame.shape[at]} (0 to {frame.shape[at] - 1})"
            )
        taken %= frame.shape[at]
        frame = frame.take(taken, axis=at)
        axes = axes.replace("N", "")
    order = _order(axes)
    frame = frame.transpose([axes.index(letter) for letter in order])
    return _planes(frame, order, taken)


def _planes(frame: npt.NDArray[Any], axes: str, sample: int | None) -> Arrangement:
    filters = "O" in axes and frame.ndim > 2
    if filters and all(n == 1 for n in frame.shape[2:]):
        frame, axes, filters = frame.reshape(frame.shape[:2]), axes[:2], False
    if frame.ndim <= 2:
        plane = frame.reshape((1,) * (2 - frame.ndim) + frame.shape)
        named = axes.rjust(2)
        rows, columns = _NAMES.get(named[0], ""), _NAMES.get(named[1], "")
        return Arrangement(plane[None, None], True, False, rows, columns, sample)
    rows, columns = _NAMES[axes[-2]], _NAMES[axes[-1]]
    values = frame.reshape(frame.shape[0], -1, *frame.shape[-2:])
    return Arrangement(values, False, filters, rows, columns, sample)


def _order(axes: str) -> str:
    """Axes in the order of drawing: groups first, the plane last."""
    if "O" in axes:
        order = _FILTER_ORDER
    elif "H" in axes and "W" in axes:
        order = _IMAGE_ORDER
    else:
        return axes
    inside = [letter for letter in order if letter in axes]
    return "".join([a for a in axes if a not in order] + inside)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "()"
