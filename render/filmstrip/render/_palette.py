"""Palette: the only place that knows which byte of a picture is which colour.

A grid is an 8-bit palette image: 228 levels of a colour map, the background, three colours
for values that are no numbers, 16 greys and 8 reds. The greys and reds let text keep the
smooth edges that matplotlib gives it. One byte a pixel is a quarter of RGBA's work for the
encoder, and the bytes of a tile are its quantised values exactly.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from filmstrip.render.errors import SpecError, nearest

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "BACKGROUND",
    "LEVELS",
    "NAN",
    "NEGINF",
    "POSINF",
    "TONES",
    "Tone",
    "check_colormap",
    "colors",
    "quantise",
    "tone_table",
]

Tone: TypeAlias = Literal["ink", "mute", "faint", "bar", "red"]

LEVELS: Final = 228
BACKGROUND: Final = 228
NAN: Final = 229
POSINF: Final = 230
NEGINF: Final = 231
_GREYS: Final = 232
_REDS: Final = 248

TONES: Final[dict[Tone, str]] = {
    "ink": "#1b1f24",
    "mute": "#6b7280",
    "faint": "#c9ced6",
    "bar": "#94a3b8",
    "red": "#c81e1e",
}
_WHITE: Final = (255, 255, 255)
_BAD: Final = ((255, 0, 255), (255, 106, 0), (0, 200, 255))


def _rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _ramp(stops: list[tuple[int, int, int]], at: list[int]) -> npt.NDArray[np.uint8]:
    """Colours between stops, one for each integer from 0 to the last position."""
    x = np.arange(at[-1] + 1)
    channels = [np.interp(x, at, [stop[c] for stop in stops]) for c in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


# Through MUTE, so that titles and subtitles both have their exact colour and both fade to white.
_GREY_RAMP: Final = _ramp(
    [_rgb(TONES["ink"]), _rgb(TONES["mute"]), _rgb(TONES["bar"]), _WHITE], [0, 6, 9, 15]
)
_RED_RAMP: Final = _ramp([_rgb(TONES["red"]), _WHITE], [0, 7])


@lru_cache
def tone_table(tone: Tone) -> npt.NDArray[np.uint8]:
    """Map the coverage of a pixel by text, 0 to 255, to its byte in the picture.

    Returns
    -------
    ndarray of uint8, shape (256,)
        ``table[0]`` is the background, ``table[255]`` the tone itself.
    """
    ramp, first = (_RED_RAMP, _REDS) if tone == "red" else (_GREY_RAMP, _GREYS)
    coverage = np.arange(256)[:, None] / 255
    wanted = coverage * np.array(_rgb(TONES[tone])) + (1 - coverage) * 255
    distance = np.abs(wanted[:, None, :] - ramp[None, :, :]).sum(axis=2)
    table = (first + distance.argmin(axis=1)).astype(np.uint8)
    table[0] = BACKGROUND
    table.setflags(write=False)
    return np.asarray(table, np.uint8)


def grey_bytes(luminance: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Map a grey picture, as matplotlib draws it on white, to bytes of the palette."""
    return np.asarray(_grey_table()[luminance], np.uint8)


@lru_cache
def _grey_table() -> npt.NDArray[np.uint8]:
    ramp = _GREY_RAMP[:, 1].astype(int)
    table = _GREYS + np.abs(np.arange(256)[:, None] - ramp[None, :]).argmin(axis=1)
    table[255] = BACKGROUND
    return np.asarray(table, np.uint8)


def check_colormap(name: str) -> str:
    """Return the name of a colour map that matplotlib knows.

    Raises
    ------
    SpecError
        If there is none of that name. Names the nearest ones.
    """
    import matplotlib

    if name not in matplotlib.colormaps:
        known = nearest(name, list(matplotlib.colormaps))
        raise SpecError(f"no colour map {name!r}; nearest: {known}")
    return name


@lru_cache(maxsize=64)
def colors(cmap: str) -> npt.NDArray[np.uint8]:
    """Colours of all 256 bytes.

    Parameters
    ----------
    cmap : str
        A colour map of matplotlib; its 228 levels come first.

    Returns
    -------
    ndarray of uint8, shape (256, 3)
        Red, green, blue.

    Raises
    ------
    SpecError
        If matplotlib knows no such colour map.

    Examples
    --------
    >>> colors("viridis").shape
    (256, 3)
    """
    import matplotlib

    check_colormap(cmap)
    levels = matplotlib.colormaps[cmap](np.linspace(0, 1, LEVELS))[:, :3]
    table = np.vstack(
        [np.rint(levels * 255).astype(np.uint8), [_WHITE], _BAD, _GREY_RAMP, _RED_RAMP]
    ).astype(np.uint8)
    table.setflags(write=False)
    return table


def quantise(
    values: npt.NDArray[np.floating[Any]],
    low: npt.ArrayLike,
    high: npt.ArrayLike,
) -> npt.NDArray[np.uint8]:
    """Turn values into bytes: level 0 at ``low``, level 227 at ``high``.

    Parameters
    ----------
    values : ndarray of float
        Any shape.
    low, high : float or ndarray
        The range of the colour map; broadcast against ``values``.
        Values outside take the end colours.

    Returns
    -------
    ndarray of uint8
        Same shape. NaN and infinities have bytes of their own.

    Examples
    --------
    >>> quantise(np.array([0.0, 0.5, 1.0, 7.0, np.nan, np.inf]), 0.0, 1.0).tolist()
    [0, 114, 227, 227, 229, 230]
    """
    kind = np.float64 if values.dtype == np.float64 else np.float32
    lower = np.asarray(low, dtype=np.float64)
    # Halved before the subtraction, so that a range of the whole of float64 does not overflow.
    span = np.asarray(high, dtype=np.float64) / 2 - lower / 2
    with np.errstate(over="ignore"):
        factor = np.where(span > 0, LEVELS / 2 / np.where(span > 0, span, 1.0), 0.0)
    factor = np.minimum(factor, np.finfo(np.float64).max)  # a range of denormals
    if not np.all(np.abs(factor) < np.finfo(kind).max / 1e6):
        kind = np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        scaled: npt.NDArray[Any] = np.subtract(values, lower.astype(kind), dtype=kind)
        np.multiply(scaled, factor.astype(kind), out=scaled)
        bad = not np.isfinite(scaled.sum())
        if bad:
            np.nan_to_num(scaled, copy=False, nan=0.0, posinf=LEVELS, neginf=0.0)
        np.clip(scaled, 0, LEVELS - 1, out=scaled)
    out = scaled.astype(np.uint8)
    if bad:
        out[np.isnan(values)] = NAN
        out[np.isposinf(values)] = POSINF
        out[np.isneginf(values)] = NEGINF
    return out
