"""Lock: the only place that keeps a store to one writer.

The kernel's lock on a file dies with its holder, sees through containers and needs no clock. Where
a file system knows no such lock, or keeps it to one host, the record in the file decides: its
holder raises a counter every few seconds, and a newcomer who sees it stand still for a minute takes
over, by putting a file of its own in place. A holder that was only asleep finds another file there
when it wakes up, and writes nothing more.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from filmstrip.store import _files
from filmstrip.store._names import LOCK
from filmstrip.store.errors import RunLockedError

PATIENCE = 60.0
"""Seconds for which a counter stands still before its holder counts as dead."""

_BEATS, _LOOKS = 12, 60  # of a counter, and at it, in that time
_SETTLED = 0.05  # seconds after which two newcomers who took over at once know who was last
_LENGTH = 512  # a record is written by one call, in place, over the one before

Record = dict[str, Any]

logger = logging.getLogger("filmstrip")


class WriterLock:
    """The lock that the writer of a store holds for its life.

    Parameters
    ----------
    root : Path
        The store.

    Raises
    ------
    RunLockedError
        If another writer holds it.
    OSError
        If the lock's file cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._path = root, root / LOCK
        self._fd = -1
        self._network = _files.on_network(root)
        self._flocked = False
        self._stopped = threading.Event()
        self._writing = threading.Lock()
        self._record: Record = {
            "nonce": secrets.token_hex(8),
            **_here(),
            "pid": os.getpid(),
            "start": _start_of(os.getpid()),
            "since": time.time(),
            "counter": 0,
        }
        try:
            while not self._taken():
                pass
        except BaseException:
            self.forget()
            raise
        if not self._alone:
            threading.Thread(target=self._beat, name="filmstrip lock", daemon=True).start()

    @property
    def _alone(self) -> bool:
        """Whether the kernel's lock is all that is needed."""
        return self._flocked and not self._network

    def _taken(self) -> bool:
        """Take the lock, or return False when its file changed meanwhile: look again."""
        self._close()
        self._fd = _files.open_or_make(self._path)
        try:
            self._flocked = _files.lock(self._fd)
        except BlockingIOError as error:
            raise self._refused(os.pread(self._fd, _LENGTH, 0)) from error
        self._record["flock"] = self._flocked
        before = self._there()
        if before is None or not self._is_ours():
            return False
        if self._may_live(before) and not self._stands_still(before):
            return False
        if self._flocked:
            self._write()
            return True
        return self._installed(before)

    def _installed(self, before: bytes) -> bool:
        """Put a file of our own in place: whoever held the one before finds that it is gone."""
        self._close()
        own = self._path.with_name(f"{LOCK}.{self._record['nonce']}{_files.PARTIAL}")
        self._fd = _files.open_or_make(own)
        self._write()
        if self._there() != before:
            _files.unlink(own)
            return False
        _files.rename(own, self._path)
        time.sleep(_SETTLED)
        now = self._there()
        if now is None or _parsed(now).get("nonce") != self._record["nonce"]:
            raise self._refused(now or b"")
        return True

    def _may_live(self, raw: bytes) -> bool:
        """Return whether the writer of a record may be there still."""
        record = _parsed(raw)
        if record.get("released") or not raw:
            return False
        here = _here()
        if all(record.get(key) == value for key, value in here.items()):
            if self._flocked and record.get("flock", True):
                return False  # its lock would have kept us out
            return _start_of(record.get("pid", 0)) == record.get("start")
        return not (self._alone and record.get("flock", True))

    def _stands_still(self, raw: bytes) -> bool:
        """Watch a counter; return False when its holder let go meanwhile."""
        logger.info(
            "%s: waiting %.0f s for a sign of life of %s", self._root, PATIENCE, _owner(raw)
        )
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(PATIENCE / _LOOKS)
            now = self._there()
            if now is None or _parsed(now).get("released"):
                return False
            if now != raw:
                raise self._refused(now)
        logger.warning("%s: taken over from %s, which gave none", self._root, _owner(raw))
        return True

    def _refused(self, raw: bytes) -> RunLockedError:
        return RunLockedError(str(self._root), _owner(raw))

    def _there(self) -> bytes | None:
        """Return the record under the lock's name, by a fresh look at it; None when it is gone."""
        return _read(self._path)

    def _write(self) -> None:
        with self._writing:
            if self._fd < 0:
                return
            self._record["counter"] += 1
            _files.pwrite(self._fd, [json.dumps(self._record).encode().ljust(_LENGTH)], 0)

    def _beat(self) -> None:
        while not self._stopped.wait(PATIENCE / _BEATS):
            with contextlib.suppress(OSError):
                if not self.held():
                    return
                self.raise_counter()

    def _is_ours(self) -> bool:
        try:
            return _files.identity_of(self._path) == _files.identity_of(self._fd)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def raise_counter(self) -> None:
        """Show that the holder lives."""
        self._write()

    def held(self) -> bool:
        """Return whether the lock is still ours.

        Raises
        ------
        OSError
            If that cannot be told now.
        """
        if self._fd < 0:
            return False
        if self._alone:
            return self._is_ours()
        now = self._there()  # numbers of files mean little on a network
        return now is not None and _parsed(now).get("nonce") == self._record["nonce"]

    def owner(self) -> str | None:
        """Return who holds the lock now, None when its file is gone."""
        now = self._there()
        return None if now is None else _owner(now)

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        try:
            self._record["released"] = True
            with contextlib.suppress(OSError):
                self._write()
        finally:
            self.forget()

    def forget(self) -> None:
        """Close the file without a word, as a process does that dies or is a copy of the holder."""
        self._stopped.set()
        if os.getpid() != self._record["pid"]:
            self._writing = threading.Lock()  # that of the parent may be held by a thread of its
        self._close()

    def _close(self) -> None:
        with self._writing:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def writer_lives(store: Path | None, pid: int) -> bool:
    """Return whether a writer on this host is still there, as far as that can be seen.

    Parameters
    ----------
    store : Path or None
        What it wrote to: the record of its lock tells it from a later process of the same number.
        None where that cannot be read.
    pid : int
        Its process number.
    """
    record: Record = {}
    with contextlib.suppress(OSError):
        record = _parsed((store and _read(store / LOCK)) or b"")
    if "pid" not in record:
        return _runs(pid)
    here = _here()
    if record.get("released") or record["pid"] != pid or record.get("boot") != here["boot"]:
        return False  # it let go, or another one has the store, or the machine was started since
    if record.get("pid_namespace") != here["pid_namespace"]:
        return True  # its number means nothing here
    start = record.get("start")
    return _runs(pid) if start is None else _start_of(pid) == start


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _read(path: Path) -> bytes | None:
    """Return the record in a lock's file, None when it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.pread(fd, _LENGTH, 0)
    finally:
        os.close(fd)


def _parsed(raw: bytes) -> Record:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _owner(raw: bytes) -> str:
    record = _parsed(raw)
    if "pid" not in record or "host" not in record:
        return "another process"
    if record["pid"] == os.getpid() and all(record.get(k) == v for k, v in _here().items()):
        return "this process"
    return f"process {record['pid']} on {record['host']}"


def _here() -> Record:
    """Return what tells one place where process numbers have a meaning from another."""
    here = {"host": socket.gethostname(), "boot": "", "pid_namespace": ""}
    with contextlib.suppress(OSError):
        here["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        here["pid_namespace"] = str(Path("/proc/self/ns/pid").readlink())
    return here


def _start_of(pid: object) -> str | None:
    """Return when a process began, as the kernel counts it; None when there is none."""
    if not isinstance(pid, int):  # a record may say anything
        return None
    try:
        described = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = described.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]
