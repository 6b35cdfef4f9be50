"""Progress: the only place that tells a user how far drawing has come.

A bar on a terminal, a line now and then elsewhere; on stderr, so that stdout stays data.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Lines", "Progress", "Silence", "progress"]

_EVERY: Final = 5.0  # seconds between lines
_IDLE: Final = 60.0  # where they would say the same


class Progress(Protocol):
    """What the driver tells: ``start`` once, then the others often, ``stop`` once."""

    def start(self, total: int) -> None:
        """Begin to draw ``total`` pictures."""

    def advance(self, count: int) -> None:
        """Note that so many more are done; none: that time has passed."""

    def note(self, text: str) -> None:
        """Say what is waited for; "": nothing."""

    def stop(self) -> None:
        """End, also after an error."""


class Silence:
    """Tells nothing."""

    def start(self, total: int) -> None:
        """Tell nothing."""

    def advance(self, count: int) -> None:
        """Tell nothing."""

    def note(self, text: str) -> None:
        """Tell nothing."""

    def stop(self) -> None:
        """Tell nothing."""


class Lines:
    """A plain line every few seconds, for logs.

    Parameters
    ----------
    clock : callable
        Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._total = self._done = 0
        self._said = clock()
        self._began: float | None = None
        self._before = self._told = 0
        self._noted = ""

    def start(self, total: int) -> None:
        """Say nothing yet."""
        self._total, self._said = total, self._clock()

    def advance(self, count: int) -> None:
        """Print a line when the last one is some seconds old."""
        self._done += count
        now = self._clock()
        if self._done and self._began is None:  # workers may start long after the driver
            self._began, self._before = now, self._done
        if now - self._said >= (_EVERY if self._done > self._told else _IDLE):
            self._said, self._told = now, self._done
            _write(f"{self._done} of {self._total} pictures{self._rate(now)}")

    def _rate(self, now: float) -> str:
        if self._began is None or self._done == self._before:
            return ""
        rate = (self._done - self._before) / (now - self._began)
        return f", {rate:.3g} a second, {_minutes((self._total - self._done) / rate)} left"

    def note(self, text: str) -> None:
        """Print it when it is new."""
        if text and text != self._noted:
            _write(text)
        self._noted = text

    def stop(self) -> None:
        """Say nothing: the command's last line does."""


def _write(text: str) -> None:
    sys.stderr.write(f"filmstrip: {text}\n")
    sys.stderr.flush()


def _minutes(seconds: float) -> str:
    """Write a time as minutes and seconds.

    Examples
    --------
    >>> _minutes(75), _minutes(7200)
    ('1:15', '2:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bar:
    """A bar on a terminal, with the pictures a second and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            "pictures",
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        console = Console(stderr=True)
        self._rich: RichProgress = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None

    def start(self, total: int) -> None:
        """Show the bar."""
        self._task = self._rich.add_task("", total=total, rate="", note="")
        self._rich.start()

    def advance(self, count: int) -> None:
        """Move it on."""
        if self._task is not None:
            self._rich.advance(self._task, count)
            speed = self._rich.tasks[self._task].speed
            self._rich.update(self._task, rate=f"{speed:.3g} a second" if speed else "")

    def note(self, text: str) -> None:
        """Show it behind the bar."""
        if self._task is not None:
            self._rich.update(self._task, note=text)

    def stop(self) -> None:
        """Take it away."""
        self._rich.stop()


def progress(*, quiet: bool) -> Progress:
    """Choose by what stderr is."""
    if quiet:
        return Silence()
    return Bar() if sys.stderr.isatty() else Lines()
