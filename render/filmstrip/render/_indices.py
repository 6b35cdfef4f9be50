"""Indices: the only place that says where the number of each tile is written. Pure.

Above each tile where there is room; else at the margins: the first index of a row to its left,
and on top how far a column is from it. A filter whose input channels fill a row has its own
index to the left and theirs on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from filmstrip.render._sheet import INDEX, Label, Ruler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filmstrip.render._palette import Tone

__all__ = ["Places", "index_labels"]


@dataclass(frozen=True, slots=True)
class Places:
    """Where tiles stand, in pixels.

    Attributes
    ----------
    left, top : int
        Upper left corner of the first tile.
    columns : int
        Groups in one row.
    width, height : int
        Of one group.
    across, down : int
        From one group to the next, each way.
    inner : int
        From one plane of a group to the next.
    margins : bool
        Whether indices stand at the margins.
    ruler : Ruler
    """

    left: int
    top: int
    columns: int
    width: int
    height: int
    across: int
    down: int
    inner: int
    margins: bool
    ruler: Ruler

    def above(self, position: int, text: str, *, red: bool = False) -> Label:
        """Return the label above a tile."""
        row, column = divmod(position, self.columns)
        x, y = self.left + column * self.across, self.top + row * self.down
        return Label(x, y - self.ruler(4), text, INDEX, "red" if red else "mute")

    def beside(self, row: int, text: str, *, red: bool = False) -> Label:
        """Return the label to the left of a row."""
        y = self.top + row * self.down + self.height // 2 + self.ruler(5)
        tone: Tone = "red" if red else "mute"
        return Label(self.left - self.ruler(9), y, text, INDEX, tone, anchor="right")

    def on_top(self, x: int, text: str) -> Label:
        """Return a label above the first row."""
        return Label(x, self.top - self.ruler(5), text, INDEX)

    @property
    def every_row(self) -> int:
        """Of so many rows one has its label, since they are too low for all."""
        return max(1, -(-self.ruler(13) // self.down))

    def dead(self, names: Sequence[int], dead: Sequence[int]) -> list[Label]:
        """Return the labels of dead tiles, where there is room for them."""
        if self.margins:
            rows = [i for i in dead if i % self.every_row == 0] if self.columns == 1 else []
            return [self.beside(i, str(names[i]), red=True) for i in rows]
        labels = []
        for i in dead:
            texts = [f"{names[i]} dead", str(names[i])]
            fitting = [t for t in texts if self.ruler.text(t, INDEX) <= self.across]
            labels += [self.above(i, text, red=True) for text in fitting[:1]]
        return labels


@lru_cache(maxsize=64)
def index_labels(
    places: Places, names: tuple[int, ...], inner_names: tuple[int, ...]
) -> tuple[Label, ...]:
    """Return the labels of all tiles; the same for every step of a layer.

    Parameters
    ----------
    places : Places
    names : tuple of int
        Index of each group.
    inner_names : tuple of int
        Index of each plane of a group.
    """
    if not places.margins:
        return tuple(places.above(i, str(name)) for i, name in enumerate(names))
    firsts = names[:: places.columns]
    labels = [
        places.beside(row, str(name))
        for row, name in enumerate(firsts)
        if row % places.every_row == 0
    ]
    if places.columns == 1:
        pitch, texts = places.inner, [str(name) for name in inner_names]
    else:
        pitch, texts = places.across, _offsets(names, places.columns)
    wide = max((places.ruler.text(text, INDEX) for text in texts), default=0) + places.ruler(8)
    every = max(1, -(-wide // pitch))
    return tuple(
        labels
        + [
            places.on_top(places.left + i * pitch, text)
            for i, text in enumerate(texts)
            if i % every == 0
        ]
    )


def _offsets(names: tuple[int, ...], columns: int) -> list[str]:
    """How far each column is from the first of its row; nothing where rows differ in that."""
    offsets = [name - names[0] for name in names[:columns]]
    even = all(
        name == names[i - i % columns] + offsets[i % columns] for i, name in enumerate(names)
    )
    return [f"+{offset}" for offset in offsets] if even else []
