"""Checking: the only place that reads everything of a run and says what is wrong with it.

It changes nothing and raises nothing on damage. Of a run that is being written, what looks wrong is
looked at again, since it may just be moving.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from filmstrip.store._blocks import ShardFile, incomplete
from filmstrip.store._metadata import Json, parent_groups
from filmstrip.store._names import LOCK, METADATA, RANKS, STEP, WALL_TIME, chunk_position
from filmstrip.store._shardlog import EMPTY
from filmstrip.store._survey import (
    AXIS,
    DAMAGED,
    ArrayState,
    GroupState,
    column_file,
    fill_of,
    is_left,
    leftovers,
    length_of,
    local_stores,
    readable,
    root_attributes,
    running,
    stores_of,
    survey,
    unfinished,
)
from filmstrip.store.errors import StoreError

Severity = Literal["error", "warning", "note"]
_AGAIN, _PAUSE = 4, 0.3
_RESERVED = frozenset({"incidents", "updates", "preimages", "segments"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `check` has to say of a run.

    Attributes
    ----------
    severity : {"error", "warning", "note"}
        Something is damaged or lost; something is untidy, and nothing lost; nothing is wrong.
    path : str
        Where, from the run on.
    what : str
        What is there.
    repair : str
        What `repair` would do; "" where it can do nothing.
    """

    severity: Severity
    path: str
    what: str
    repair: str = ""

    def __str__(self) -> str:
        cure = f" (repair {self.repair})" if self.repair else ""
        return f"{self.severity}: {self.path}: {self.what}{cure}"


def check(run: str | os.PathLike[str]) -> list[Finding]:
    """Read everything of a run, of all its ranks, and say what is wrong.

    Every checksum and index is verified, metadata of all levels are compared, and what belongs to
    nothing is named. Nothing is changed.

    Parameters
    ----------
    run : str or path-like
        Local path of a run, live or finished.

    Returns
    -------
    list of Finding
        Those of severity ``"error"`` first. Notes apart, there are none in a run that is well.

    Raises
    ------
    RunNotFoundError
        If there is nothing at the path.
    NotARunError
        If what is there is no run, not even a damaged one.
    FormatError
        If a newer filmstrip wrote it.
    StoreError
        If it cannot be looked at.

    Examples
    --------
    >>> import tempfile
    >>> from filmstrip.store import create_run
    >>> folder = tempfile.mkdtemp()
    >>> with create_run(f"{folder}/run.zarr") as run:
    ...     run.log(0, {"loss": 0.5})
    >>> check(f"{folder}/run.zarr")
    []
    """
    path, stores = local_stores(run)
    found: list[Finding] = []
    if path not in stores:
        found.append(Finding("error", ".", "the store of rank 0 is missing"))
    for store in stores:
        found += _Checked(path, store).findings()
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.severity))


