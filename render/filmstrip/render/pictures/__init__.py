"""The pictures there are: the command line and the workers take them from here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from filmstrip.render.pictures import animation, curve, grid, histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from filmstrip.render._image import Picture
    from filmstrip.render._source import Source
    from filmstrip.render._spec import Spec

__all__ = ["PICTURES"]

PICTURES: Final[dict[str, Callable[[Sequence[Source], Spec], Picture]]] = {
    "animation": animation.of_sources,
    "curve": curve.of_sources,
    "grid": grid.of_sources,
    "histogram": histogram.of_sources,
}
