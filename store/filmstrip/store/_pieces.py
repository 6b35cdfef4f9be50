"""Pieces: the only place that puts one layer together from what several ranks hold of it.

A sharded tensor is stored as each rank's local piece with its offset in the global one. A layer
that several ranks hold whole is joined along its first axis when that holds samples, and is
otherwise the same on all of them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from filmstrip.store._frame import fill_value
from filmstrip.store._metadata import MOST_RANKS
from filmstrip.store._place import Place
from filmstrip.store._reader import Index, box_of, indexed, room
from filmstrip.store._select import nearest_steps
from filmstrip.store._view import GroupView
from filmstrip.store.errors import FormatError, FrameNotFoundError

Steps = npt.NDArray[np.int64]
Shape = tuple[int, ...]

_SMALL = 1 << 24
"""Values of a frame for which room is made, however little of it is there."""
_JOINED_KINDS = frozenset({"activations", "inputs", "images"})


class Piece:
    """What one rank holds of a layer.

    Attributes
    ----------
    rank : int
        Whose it is.
    shape : tuple of int
        Shape of a frame of the piece.
    offset : tuple of int
        Where it begins in the global frame.
    """

    def __init__(self, group: GroupView, array: str, rank: int) -> None:
        self.rank = rank
        self._group, self._array = group, array
        self.form = group.reader(array).form
        self.shape: Shape = self.form.shape
        self.offset: Shape = (0,) * len(self.shape)
        self.global_shape: Shape | None = None
        if self.attributes.get("offset") is not None:
            self._place(self.attributes["offset"], self.attributes.get("global_shape"))

    def _place(self, offset: Any, global_shape: Any) -> None:
        try:
            self.offset, self.global_shape = tuple(offset), tuple(global_shape)
            zipped = zip(self.offset, self.shape, self.global_shape, strict=True)
            whole_numbers = all(type(n) is int for n in (*self.offset, *self.global_shape))
            fits = whole_numbers and all(
                0 <= start <= start + length <= whole for start, length, whole in zipped
            )
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise FormatError(
                self.where,
                f"a piece of {self.shape} at {offset} does not fit {global_shape}",
            )

    @property
    def where(self) -> str:
        """Path or URL of the piece."""
        return str(self.place)

    def __repr__(self) -> str:
        return f"<Piece of rank {self.rank}: {self.shape} at {self.offset}>"

    @property
    def attributes(self) -> dict[str, Any]:
        """What the store says of the piece."""
        attributes: dict[str, Any] = self._group.documents[self._array]["attributes"]["filmstrip"]
        return attributes

    @property
    def place(self) -> Place:
        """Where the rank keeps it."""
        return self._group.place / self._array

    @property
    def steps(self) -> Steps:
        """Steps at which the rank has a frame."""
        return self._group.rows(self._array)[0]

    def present(self, steps: Steps) -> npt.NDArray[np.bool_]:
        """Return at which of some steps, ascending, the rank has a frame."""
        kept = self._group.steps()
        rows = np.searchsorted(kept, steps)
        there = np.zeros(len(steps), bool)
        known = np.flatnonzero(rows < len(kept))
        known = known[kept[rows[known]] == steps[known]]
        there[known] = self._group.reader(self._array).present(rows[known])
        return there

    def last(self, count: int) -> Steps:
        """Return the last steps that have a frame, ascending; no file before them is opened."""
        kept = self._group.steps()
        return kept[self._group.reader(self._array).last_present(len(kept), count)]

    def read(self, steps: Steps, index: Index = ()) -> npt.NDArray[Any]:
        """Read steps that are there, ascending, and of every frame what an index picks."""
        rows = np.searchsorted(self._group.steps(), steps)
        return self._group.read(self._array, steps, rows, index)

    def frame(self, step: int) -> npt.NDArray[Any]:
        """Return the rank's frame of one step, cropped to its valid samples.

        Raises
        ------
        FrameNotFoundError
            If the rank has none.
        """
        wanted = np.array([operator.index(step)], np.int64)
        if not self.present(wanted)[0]:
            layer = self.attributes["layer"]
            raise FrameNotFoundError(layer, step, nearest_steps(self.steps, step))
        frame: npt.NDArray[Any] = self.read(wanted)[0]
        samples = self.samples(step)
        return frame if samples is None else frame[:samples]

    def samples(self, step: int) -> int | None:
        """Return how many samples of a step's frame are valid, None when all of it is."""
        about = self.attributes
        batched = (about.get("layout") or "").startswith("N") or 0 in (about.get("varies") or ())
        if not batched:
            return None
        rows = np.searchsorted(self._group.steps(), [step])
        samples = int(self._group.samples(rows)[0])
        return samples if self.shape and 0 < samples < self.shape[0] else None


