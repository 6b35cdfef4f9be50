"""Files: the only place that changes a file system, and so the only place where writing can fail.

Callers reach everything here as ``_files.name``, so that fault injection can stand in front of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""Ending of files that a killed process left; never read."""

Buffer = Any
"""Anything that has the buffer protocol."""


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


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def make_directory(path: Path) -> None:
    """Make a folder and those above it."""
    path.mkdir(parents=True, exist_ok=True)


def replace(path: Path, data: bytes, *, fsync: bool = False) -> None:
    """Put a file in place whole."""
    create(path, [(0, data)], len(data), fsync=fsync)


def create(
    path: Path, parts: Sequence[tuple[int, bytes]], length: int, *, fsync: bool = False
) -> None:
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
        finally:
            os.close(fd)
        rename(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unlink(partial)
        raise
    if fsync:
        sync_directory(path.parent)


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


class Descriptors:
    """Files open for writing in place: the most recently used ones, so that no limit is reached.

    Parameters
    ----------
    limit : int
        Files open at most.
    fsync : bool
        Whether what is written must outlive a loss of power.
    """

    def __init__(self, limit: int = 256, *, fsync: bool = False) -> None:
        self.fsync = fsync
        self._limit = limit
        self._open: OrderedDict[str, int] = OrderedDict()

    def get(self, path: str) -> int:
        """Return a descriptor of an existing file, valid until the next call."""
        fd = self._open.get(path)
        if fd is not None:
            self._open.move_to_end(path)
            return fd
        if len(self._open) >= self._limit:
            os.close(self._open.popitem(last=False)[1])
        fd = self._open[path] = os.open(path, os.O_RDWR)
        return fd

    def drop(self, path: str) -> None:
        """Close one file, if it is open."""
        fd = self._open.pop(path, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close all of them."""
        for path in list(self._open):
            self.drop(path)
