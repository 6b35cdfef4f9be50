"""Repairing: the only place that brings a store whose writer died, or that was damaged, into order.

Everything is decided from what is on disk, and each act is whole by itself: killed anywhere, the
next repair goes on. Nothing is taken away that a committed row may need.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from filmstrip.store import _files
from filmstrip.store._arrays import ArrayForm, ColumnArray
from filmstrip.store._blocks import ShardFile, incomplete
from filmstrip.store._group import AXIS_COLUMNS
from filmstrip.store._lock import WriterLock
from filmstrip.store._metadata import (
    FORMAT,
    ArrayMetadata,
    Json,
    check_root,
    group_text,
    parent_groups,
)
from filmstrip.store._names import METADATA, RANKS, STEP, WALL_TIME, chunk_position
from filmstrip.store._place import LocalPlace
from filmstrip.store._publish import translated
from filmstrip.store._shardlog import EMPTY, ShardLog, packed_index
from filmstrip.store._summary import STATISTICS
from filmstrip.store._survey import (
    AXIS,
    DAMAGED,
    ArrayState,
    GroupState,
    column_file,
    fill_of,
    is_bare,
    leftovers,
    local_stores,
    members_of_root,
    remembered,
    root_attributes,
    steps_of,
    survey,
    unfinished,
)
from filmstrip.store.errors import FormatError, StoreError


@dataclass(frozen=True, slots=True)
class Repair:
    """One thing that `repair` did, or could not do.

    Attributes
    ----------
    path : str
        Where, from the run on.
    what : str
        What was done, or what is wrong and was left as it is.
    done : bool
        Which of the two.
    """

    path: str
    what: str
    done: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" if self.done else f"left: {self.path}: {self.what}"


def repair(run: str | os.PathLike[str], *, set_aside: bool = False) -> list[Repair]:
    """Bring a run, all its ranks' stores, into order after its writer died or it was damaged.

    Shards are sealed and columns filled up; complete rows are committed and what lies behind them
    is dropped; lengths are set and the metadata of all levels rebuilt from the arrays; what was
    left half made is removed. Nothing is deleted that may be committed. A second repair has
    nothing left to do.

    Parameters
    ----------
    run : str or path-like
        Local path of a run that nobody is writing to.
    set_aside : bool
        Give shards whose index is lost for good another name, ending in ``.damaged``. Their frames
        are then absent, and what is left of the layer can be read and gone on with.

    Returns
    -------
    list of Repair
        What was done, and what could not be.

    Raises
    ------
    RunLockedError
        If the run is being written. Nothing was changed.
    RunNotFoundError, NotARunError, FormatError
        If there is no run, or a newer filmstrip wrote it.
    StoreWriteError
        If the disk refuses. Repair again once it does not.

    Examples
    --------
    >>> import tempfile
    >>> from filmstrip.store import create_run
    >>> folder = tempfile.mkdtemp()
    >>> with create_run(f"{folder}/run.zarr") as run:
    ...     run.log(0, {"loss": 0.5})
    >>> repair(f"{folder}/run.zarr")
    []
    """
    path, stores = local_stores(run)
    report: list[Repair] = []
    with contextlib.ExitStack() as stack, translated(path):
        for store in stores:  # all of them, before anything is changed
            lock = WriterLock(store)
            stack.callback(lock.release)
        for store in stores:
            descriptors = _files.Descriptors()
            stack.callback(descriptors.close)
            _Repairing(path, store, stores, descriptors, report, set_aside=set_aside).run()
    return report


class _Repairing:
    def __init__(
        self,
        run: Path,
        store: Path,
        stores: list[Path],
        descriptors: _files.Descriptors,
        report: list[Repair],
        *,
        set_aside: bool,
    ) -> None:
        self._set_aside = set_aside
        self._run, self._store, self._stores = run, store, stores
        self._descriptors, self._report = descriptors, report
        self._members: dict[str, dict[str, str]] = {}
        self._attributes: dict[str, Json] = {}

    def _say(self, path: Path, what: str, *, done: bool = True) -> None:
        self._report.append(Repair(str(path.relative_to(self._run)), what, done))

    def run(self) -> None:
        for partial in list(leftovers(self._store)):
            _files.unlink(partial)
            self._say(partial, "removed what a killed process left")
        root = root_attributes(self._store)
        groups = survey(self._store)
        for name, group in groups.items():
            unnamed = root is not None and name not in root["groups"]
            if unnamed and not group.rows and is_bare(group.path):
                # Rows come only after the root names the group.
                _files.remove_tree(group.path)
                self._say(group.path, "removed a group that was never finished")
            elif not group.path.is_dir():
                self._say(group.path, "the group is gone", done=False)
            else:
                self._group(group)
        there = {name: group for name, group in groups.items() if group.path.is_dir()}
        for folder in list(unfinished(self._store, there)):
            _files.remove_tree(folder)
            self._say(folder, "removed what a killed process began")
        self._publish(root, groups)

    def _group(self, group: GroupState) -> None:
        self._complete(group)
        if group.damaged:
            # How many rows there are is not known: nothing may be cut, or set.
            self._say(group.path, group.damaged, done=False)
            if not group.told:  # written now, metadata would say what nobody knows
                return
            rows = group.published
        else:
            rows = group.rows
            if rows > group.published:
                count = rows - group.published
                self._say(group.path, f"committed {count} complete rows, there are {rows} now")
        arrays = sorted(group.arrays.values(), key=lambda array: array.name != STEP)
        for array in arrays:  # the step first: while it stands, its row must be whole
            self._array(group, array)
        texts: dict[str, str] = {}
        for name, array in group.arrays.items():
            if array.document is not None and array.form is not None:
                metadata = ArrayMetadata.of(array.document)
                texts[name] = metadata.text(rows)
                if (
                    array.path.is_dir()
                    and not array.linked
                    and (array.own is None or not group.damaged)
                ):
                    self._write(array.path / METADATA, texts[name])
        self._attributes[group.name] = self._described(group)
        self._members[group.name] = texts
        self._write(group.path / METADATA, group_text(self._attributes[group.name], texts))

    def _write(self, path: Path, text: str) -> None:
        """Put metadata in place where they differ from what is there."""
        data = text.encode()
        if path.is_dir():
            self._say(path, "it is a folder, where metadata belong", done=False)
            return
        before: bytes | None = None
        with contextlib.suppress(StoreError):
            before = LocalPlace(path).read()
        if before != data:
            _files.make_directory(path.parent)
            _files.replace(path, data)
            self._say(path, "written anew" if before is None else "rewritten")

    def _complete(self, group: GroupState) -> None:
        """Decide on arrays that the group does not name, and on those nobody describes."""
        for name in AXIS:
            array = group.arrays.get(name)
            if array is None or array.form is None:
                dtype, fill = AXIS_COLUMNS[name]
                form = ArrayForm.column(np.dtype(dtype).newbyteorder("<"))
                document = form.document([STEP], {}, fill=fill)
                group.arrays[name] = ArrayState(name, group.path / name, None, document, document)
                self._say(group.path / name, "its description was lost, and is made anew")
        if not group.rows:
            group.steps = steps_of(group.arrays[STEP])
        for name, array in list(group.arrays.items()):
            if array.form is None:
                what = "no description of it can be understood"
                self._say(array.path, what, done=False)
            elif group.whole and array.grouped is None and is_bare(array.path):
                # A row cannot have come before the group named it.
                _files.remove_tree(array.path)
                del group.arrays[name]
                self._say(array.path, "removed an array that was never finished")

    def _array(self, group: GroupState, array: ArrayState) -> None:
        if array.form is None or array.document is None:
            return
        if array.linked or (array.path.exists() and not array.path.is_dir()):
            what = "it is a link, which is not followed" if array.linked else "it is not a folder"
            self._say(array.path, what, done=False)
            return
        _files.make_directory(array.path)
        odd = [
            file
            for file in sorted(array.path.iterdir())
            if chunk_position(file.name) is not None and (file.is_symlink() or not file.is_file())
        ]
        for file in odd:
            self._say(file, "it is not a file", done=False)
        if array.form.layout is None:
            self._column(group, array, array.form, settled=not (odd or group.damaged))
            return
        for index, file in array.files():
            self._shard(group, array.form, index, file)
        partial = {index for index, _, _ in incomplete(array.form, array.parts())}
        for (index, _), file in array.parts().items():
            if index in partial:
                self._leave(file, "other parts of its frames are missing")

    def _column(
        self, group: GroupState, array: ArrayState, form: ArrayForm, *, settled: bool
    ) -> None:
        """Fill up files that were cut; where that is settled, clear what lies behind the rows."""
        fill = fill_of(array)
        length = form.rows * len(fill)
        for index, file in array.files():
            size = file.stat().st_size
            if size > length:
                self._say(file, f"it has {size} bytes instead of {length}", done=False)
            if size >= length:
                continue
            behind = index * form.rows >= group.rows and not group.damaged
            if not behind and not (group.damaged and array.name == STEP):
                data = column_file(file, form).tobytes()
                _files.replace(file, data + (fill * form.rows)[len(data) :])
                self._say(file, f"filled up: it had {len(data)} of {length} bytes")
        if not settled:
            return
        before = {file: file.stat() for _, file in array.files()}
        metadata = ArrayMetadata.of(array.document or {})
        ColumnArray(array.path, form, metadata, self._descriptors, fill=fill).truncate(group.rows)
        after = {file: file.stat() for _, file in array.files()}
        for file, status in before.items():
            if file not in after:
                self._say(file, "removed: it lay behind the last row")
            elif after[file].st_ino != status.st_ino:
                self._say(file, "cleared what lay behind the last row")
        if array.name in AXIS:
            there = {index for index, _ in array.files()}
            for index in range(-(-group.rows // form.rows)):
                if index not in there:
                    what = f"the file of rows from {index * form.rows} is missing"
                    self._say(array.path, what, done=False)

    def _shard(self, group: GroupState, form: ArrayForm, index: int, file: Path) -> None:
        rows = group.published if group.damaged else group.rows
        committed = max(0, min(form.rows, rows - index * form.rows))
        if committed == 0:
            if not group.damaged:
                _files.unlink(file)
                self._say(file, "removed: it lay behind the last row")
            return
        with ShardFile(file, form) as shard:
            if shard.entries is None:
                entries = shard.recovered(committed)
                if entries is None:
                    held = len(shard.found()) // shard.blocks
                    what = (
                        f"its index is damaged; {held} frames are whole, "
                        "but of which steps is not certain"
                    )
                    self._leave(file, what)
                    return
                fd = self._descriptors.get(str(file))
                _files.pwrite(fd, [packed_index(entries)], shard.size - shard.index_bytes)
                self._descriptors.drop(str(file))
                held = sum(offset != EMPTY for offset, _ in entries) // shard.blocks
                self._say(file, f"rebuilt its index from {held} frames")
                shard.refresh()
            lie = shard.lies()
            if lie or shard.entries is None:
                self._leave(file, f"its index cannot be true: {lie}")
                return
            for position in range(committed):
                if any(e[0] != EMPTY and not shard.whole(e) for e in shard.row(position)):
                    row = index * form.rows + position
                    step = int(group.steps[row]) if row < group.rows else -1
                    self._say(file, f"the frame of step {step} is damaged", done=False)
            behind = shard.entries[committed * shard.blocks :]
            dropped = sum(offset != EMPTY for offset, _ in behind) // shard.blocks
            live = shard.live
        if group.damaged or not (live or dropped):
            return
        assert form.layout is not None
        ShardLog(
            file,
            rows=form.rows,
            blocks=form.layout.blocks,
            bound=form.codec.bound(math.prod(form.layout.block) * form.dtype.itemsize),
            descriptors=self._descriptors,
            keep=committed,
        ).seal()
        also = f", and dropped {dropped} frames behind the last row" if dropped else ""
        self._say(file, f"sealed it{also}")

    def _leave(self, file: Path, what: str) -> None:
        """Say what is wrong with a shard for good; give it another name if that was asked for."""
        if self._set_aside:
            aside, number = file.with_name(f"{file.name}{DAMAGED}"), 1
            while os.path.lexists(aside):  # one that was set aside before is kept, too
                number += 1
                aside = file.with_name(f"{file.name}.{number}{DAMAGED}")
            _files.rename(file, aside)
            self._say(file, f"set aside as {aside.name}: {what}")
        else:
            self._say(file, f"{what} (set_aside gives it another name)", done=False)

    def _described(self, group: GroupState) -> Json:
        if group.attributes is not None:
            return group.attributes
        head, _, kind = group.name.partition("/")
        if not kind:
            return {"kind": head}
        values = next((a for a in group.arrays.values() if a.form and a.form.shape), None)
        count = values.form.shape[0] if values is not None and values.form is not None else 0
        self._say(group.path, f"the names of its {count} layers are lost", done=False)
        layers = [f"lost.{number}" for number in range(count)]
        return {"kind": kind, "layers": layers, "stats": list(STATISTICS), "bits": 12}

    def _publish(self, root: Json | None, groups: dict[str, GroupState]) -> None:
        attributes = self._recovered(groups) if root is None else dict(root)
        names = [name for name in attributes["groups"] if name in self._members]
        names += [name for name in self._members if name not in names]
        # What a later filmstrip added stays as it is, and so does what a link stands for.
        others = [name for name in attributes["groups"] if name not in groups]
        attributes["groups"] = [*names, *others]
        parents = parent_groups(names)
        members = {parent: group_text({}, {}) for parent in parents}
        for parent in parents:
            self._write(self._store / parent / METADATA, members[parent])
        for name in sorted(names):
            members[name] = group_text(self._attributes[name], {})
        for name in names:
            members.update({f"{name}/{key}": text for key, text in self._members[name].items()})
        for key, member in members_of_root(self._store).items():
            if key not in members and any(f"{key}/".startswith(f"{name}/") for name in others):
                members[key] = json.dumps(member)
        self._write(self._store / METADATA, group_text(attributes, members))

    def _recovered(self, groups: dict[str, GroupState]) -> Json:
        """Return what can be known of a run whose root is lost, and say what cannot."""
        others = [a for s in self._stores if s != self._store if (a := root_attributes(s))]
        frameworks = [a.about.get("framework") for g in groups.values() for a in g.arrays.values()]
        times = [
            float(stored.view("<f8")[0, 0])
            for group in groups.values()
            if (array := group.arrays.get(WALL_TIME)) is not None and array.form is not None
            for _, file in array.files()[:1]
            if len(stored := column_file(file, array.form))
        ]
        rank = int(self._store.name) if self._store.parent.name == RANKS else 0
        known: Json = {
            "format": FORMAT,
            "run_id": secrets.token_hex(8),
            "created": min([t for t in times if math.isfinite(t)], default=time.time()),
            "framework": next((name for name in frameworks if name), None),
            "world_size": max(len(self._stores), rank + 1),
            "rank": rank,
            "groups": [name for name in groups if name in self._members],
            "attempts": [],
            "plan": {},
            "metadata": {},
        }
        shared = ("run_id", "created", "framework", "world_size", "plan", "metadata")
        lost = {key: key for key in ("run_id", "attempts", "plan", "metadata")}
        lost["run_id"] = f"run id (a new one: {known['run_id']})"
        kept = {key: others[0][key] for key in shared if key in others[0]} if others else {}
        for key, value in {**kept, **(remembered(self._store) or {})}.items():
            with contextlib.suppress(FormatError):
                check_root(LocalPlace(self._store), {**known, key: value})
                known[key] = value
                lost.pop(key, None)
        if lost:
            *some, last = lost.values()
            names = f"{', '.join(some)} and {last}" if some else last
            self._say(self._store / METADATA, f"its {names} are lost", done=False)
        return known
