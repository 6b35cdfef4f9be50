"""The pump: the only thread of capture, and the rim that no failure of it crosses.

Jobs are done in the order in which they were submitted. A job may own a slot of the ring, which is
free again when the job is done, whatever came of it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from filmstrip.capture._ledger import Ledger
from filmstrip.capture._ring import Ring, State

_LONGEST_QUEUE = 10_000


class Job(Protocol):
    """A piece of work for the writer thread."""

    @property
    def slot(self) -> int | None:
        """The slot it reads, None when it carries what it writes."""

    @property
    def name(self) -> str:
        """What it writes, for messages."""

    def write(self) -> None:
        """Write it; writer thread."""


class Pump:
    """One daemon thread between the training thread and the store.

    Parameters
    ----------
    finish : callable
        Called by the thread when it ends, to close what it wrote to.
    ledger : Ledger
        Where failures go.

    Examples
    --------
    >>> pump = Pump(lambda: None, ledger=Ledger())
    >>> pump.close(timeout=10.0)
    True
    """

    def __init__(self, finish: Callable[[], None], *, ledger: Ledger) -> None:
        self._finish, self._ledger = finish, ledger
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._ring: Ring | None = None
        self._closing = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def provide(self, slots: int) -> None:
        """Set up the ring, once, after the survey."""
        with self._changed:
            self._ring = Ring(slots)

    def arm(self, *, timeout: float) -> int | None:
        """Take a free slot, waiting up to `timeout` seconds for one; None when there is none."""
        deadline = time.monotonic() + timeout
        with self._changed:
            if self._ring is None:
                return None
            while (slot := self._ring.arm()) is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, 1.0))
            return slot

    def disarm(self, slot: int) -> None:
        """Give back a slot for which nothing will be submitted."""
        with self._changed:
            if self._ring is not None:
                self._ring.disarm(slot)
                self._changed.notify_all()

    def submit(self, job: Job) -> bool:
        """Queue a job; False when it was refused because too many wait or the pump is closed."""
        with self._changed:
            refused = self._closing or (job.slot is None and len(self._jobs) >= _LONGEST_QUEUE)
            if job.slot is not None and self._ring is not None:
                if refused:
                    self._ring.disarm(job.slot)
                else:
                    self._ring.seal(job.slot)
            if not refused:
                self._jobs.append(job)
                self.start()
            self._changed.notify_all()
            return not refused

    def start(self) -> None:
        """Start the thread, if that was not done; where none can be had, better now than later."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="filmstrip-writer", daemon=True)
            thread.start()
            self._thread = thread

    @property
    def queued(self) -> int:
        """Rows sealed and not yet taken up."""
        with self._changed:
            return 0 if self._ring is None else self._ring.count(State.SEALED)

    def close(self, *, timeout: float) -> bool:
        """Let the thread do what is queued and end; False when `timeout` seconds are too short."""
        with self._changed:
            first, self._closing = not self._closing, True
            self._changed.notify_all()
        if self._thread is None and first:
            self._run()
        # Not join(): interrupted from the keyboard, it takes the thread for one that has ended.
        return self._ended.wait(timeout)

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                # A full disk stays full: what follows would fail in the same way, at a cost.
                if not self._ledger.full:
                    job.write()
                elif job.slot is not None:
                    self._ledger.count("dropped", cause="the disk is full")
            except Exception as error:
                self._ledger.fail("failed", f"{job.name} could not be written", error)
            finally:
                self._done(job)
        try:
            self._finish()
        except Exception as error:
            self._ledger.fail("failed", "the run could not be closed", error)
        finally:
            self._ended.set()

    def _next(self) -> Job | None:
        with self._changed:
            while not self._jobs:
                if self._closing:
                    return None
                self._changed.wait()
            job = self._jobs.popleft()
            if job.slot is not None and self._ring is not None:
                self._ring.write()
            return job

    def _done(self, job: Job) -> None:
        if job.slot is not None:
            with self._changed:
                if self._ring is not None:
                    self._ring.release(job.slot)
                self._changed.notify_all()
