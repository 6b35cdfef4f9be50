"""Layouts: the only place that knows what the axes of a frame mean.

Letters: N sample, C channel or unit, O output, I input, D H W space, L T position, Q K or L S
the two sides of attention; H without W are heads. An arrangement reorders a frame to
``(sample, group, inner, row, column)``; whatever is drawn later sees only that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from filmstrip.render.errors import SourceError, SpecError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Arrangement", "arrange", "arrange_images", "check_fits", "check_layout", "letters"]

_PARAMETERS: Final = {0: "", 1: "C", 2: "HW", 3: "OIW", 4: "OIHW", 5: "OIDHW"}
_ACTIVATIONS: Final = {0: "", 1: "C", 2: "HW", 3: "NLC", 4: "NCHW", 5: "NCDHW"}
_PLAIN: Final = {0: "", 1: "C", 2: "HW", 3: "CHW", 4: "NCHW", 5: "NCDHW"}
_BY_KIND: Final = {
    "weights": _PARAMETERS,
    "gradients": _PARAMETERS,
    "activations": _ACTIVATIONS,
}
_LETTERS: Final = "NCOIDHWLTQKS"
_FILTER_ORDER: Final = "OIDHWLT"
_IMAGE_ORDER: Final = "CDHW"
_COLORS: Final = (1, 3)
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
    "S": "source position",
}
_GROUPS: Final = {"O": "filter", "C": "channel", "H": "head"}
_INNER: Final = {"I": "input channel", "C": "channel", "D": "depth"}


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A frame, ready to be cut into tiles.

    Attributes
    ----------
    samples : ndarray, shape (sample, group, inner, row, column)
        Groups are channels of an activation or filters of a kernel; the inner planes of a
        filter are its input channels. One sample where there is no axis of that kind.
    flat : bool
        Whether there is one plane only, which has axes of its own: a matrix or a vector.
    group : str
        What groups are: ``"channel"``, ``"filter"``, ``"head"``, …
    inner : tuple of (str, int)
        What the inner planes of a group count, and how many of each.
    row_name, column_name : str
        What the axes of the plane count.
    sample : int or None
        The sample that was taken, None where all or none are shown.
    group_axis : int or None
        Which axis of the frame the groups are, None where there is one plane only.
    color : bool
        Whether the inner planes are red, green and blue, or brightness alone.
    """

    samples: npt.NDArray[Any]
    flat: bool
    group: str
    inner: tuple[tuple[str, int], ...]
    row_name: str
    column_name: str
    sample: int | None
    group_axis: int | None = None
    color: bool = False

    @property
    def values(self) -> npt.NDArray[Any]:
        """What is shown of the sample: shape (group, inner, row, column)."""
        shown: npt.NDArray[Any] = self.samples[self.sample or 0]
        return shown


def check_layout(layout: str) -> str:
    """Return a layout in capitals.

    Raises
    ------
    SpecError
        If a letter is none of those that there are, or stands twice.
    """
    axes = layout.upper()
    if not axes or not set(_LETTERS).issuperset(axes) or len(set(axes)) != len(axes):
        raise SpecError(
            f"layout {layout!r} is not one: use letters of {_LETTERS}, each once, "
            "such as NCHW, NHWC, OIHW or HWIO"
        )
    return axes


def check_fits(layout: str | None, shape: tuple[int, ...], layer: str) -> None:
    """Refuse a layout that a user asked for and a frame has not; without its N it may be.

    Raises
    ------
    SpecError
        If it names another number of axes.

    Examples
    --------
    >>> check_fits("NCHW", (12, 8, 8), "relu1")
    """
    if layout is None:
        return
    axes = check_layout(layout)
    if len(axes) != len(shape) and (axes[0] != "N" or len(axes) != len(shape) + 1):
        raise SpecError(
            f"layout {axes!r} names {_axes(len(axes))}, "
            f"{layer or 'the array'} has {_axes(len(shape))}: {_shape(shape)}"
        )


