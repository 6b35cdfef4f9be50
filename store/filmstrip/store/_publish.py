"""Publishing: the only place that commits rows for every reader, and knows who may write."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from filmstrip.store import _files
from filmstrip.store._lock import WriterLock
from filmstrip.store._metadata import Json, group_text, parent_groups
from filmstrip.store._names import METADATA
from filmstrip.store.errors import RunLockedError, StoreError, StoreWriteError

if TYPE_CHECKING:
    from filmstrip.store._group import GroupWriter

SECONDS = 1.0
LOOKS = 1.0
"""Seconds after which a writer looks again whether the store is still its own."""

logger = logging.getLogger("filmstrip")


class Publisher:
    """The groups of one store, and what readers are told of them.

    Parameters
    ----------
    root : Path
        The store.
    attributes : dict
        Of the run; ``groups`` is kept up to date here.
    writer_lock : WriterLock
        Held for as long as this store is written.
    descriptors : Descriptors
        The files that are open for writing.

    Attributes
    ----------
    lock : RLock
        Whoever changes the store holds it.
    """

    def __init__(
        self,
        root: Path,
        attributes: Json,
        writer_lock: WriterLock,
        descriptors: _files.Descriptors,
    ) -> None:
        self.root, self.attributes, self.descriptors = root, attributes, descriptors
        self.lock = threading.RLock()
        self.groups: dict[str, GroupWriter] = {}
        self._writer_lock = writer_lock
        self._pending: set[str] = set()
        self._timer: threading.Timer | None = None
        self._published = 0.0
        self._busy = False
        self._refusal: StoreError | None = None
        self._looked = time.monotonic()
        self._put: dict[Path, _files.Identity] = {}
        descriptors.guard = self._guard

    @property
    def is_open(self) -> bool:
        """Whether anything may be written."""
        return self._refusal is None

    def check_open(self) -> None:
        """Raise if nothing may be written any more.

        Raises
        ------
        StoreError
            If the run is closed.
        RunLockedError
            If another process took it over.
        """
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the store while a row is written; a signal handler cannot touch it meanwhile."""
        with self.lock:
            self.check_open()
            if self._busy:
                raise StoreError(f"{self.root} takes nothing in the middle of a row")
            self._busy = True
            try:
                yield
            finally:
                self._busy = False

    def add(self, group: GroupWriter) -> None:
        """Publish a new group; if that fails, there is none, and the next call makes it anew."""
        self.groups[group.name] = group
        self.attributes["groups"] = list(self.groups)
        try:
            self.publish_now(group)
        except BaseException:
            del self.groups[group.name]
            self._put.pop(group.path / METADATA, None)
            self.attributes["groups"] = list(self.groups)
            raise

    def publish_now(self, group: GroupWriter) -> None:
        """Publish one group at once: its arrays have changed."""
        self.check_ours()
        group.publish()
        self.publish_root()

    def pending(self, group: GroupWriter) -> None:
        """Publish a group now, or within a second of the last time; called under the lock."""
        self._pending.add(group.name)
        if self._timer is None:
            self._start_timer(max(0.0, self._published + SECONDS - time.monotonic()))

    def _start_timer(self, seconds: float) -> None:
        timer = threading.Timer(seconds, self._publish_in_time)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # no thread can be had any more: the interpreter is shutting down
            self._publish_in_time(again=False)
        else:
            self._timer = timer

    def _publish_in_time(self, *, again: bool = True) -> None:
        with self.lock:
            self._timer = None
            if self._refusal is not None:
                return
            try:
                self.publish()
            except StoreWriteError:  # the rows are safe; a later time publishes them
                logger.debug("%s: publishing failed", self.root, exc_info=True)
                if again:
                    self._start_timer(SECONDS)
            except StoreError:
                pass  # it was logged, and the next call raises it

    def publish(self) -> None:
        """Commit the rows written so far.

        Raises
        ------
        StoreWriteError
            If the metadata could not be replaced. The rows stay pending.
        StoreError
            If another process took the run over (RunLockedError), or changed files that this one
            has in use. Nothing more is written.
        """
        with self.lock, translated(self.root):
            self.check_open()
            self.check_ours()
            for name in sorted(self._pending):
                self.groups[name].publish()
            if self._pending:
                self.publish_root()
            self._pending.clear()
            self._published = time.monotonic()
            with contextlib.suppress(OSError):  # the rows are published
                self._writer_lock.raise_counter()

    def check_ours(self) -> None:
        """Refuse to write from now on if the lock, or a file in use, is no longer ours."""
        self._looked = time.monotonic()
        if not self._writer_lock.held():
            owner = self._writer_lock.owner()
            if owner is not None:
                reason = f"{owner}, which took it over from this process"
                self._refuse(RunLockedError(str(self.root), reason))
            self._refuse(StoreError(f"{self.root} was moved or removed while it was being written"))
        changed = self.descriptors.replaced() or self._replaced()
        if changed is not None:
            self._refuse(
                StoreError(
                    f"{changed} was replaced or removed while {self.root} was being written; "
                    f"nothing more is written to it, so that nobody's data are lost"
                )
            )

    def _replaced(self) -> Path | None:
        for path, identity in self._put.items():
            try:
                now = _files.identity_of(path)
            except FileNotFoundError:
                return path
            if now != identity and not self.descriptors.network:
                return path
        return None

    def _refuse(self, error: StoreError) -> NoReturn:
        self._refusal = error
        logger.error("%s", error)
        raise error

    def _guard(self) -> None:
        """Look before a write whether a process that slept may still write."""
        self.check_open()  # once refused, what a row left is not taken back either
        if time.monotonic() >= self._looked + LOOKS:
            self._looked = time.monotonic()
            if not self._writer_lock.held():
                self.check_ours()

    def put_metadata(self, path: Path, text: str) -> None:
        """Replace the zarr.json of a group, and remember it as ours."""
        self._put[path] = _files.replace(path, text.encode(), fsync=self.descriptors.fsync)

    def publish_root(self) -> None:
        """Replace the root's zarr.json."""
        parents = parent_groups(self.groups)
        members = {parent: group_text({}, {}) for parent in parents}
        # Groups first, sorted: zarr-python loses children of a group that stand apart.
        for name in sorted(self.groups):
            members[name] = group_text(self.groups[name].attributes, {})
        for name, group in self.groups.items():
            members.update(group.members(f"{name}/"))
        for parent in parents:
            path = self.root / parent / METADATA
            if not path.exists():
                _files.replace(path, members[parent].encode(), fsync=self.descriptors.fsync)
        text = group_text(self.attributes, members)
        self.put_metadata(self.root / METADATA, text)

    def close(self) -> None:
        """Publish all groups, seal their shards, and let others write; a second call does nothing.

        Raises
        ------
        StoreWriteError
            If that could not be written. What was committed stays.
        StoreError
            If a signal handler calls it in the middle of a row.
        """
        with self.lock:
            if self._busy:
                raise StoreError(f"{self.root} cannot be closed in the middle of a row")
            try:
                if self._refusal is None:
                    with translated(self.root):
                        self._finish()
            finally:
                self.abandon()

    def _finish(self) -> None:
        self.check_ours()
        self.attributes["attempts"][-1]["ended"] = time.time()
        groups = list(self.groups.values())
        publishing = [*(group.publish for group in groups), self.publish_root]
        closing = [act for group in groups for act in group.closing()]
        late = _attempted(publishing)
        failed = _attempted(closing)
        if late:  # sealing gave room back, on a disk that is full
            failed |= _attempted([*late, self.publish_root])
        for error in failed.values():
            raise error

    def abandon(self) -> None:
        """Write nothing more, and let go of all files and of the lock."""
        if self._refusal is None:
            self._refusal = StoreError(f"{self.root} is closed")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.descriptors.close()
        self._writer_lock.release()

    def abandon_after_fork(self) -> None:
        """Leave the store to the parent process."""
        self.lock = threading.RLock()  # the parent's may be held by a thread that is not here
        self._timer = None
        self._busy = False
        self._refusal = StoreError(f"{self.root} belongs to the process that opened it")
        self._writer_lock.forget()
        self.abandon()


def _attempted(acts: Iterable[Callable[[], None]]) -> dict[Callable[[], None], OSError]:
    """Do what can be done: where one file cannot be written, others can. Return what failed."""
    failed: dict[Callable[[], None], OSError] = {}
    for act in acts:
        try:
            act()
        except StoreError:
            raise
        except OSError as error:
            failed[act] = error
    return failed


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn an OSError of anything inside into a StoreWriteError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreWriteError(error.errno or 0, str(error.filename or path)) from error
