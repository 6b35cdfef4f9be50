"""Sheet: where everything of a pixel-exact picture goes, before anything is drawn. Pure.

A sheet has a chrome, which stays the same over the steps of a layer and is drawn once, and
what changes with every step: blocks of pixels, lines of text, marks beside the colour bar.
Positions are pixels from the upper left corner. ``_raster`` makes a PNG of it, ``_vector``
a figure for SVG and PDF, so that all formats show the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from filmstrip.render import _text
from filmstrip.render._palette import BACKGROUND, LEVELS, NAN, NEGINF, POSINF, Tone
from filmstrip.render._scale import ticks
from filmstrip.render.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from filmstrip.render._scale import Scale

__all__ = [
    "Axes",
    "Bar",
    "Caption",
    "Chrome",
    "Label",
    "Patch",
    "Ruler",
    "Sheet",
    "bar_marks",
    "check_size",
    "heading",
    "legend",
]

Anchor: TypeAlias = Literal["left", "middle", "right"]

MOST_PIXELS: Final = 100_000_000
LONGEST_SIDE: Final = 65_535
TITLE: Final = 13.0  # points
SUBTITLE: Final = 7.5
TICK: Final = 6.5
INDEX: Final = 5.0


@dataclass(frozen=True, slots=True)
class Ruler:
    """Design pixels, at 200 dots an inch, to pixels of this picture."""

    dpi: float

    def __call__(self, pixels: float) -> int:
        return round(pixels * self.dpi / _text.DPI)

    def text(self, text: str, size: float, *, bold: bool = False) -> int:
        """Width of a line of text in pixels."""
        return _text.width(text, size, bold=bold, dpi=self.dpi)


@dataclass(frozen=True, slots=True)
class Label:
    """One line of text; ``y`` is its baseline, ``size`` in points."""

    x: int
    y: int
    text: str
    size: float
    tone: Tone = "mute"
    bold: bool = False
    anchor: Anchor = "left"


@dataclass(frozen=True, slots=True)
class Bar:
    """The colour bar: its box, and whether an end is an arrow because values lie beyond."""

    x: int
    y: int
    width: int
    height: int
    lower: bool
    upper: bool
    label: str
    label_x: int

    @property
    def tip(self) -> int:
        """Height of an arrow in pixels."""
        return max(2, round(self.width * 0.8))

    @property
    def inside(self) -> tuple[int, int]:
        """Top and bottom of the part between the arrows, to which the range belongs."""
        top = self.y + self.tip * self.upper
        return top, self.y + self.height - self.tip * self.lower


@dataclass(frozen=True, slots=True)
class Axes:
    """Axes around a matrix: the box in pixels, what its sides count, and from where.

    Rows and columns that were picked have numbers; others count from 0.
    """

    x: int
    y: int
    width: int
    height: int
    rows: int
    columns: int
    row_name: str
    column_name: str
    row_numbers: tuple[int, ...] = ()
    column_numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chrome:
    """What is drawn once for all steps of a layer; the key under which it is kept."""

    width: int
    height: int
    dpi: float
    bar: Bar
    axes: Axes | None = None
    labels: tuple[Label, ...] = ()


@dataclass(frozen=True, slots=True)
class Patch:
    """Bytes of the palette, or red, green and blue, and where their upper left corner goes."""

    x: int
    y: int
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A whole picture; ``bad`` counts what of it is no number, by bytes of the palette."""

    chrome: Chrome
    cmap: str
    patches: tuple[Patch, ...]
    labels: tuple[Label, ...]
    marks: tuple[int, ...]
    bad: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Caption:
    """The words of a picture: title, the parts of the subtitle, what the colours measure.

    ``room`` are the design pixels that the title leaves free at its right.
    """

    title: str
    parts: tuple[str, ...]
    measure: str
    room: int = 0


def check_size(size: tuple[int, int]) -> None:
    """Refuse what would need gigabytes, or more than matplotlib's rasteriser takes.

    Raises
    ------
    SpecError
        If there are too many pixels, of a picture or of what is to be in it.
    """
    width, height = size
    if width * height > MOST_PIXELS or max(size) > LONGEST_SIDE:
        raise SpecError(
            f"the picture would have {width} × {height} pixels; "
            "pick channels, set columns, or allow downsampling"
        )


