"""Attaching: the only place that decides whether a run is made, resumed, kept or deleted."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from filmstrip.store import _files
from filmstrip.store._codec import COMPRESSIONS, Compression
from filmstrip.store._lock import WriterLock
from filmstrip.store._metadata import FORMAT, Json, group_text, run_attributes
from filmstrip.store._names import LOCK, METADATA, RANKS, rank_path
from filmstrip.store._place import LocalPlace
from filmstrip.store._publish import translated
from filmstrip.store._recording import RunWriter
from filmstrip.store._view import GroupView
from filmstrip.store.errors import (
    FormatError,
    NotARunError,
    RunExistsError,
    RunNotFoundError,
    StoreError,
)

IfExists = Literal["auto", "resume", "fail", "new", "overwrite"]


def create_run(
    run: str | os.PathLike[str],
    *,
    metadata: Mapping[str, Any] | None = None,
    framework: str | None = None,
    plan: Mapping[str, Any] | None = None,
    if_exists: IfExists = "auto",
    first_step: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    writers: Sequence[int] | None = None,
    run_id: str | None = None,
    compression: Compression | None = None,
    fsync: bool = False,
) -> RunWriter:
    """Create a run, or attach to one that is there.

    Parameters
    ----------
    run : str or path-like
        Local path, by custom ``run.zarr``.
    metadata : mapping, optional
        Anything that JSON can hold, kept with the run.
    framework : str, optional
        ``"pytorch"``, ``"tensorflow"``, …
    plan : mapping, optional
        What is being captured, kept with the run.
    if_exists : {"auto", "resume", "fail", "new", "overwrite"}
        ``"auto"`` resumes when `first_step` is known and above 0, and otherwise raises and touches
        nothing. ``"resume"`` goes on, ``"new"`` makes ``run-2.zarr``, ``"overwrite"`` deletes.
    first_step : int, optional
        First step that will be written. On resuming, rows at and behind it are taken back.
    rank, world_size : int
        Of a job with several writing processes, each of which has a store of its own.
    writers : sequence of int, optional
        The ranks that write, where not all of them do.
    run_id : str, optional
        Identity of the run that rank 0 made, for the other ranks.
    compression : {"zstd", "lz4", "none"}, optional
        For all frames; by default activations, inputs and images are compressed and others are not.
    fsync : bool
        Survive a loss of power, not only the death of the process; costs a disk round trip a row.

    Returns
    -------
    RunWriter
        To be closed, best by ``with``.

    Raises
    ------
    RunExistsError
        If a run is there and `if_exists` does not say what to do.
    RunLockedError
        If another process is writing to it.
    NotARunError
        If something else is there.
    StoreWriteError
        If the path cannot be written.
    ValueError
        If an argument has no meaning.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with create_run(f"{folder}/run.zarr", metadata={"seed": 1}) as run:
    ...     run.log(0, {"loss": 0.5})
    """
    if if_exists not in get_args(IfExists):
        raise ValueError(
            f"if_exists={if_exists!r} has no meaning; use one of {', '.join(get_args(IfExists))}"
        )
    if compression is not None and compression not in COMPRESSIONS:
        raise ValueError(
            f"compression={compression!r} has no meaning; use one of {', '.join(COMPRESSIONS)}"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank={rank} does not lie below world_size={world_size}")
    writing = sorted({operator.index(writer) for writer in writers or range(world_size)})
    if writing[0] < 0 or writing[-1] >= world_size:
        raise ValueError(f"writers={writing} do not all lie below world_size={world_size}")
    try:
        json.dumps([metadata, plan], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata and plan must be what JSON can hold: {error}") from None
    if first_step is not None:
        first_step = operator.index(first_step)
        if first_step < 0:
            raise ValueError(f"first_step={first_step} is before the first step, 0")
    location = os.fspath(run)
    if "://" in location:
        raise ValueError(f"runs are written to a local path; {location!r} is a URL")
    path = Path(location).absolute()  # a script may change its folder later
    if rank:
        path = path / rank_path(rank)
    fresh: Json = {
        "format": FORMAT,
        "run_id": run_id or secrets.token_hex(8),
        "created": time.time(),
        "framework": framework,
        "world_size": world_size,
        "rank": rank,
        "groups": [],
        "attempts": [],
        "plan": dict(plan or {}),
        "metadata": dict(metadata or {}),
    }
    if len(writing) < world_size:
        fresh["writers"] = writing
    with translated(path):
        path, lock, attributes = _attach(path, if_exists, first_step, fresh, run_id)
    if attributes is not fresh:
        attributes["metadata"] = {**attributes.get("metadata", {}), **fresh["metadata"]}
        attributes.pop("writers", None)
        attributes |= {"writers": fresh["writers"]} if "writers" in fresh else {}
    try:
        with translated(path):
            return RunWriter(
                path, lock, attributes, first_step=first_step, compression=compression, fsync=fsync
            )
    except BaseException:
        lock.release()
        raise


def _attach(
    path: Path, if_exists: IfExists, first_step: int | None, fresh: Json, run_id: str | None
) -> tuple[Path, WriterLock, Json]:
    """Lock a store and return its attributes, the fresh ones for a store that has to be made."""
    if not _taken(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(path)
        if not (path / METADATA).exists():
            return path, lock, fresh
        lock.release()  # somebody was faster, and has left already
    attributes = run_attributes(LocalPlace(path))
    if if_exists == "resume" or (if_exists == "auto" and first_step):
        _check_world(path, attributes, fresh, run_id)
        lock = WriterLock(path)
        return path, lock, run_attributes(LocalPlace(path))
    if if_exists == "overwrite":
        return path, _emptied(path, fresh), fresh
    if if_exists == "new":
        return _attach(_unused(path), "fail", first_step, fresh, run_id)
    raise RunExistsError(str(path), _last_step(path, attributes))


def _check_world(path: Path, attributes: Json, fresh: Json, run_id: str | None) -> None:
    """Refuse to go on with a run of another number of ranks: its pieces are cut otherwise."""
    if run_id is not None and attributes["run_id"] != run_id:
        raise StoreError(
            f"{path} belongs to run {attributes['run_id']}, and not to {run_id}, which rank 0 "
            f"writes; move it away"
        )
    before, now = attributes.get("world_size", 1), fresh["world_size"]
    if before != now:
        raise StoreError(
            f"{path} was written by {before} ranks and now {now} would go on with it; "
            f"start a new run with if_exists='new'"
        )


def _taken(path: Path) -> bool:
    try:
        run_attributes(LocalPlace(path))
    except RunNotFoundError:
        return False
    except NotARunError:
        if path.is_dir() and all(
            child.name in (LOCK, RANKS) or child.suffix == _files.PARTIAL
            for child in path.iterdir()
        ):
            return False  # an empty folder, a start that was killed, or other ranks were faster
        raise
    return True


def _emptied(path: Path, fresh: Json) -> WriterLock:
    """Make a run an empty one, under its lock; killed anywhere, what is left is a run."""
    lock = WriterLock(path)
    try:
        _files.replace(path / METADATA, group_text(fresh, {}).encode())
        others = {
            path / rank_path(rank) for rank in fresh.get("writers", range(fresh["world_size"]))
        }
        for child in path.iterdir():
            if child.name == RANKS:
                for store in set(child.iterdir()) - others:  # each rank overwrites its own
                    _files.remove_tree(store)
            elif child.is_dir():
                _files.remove_tree(child)
            elif child.name not in (LOCK, METADATA):
                _files.unlink(child)
    except BaseException:
        lock.release()
        raise
    return lock


def _unused(path: Path) -> Path:
    number = 2
    while (candidate := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return candidate


def _last_step(path: Path, attributes: Json) -> int | None:
    last = []
    for name in attributes["groups"]:
        with contextlib.suppress(FormatError):  # a damaged group must not hide that a run is there
            last += GroupView(LocalPlace(path), name).steps()[-1:].tolist()
    return max(last, default=None)
