"""Files: the only place that changes a file system, and so the only place where writing can fail.

Callers reach everything here as ``_files.name``, so that fault injection can stand in front of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""Ending of files that a killed process left; never read."""

Buffer = Any
"""Anything that has the buffer protocol."""

Identity = tuple[int, int]
"""Device and inode: two files with one identity are the same file."""

# NFS, SMB, CIFS, SMB2, FUSE, 9p: here a rename can overtake data on its way to another host.
_NETWORKS = {0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x65735546, 0x01021997}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


def pwrite(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write buffers one after the other at an offset, all of them or raise OSError."""
    written = os.pwritev(fd, buffers, offset)
    wanted = sum(memoryview(buffer).nbytes for buffer in buffers)
    while written < wanted:  # a signal or a full disk cut it short; the next call says which
        rest = b"".join(memoryview(buffer).cast("B") for buffer in buffers)[written:]
        written += os.pwrite(fd, rest, offset + written)


def truncate(fd: int, length: int) -> None:
    """Set a file's length."""
    os.ftruncate(fd, length)


def unlink(path: Path) -> None:
    """Remove a file; one that is gone already is no error."""
    path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what processes left half made that were killed; but no lock that is being made."""
    for file in folder.iterdir():
        if file.suffix == PARTIAL and not file.name.startswith("_"):
            unlink(file)


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def make_directory(path: Path) -> None:
    """Make a folder and those above it."""
    path.mkdir(parents=True, exist_ok=True)


def replace(path: Path, data: bytes, *, fsync: bool = False) -> Identity:
    """Put a file in place whole."""
    return create(path, [(0, data)], len(data), fsync=fsync)


def create(
    path: Path, parts: Iterable[tuple[int, bytes]], length: int, *, fsync: bool = False
) -> Identity:
    """Put a file of some length in place whole, with parts of it filled and holes between."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)  # umask applies
        try:
            truncate(fd, length)
            for offset, data in parts:
                pwrite(fd, [data], offset)
            if fsync:
                sync(fd)
            identity = identity_of(fd)
        finally:
            os.close(fd)
        rename(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unlink(partial)
        raise
    if fsync:
        sync_directory(path.parent)
    return identity


def open_or_make(path: Path) -> int:
    """Return a descriptor of a file for reading and writing; it is made where there is none."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def rename(source: Path, target: Path) -> None:
    """Give a file its final name, over an older one if need be."""
    source.replace(target)


def sync(fd: int) -> None:
    """Wait until a file's data is on the disk."""
    os.fdatasync(fd)


def sync_directory(path: Path) -> None:
    """Wait until a folder's names are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def lock(fd: int) -> bool:
    """Lock a file without waiting; the kernel unlocks it when the process ends.

    Returns
    -------
    bool
        False where the file system knows no locks.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def identity_of(file: int | str | Path) -> Identity:
    """Return which file this is, whatever its name."""
    status = os.stat(file)  # noqa: PTH116 — a descriptor has no Path
    return status.st_dev, status.st_ino


def on_network(path: Path) -> bool:
    """Return whether other hosts may see a file's name before they see its data."""
    if not sys.platform.startswith("linux"):
        return False
    described = ctypes.create_string_buffer(256)  # struct statfs; its first field is the type
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), described) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    width = ctypes.sizeof(ctypes.c_long)
    return int.from_bytes(described.raw[:width], sys.byteorder) & 0xFFFF_FFFF in _NETWORKS


def writes_in_place(folder: Path) -> bool:
    """Return whether a file with holes can be written here and read back meanwhile."""
    path, length, marks = folder / f"probe.{os.getpid()}{PARTIAL}", 1 << 20, (5, 70_001)
    fd = open_or_make(path)
    try:
        truncate(fd, length)
        for at in marks:
            pwrite(fd, [b"filmstrip"], at)
        pwrite(fd, [b"end"], length - 3)
        other = os.open(path, os.O_RDONLY)
        try:
            there = os.fstat(other).st_size == length and os.pread(other, 9, length - 3) == b"end"
            there &= all(os.pread(other, 9, at) == b"filmstrip" for at in marks)
            return there and os.pread(other, 64, length // 2) == bytes(64)
        finally:
            os.close(other)
    finally:
        os.close(fd)
        unlink(path)


class Descriptors:
    """Files open for writing in place: the most recently used ones, so that no limit is reached.

    Parameters
    ----------
    limit : int
        Files open at most.
    fsync : bool
        Whether what is written must outlive a loss of power.
    network : bool
        Whether other hosts read these files through a network file system.

    Attributes
    ----------
    ordered : bool
        Whether data must be on the disk, or the server, before something refers to it.
    guard : callable or None
        Called before a descriptor is handed out; raises when nothing may be written any more.
    """

    def __init__(self, limit: int = 256, *, fsync: bool = False, network: bool = False) -> None:
        self.fsync, self.network = fsync, network
        self.ordered = fsync or network
        self.guard: Callable[[], None] | None = None
        self._limit = limit
        self._open: OrderedDict[str, int] = OrderedDict()
        self._known: dict[str, Identity] = {}

    def get(self, path: str) -> int:
        """Return a descriptor of an existing file, valid until the next call."""
        if self.guard is not None:
            self.guard()
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        if len(self._open) >= self._limit:
            os.close(self._open.popitem(last=False)[1])
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        identity = identity_of(fd)
        if self._known.setdefault(path, identity) != identity and not self.network:
            os.close(fd)  # closed to spare descriptors, and replaced meanwhile
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        self._open[path] = fd
        return fd

    def replaced(self) -> str | None:
        """Return a file in use that somebody else replaced or removed, None if there is none."""
        if self.network:  # numbers of files may change there by themselves
            return None
        for path, identity in self._known.items():
            try:
                if identity_of(path) != identity:
                    return path
            except FileNotFoundError:
                return path
        return None

    def drop(self, path: str) -> None:
        """Close one file, if it is open, and forget which it was."""
        self._known.pop(path, None)
        fd = self._open.pop(path, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close all of them."""
        for path in [*self._open, *self._known]:
            self.drop(path)
