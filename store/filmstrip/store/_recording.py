"""Recording: the only place that writes a run: its attempts, its rewinding, its writers."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, SupportsFloat

from filmstrip.store import _files
from filmstrip.store._codec import Compression
from filmstrip.store._frame import FrameSpec
from filmstrip.store._group import GroupWriter
from filmstrip.store._lock import WriterLock
from filmstrip.store._metadata import Json
from filmstrip.store._names import FRAME_KINDS, HEALTH, SCALARS, canonical, statistics_group
from filmstrip.store._publish import Publisher, translated
from filmstrip.store._summary import STATISTICS
from filmstrip.store._writer import KindWriter, ScalarWriter, StatisticsWriter
from filmstrip.store.errors import StoreError

logger = logging.getLogger("filmstrip")


class RunWriter:
    """A run being written; made by `create_run`.

    Attributes
    ----------
    path : Path
        The store.
    run_id : str
        Identity of the run.
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
        self.run_id = str(attributes["run_id"])
        self.attempt = len(attributes["attempts"]) + 1
        self.rewound: tuple[int, int, int] | None = None
        self._compression = compression
        network = _files.on_network(path)
        descriptors = _files.Descriptors(fsync=fsync, network=network)
        self._publisher = Publisher(path, attributes, lock, descriptors)
        self._kinds: dict[str, KindWriter] = {}
        self._statistics: dict[str, StatisticsWriter] = {}
        self._scalars: dict[str, ScalarWriter] = {}
        try:
            _check_disk(path)
            for name in attributes["groups"]:
                self._publisher.groups[name] = GroupWriter(self._publisher, name)
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
            self._publisher.publish_root()
        except BaseException:
            self._publisher.abandon()
            raise
        atexit.register(self.close)
        _open_runs.add(self)
        # A forked worker of multiprocessing ends without atexit.
        util = sys.modules.get("multiprocessing.util")
        self._finalizer = util and util.Finalize(None, self.close, exitpriority=0)

    def _rewind(self, first_step: int | None) -> None:
        """Take back every row at or behind a step; killed anywhere, the next attach repeats it."""
        groups = self._publisher.groups.values()
        behind = [step for group in groups for step in group.shorten(first_step)]
        if behind:
            self.rewound = (len(set(behind)), min(behind), max(behind))
            logger.info("%s: took back %d steps, from %d to %d", self.path, *self.rewound)
        if groups:
            self._publisher.publish_root()  # lengths shrink: the root first
        for group in groups:
            group.publish()
        for group in groups:
            group.truncate()
        _files.sweep(self.path)

    def rewind(self, step: int) -> None:
        """Take back every row at or behind a step, before anything else is written.

        Parameters
        ----------
        step : int
            First step that will be written.

        Raises
        ------
        StoreError
            If something was written since attach, or the run is closed.
        StoreWriteError
            If that could not be written.
        """
        with self._publisher.lock, translated(self.path):
            self._publisher.check_open()
            if all(group.last_step < step for group in self._publisher.groups.values()):
                return
            if self._kinds or self._statistics or self._scalars:
                raise StoreError(
                    f"{self.path} cannot go back to step {step}: something was written to it "
                    f"meanwhile; give first_step when it is opened"
                )
            self._rewind(step)
            self._publisher.attributes["attempts"][-1]["first_step"] = step
            self._publisher.publish_root()

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
            If there is no such kind, or a frame is too large, or two layers have one name.
        StoreError
            If the run is closed, or holds frames of another shape or dtype for a layer.
        StoreWriteError
            If the arrays could not be made.
        """
        if kind not in FRAME_KINDS:
            raise ValueError(
                f"there is no kind {kind!r} of frames; there are: {', '.join(FRAME_KINDS)}"
            )
        with self._publisher.lock, translated(self.path):
            self._publisher.check_open()
            if kind not in self._kinds:
                self._kinds[kind] = KindWriter(self._group(kind), kind, self._compression)
            if self._kinds[kind].add(specs):
                self._publisher.publish_now(self._group(kind))
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
        ValueError
            If there is no such kind, or a layer is named twice.
        StoreError
            If the run is closed, or holds statistics of other layers.
        StoreWriteError
            If the arrays could not be made.
        """
        if kind not in FRAME_KINDS:
            raise ValueError(
                f"there is no kind {kind!r} of frames; there are: {', '.join(FRAME_KINDS)}"
            )
        names = [canonical(layer) for layer in layers]
        if len(set(names)) < len(names):
            raise ValueError(f"statistics of {kind} need each layer once; got {', '.join(layers)}")
        attributes = {"kind": kind, "layers": names, "stats": list(STATISTICS), "bits": 12}
        with self._publisher.lock, translated(self.path):
            group = self._group(statistics_group(kind), attributes)
            if group.attributes["layers"] != names:
                raise StoreError(
                    f"the statistics of {kind} in {self.path} are of other layers than these "
                    f"{len(names)}; start a new run with if_exists='new'"
                )
            if kind not in self._statistics:
                writer = StatisticsWriter(group, len(names))
                self._publisher.publish_now(group)
                self._statistics[kind] = writer
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
        StoreError
            If the run is closed.
        """
        self._log(SCALARS, step, values)

    def log_health(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Write what capture itself cost at a step; see `log`."""
        self._log(HEALTH, step, values)

    def _log(self, kind: str, step: int, values: Mapping[str, SupportsFloat]) -> None:
        with self._publisher.lock, translated(self.path):
            self._publisher.check_open()
            if kind not in self._scalars:
                self._scalars[kind] = ScalarWriter(self._group(kind), kind)
            if self._scalars[kind].log(step, values):
                self._publisher.publish_now(self._group(kind))

    def _group(self, name: str, attributes: Json | None = None) -> GroupWriter:
        self._publisher.check_open()
        if name not in self._publisher.groups:
            self._publisher.add(GroupWriter(self._publisher, name, attributes or {"kind": name}))
        return self._publisher.groups[name]

    def publish(self) -> None:
        """Commit the rows written so far for every reader, without waiting for the second.

        Raises
        ------
        StoreWriteError
            If the metadata could not be replaced. The rows stay pending.
        StoreError
            If the run is closed, or another process took it over.
        """
        self._publisher.publish()

    def close(self) -> None:
        """Publish everything, seal the shards and let others write; a second call does nothing.

        Raises
        ------
        StoreWriteError
            If that could not be written. What was committed stays.
        """
        self._forget_exit()
        _open_runs.discard(self)
        self._publisher.close()

    def _forget_exit(self) -> None:
        atexit.unregister(self.close)
        if self._finalizer is not None:
            self._finalizer.cancel()

    def _abandon_after_fork(self) -> None:
        self._forget_exit()
        self._publisher.abandon_after_fork()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_disk(path: Path) -> None:
    """Raise if rows cannot be written here as they are, in place."""
    if not _files.writes_in_place(path):
        raise StoreError(
            f"the file system of {path} does not give back what is written in the middle of a "
            f"file; record to a local disk and copy the run when it is done"
        )


_open_runs: weakref.WeakSet[RunWriter] = weakref.WeakSet()


def _leave_runs_to_the_parent() -> None:
    for run in list(_open_runs):
        run._abandon_after_fork()
    _open_runs.clear()


os.register_at_fork(after_in_child=_leave_runs_to_the_parent)
