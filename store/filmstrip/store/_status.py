"""Status: the only place that judges how a run is doing."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from typing import Any

from filmstrip.store._metadata import Json
from filmstrip.store._place import LocalPlace, Place


@dataclass(frozen=True, slots=True)
class Status:
    """How a run is doing.

    Attributes
    ----------
    path : str
        The run.
    state : str
        ``"running"``, ``"finished"`` (closed) or ``"stopped"`` (its process ended without closing).
    attempt : int
        How often somebody attached to it.
    last_step : int or None
        Last step committed.
    age : float or None
        Seconds since then.
    steps : dict
        Committed steps by group.
    dropped, errors : int
        Captures dropped, and writes that failed.
    bytes : int or None
        On disk; None for a run by URL.
    """

    path: str
    state: str
    attempt: int
    last_step: int | None
    age: float | None
    steps: dict[str, int]
    dropped: int
    errors: int
    bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def state_of(attempts: list[Json]) -> str:
    if not attempts or "ended" in attempts[-1]:
        return "finished"
    latest = attempts[-1]
    if latest["host"] != socket.gethostname():
        return "running"  # it cannot be seen from here; its age tells
    try:
        os.kill(latest["pid"], 0)
    except ProcessLookupError:
        return "stopped"
    except PermissionError:
        return "running"
    return "running"


def disk_bytes(place: Place) -> int | None:
    """Return the bytes that a folder takes on the disk, holes not counted; None for a URL."""
    if not isinstance(place, LocalPlace):
        return None
    total = 0
    for folder, _, files in os.walk(place.path):
        for file in files:
            try:
                total += os.lstat(os.path.join(folder, file)).st_blocks * 512  # noqa: PTH118
            except FileNotFoundError:  # renamed meanwhile
                continue
    return total
