"""Places: the only place that reads bytes of a run, from a folder or by URL.

Nothing is listed, links are not followed out of the run, and nothing is read that is larger than it
can be: a run may come from anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from filmstrip.store.errors import DeniedError, FormatError, StoreError

METADATA_BYTES = 64 << 20
"""Most that a zarr.json may have, for some 60,000 arrays; parsed, it takes ten times as much."""

_RETRY: Any = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=10),  # not three minutes, where a host is only misspelt
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=1),
        "base": 2,
    },
}
_CONNECT = timedelta(seconds=5)


class Blob(Protocol):
    """One file that is open for reading."""

    @property
    def size(self) -> int:
        """Bytes it has now."""

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer when the file ends before."""

    def map(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return an array of the whole file; raise ValueError when it is too short."""


class Place(ABC):
    """A folder or file of a run.

    Two calls answer for what is there at that moment; a writer may be at work.
    """

    @abstractmethod
    def __truediv__(self, name: str) -> Self:
        """Return what lies below.

        Raises
        ------
        FormatError
            If the name leads out of the run.
        """

    @abstractmethod
    def stamp(self) -> object | None:
        """Return what differs when the file was replaced, None when there is none."""

    @abstractmethod
    def open(self) -> contextlib.AbstractContextManager[Blob]:
        """Open the file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """

    @abstractmethod
    def exists(self) -> bool:
        """Return whether anything is here."""

    def read(self) -> bytes | None:
        """Return the whole of a small file, None when there is none.

        Raises
        ------
        FormatError
            If it is larger than any metadata.
        """
        try:
            with self.open() as blob:
                if blob.size > METADATA_BYTES:
                    raise FormatError(str(self), f"it has {blob.size} bytes, too many for metadata")
                return blob.read(0, blob.size)
        except FileNotFoundError:
            return None


def checked_part(name: str, where: object) -> str:
    """Return one part of a path, if it is one.

    Raises
    ------
    FormatError
        If it leads elsewhere.
    """
    # Above 255 bytes no file system has it; a surrogate cannot be encoded.
    odd = not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name
    if odd or len(name.encode(errors="surrogatepass")) > 255 or not _encodable(name):
        shown = name if len(name) <= 60 else f"{name[:60]}…"
        raise FormatError(str(where), f"{shown!r} is no name inside a run")
    return name


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class _File:
    """A local file, open."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd, self._path = fd, path

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, offset: int, length: int) -> bytes:
        # No longer than the file is: room for the length asked for is made before it is read.
        length = min(length, self.size - offset)
        return os.pread(self._fd, length, offset) if length > 0 else b""

    def map(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        with os.fdopen(os.dup(self._fd), "rb") as file:
            return np.asarray(np.memmap(file, dtype, "r", shape=shape))


class LocalPlace(Place):
    """A folder or file on this machine.

    Parameters
    ----------
    path : Path
        Where it is.
    root : Path, optional
        The run, out of which no link may lead; the path itself by default.
    """

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = path
        self._root = path if root is None else root

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Self:
        path = self.path
        for part in name.split("/"):
            path = path / checked_part(part, self.path)
        return type(self)(path, self._root)

    def stamp(self) -> object | None:
        try:
            status = self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _refused(self, error) from error
        return status.st_ino, status.st_mtime_ns, status.st_size  # replaced, never in place

    @contextlib.contextmanager
    def open(self) -> Iterator[Blob]:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self.path)) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise FormatError(str(self.path), "it is a link") from error
            if isinstance(error, FileNotFoundError):
                raise
            raise _refused(self, error) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FormatError(str(self.path), "it is not a file")
            yield _File(fd, self.path)
        finally:
            os.close(fd)

    def exists(self) -> bool:
        return self.path.exists()

    def check_inside(self) -> None:
        """Raise if a link led here.

        Raises
        ------
        FormatError
            If the folder lies outside the run.
        """
        if not self.path.resolve().is_relative_to(self._root.resolve()):
            raise FormatError(str(self.path), "a link leads out of the run")


def _refused(place: Place, error: OSError) -> StoreError:
    return StoreError(f"{place} cannot be read: {os.strerror(error.errno or 0)}")