class _Checked:
    def __init__(self, run: Path, store: Path) -> None:
        self._run, self._store = run, store
        self._attributes = root_attributes(store)
        self._writer = running(store, self._attributes)
        self._groups = survey(store)

    def findings(self) -> list[Finding]:
        found = self._settled(self._store_itself)
        for name in list(self._groups):
            found += self._settled(partial(self._group_itself, name))
            for array in list(self._groups[name].arrays if name in self._groups else []):
                found += self._settled(partial(self._array, name, array))
        if self._writer:
            what = f"it is live, written by {self._writer}; what moved was read again"
            found.append(Finding("note", self._at(self._store), what))
        return found

    def _settled(self, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
        """Return what a look finds; of a live run, what several looks find."""
        found = self._looked(look)
        for _ in range(_AGAIN - 1 if self._writer else 0):
            if not found:
                break
            time.sleep(_PAUSE)
            self._attributes = root_attributes(self._store)
            self._groups = survey(self._store)
            again = self._looked(look)
            found = [finding for finding in found if finding in again]
        return found

    def _looked(self, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
        found: list[Finding] = []
        try:
            found.extend(look())
        except StoreError as error:
            found.append(Finding("error", self._at(self._store), str(error)))
        except OSError as error:
            where = Path(error.filename or self._store)
            place = self._at(where) if where.is_relative_to(self._run) else str(where)
            found.append(Finding("error", place, f"it cannot be read: {error.strerror}"))
        return found

    def _at(self, path: Path) -> str:
        return str(path.relative_to(self._run))

    def _store_itself(self) -> Iterator[Finding]:
        root = self._store / METADATA
        if self._attributes is None:
            yield Finding(
                "error", self._at(root), "it is missing or damaged", "rebuilds it from the arrays"
            )
        listed = (self._attributes or {}).get("groups", [])
        groups = self._groups
        for name in listed:
            if name not in groups and str(name).partition("/")[0] not in _RESERVED:
                yield Finding("error", self._at(root), f"it names a group {name!r} that is no such")
        for name in groups:
            if self._attributes is not None and name not in listed and not self._writer:
                yield Finding(
                    "warning", self._at(self._store / name), "the root does not name this group",
                    "adds it, or takes it away when nothing is in it",
                )  # fmt: skip
        for parent in parent_groups(groups):
            if readable(self._store / parent / METADATA) is None:
                yield Finding(
                    "error", self._at(self._store / parent / METADATA), "it is missing or damaged",
                    "writes it anew",
                )  # fmt: skip
        if not self._writer:
            for left in (*leftovers(self._store), *unfinished(self._store, groups)):
                what = "a killed process left it half made"
                yield Finding("warning", self._at(left), what, "removes it")
        yield from self._strangers(self._store, {METADATA, LOCK, RANKS, *_RESERVED, *groups})
        if (self._store / RANKS).is_dir() and not (self._store / RANKS).is_symlink():
            ranks = {store.name for store in stores_of(self._run) if store.parent.name == RANKS}
            yield from self._strangers(self._store / RANKS, {METADATA, *ranks})

    def _strangers(self, folder: Path, known: set[str]) -> Iterator[Finding]:
        expected = known | {name.partition("/")[0] for name in known}
        begun = set(unfinished(self._store, self._groups))
        for child in sorted(folder.iterdir()):
            if child.is_symlink():
                yield Finding("error", self._at(child), "it is a link, which is not followed")
            elif not (child.name in expected or is_left(child.name) or child in begun):
                yield Finding("warning", self._at(child), "it belongs to nothing")

    def _group_itself(self, name: str) -> Iterator[Finding]:
        group = self._groups.get(name)
        if group is None:
            return
        where = self._at(group.path / METADATA)
        if not group.whole:
            if not self._writer or name in (self._attributes or {}).get("groups", []):
                what = "it is missing or damaged"
                yield Finding("error", where, what, "rebuilds it from the arrays")
            if group.attributes is None and name.startswith("statistics/"):
                yield Finding("error", where, "the names of its layers are lost")
        if group.damaged:
            yield Finding("error", self._at(group.path), group.damaged)
        elif group.rows > group.published and not self._writer:
            what = f"{group.rows - group.published} complete rows are not committed"
            yield Finding("warning", where, what, "commits them")
        yield from self._strangers(group.path, {METADATA, *group.arrays})
        grouped, rooted = (
            {
                array: getattr(state, level)
                for array, state in group.arrays.items()
                if getattr(state, level) is not None
            }
            for level in ("grouped", "rooted")
        )
        if group.whole and self._attributes is not None and grouped != rooted:
            differ = sorted(
                array for array in {*grouped, *rooted} if grouped.get(array) != rooted.get(array)
            )
            yield Finding(
                "warning", self._at(self._store / METADATA),
                f"it differs from {name}/{METADATA} in {', '.join(differ)}",
                "rebuilds both",
            )  # fmt: skip
        lengths = {
            length_of(array.grouped)
            for array in group.arrays.values()
            if array.form is not None and array.grouped is not None
        }
        if len(lengths) > 1:
            yield Finding("error", where, "its arrays have several lengths", "rebuilds it")

    def _array(self, name: str, array_name: str) -> Iterator[Finding]:
        group = self._groups.get(name)
        array = None if group is None else group.arrays.get(array_name)
        if group is None or array is None:
            return
        where = self._at(array.path / METADATA)
        if array.linked:
            return
        if array.form is None or array.document is None:
            yield Finding("error", where, "no description of it can be understood")
            return
        if group.whole and array.grouped is not None and array.grouped is not array.document:
            what = f"what it says of {array_name!r} cannot be understood"
            yield Finding("error", self._at(group.path / METADATA), what, "rebuilds it")
        if array.own is None:
            yield Finding("error", where, "it is missing or damaged", "writes it anew")
        elif group.whole and array.grouped is None:
            if not self._writer:
                what = "the group does not name this array"
                yield Finding("warning", self._at(array.path), what, "adds it, unless it is empty")
        elif _without_length(array.own) != _without_length(array.document):
            own, theirs = _without_length(array.own), _without_length(array.document)
            only = {key for key in {*own, *theirs} if own.get(key) != theirs.get(key)}
            if only != {"attributes"}:
                what = f"its {', '.join(sorted(only))} are not those in the group's"
                yield Finding("error", where, what, "takes the group's")
            elif not self._writer:
                what = "its attributes are not those in the group's"
                yield Finding("warning", where, what, "takes the group's")
        elif not self._writer and not group.damaged and length_of(array.own) != group.rows:
            what = f"its length is {length_of(array.own)}, and {group.rows} rows are there"
            yield Finding("warning", where, what, "sets it")
        yield from self._foreign(array)
        if array.form.layout is None:
            yield from self._column(group, array)
        else:
            yield from self._strip(group, array)

    def _foreign(self, array: ArrayState) -> Iterator[Finding]:
        if not array.path.is_dir() or array.form is None:
            return
        for file in sorted(array.path.iterdir()):
            if file.is_symlink():
                yield Finding("error", self._at(file), "it is a link, which is not followed")
            elif chunk_position(file.name) is not None and not file.is_file():
                yield Finding("error", self._at(file), "it is not a file")
            elif file.name.endswith(DAMAGED):
                yield Finding("note", self._at(file), "a damaged shard that repair set aside")
            elif not (file.name == METADATA or array.form.where(file.name) or is_left(file.name)):
                yield Finding("warning", self._at(file), "it belongs to nothing")

    def _column(self, group: GroupState, array: ArrayState) -> Iterator[Finding]:
        assert array.form is not None
        rows, per_file = group.rows, array.form.rows
        files = dict(array.files())
        for index, file in files.items():
            if index * per_file >= rows and not (self._writer or group.damaged):
                what = "it lies behind the last row"
                yield Finding("warning", self._at(file), what, "removes it")
                continue
            row = math.prod(array.form.shape) * array.form.dtype.itemsize
            size = file.stat().st_size
            if size != per_file * row:
                what = f"it has {size} bytes instead of {per_file * row}"
                hopeless = size > per_file * row or (group.damaged and array.name == STEP)
                yield Finding("error", self._at(file), what, "" if hopeless else "fills it up")
        if array.name not in AXIS:
            return
        for index in range(-(-rows // per_file)):
            if index not in files:
                first, last = index * per_file, min(rows, (index + 1) * per_file) - 1
                yield Finding(
                    "error", self._at(array.path), f"the file of rows {first} to {last} is missing"
                )
            elif array.name == WALL_TIME:
                stored = column_file(files[index], array.form)[: rows - index * per_file]
                absent = np.frombuffer(fill_of(array), np.uint8)
                lost = np.flatnonzero((stored == absent).all(axis=1))
                if lost.size:
                    what = f"{lost.size} rows have no time, from row {index * per_file + lost[0]}"
                    yield Finding("error", self._at(files[index]), what)

    def _strip(self, group: GroupState, array: ArrayState) -> Iterator[Finding]:
        for index, file in array.files():
            try:
                with ShardFile(file, array.form) as shard:  # type: ignore[arg-type]
                    yield from self._shard(group, index, shard)
            except FileNotFoundError:  # a rewind of a live run took it away
                continue
        if array.form is None:
            return
        for index, position, parts in incomplete(array.form, array.parts()):
            row = index * array.form.rows + position
            if row < group.rows:
                what = (
                    f"the frame of step {group.steps[row]} has {parts} of {array.form.parts} files"
                )
                yield Finding("error", self._at(array.path), what)

    def _shard(self, group: GroupState, index: int, shard: ShardFile) -> Iterator[Finding]:
        where, start = self._at(shard.path), index * shard.form.rows
        committed = max(0, min(shard.form.rows, group.rows - start))
        if committed == 0 and not (self._writer or group.damaged):
            yield Finding("warning", where, "it lies behind the last row", "removes it")
            return
        if shard.entries is None:
            if shard.recovered(committed) is not None:
                cure = "rebuilds it from the blocks"
                yield Finding("error", where, "its index is damaged", cure)
            else:
                held = len(shard.found()) // shard.blocks
                what = f"its index is damaged; {held} frames are whole, their steps are not certain"
                yield Finding("error", where, what)
            return
        lie = shard.lies()
        if lie:
            yield Finding("error", where, f"its index cannot be true: {lie}")
            return
        if not self._writer:
            if shard.live:
                yield Finding("warning", where, "it is not sealed", "seals it")
            behind = shard.entries[committed * shard.blocks :]
            if any(offset != EMPTY for offset, _ in behind) and not group.damaged:
                what = "it holds frames behind the last row, which are not committed"
                yield Finding("warning", where, what, "drops them")
        for position in range(committed):
            bad = [e for e in shard.row(position) if e[0] != EMPTY and not shard.whole(e)]
            if bad:
                step = int(group.steps[start + position])
                what = f"the frame of step {step} is damaged, at byte {bad[0][0]}"
                yield Finding("error", where, what)


def _without_length(document: Json) -> Json:
    shape = document.get("shape")
    return {**document, "shape": shape[1:] if isinstance(shape, list) else shape}
