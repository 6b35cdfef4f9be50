"""Figures: the only place for the look of pictures that matplotlib draws whole.

Nothing is left to the user's settings: the same picture has the same bytes everywhere.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from filmstrip.render import _text
from filmstrip.render._palette import TONES
from filmstrip.render._scale import ticks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from filmstrip.render._sheet import Caption

__all__ = [
    "FRAME",
    "add_note",
    "finish_axes",
    "line_color",
    "new_figure",
    "round_ticks",
    "step_ticks",
]

WIDTH: Final = 7.0  # inches
_BETWEEN: Final = 3  # points between labels
_LONGEST: Final = 8  # characters of a tick's label
# Okabe and Ito 2008, told apart by most of those who see colours otherwise; yellow is too faint.
_COLORS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4b5563")
FRAME: Final = 0.085  # left edge of axes and text, of the width


def new_figure(
    caption: Caption, *, height: float, dpi: float, left: float = FRAME
) -> tuple[Figure, float]:
    """Make a figure with title and subtitle, and say where they end.

    Parameters
    ----------
    caption : Caption
    height : float
        Inches.
    dpi : float
        Dots an inch.
    left : float
        Left edge of the text, of the width.

    Returns
    -------
    figure : Figure
    top : float
        Where there is room below the subtitle, of the height.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=dpi, facecolor="white", edgecolor="white")
    limit = round((1 - left - 0.03) * WIDTH * _text.DPI)
    size = next(
        (s for s in (13.0, 11.0, 9.0) if _text.width(caption.title, s, bold=True) <= limit), 8.0
    )
    title = _text.ellipsize(caption.title, size, limit, bold=True)
    _write(figure, left, 1 - 0.36 / height, title, size, "ink", bold=True)
    y = 1 - (0.575 if title else 0.36) / height
    for words in _lines(caption.parts, limit):
        _write(figure, left, y, words, 7.5, "mute")
        y -= 0.155 / height
    return figure, y - 0.07 / height


def _lines(parts: Sequence[str], limit: int) -> list[str]:
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]} · {part}" if lines else part
        if lines and _text.width(longer, 7.5) <= limit:
            lines[-1] = longer
        else:
            lines.append(_text.ellipsize(part, 7.5, limit))
    return lines


def _write(
    figure: Figure, x: float, y: float, text: str, size: float, tone: str, *, bold: bool = False
) -> None:
    figure.text(
        x,
        y,
        _text.printable(text),
        fontproperties=_text.font(size, bold),
        color=TONES["ink"] if tone == "ink" else TONES["mute"],
        parse_math=False,
    )


def add_note(
    axes: Axes, x: float, y: float, text: str, *, size: float = 6.0, inside: bool = True
) -> None:
    """Write to the right of a place, in data coordinates or else in fractions of the axes."""
    axes.annotate(
        _text.printable(text),
        (x, y),
        xycoords="data" if inside else "axes fraction",
        xytext=(4, 0),
        textcoords="offset points",
        fontproperties=_text.font(size),
        color=TONES["mute"],
        va="center",
        annotation_clip=False,
        parse_math=False,
    )


def finish_axes(
    axes: Axes, *, x: str, y: str, spines: Sequence[str] = ("left", "bottom"), size: float = 8.0
) -> None:
    """Give axes their names, colours and spines; call it after limits and ticks are set."""
    axes.set_facecolor("white")
    axes.grid(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in spines)
        spine.set_edgecolor(TONES["faint"])
        spine.set_linewidth(0.8)
    _keep_apart(axes, size)
    for axis, name in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_tick_params(
            which="major",
            length=3,
            width=0.6,
            color=TONES["mute"],
            labelcolor=TONES["mute"],
            pad=3,
        )
        axis.set_tick_params(which="minor", length=0)
        for label in axis.get_ticklabels():
            label.set_fontproperties(_text.font(size))
        axis.label.set(
            text=_text.printable(name), color=TONES["mute"], fontproperties=_text.font(size + 0.5)
        )
        axis.label.set_parse_math(False)


def _keep_apart(axes: Axes, size: float) -> None:
    """Leave out every second tick to the right, but not zero, while their labels would touch."""
    low, high = axes.get_xlim()
    points = axes.get_position().width * WIDTH * 72
    marks = [
        (float(at), label.get_text())
        for at, label in zip(axes.xaxis.get_ticklocs(), axes.xaxis.get_ticklabels(), strict=True)
    ]
    while len(marks) > 2:
        at = [(value - low) / (high - low) * points for value, _ in marks]
        wide = [_text.width(label, size, dpi=72) for _, label in marks]
        pairs = zip(pairwise(at), pairwise(wide), strict=True)
        if all(b - a >= (left + right) / 2 + _BETWEEN for (a, b), (left, right) in pairs):
            return
        zero = next((i for i, (value, _) in enumerate(marks) if value == 0), 0)
        marks = marks[zero % 2 :: 2]
        axes.xaxis.set_ticks([value for value, _ in marks], [label for _, label in marks])


def round_ticks(axis: Axis, low: float, high: float, most: int) -> str:
    """Set round ticks with plain labels; return the power, and the sum, that they leave out."""
    marks, unit = ticks(low, high, most)
    if max(len(label) for _, label in marks) > _LONGEST:
        # A small range far from zero: write how far it is from its first tick.
        base = marks[0][0]
        rest, unit = ticks(low - base, high - base, most)
        marks = [(base + value, label) for value, label in rest]
        unit = f"{unit} + {base:.15g}".strip().replace("-", "−")
    axis.set_ticks([value for value, _ in marks], [label for _, label in marks])
    return unit


def step_ticks(axis: Axis, low: float, high: float, most: int) -> None:
    """Set ticks at whole steps, the thousands apart."""
    from matplotlib.ticker import MaxNLocator

    if low == high:
        low, high = low - 0.5, high + 0.5
    found = MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]).tick_values(low, high)
    inside = [round(float(v)) for v in found if low <= v <= high]
    axis.set_ticks(inside, [f"{v:,}".replace(",", "\u202f") for v in inside])


def line_color(i: int, count: int) -> str:
    """Choose the colour of one of several lines."""
    if count <= len(_COLORS):
        return _COLORS[i]
    import matplotlib
    from matplotlib.colors import to_hex

    # Many curves are mostly layers in forward order: a ramp shows where one stands.
    return to_hex(matplotlib.colormaps["viridis"](0.92 * i / (count - 1)))
