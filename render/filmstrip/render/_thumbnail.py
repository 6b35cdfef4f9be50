"""Thumbnails: the only place that draws small, and in grey, what maps were made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from filmstrip.render._palette import grey_bytes
from filmstrip.render._tiles import pool

if TYPE_CHECKING:
    import numpy.typing as npt

    from filmstrip.render._sheet import Ruler

__all__ = ["SIDE", "thumbnail"]

SIDE: Final = 112  # design pixels, the longer side
_LUMA: Final = np.array([0.299, 0.587, 0.114])  # https://www.itu.int/rec/R-REC-BT.601


def thumbnail(image: npt.NDArray[Any], ruler: Ruler) -> npt.NDArray[np.uint8]:
    """Draw an image, from black for its least value to white for its largest.

    Parameters
    ----------
    image : ndarray, shape (channel, h, w)
        Brightness alone, or red, green and blue.
    ruler : Ruler

    Returns
    -------
    ndarray of uint8, shape (height, width)
        Bytes of the palette; sides are at most `SIDE`.

    Examples
    --------
    >>> from filmstrip.render._sheet import Ruler
    >>> thumbnail(np.eye(28)[None], Ruler(200.0)).shape
    (112, 112)
    """
    planes = np.nan_to_num(image.astype(np.float64), posinf=0.0, neginf=0.0)
    side = ruler(SIDE)
    factor = max(1, -(-max(planes.shape[1:]) // side))
    pooled = pool(planes, (factor, factor), "mean")
    plane = pooled[0] if len(pooled) == 1 else np.tensordot(_LUMA, pooled, 1)
    low, high = float(plane.min()), float(plane.max())
    grey = np.rint((plane - low) * (255 / (high - low) if high > low else 0.0)).astype(np.uint8)
    zoom = max(1, side // max(plane.shape))
    return grey_bytes(grey.repeat(zoom, axis=0).repeat(zoom, axis=1))
