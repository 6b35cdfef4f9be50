"""Status: the only place that judges how a run is doing."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from filmstrip.store._lock import writer_lives
from filmstrip.store._metadata import Json
from filmstrip.store._names import FRAME_KINDS, HEALTH
from filmstrip.store._place import LocalPlace, Place
from filmstrip.store._stores import RankStores

_ONCE = frozenset({"inputs", "images"})  # kinds that need not grow with the run


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
        Captures dropped; writes that failed, and exceptions while a capture was taken.
    bytes : int or None
        On disk; None for a run by URL.
    ranks : int
        Ranks that are expected to write.
    missing : tuple of int
        Those of them that have not written anything yet.
    behind : dict
        By rank, the last step of those that have not reached the last step.
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
    ranks: int
    missing: tuple[int, ...]
    behind: dict[int, int | None]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def status_of(path: str, stores: RankStores) -> Status:
    """Return how a run is doing."""
    everything = stores.all()
    steps: dict[str, int] = {}
    last: dict[int, int | None] = {}
    last_time: float | None = None
    lost = {"dropped": 0, "errors": 0}
    called = {"dropped": "dropped", "errors": "errors", "failed": "errors"}  # columns of health
    for store in everything:
        last[store.rank] = None
        for group in store.groups():
            view = store.view(group)
            kept = view.steps()
            steps[group] = min(steps.get(group, len(kept)), len(kept))
            if len(kept) and group in FRAME_KINDS and group not in _ONCE:
                last[store.rank] = max(int(kept[-1]), last[store.rank] or 0)
            if len(kept):
                written = float(view.wall_times(np.array([len(kept) - 1]))[0])
                last_time = max(written, last_time or 0.0)
            if group == HEALTH:
                for name, array in view.layers().items():
                    if name in called:
                        lost[called[name]] += int(np.nansum(view.series(array).values))
    face = stores.face
    reached = [int(s[-1]) for g in face.groups() if (s := face.view(g).steps()).size]
    last_step = max([*reached, *(step for step in last.values() if step is not None)], default=None)
    frames = max((step for step in last.values() if step is not None), default=None)
    states = {state_of(store.attributes["attempts"], store.place) for store in everything}
    return Status(
        path=path,
        state=next(state for state in ("stopped", "running", "finished") if state in states),
        attempt=len(face.attributes["attempts"]),
        last_step=last_step,
        age=None if last_time is None else max(0.0, time.time() - last_time),
        steps=steps,
        bytes=disk_bytes(face.place),
        ranks=len(stores.writers),
        missing=tuple(sorted(set(stores.writers) - set(last) - {face.rank})),
        behind={rank: step for rank, step in last.items() if step != frames},
        **lost,
    )


def state_of(attempts: list[Json], place: Place) -> str:
    """Return whether the last attempt at a store runs, has finished, or died."""
    if not attempts or "ended" in attempts[-1]:
        return "finished"
    latest = attempts[-1]
    if latest["host"] != socket.gethostname():
        return "running"  # it cannot be seen from here; its age tells
    store = place.path if isinstance(place, LocalPlace) else None
    return "running" if writer_lives(store, latest["pid"]) else "stopped"


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
