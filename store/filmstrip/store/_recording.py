"""Recording: the only place that writes a run: its groups, its commits, its rewinding, its end."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsFloat

from filmstrip.store import _files
from filmstrip.store._codec import Compression
from filmstrip.store._frame import FrameSpec
from filmstrip.store._group import GroupWriter
from filmstrip.store._lock import WriterLock
from filmstrip.store._metadata import Json, group_text, parent_groups
from filmstrip.store._names import FRAME_KINDS, HEALTH, METADATA, SCALARS, statistics_group
from filmstrip.store._summary import STATISTICS
from filmstrip.store._writer import KindWriter, ScalarWriter, StatisticsWriter
from filmstrip.store.errors import RunLockedError, StoreError, StoreWriteError

PUBLISH_SECONDS = 1.0

logger = logging.getLogger("filmstrip")


class RunWriter:
    """A run being written; made by `create_run`.

    Attributes
    ----------
    path : Path
        The store.
    attempt : int
        How often somebody attached to the run, this time included; from 1.
    rewound : tuple of int or None
        Rows taken back at attach: how many, the first and the last step. None when there were none.
    """

    def __init__(
        self,
        path: Path,
        lock: WriterLock,
        attributes: Json,
        *,
        first_step: int | None,
        compression: Compression | None,
        fsync: bool,
    ) -> None:
        self.path = path
        self.attempt = len(attributes["attempts"]) + 1
        self.rewound: tuple[int, int, int] | None = None
        self._attributes, self._writer_lock = attributes, lock
        self._compression, self._fsync = compression, fsync
        self._lock = threading.RLock()
        self._descriptors = _files.Descriptors()
        self._groups: dict[str, GroupWriter] = {}
        self._kinds: dict[str, KindWriter] = {}
        self._statistics: dict[str, StatisticsWriter] = {}
        self._scalars: dict[str, ScalarWriter] = {}
        self._pending: set[str] = set()
        self._timer: threading.Timer | None = None
        self._published = 0.0
        self._closed = False
        for name in attributes["groups"]:
            self._groups[name] = self._open_group(name)
        self._rewind(first_step)
        attributes["attempts"].append(
            {
                "number": self.attempt,
                "first_step": first_step,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "time": time.time(),
            }
        )
        self._publish_root()
        atexit.register(self.close)

    def _open_group(self, name: str, attributes: Json | None = None) -> GroupWriter:
        return GroupWriter(
            self.path,
            name,
            publisher=self,
            lock=self._lock,
            descriptors=self._descriptors,
            attributes=attributes,
            fsync=self._fsync,
        )

    def _rewind(self, first_step: int | None) -> None:
        """Take back every row at or behind a step; killed anywhere, the next attach repeats it."""
        steps: set[int] = set()
        for group in self._groups.values():
            keep = group.rows_before(first_step)
            steps.update(int(step) for step in group.steps_behind(keep))
            group.shorten(keep)
        if steps:
            self.rewound = (len(steps), min(steps), max(steps))
            logger.info("%s: took back %d steps, from %d to %d", self.path, *self.rewound)
        if self._groups:
            self._publish_root()  # lengths shrink: the root first, so that no reader looks too far
        for group in self._groups.values():
            group.publish()
        for group in self._groups.values():
            group.truncate()

    def writer(self, kind: str, specs: Mapping[str, FrameSpec]) -> KindWriter:
        """Return the writer of a kind, with room for more layers.

        Parameters
        ----------
        kind : str
            ``"activations"``, ``"weights"``, ``"gradients"``, ``"inputs"`` or ``"images"``.
        specs : mapping of str to FrameSpec
            What the frames of every layer look like.

        Returns
        -------
        KindWriter
            The same one at every call for a kind.

        Raises
        ------
        ValueError
            If there is no such kind, or a frame is too large.
        StoreError
            If the run holds frames of another shape or dtype for a layer.
        StoreWriteError
            If the arrays could not be made.
        """
        if kind not in FRAME_KINDS:
            raise ValueError(
                f"there is no kind {kind!r} of frames; there are: {', '.join(FRAME_KINDS)}"
            )
        with self._lock, translated(self.path):
            if kind not in self._kinds:
                self._kinds[kind] = KindWriter(self._group(kind), kind, self._compression)
            self._kinds[kind].add(specs)
            self._publish_group(kind)
        return self._kinds[kind]

    def statistics_writer(self, kind: str, layers: Sequence[str]) -> StatisticsWriter:
        """Return the writer of a kind's statistics.

        Parameters
        ----------
        kind : str
            The kind whose tensors are described.
        layers : sequence of str
            Their layers, in the order in which statistics will be given.

        Returns
        -------
        StatisticsWriter
            The same one at every call for a kind.

        Raises
        ------
        StoreError
            If the run holds statistics of other layers.
        StoreWriteError
            If the arrays could not be made.
        """
        name = statistics_group(kind)
        with self._lock, translated(self.path):
            attributes = {
                "kind": kind,
                "layers": list(layers),
                "stats": list(STATISTICS),
                "bits": 12,
            }
            group = self._group(name, attributes)
            if group.attributes["layers"] != list(layers):
                raise StoreError(
                    f"the statistics of {kind} in {self.path} are of other layers than these "
                    f"{len(layers)}; start a new run with if_exists='new'"
                )
            if kind not in self._statistics:
                self._statistics[kind] = StatisticsWriter(group, layers)
                self._publish_group(name)
        return self._statistics[kind]

    def log(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Write scalars of a step; several calls at one step make one row.

        Parameters
        ----------
        step : int
            Not smaller than in the call before.
        values : mapping of str to float
            By name; NaN and infinities are values like others.

        Raises
        ------
        StoreWriteError
            If they could not be written.
        ValueError, TypeError
            If the step falls, or a value is not one number.
        """
        self._log(SCALARS, step, values)

    def log_health(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Write what capture itself cost at a step; see `log`."""
        self._log(HEALTH, step, values)

    def _log(self, kind: str, step: int, values: Mapping[str, SupportsFloat]) -> None:
        with self._lock, translated(self.path):
            if kind not in self._scalars:
                self._scalars[kind] = ScalarWriter(self._group(kind), kind)
            if self._scalars[kind].log(step, values):
                self._publish_group(kind)

    def _group(self, name: str, attributes: Json | None = None) -> GroupWriter:
        if self._closed:
            raise StoreError(f"{self.path} is closed")
        if name not in self._groups:
            group = self._open_group(name, attributes or {"kind": name})
            group.publish()
            self._groups[name] = group
            self._attributes["groups"] = list(self._groups)
        return self._groups[name]

    def pending(self, group: GroupWriter) -> None:
        """Publish a group now, or within a second of the last time; called under the lock."""
        self._pending.add(group.name)
        if self._timer is not None:
            return
        wait = self._published + PUBLISH_SECONDS - time.monotonic()
        self._timer = threading.Timer(max(wait, 0.0), self._publish_in_time)
        self._timer.daemon = True
        self._timer.start()

    def _publish_in_time(self) -> None:
        with self._lock:
            self._timer = None
            if self._closed:
                return
            try:
                self.publish()
            except OSError:  # the rows are safe; the next one, or close, publishes them
                logger.debug("%s: publishing failed, later again", self.path, exc_info=True)

    def publish(self) -> None:
        """Commit the rows written so far for every reader.

        Raises
        ------
        StoreWriteError
            If the metadata could not be replaced. The rows stay pending.
        """
        with self._lock, translated(self.path):
            self._check_lock()
            for name in sorted(self._pending):
                self._groups[name].publish()
            if self._pending:
                self._publish_root()
            self._pending.clear()
            self._published = time.monotonic()

    def _check_lock(self) -> None:
        if not self._writer_lock.held():
            self._closed = True
            raise RunLockedError(
                str(self.path), "another process, which took it over from this one"
            )

    def _publish_group(self, name: str) -> None:
        self._groups[name].publish()
        self._publish_root()

    def _publish_root(self) -> None:
        members: dict[str, str] = {}
        for parent in parent_groups(self._groups):
            members[parent] = group_text({}, {})
        for name, group in self._groups.items():
            members[name] = group_text(group.attributes, {})
            members.update(group.members(f"{name}/"))
        text = group_text(self._attributes, members)
        for parent in parent_groups(self._groups):
            path = self.path / parent / METADATA
            if not path.exists():
                _files.replace(path, group_text({}, {}).encode(), fsync=self._fsync)
        _files.replace(self.path / METADATA, text.encode(), fsync=self._fsync)

    def close(self) -> None:
        """Publish everything, seal the shards and let others write; a second call does nothing.

        Raises
        ------
        StoreWriteError
            If that could not be written. What was committed stays.
        """
        with self._lock:
            if self._closed:
                return
            try:
                with translated(self.path):
                    self._check_lock()
                    self._attributes["attempts"][-1]["ended"] = time.time()
                    for group in self._groups.values():
                        group.publish()
                    self._publish_root()
                    for group in self._groups.values():
                        group.close()
            finally:
                self._closed = True
                if self._timer is not None:
                    self._timer.cancel()
                self._descriptors.close()
                self._writer_lock.release()
                atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an OSError of anything inside into a StoreWriteError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreWriteError(error.errno or 0, str(error.filename or path)) from error
