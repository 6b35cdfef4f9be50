"""Errors of the store, grouped by what a caller does next.

::

    StoreError
    ├── RunNotFoundError      (FileNotFoundError)   correct the path
    ├── NotARunError          (ValueError)          correct the path
    ├── FormatError           (ValueError)          upgrade filmstrip, or repair the run
    ├── RunExistsError        (FileExistsError)     choose another path, or say what to do
    ├── RunLockedError        (BlockingIOError)     wait, or choose another path
    ├── KindNotFoundError     (KeyError)            correct the kind
    ├── LayerNotFoundError    (KeyError)            correct the layer; the nearest names are given
    ├── FrameNotFoundError    (KeyError)            correct the step; the nearest ones are given
    ├── StatisticNotFoundError (KeyError)           correct the name
    ├── SelectionError        (ValueError)          correct the selector
    ├── DeniedError           (PermissionError)     ask for access, or for permission to list
    └── StoreWriteError       (OSError)             nothing was written; make room and go on

All of them pickle, since they travel back from workers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence


class StoreError(Exception):
    """Base of every error that the store raises on purpose."""


class RunNotFoundError(StoreError, FileNotFoundError):
    """Raised when there is nothing at a run's path."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(path)

    def __str__(self) -> str:
        return f"there is no run at {self.path}"


class NotARunError(StoreError, ValueError):
    """Raised when what is at a path is not a filmstrip run."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(path, reason)

    def __str__(self) -> str:
        return f"{self.path} is not a filmstrip run: {self.reason}"


class FormatError(StoreError, ValueError):
    """Raised when a run has a format or content that this version cannot read."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(path, reason)

    def __str__(self) -> str:
        return f"{self.path} cannot be read: {self.reason}"


class RunExistsError(StoreError, FileExistsError):
    """Raised when a run is already there and nobody said what to do with it."""

    def __init__(self, path: str, last_step: int | None) -> None:
        self.path, self.last_step = path, last_step
        super().__init__(path, last_step)

    def __str__(self) -> str:
        until = "with no step yet" if self.last_step is None else f"up to step {self.last_step}"
        return (
            f"{self.path} already holds a run {until}; nothing was touched. Choose another path, "
            f"or if_exists='new' (keep both), 'resume' (go on with it), 'overwrite' (delete it)"
        )


class RunLockedError(StoreError, BlockingIOError):
    """Raised when another process is writing to the run."""

    def __init__(self, path: str, owner: str) -> None:
        self.path, self.owner = path, owner
        super().__init__(path, owner)

    def __str__(self) -> str:
        way_out = "close that one" if self.owner == "this process" else "wait for it"
        return f"{self.path} is being written by {self.owner}; {way_out}, or choose another path"


class KindNotFoundError(StoreError, KeyError):
    """Raised when a run holds nothing of a kind."""

    def __init__(self, path: str, kind: str, kinds: Sequence[str]) -> None:
        self.path, self.kind, self.kinds = path, kind, tuple(kinds)
        super().__init__(path, kind, self.kinds)

    def __str__(self) -> str:
        there = ", ".join(self.kinds) or "nothing yet"
        return f"{self.path} has no {self.kind!r}; it has: {there}"


class LayerNotFoundError(StoreError, KeyError):
    """Raised when no layer has a name, or matches a selector."""

    def __init__(self, selector: str, where: str, nearest: Sequence[str]) -> None:
        self.selector, self.where, self.nearest = selector, where, tuple(nearest)
        super().__init__(selector, where, self.nearest)

    def __str__(self) -> str:
        nearest = ", ".join(self.nearest) or "none"
        return f"no layer of {self.where} matches {self.selector!r}; nearest: {nearest}"


class FrameNotFoundError(StoreError, KeyError):
    """Raised when no frame of a layer was kept at a step."""

    def __init__(self, layer: str, step: int, nearest: Sequence[int]) -> None:
        self.layer, self.step, self.nearest = layer, step, tuple(int(n) for n in nearest)
        super().__init__(layer, step, self.nearest)

    def __str__(self) -> str:
        kept = " and ".join(map(str, self.nearest)) or "none"
        return f"layer {self.layer!r} has no frame at step {self.step}; nearest kept: {kept}"


class StatisticNotFoundError(StoreError, KeyError):
    """Raised when there is no statistic of a name."""

    def __init__(self, name: str, names: Sequence[str]) -> None:
        self.name, self.names = name, tuple(names)
        super().__init__(name, self.names)

    def __str__(self) -> str:
        return f"there is no statistic {self.name!r}; there are: {', '.join(self.names)}"


class SelectionError(StoreError, ValueError):
    """Raised when a selector or a range of steps cannot be understood."""


class StoreWriteError(StoreError, OSError):
    """Raised when a row could not be written; the store is as it was before."""

    def __init__(self, errno: int, path: str) -> None:
        self.path = path
        super().__init__(errno, path)
        self.errno = errno

    def __str__(self) -> str:
        return f"{self.path} could not be written: {os.strerror(self.errno or 0)}"


class DeniedError(StoreError, PermissionError):
    """Raised when something may not be read, or is absent where nobody may know."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(path)

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be read: it is not there, or access is denied; a bucket tells "
            "the two apart only for those who may list it (s3:ListBucket)"
        )