class _Object:
    """An object of a store, read by ranges."""

    def __init__(self, place: RemotePlace, size: int) -> None:
        self._place, self.size = place, size

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        return b"" if length <= 0 else self._place.read_range(offset, length, self.size)

    def map(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        return np.frombuffer(self.read(0, wanted), dtype).reshape(shape)


class RemotePlace(Place):
    """A folder or file by URL; read only, by ranges, never listed.

    Parameters
    ----------
    url : str
        For messages.
    store : obstore.store.ObjectStore
        Where it is.
    key : str
        Path inside the store.
    """

    def __init__(self, url: str, store: Any, key: str = "") -> None:
        self._url, self._store, self._key = url, store, key

    def __str__(self) -> str:
        return f"{self._url}/{self._key}" if self._key else self._url

    def __truediv__(self, name: str) -> Self:
        parts = [checked_part(part, self) for part in name.split("/")]
        key = "/".join([self._key, *parts] if self._key else parts)
        return type(self)(self._url, self._store, key)

    def _head(self) -> Any | None:
        import obstore

        try:
            with self._translated():
                return obstore.head(self._store, self._key)
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Make one line of every failure but that of what is not there."""
        from obstore.exceptions import BaseError, PermissionDeniedError

        try:
            yield
        except FileNotFoundError:
            raise
        except PermissionDeniedError as error:
            raise DeniedError(str(self)) from error
        except BaseError as error:
            raise StoreError(f"{self} cannot be read: {_first_line(error)}") from error

    def read(self) -> bytes | None:
        import obstore

        try:
            with self._translated():
                # In one request, or the file could be another one than was asked about.
                found = obstore.get(self._store, self._key)
                size = found.meta["size"]
                if size <= METADATA_BYTES:
                    return bytes(found.bytes())
        except FileNotFoundError:
            return None
        raise FormatError(str(self), f"it has {size} bytes, too many for metadata")

    def read_range(self, offset: int, length: int, size: int) -> bytes:
        """Return a part of the file, nothing when it has another size meanwhile."""
        import obstore

        try:
            with self._translated():
                found = obstore.get_range(self._store, self._key, start=offset, length=length)
                return bytes(found)
        except StoreError:
            head = self._head()
            if head is not None and head["size"] == size:
                raise
        return b""

    def stamp(self) -> object | None:
        head = self._head()
        if head is None:
            return None
        known = head.get("e_tag") or (head["last_modified"].timestamp() or None)
        return (known, head["size"]) if known else object()  # a server that says nothing: read anew

    @contextlib.contextmanager
    def open(self) -> Iterator[Blob]:
        head = self._head()
        if head is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(self))
        yield _Object(self, head["size"])

    def exists(self) -> bool:
        try:
            return self._head() is not None
        except DeniedError:
            return False


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def place_of(run: str | os.PathLike[str]) -> Place:
    """Return the place of a run.

    Parameters
    ----------
    run : str or path-like
        Local path, or a URL: ``s3://``, ``gs://``, ``az://``, ``http://``, ``https://``, ``file://``.

    Returns
    -------
    Place
        Not looked at yet.

    Raises
    ------
    ImportError
        If a URL needs the extra ``remote``.
    StoreError
        If the URL is of no kind that can be read.
    """
    location = os.fspath(run)
    if location.startswith("file://"):
        host, slash, path = location.removeprefix("file://").partition("/")
        if host not in ("", "localhost"):
            raise StoreError(
                f"{location} names the host {host!r}; a path on this machine is file:///{path}, "
                "and a relative one is given without file://"
            )
        location = slash + path
    if "://" not in location:
        return LocalPlace(Path(location).absolute())  # a script may change its folder later
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise ImportError(
            f"reading {location} needs obstore: pip install 'filmstrip[remote]'", name="obstore"
        ) from error
    url = location.rstrip("/")
    endpoints = (url, os.environ.get("AWS_ENDPOINT_URL", ""), os.environ.get("AWS_ENDPOINT", ""))
    plain = any(endpoint.startswith("http://") for endpoint in endpoints)
    options: Any = {"allow_http": plain, "connect_timeout": _CONNECT}
    try:
        return RemotePlace(url, from_url(url, client_options=options, retry_config=_RETRY))
    except (BaseError, ValueError) as error:
        raise StoreError(f"{url} cannot be read: {_first_line(error)}") from error
