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
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = self._owner()
            if error.errno not in _UNSUPPORTED:
                os.close(self._fd)
                if isinstance(error, BlockingIOError):
                    raise RunLockedError(str(root), owner) from error
                raise
        record = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(record).encode(), 0)

    def _owner(self) -> str:
        with contextlib.suppress(ValueError, KeyError):
            record = json.loads(os.pread(self._fd, 4096, 0))
            return f"process {record['pid']} on {record['host']}"
        return "another process"

    def held(self) -> bool:
        """Return whether the lock's file is still the one that was locked."""
        try:
            there, ours = self._path.stat(), os.fstat(self._fd)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def release(self) -> None:
        """Let others write."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
