"""The ledger: the only place that counts what was lost and why, and says it once."""

from __future__ import annotations

import errno
import logging
import threading
from collections import Counter

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_LOGGER = logging.getLogger("filmstrip")


class Ledger:
    """Counts by name, shared by the training thread and the writer thread.

    Names: ``dropped`` due steps of which nothing was kept (`causes` says why), ``thinned`` due
    steps left out because of ``max_overhead``, ``skipped`` frames that could not be taken,
    ``failed`` writes, ``errors`` exceptions inside a tap, ``unlogged`` scalars and images that were
    not kept.

    Examples
    --------
    >>> ledger = Ledger()
    >>> ledger.count("dropped")
    >>> ledger.counts["dropped"], ledger.broken
    (1, False)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._cause: Exception | None = None
        self.counts: Counter[str] = Counter(
            dropped=0, thinned=0, skipped=0, failed=0, errors=0, unlogged=0
        )
        self.causes: dict[str, Counter[str]] = {}
        self.full = False
        self.frames_over = ""

    def end_frames(self, reason: str) -> None:
        """Note why no frame is kept any more; statistics go on."""
        with self._lock:
            new, self.frames_over = not self.frames_over, self.frames_over or reason
        if new:
            _LOGGER.warning("filmstrip: frames end here, statistics go on: %s", reason)

    def count(self, name: str, number: int = 1, *, cause: str = "") -> None:
        """Count a loss; what it came of is told at close, where it is said."""
        with self._lock:
            self.counts[name] += number
            if cause and number:
                self.causes.setdefault(name, Counter())[cause] += number

    def lose(
        self, name: str, reason: str, message: str, number: int = 1, *, cause: str = ""
    ) -> None:
        """Count a loss, and log its message when the reason is new."""
        self.count(name, number, cause=cause)
        with self._lock:
            new = reason not in self._said
            self._said.add(reason)
        if new:
            _LOGGER.warning("filmstrip: %s", message)

    def fail(self, name: str, where: str, error: Exception) -> None:
        """Count an exception; log the first of its type with its traceback."""
        with self._lock:
            self.counts[name] += 1
            self.full = self.full or (isinstance(error, OSError) and error.errno in _FULL)
            new = type(error).__name__ not in self._said
            self._said.add(type(error).__name__)
        if new:
            _LOGGER.error("filmstrip: %s: %s; training goes on", where, error, exc_info=error)
        # The frames of a traceback hold tensors, and with them a whole graph of a step.
        error.__traceback__ = error.__context__ = None
        with self._lock:
            self._cause = self._cause or error

    @property
    def cause(self) -> Exception | None:
        """The first exception."""
        return self._cause

    @property
    def broken(self) -> bool:
        """Whether something failed that must be raised at close."""
        return self._cause is not None

    def snapshot(self) -> dict[str, int]:
        """Return the counts so far."""
        with self._lock:
            return dict(self.counts)
