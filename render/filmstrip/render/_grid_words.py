"""Grid words: the only place that says in words what a grid shows and what it leaves out. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filmstrip.render._layout import Arrangement
    from filmstrip.render._tiles import Downsample

__all__ = ["dead_words", "kept_words", "plane_words", "pooled_words", "tile_words"]

_HOW = {"absmax": "signed abs-max", "mean": "mean", "rms": "root mean square"}


def _plural(count: int, name: str) -> str:
    if count == 1:
        return f"1 {name.removesuffix('s')}"
    return f"{count} {name}{'' if name.endswith('s') else 's'}"


def _of(shown: int, total: int, name: str) -> str:
    """Say how many there are, or how many of them are shown."""
    words = _plural(total, name)
    return words if shown == total else f"{shown} of {words}"


def tile_words(arranged: Arrangement, groups: int, planes: int) -> list[str]:
    """Say how many tiles there are of what size.

    Parameters
    ----------
    arranged : Arrangement
    groups, planes : int
        How many are shown.

    Examples
    --------
    >>> import numpy as np
    >>> from filmstrip.render._layout import arrange
    >>> tile_words(arrange(np.zeros((64, 3, 5, 5)), "OIHW"), 64, 3)
    ['64 filters × 5×5', '3 input channels']
    >>> tile_words(arrange(np.zeros((32, 16, 3)), "OIL"), 32, 1)
    ['32 filters × 16 input channels × 3']
    >>> tile_words(arrange(np.zeros((1, 4, 9, 9)), "NHQK"), 4, 1)
    ['4 heads × 9×9', 'query down, key across']
    """
    total, depth, h, w = arranged.values.shape
    size = f"{h} input channels × {w}" if arranged.row_name == "in features" else f"{h}×{w}"
    parts = [f"{_of(groups, total, arranged.group)} × {size}"]
    if arranged.group == "head":
        parts.append(f"{arranged.row_name} down, {arranged.column_name} across")
    if arranged.color:
        zero = ", zero is grey" if arranged.group == "filter" else ""
        return [*parts, f"channels as red, green, blue{zero}"] if depth > 1 else parts
    if len(arranged.inner) == 1:
        return [*parts, _of(planes, depth, arranged.inner[0][0])]
    if arranged.inner:
        parts.append(" × ".join(_plural(length, name) for name, length in arranged.inner))
        parts += [f"{planes} of {depth} planes"] if planes < depth else []
    return parts


def plane_words(arranged: Arrangement, shape: tuple[int, int]) -> str:
    """Say the size of a matrix or a vector.

    Examples
    --------
    >>> import numpy as np
    >>> from filmstrip.render._layout import arrange
    >>> plane_words(arrange(np.zeros((8, 10)), "NC"), (8, 10))
    '8 samples × 10 units'
    """
    h, w = shape
    if h == 1:
        return _plural(w, "value")
    if arranged.row_name == "out features":
        return f"{h} out × {w} in"
    if arranged.row_name in {"row", ""}:
        return f"{h}×{w}"
    return f"{_plural(h, arranged.row_name)} × {_plural(w, arranged.column_name)}"


def pooled_words(factors: tuple[int, int], how: Downsample) -> list[str]:
    """Say how many values share a cell, where several do."""
    if factors == (1, 1):
        return []
    return [f"1 cell = {factors[0]}×{factors[1]} values ({_HOW[how]})"]


def dead_words(arranged: Arrangement, dead: int) -> str:
    """Say how many channels are zero, and of how many samples that is known."""
    count = len(arranged.samples)
    where = "" if arranged.sample is None else f" in all {_plural(count, 'sample')}"
    return f"{dead} dead{where}".replace("all 1 sample", "the only sample")


def kept_words(attributes: dict[str, Any]) -> list[str]:
    """Say what a frame lacks of the tensor, as its strip tells.

    Examples
    --------
    >>> kept_words({"take": "first 8 samples", "degraded": "half precision", "varies": [2]})
    ['first 8 samples kept', 'degraded: half precision', 'axis 2 varies over steps']
    """
    parts = []
    if attributes.get("take") not in {None, "first 1 samples"}:
        parts.append(f"{attributes['take']} kept")
    if attributes.get("degraded"):
        parts.append(f"degraded: {attributes['degraded']}")
    axes = [str(axis) for axis in attributes.get("varies") or ()]
    if axes:
        some = f"axis {axes[0]} varies" if len(axes) == 1 else f"axes {', '.join(axes)} vary"
        parts.append(f"{some} over steps")
    return parts
