"""Unattended: the only place that begins and ends a capture of which the script knows nothing."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from filmstrip.capture._report import say
from filmstrip.capture._settings import Settings
from filmstrip.store.errors import RunExistsError

_LONGEST_CLOSE = 10.0
T = TypeVar("T")


def beside_others(attach: Callable[..., T], settings: Settings, *, rank: int) -> T:
    """Attach; to a new run, where another is there and nothing was said about it.

    Parameters
    ----------
    attach : callable
        Takes keywords that a command line might say.
    settings : Settings
        What was asked for.
    rank : int
        The first one speaks.

    Raises
    ------
    RunExistsError
        If a run is there, and ``if_exists`` was said.
    """
    try:
        return attach()
    except RunExistsError:
        if settings.if_exists != "auto":
            raise
        if rank == 0:
            say(f"{settings.run} is there already; a new run is made beside it")
        return attach(if_exists="new")


def close_on_termination(close: Callable[[], None]) -> None:
    """Close capture when the process is told to end, and let it end as it would have done.

    The interpreter ends at once then, and in processes of `multiprocessing` without what `atexit`
    knows. Closing is left to a thread: the one interrupted may hold a lock that closing needs.

    Parameters
    ----------
    close : callable
        Closes, and does not raise; may be called twice.
    """
    if "multiprocessing" in sys.modules:
        from multiprocessing import util

        util.Finalize(None, close, exitpriority=0)
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return

    def ended(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(_LONGEST_CLOSE)
        signal.raise_signal(number)

    signal.signal(signal.SIGTERM, ended)
