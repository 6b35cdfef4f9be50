"""Lock: the only place that keeps a store to one writer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from filmstrip.store._names import LOCK
from filmstrip.store.errors import RunLockedError

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class WriterLock:
    """The lock that the writer of a store holds for its life; the kernel frees it when it dies.

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
        self._path = root / LOCK
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take(root)
        except BaseException:
            self.release()
            raise

    def _take(self, root: Path) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunLockedError(str(root), self._owner()) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(record).encode(), 0)

    def _owner(self) -> str:
        with contextlib.suppress(ValueError, KeyError):
            record = json.loads(os.pread(self._fd, 4096, 0))
            if (record["host"], record["pid"]) == (socket.gethostname(), os.getpid()):
                return "this process"
            return f"process {record['pid']} on {record['host']}"
        return "another process"

    def held(self) -> bool:
        """Return whether the lock's file is still the one that was locked."""
        if self._fd < 0:
            return False
        try:
            there, ours = self._path.stat(), os.fstat(self._fd)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
