"""Progress: the only place that tells a user how far drawing has come.

A bar on a terminal, a line now and then elsewhere; on stderr, so that stdout stays data.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ["Lines", "Progress", "Silence", "progress"]

_EVERY: Final = 5.0  # seconds between lines


class Progress(Protocol):
    """What the driver tells: ``start`` once, ``advance`` for each result, ``stop`` once."""

    def start(self, total: int) -> None:
        """Begin to draw ``total`` pictures."""

    def advance(self, count: int) -> None:
        """Note that so many more are done."""

    def stop(self) -> None:
        """End, also after an error."""


class Silence:
    """Tells nothing."""

    def start(self, total: int) -> None:
        """Tell nothing."""

    def advance(self, count: int) -> None:
        """Tell nothing."""

    def stop(self) -> None:
        """Tell nothing."""


class Lines:
    """A plain line every few seconds, for logs."""

    def __init__(self) -> None:
        self._total = self._done = 0
        self._said = time.monotonic()

    def start(self, total: int) -> None:
        """Begin to count time."""
        self._total, self._said = total, time.monotonic()

    def advance(self, count: int) -> None:
        """Print a line when the last one is some seconds old."""
        self._done += count
        if time.monotonic() - self._said >= _EVERY:
            self._said = time.monotonic()
            sys.stderr.write(f"filmstrip: {self._done} of {self._total} pictures\n")
            sys.stderr.flush()

    def stop(self) -> None:
        """Say nothing: the command's last line does."""


class Bar:
    """A bar on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), "pictures", TimeRemainingColumn())
        console = Console(stderr=True)
        self._rich: RichProgress = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None

    def start(self, total: int) -> None:
        """Show the bar."""
        self._task = self._rich.add_task("", total=total)
        self._rich.start()

    def advance(self, count: int) -> None:
        """Move it on."""
        if self._task is not None:
            self._rich.advance(self._task, count)

    def stop(self) -> None:
        """Take it away."""
        self._rich.stop()


def progress(*, quiet: bool) -> Progress:
    """Choose by what stderr is."""
    if quiet:
        return Silence()
    return Bar() if sys.stderr.isatty() else Lines()
