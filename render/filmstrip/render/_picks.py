"""Picks: the only place that reads what a user writes for steps, samples and channels. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

import numpy as np

from filmstrip.render.errors import SourceError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

__all__ = ["check_picks", "digest_of_steps", "evenly", "pick_entries", "pick_steps"]

_RANGE: Final = re.compile(r"(\d*):(\d*)(?::(\d+))?")
_LISTED: Final = re.compile(r"-?\d+(,-?\d+)*")


def check_picks(text: str, what: str) -> str:
    """Return the text without spaces when it is ``all``, a number, a list or a range.

    Raises
    ------
    SpecError
        If it is none of these, or the stride of a range is 0.

    Examples
    --------
    >>> check_picks("100, 200", "--step")
    '100,200'
    """
    picks = re.sub(r"\s", "", text)
    ranged = _RANGE.fullmatch(picks)
    if picks == "all" or _LISTED.fullmatch(picks) or (ranged and ranged[3] != "0"):
        return picks
    raise SpecError(f"{what} {text!r} is none of: all, 1200, 100,200, 0:5000:100, -1 (the last)")


def pick_steps(
    text: str,
    steps: Sequence[int] | npt.NDArray[np.int64],
    *,
    layer: str,
    what: str = "frame",
) -> list[int]:
    """Choose steps by label.

    Parameters
    ----------
    text : str
        ``all``; steps, of which negative ones count from the last; or ``start:stop:stride``
        in steps, half open, which keeps ``start + k · stride``.
    steps : sequence of int, shape (n_kept,)
        Steps to choose from, ascending.
    layer, what : str
        Whose steps they are, and of what. Used in the error only.

    Raises
    ------
    SourceError
        If a step was not kept, with the nearest ones; or if a range is empty.

    Examples
    --------
    >>> pick_steps("0:300:100", [0, 50, 100, 200], layer="conv1")
    [0, 100, 200]
    """
    kept = np.asarray(steps, np.int64)
    if not kept.size:
        raise SourceError(f"{layer} has no committed steps yet")
    if text == "all":
        return [int(s) for s in kept]
    ranged = _RANGE.fullmatch(text)
    if ranged:
        start, stop = int(ranged[1] or 0), int(ranged[2]) if ranged[2] else None
        inside = (kept >= start) & (kept < (stop if stop is not None else kept[-1] + 1))
        inside &= (kept - start) % int(ranged[3] or 1) == 0
        if not inside.any():
            raise SourceError(f"{layer} has no step in {text}: it has {_listed(kept)}")
        return [int(s) for s in kept[inside]]
    chosen = []
    for word in text.split(","):
        step = int(word)
        if step < 0:
            if -step > kept.size:
                raise SourceError(f"{layer} has only {kept.size} steps; {step} is too far back")
            step = int(kept[step])
        elif step not in kept:
            at = int(np.searchsorted(kept, step))
            near = " and ".join(str(int(s)) for s in kept[max(0, at - 1) : at + 1])
            raise SourceError(f"{layer} has no {what} at step {step}; nearest kept: {near}")
        chosen.append(step)
    return sorted(set(chosen))


def pick_entries(text: str, size: int, what: str) -> list[int]:
    """Choose entries of an axis by position.

    Raises
    ------
    SourceError
        If there is no such entry.

    Examples
    --------
    >>> pick_entries("0:3", 64, "channel"), pick_entries("-1", 64, "channel")
    ([0, 1, 2], [63])
    """
    if text == "all":
        return list(range(size))
    ranged = _RANGE.fullmatch(text)
    if ranged:
        entries = list(range(size))[
            slice(*(int(part) if part else None for part in ranged.groups()))
        ]
        if not entries:
            raise SourceError(f"no {what} in {text}: there are {size} (0 to {size - 1})")
        return entries
    entries = [int(word) for word in text.split(",")]
    for entry in entries:
        if not -size <= entry < size:
            raise SourceError(f"no {what} {entry}: there are {size} (0 to {size - 1})")
    return [entry % size for entry in entries]


def evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """Positions of at most ``most`` of ``count`` things, first and last among them.

    Examples
    --------
    >>> evenly(11, 3).tolist()
    [0, 5, 10]
    """
    if count <= most:
        return np.arange(count)
    return np.unique(np.rint(np.linspace(0, count - 1, most)).astype(np.int64))


def _listed(kept: npt.NDArray[np.int64]) -> str:
    few = ", ".join(str(int(s)) for s in kept[:3])
    return few if kept.size <= 3 else f"{few}, … {int(kept[-1])}"


def digest_of_steps(steps: Iterable[int]) -> str:
    """Return few letters that stand for steps.

    Examples
    --------
    >>> digest_of_steps([0, 10]) == digest_of_steps([0, 20])
    False
    """
    labels = np.fromiter(steps, np.int64)
    return hashlib.blake2b(labels.tobytes(), digest_size=8).hexdigest()
