"""The schedule: the only place that says what is due at a step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Tiers(NamedTuple):
    """What is taken of a tensor: its frame, its statistics, its bit histogram."""

    frames: bool = False
    statistics: bool = False
    histograms: bool = False

    def __and__(self, other: Tiers) -> Tiers:
        """Return what both have."""
        return Tiers(*(mine and its for mine, its in zip(self, other, strict=True)))


EPOCH = "epoch"
"""What the keyword ``every`` says where steps that begin an epoch are due."""

NOTHING = Tiers()
EVERYTHING = Tiers(True, True, True)


@dataclass(frozen=True, slots=True)
class Schedule:
    """When each tier is due.

    Parameters
    ----------
    frames, statistics, histograms : int or None
        The tier is due when ``step % interval == 0``; None: never.
    start, stop : int, int or None
        Window of steps, half open.
    steps : collection of int, optional
        Due at exactly these steps instead, within the window.
    epochs : collection of int, optional
        Due where an epoch begins instead: at these steps, which a trainer adds as it goes.

    Examples
    --------
    >>> Schedule(frames=100, statistics=10, histograms=None).due(50)
    Tiers(frames=False, statistics=True, histograms=False)
    """

    frames: int | None
    statistics: int | None
    histograms: int | None
    start: int = 0
    stop: int | None = None
    steps: Collection[int] | None = None
    epochs: Collection[int] | None = None

    def due(self, step: int) -> Tiers:
        """Return the tiers due at a step.

        A histogram is read with the extremes that stand beside it, so statistics are due with it.
        """
        if step < self.start or (self.stop is not None and step >= self.stop):
            return NOTHING

        def falls(interval: int | None) -> bool:
            if interval is None:
                return False
            chosen = self.steps if self.steps is not None else self.epochs
            return step % interval == 0 if chosen is None else step in chosen

        histograms = falls(self.histograms)
        return Tiers(falls(self.frames), falls(self.statistics) or histograms, histograms)

    @property
    def tiers(self) -> Tiers:
        """The tiers that are ever due."""
        histograms = self.histograms is not None
        return Tiers(self.frames is not None, self.statistics is not None or histograms, histograms)

    @property
    def text(self) -> str:
        """The schedule in words, for the line at attach.

        Examples
        --------
        >>> Schedule(frames=100, statistics=10, histograms=None, start=50).text
        'frames every 100 steps, statistics every 10 steps, from step 50'
        """
        intervals = {
            name: interval
            for name in ("frames", "statistics", "histograms")
            if (interval := getattr(self, name)) is not None
        }
        if self.steps is not None:
            words = f"at {len(self.steps)} step{'s' * (len(self.steps) != 1)}"
        elif self.epochs is not None:
            words = "at the first step of each epoch"
        elif len(set(intervals.values())) == 1:
            words = _every(next(iter(intervals.values())))
        else:
            words = ", ".join(f"{name} {_every(interval)}" for name, interval in intervals.items())
        if self.start:
            words += f", from step {self.start}"
        if self.stop is not None:
            words += f", before step {self.stop}"
        return words


def _every(interval: int) -> str:
    return "every step" if interval == 1 else f"every {interval} steps"


def schedule_of(
    every: int | Mapping[str, int] | str,
    *,
    wanted: Tiers,
    start: int = 0,
    stop: int | None = None,
    steps: Collection[int] | None = None,
) -> Schedule:
    """Return the schedule of the keyword ``every`` and of the tiers that are switched on.

    Examples
    --------
    >>> schedule_of({"frames": 100}, wanted=EVERYTHING)  # doctest: +ELLIPSIS
    Schedule(frames=100, statistics=None, ..., steps=None, epochs=None)
    """
    every_epoch = every == EPOCH
    if not isinstance(every, Mapping):
        every = dict.fromkeys(Tiers._fields, 1 if isinstance(every, str) else every)
    return Schedule(
        frames=every.get("frames") if wanted.frames else None,
        statistics=every.get("statistics") if wanted.statistics else None,
        histograms=every.get("histograms") if wanted.histograms else None,
        start=start,
        stop=stop,
        steps=None if steps is None else frozenset(steps),
        epochs=frozenset() if every_epoch else None,
    )


def thinned(
    every: int | Mapping[str, int] | str, *, wanted: Tiers, least: int
) -> int | Mapping[str, int] | str:
    """Return intervals of which those of statistics and histograms are not too short.

    One that is becomes its first multiple that is not; epochs are long enough.

    Examples
    --------
    >>> thinned(4, wanted=EVERYTHING, least=10)
    {'frames': 4, 'statistics': 12, 'histograms': 12}
    >>> thinned(100, wanted=EVERYTHING, least=10)
    100
    """
    if isinstance(every, str):
        return every
    intervals = every if isinstance(every, Mapping) else dict.fromkeys(Tiers._fields, every)
    result = {
        name: interval if name == "frames" else interval * -(-least // interval)
        for name, interval in intervals.items()
        if getattr(wanted, name)
    }
    return result if any(result[name] != intervals[name] for name in result) else every


class Thrift:
    """Says whether capture has cost more of training's time than it may.

    Parameters
    ----------
    limit : float or None
        Share of the time, as 0.02; None: no limit.
    began : float
        Clock reading in seconds at which counting starts.

    Examples
    --------
    >>> thrift = Thrift(0.02, began=0.0)
    >>> thrift.spend(1.0)
    >>> thrift.exceeded(now=10.0), thrift.exceeded(now=100.0)
    (True, False)
    """

    __slots__ = ("_began", "_limit", "_spent")

    def __init__(self, limit: float | None, *, began: float) -> None:
        self._limit, self._began, self._spent = limit, began, 0.0

    def spend(self, seconds: float) -> None:
        """Add what a due step cost the training thread."""
        self._spent += seconds

    def exceeded(self, *, now: float) -> bool:
        """Return whether the share spent so far is over the limit."""
        return self._limit is not None and self._spent > self._limit * max(now - self._began, 0.0)


class Pace:
    """Says how long training's steps take, from when they end.

    Examples
    --------
    >>> pace = Pace()
    >>> for now in (5.0, 6.0, 8.0):  # what is done once, as to compile, is before the first end
    ...     pace.tick(now)
    >>> pace.seconds
    1.0
    """

    __slots__ = ("_ends", "_first", "_last", "_steps")

    def __init__(self) -> None:
        self._first = self._last = self._ends = 0.0
        self._steps = 0

    def tick(self, now: float) -> None:
        """Note the end of a step; that of the last one may have been captured."""
        if not self._steps:
            self._first = now
        self._ends, self._last = self._last, now
        self._steps += 1

    @property
    def seconds(self) -> float | None:
        """Seconds a step, without the one that ended last; None where there were too few."""
        return (self._ends - self._first) / (self._steps - 2) if self._steps > 2 else None