def heading(caption: Caption, *, x: int, width: int, ruler: Ruler) -> tuple[list[Label], int]:
    """Set the title and the subtitle.

    Returns
    -------
    labels : list of Label
    bottom : int
        Pixel row below the last baseline.
    """
    free = width - ruler(caption.room)
    size = next(
        (s for s in (TITLE, 11.0, 9.0) if ruler.text(caption.title, s, bold=True) <= free),
        8.0,
    )
    limit = round(width * _text.DPI / ruler.dpi)
    title = _text.ellipsize(caption.title, size, limit - caption.room, bold=True)
    labels = [Label(x, ruler(60), title, size, "ink", True)]
    lines: list[str] = []
    for part in caption.parts:
        longer = f"{lines[-1]} · {part}" if lines else part
        if lines and ruler.text(longer, SUBTITLE) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    y = ruler(102)
    for line in lines:
        labels.append(Label(x, y, _text.ellipsize(line, SUBTITLE, limit), SUBTITLE))
        y += ruler(30)
    return labels, y


def bar_marks(bar: Bar, scale: Scale, ruler: Ruler) -> tuple[list[Label], tuple[int, ...]]:
    """Set the ticks of the colour bar.

    Returns
    -------
    labels : list of Label
    marks : tuple of int
        Pixel rows of the tick marks.
    """
    top, bottom = bar.inside
    x = bar.x + bar.width + ruler(12)
    drop = ruler(7)
    if scale.mode == "each":
        ends = ("+ tile", "− tile") if scale.diverging else ("tile", "tile")
        labels = [
            Label(x, top + drop, ends[0], TICK),
            Label(x, top + drop + ruler(22), "max", TICK),
            Label(x, bottom - ruler(15), ends[1], TICK),
            Label(x, bottom + drop, "max" if scale.diverging else "min", TICK),
        ]
        return labels, (top, bottom - 1)
    height = bottom - 1 - top
    marks, unit = ticks(scale.low, scale.high, max(3, min(10, height // ruler(50))))
    span = scale.high / 2 - scale.low / 2
    rows = [bottom - 1 - round(height * ((v / 2 - scale.low / 2) / span)) for v, _ in marks]
    labels = [Label(x, row + drop, text, TICK) for row, (_, text) in zip(rows, marks, strict=True)]
    if unit:
        labels.append(Label(bar.x, bar.y - ruler(14), unit, TICK))
    return labels, tuple(rows)


def legend(
    bad: Mapping[int, int], *, x: int, y: int, ruler: Ruler
) -> tuple[list[Patch], list[Label]]:
    """Set the legend of values that are no numbers: a square and a count for each kind."""
    import numpy as np

    patches: list[Patch] = []
    labels: list[Label] = []
    side = ruler(20)
    for value, name in ((NAN, "NaN"), (POSINF, "+inf"), (NEGINF, "−inf")):
        if not bad.get(value):
            continue
        text = f"{name} ×{bad[value]:,}"
        patches.append(Patch(x, y, np.full((side, side), value, np.uint8)))
        labels.append(Label(x + side + ruler(8), y + side - ruler(2), text, SUBTITLE))
        x += side + ruler(44) + ruler.text(text, SUBTITLE)
    return patches, labels


def bar_pixels(bar: Bar) -> npt.NDArray[np.uint8]:
    """Pixels of the colour bar, background outside of the arrows."""
    import numpy as np

    top, bottom = bar.inside
    out = np.full((bar.height, bar.width), BACKGROUND, np.uint8)
    ramp = np.linspace(LEVELS - 1, 0, max(1, bottom - top))
    out[top - bar.y : bottom - bar.y] = np.rint(ramp).astype(np.uint8)[:, None]
    columns = np.abs(np.arange(bar.width) - (bar.width - 1) / 2)
    rows = (np.arange(bar.tip) + 0.5) / bar.tip * bar.width / 2
    arrow = columns[None, :] <= rows[:, None]
    if bar.upper:
        out[: bar.tip][arrow] = LEVELS - 1
    if bar.lower:
        out[bar.height - bar.tip :][arrow[::-1]] = 0
    return out