class Assembly:
    """One layer, put together from pieces.

    Parameters
    ----------
    kind : str
        Its kind.
    pieces : sequence of Piece
        By rank; at least one.

    Raises
    ------
    FormatError
        If the pieces do not belong together.
    """

    def __init__(self, kind: str, pieces: Sequence[Piece]) -> None:
        first = pieces[0]
        if first.global_shape is not None:
            self.pieces = _distinct(pieces)
            self.shape, self.joined = first.global_shape, False
        elif len(pieces) > 1 and kind in _JOINED_KINDS and first.shape:
            self.pieces = _side_by_side(pieces)
            self.shape = (sum(piece.shape[0] for piece in pieces), *first.shape[1:])
            self.joined = True
        else:
            self.pieces, self.shape, self.joined = (first,), first.shape, False
        self.dtype = first.form.dtype.newbyteorder("=")
        largest = max(math.prod(piece.shape) for piece in self.pieces)
        if math.prod(self.shape) > max(_SMALL, MOST_RANKS * largest):
            raise FormatError(first.where, f"no pieces like these make up a frame of {self.shape}")
        for piece in self.pieces:
            same = len(piece.shape) == len(self.shape) and piece.form.dtype == first.form.dtype
            fits = not self.joined or piece.shape[1:] == first.shape[1:]
            if not (same and fits) or piece.global_shape not in (None, self.shape):
                raise FormatError(
                    piece.where,
                    f"{piece!r} does not belong to a frame of {self.shape}",
                )

    @property
    def complete(self) -> bool:
        """Whether the pieces are all of it: otherwise a rank that owns one has not written yet."""
        volume = sum(math.prod(piece.shape) for piece in self.pieces)
        return volume >= math.prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether one piece is all of it."""
        return len(self.pieces) == 1 and self.pieces[0].shape == self.shape

    @property
    def steps(self) -> Steps:
        """Steps that all owners have."""
        if not self.complete:
            return np.empty(0, np.int64)
        kept = self.pieces[0].steps
        for piece in self.pieces[1:]:
            kept = kept[piece.present(kept)]
        return kept

    def present(self, steps: Steps) -> npt.NDArray[np.bool_]:
        """Return at which of some steps, ascending, all owners have a frame."""
        if not self.complete:
            return np.zeros(len(steps), bool)
        everywhere = [piece.present(steps) for piece in self.pieces]
        return np.asarray(np.all(everywhere, axis=0))

    def last(self, count: int) -> Steps:
        """Return the last steps, ascending."""
        return self.pieces[0].last(count) if self.whole else self.steps[-count:]

    def read(self, steps: Steps, index: Index = ()) -> npt.NDArray[Any]:
        """Read steps that all owners have, ascending; pieces outside the index are not read."""
        if self.whole:
            return self.pieces[0].read(steps, index)
        box, inside = box_of(index, self.shape, self.dtype)
        extents = tuple(high - low for low, high in box)
        out = room((len(steps), *extents), self.dtype)
        out[...] = fill_value(self.dtype)
        for piece in self.pieces:
            low = [max(b[0], o) for b, o in zip(box, piece.offset, strict=True)]
            ends = (o + n for o, n in zip(piece.offset, piece.shape, strict=True))
            high = [min(b[1], end) for b, end in zip(box, ends, strict=True)]
            if any(start >= stop for start, stop in zip(low, high, strict=True)):
                continue
            spans = list(zip(low, high, strict=True))
            there = tuple(
                slice(a - o, b - o) for (a, b), o in zip(spans, piece.offset, strict=True)
            )
            here = tuple(slice(a - c[0], b - c[0]) for (a, b), c in zip(spans, box, strict=True))
            out[(slice(None), *here)] = piece.read(steps, there)
        return indexed(out, inside)

    def frame(self, step: int) -> npt.NDArray[Any]:
        """Return the frame of a step that all owners have, cropped to its valid samples."""
        if self.joined:
            return np.concatenate([piece.frame(step) for piece in self.pieces])
        frame: npt.NDArray[Any] = self.read(np.array([step], np.int64))[0]
        samples = self.pieces[0].samples(step)
        return frame if samples is None else frame[:samples]


def _distinct(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return each piece once: on a mesh that also replicates, several ranks hold the same."""
    found: dict[tuple[Shape, Shape], Piece] = {}
    for piece in pieces:
        found.setdefault((piece.offset, piece.shape), piece)
    return tuple(found.values())


def _side_by_side(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    start = 0
    for piece in pieces:
        piece.offset = (start, *piece.offset[1:])
        start += piece.shape[0]
    return tuple(pieces)
