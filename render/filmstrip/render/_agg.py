"""Agg: the only place that calls matplotlib's rasteriser, and that meets its global settings.

The rasteriser publishes no types.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

__all__ = ["default_settings", "figure_pixels", "text_coverage", "text_width"]

# Ids in an SVG are random without a salt.
_OURS: Final[dict[Any, Any]] = {"svg.hashsalt": "filmstrip", "pdf.fonttype": 42}
_lock = threading.RLock()


@contextmanager
def default_settings() -> Iterator[None]:
    """Draw as matplotlib does by itself, whatever style sheet or ``matplotlibrc`` a user has.

    Settings are global, hence the lock.
    """
    import matplotlib

    with _lock:
        settings = dict(dict.items(matplotlib.rcParamsDefault)) | _OURS
        # Looking at the backend through the mapping would choose one, and import pyplot.
        now = dict(dict.items(matplotlib.rcParams))
        changed = {k: v for k, v in settings.items() if k != "backend" and now.get(k) != v}
        with matplotlib.rc_context(changed):
            yield


def figure_pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    """Draw a figure.

    Returns
    -------
    ndarray of uint8, shape (height, width, 4)
        Red, green, blue, alpha.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba(), np.uint8)


def text_width(text: str, font: FontProperties, dpi: float) -> float:
    """Width of the ink of a line in pixels."""
    width, _, _ = _renderer(1, 1, dpi).get_text_width_height_descent(text, font, False)
    return float(width)


def text_coverage(
    text: str, font: FontProperties, dpi: float, *, size: tuple[int, int], at: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """Draw a line of text, never as mathematics.

    Parameters
    ----------
    text : str
    font : FontProperties
    dpi : float
        Dots an inch.
    size : (int, int)
        Width and height of the result in pixels.
    at : (int, int)
        Where the baseline begins, from the upper left.

    Returns
    -------
    ndarray of uint8, shape (height, width)
        255 where a pixel is wholly covered.
    """
    renderer = _renderer(*size, dpi)
    renderer.draw_text(renderer.new_gc(), *at, text, font, 0)
    return np.array(renderer.buffer_rgba(), np.uint8)[..., 3]


def _renderer(width: int, height: int, dpi: float) -> Any:
    from matplotlib.backends.backend_agg import RendererAgg

    agg: Any = RendererAgg
    return agg(width, height, dpi)
