"""Text as pixels: the only place where a string becomes a bitmap.

Titles and tick labels change with every step, and a matplotlib artist takes 20 ms to redraw.
Words are drawn once by matplotlib's Agg renderer and kept; digits are kept singly, since all
of them are equally wide. A line of text is then a few copies of a few hundred bytes.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections import OrderedDict
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from filmstrip.render._agg import default_settings, text_coverage, text_width

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from matplotlib.font_manager import FontProperties

_Key: TypeAlias = tuple[str, float, bool, float]
_Drawn: TypeAlias = "tuple[npt.NDArray[np.uint8], int]"

__all__ = ["FONT", "ellipsize", "font", "line", "printable", "width"]

FONT: Final = "DejaVu Sans"  # comes with matplotlib, so that pictures are the same everywhere
DPI: Final = 200
_TOKENS: Final = re.compile(r"\d|[^\d\s]+|\s")
_MOST: Final = {"words": 4096, "lines": 512}
_local = threading.local()


@lru_cache
def font(size: float, bold: bool = False) -> FontProperties:
    """Font of a size in points."""
    from matplotlib.font_manager import FontProperties

    return FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")


@lru_cache
def _charmap() -> frozenset[int]:
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(findfont(font(10))).get_charmap())


@lru_cache(maxsize=4096)
def printable(text: str) -> str:
    r"""Replace what the font cannot show, so that drawing neither warns nor breaks the line.

    Examples
    --------
    >>> printable("conv1\n→ relu")
    'conv1 → relu'
    >>> printable("層1")
    '□1'
    """
    shown = [" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in text]
    return "".join(c if ord(c) in _charmap() else "□" for c in shown)


def width(text: str, size: float, *, bold: bool = False, dpi: float = DPI) -> int:
    """Width of a line in pixels.

    Examples
    --------
    >>> width("step 100", 7.5) == width("step 234", 7.5)
    True
    """
    return sum(_token(t, size, bold, dpi)[1] for t in _TOKENS.findall(printable(text)))


def line(
    text: str, size: float, *, bold: bool = False, dpi: float = DPI
) -> tuple[npt.NDArray[np.uint8], int]:
    """Draw one line of text.

    Returns
    -------
    coverage : ndarray of uint8, shape (height, width)
        255 where a pixel is wholly covered.
    ascent : int
        Rows above the baseline.
    """
    return _kept((text, size, bold, dpi), "lines", _line)


def _line(text: str, size: float, bold: bool, dpi: float) -> tuple[npt.NDArray[np.uint8], int]:
    tokens = [_token(t, size, bold, dpi) for t in _TOKENS.findall(printable(text))]
    height, ascent, pad = _box(size, dpi)
    out = np.zeros((height, sum(t[1] for t in tokens) + 2 * pad), np.uint8)
    x = 0
    for bitmap, advance in tokens:
        there = out[:, x : x + bitmap.shape[1]]
        np.maximum(there, bitmap[:, : there.shape[1]], out=there)
        x += advance
    return out, ascent


def ellipsize(text: str, size: float, limit: int, *, bold: bool = False) -> str:
    """Cut the middle out of a line that is wider than ``limit`` pixels.

    Examples
    --------
    >>> ellipsize("encoder.layers.0.attention.output.dense.weight", 7.5, 300)
    'encoder.laye…dense.weight'
    """
    if width(text, size, bold=bold) <= limit:
        return text
    # Single characters are known already; each attempt at a word would be drawn.
    widths = np.array([width(c, size, bold=bold) for c in text])
    total = width("…", size, bold=bold) + np.cumsum(widths) + np.cumsum(widths[::-1])
    half = min(len(text) // 2, int(np.searchsorted(total, limit, side="right")))
    while True:
        shortened = f"{text[:half]}…{text[len(text) - half :]}"
        if half <= 1 or width(shortened, size, bold=bold) <= limit:
            return shortened
        half -= 1


def _box(size: float, dpi: float) -> tuple[int, int, int]:
    em = size * dpi / 72
    ascent, pad = round(em * 1.05), max(2, round(em * 0.2))
    return ascent + round(em * 0.35), ascent, pad


def _token(text: str, size: float, bold: bool, dpi: float) -> tuple[npt.NDArray[np.uint8], int]:
    """Coverage of one word, padded on both sides, and how far the pen moves."""
    return _kept((text, size, bold, dpi), "words", _draw)


def _kept(key: _Key, where: str, make: Callable[[str, float, bool, float], _Drawn]) -> _Drawn:
    """Make something once for each thread, as long as it is among the most recent."""
    kept: OrderedDict[_Key, _Drawn] | None = getattr(_local, where, None)
    if kept is None:
        kept = OrderedDict()
        setattr(_local, where, kept)
    found = kept.get(key)
    if found is None:
        found = kept[key] = make(*key)
        if len(kept) > _MOST[where]:
            kept.popitem(last=False)
    return found


@default_settings()
def _draw(text: str, size: float, bold: bool, dpi: float) -> tuple[npt.NDArray[np.uint8], int]:
    height, ascent, pad = _box(size, dpi)
    properties = font(size, bold)
    # Between bars: the renderer measures ink, and a space or an "f" has less ink than advance.
    framed = text_width(f"|{text}|", properties, dpi) - text_width("||", properties, dpi)
    advance = max(1, round(framed))
    box = advance + 2 * pad, height
    return text_coverage(text, properties, dpi, size=box, at=(pad, ascent)), advance