def letters(layout: str | None, ndim: int, kind: str) -> str:
    """Name the axes, from the layout where it fits, else from the number of axes and the kind.

    Examples
    --------
    >>> letters("NHWC", 4, "activations"), letters(None, 4, "weights"), letters(None, 2, "")
    ('NHWC', 'OIHW', 'HW')
    """
    if layout is not None:
        axes = check_layout(layout)
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
    axes = whole = letters(layout, frame.ndim, kind)
    if frame.size == 0:
        raise SpecError(f"nothing to draw: the array has shape {_shape(frame.shape)}")
    taken: int | None = None
    if "N" in axes and (sample is not None or len(axes) != 2):
        at = axes.index("N")
        taken = _sample(sample or 0, frame.shape[at])
        frame = np.moveaxis(frame, at, 0)
        axes = axes.replace("N", "")
    else:
        frame = frame[None]
    order = _order(axes)
    frame = frame.transpose([0, *(1 + axes.index(letter) for letter in order)])
    planes = _planes(frame, order, taken)
    return planes if planes.flat else replace(planes, group_axis=whole.index(order[0]))


def arrange_images(
    frame: npt.NDArray[Any], layout: str | None, *, kind: str = "", sample: int | None = None
) -> Arrangement | None:
    """Reorder a frame so that its channels are the colours of pixels.

    Parameters
    ----------
    frame, layout, kind, sample
        As of `arrange`; without a sample all of them are groups.

    Returns
    -------
    Arrangement or None
        Groups are images, or filters of a kernel, whose inner planes are red, green and blue, or
        brightness alone. None where there are not 1 or 3 channels of images.

    Examples
    --------
    >>> import numpy as np
    >>> arrange_images(np.zeros((8, 32, 32, 3)), "NHWC").values.shape
    (8, 3, 32, 32)
    >>> arrange_images(np.zeros((8, 64, 14, 14)), "NCHW") is None
    True
    """
    axes = letters(layout, frame.ndim, kind)
    if frame.size == 0 or sorted(axes) not in (list("CHW"), list("CHNW"), list("HIOW")):
        return None
    groups, color = ("O", "I") if "O" in axes else ("N", "C")
    if frame.shape[axes.index(color)] not in _COLORS:
        return None
    order = f"{groups}{color}HW" if groups in axes else f"{color}HW"
    values = frame.transpose([axes.index(letter) for letter in order])
    values = values.reshape(-1, *values.shape[-3:])
    if "N" in axes and sample is not None:
        taken = _sample(sample, len(values))
        values = values[taken : taken + 1]
    group = "filter" if groups == "O" else "image"
    return Arrangement(values[None], False, group, (), _NAMES["H"], _NAMES["W"], None, color=True)


def _sample(sample: int, count: int) -> int:
    if not -count <= sample < count:
        raise SourceError(f"no sample {sample}: the frame has {count} (0 to {count - 1})")
    return sample % count


def _planes(frame: npt.NDArray[Any], axes: str, sample: int | None) -> Arrangement:
    """Split the axes behind the samples into groups, inner planes, rows and columns."""
    if "O" in axes and len(axes) > 2 and all(n == 1 for n in frame.shape[3:]):
        frame, axes = frame.reshape(frame.shape[:3]), axes[:2]
    samples, lengths = frame.shape[0], frame.shape[1:]
    heads = "H" in axes and "W" not in axes
    rows, columns = (_name(letter, heads) for letter in axes.rjust(2)[-2:])
    if len(axes) <= 2:
        plane = frame.reshape(samples, 1, 1, *(1,) * (2 - len(axes)), *lengths)
        return Arrangement(plane, True, "", (), rows, columns, sample)
    values = frame.reshape(samples, lengths[0], -1, *lengths[-2:])
    inner = tuple(
        (_INNER.get(letter, _name(letter, heads)), length)
        for letter, length in zip(axes[1:-2], lengths[1:-2], strict=True)
    )
    group = _GROUPS.get(axes[0], _NAMES.get(axes[0], "plane"))
    return Arrangement(values, False, group, inner, rows, columns, sample)


def _name(letter: str, heads: bool) -> str:
    if heads and letter in "HD":
        return {"H": "head", "D": "unit"}[letter]
    return _NAMES.get(letter, "")


def _order(axes: str) -> str:
    """Axes in the order of drawing: groups first, the plane last."""
    if "O" in axes:
        order = _FILTER_ORDER
    elif "H" in axes and "W" in axes:
        order = _IMAGE_ORDER
    elif "H" in axes and len(axes) > 2:
        return "H" + axes.replace("H", "")
    else:
        return axes
    inside = [letter for letter in order if letter in axes]
    return "".join([a for a in axes if a not in order] + inside)


def _axes(count: int) -> str:
    return f"{count} ax{'i' if count == 1 else 'e'}s"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "()"
