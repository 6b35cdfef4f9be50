"""Pruning: the only place that takes frames out of a run to free space.

A shard is written anew without them and takes its place whole, so that a run is valid wherever
pruning was cut short. Rows, statistics and scalars stay.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmstrip.store import _files
from filmstrip.store._blocks import BlockReader, ShardFile, Stored, aligned, write_shard
from filmstrip.store._lock import WriterLock
from filmstrip.store._metadata import ArrayMetadata, group_text, run_attributes
from filmstrip.store._names import FRAME_KINDS, METADATA
from filmstrip.store._place import LocalPlace
from filmstrip.store._publish import translated
from filmstrip.store._select import Selector, nearest_names, select
from filmstrip.store._shardlog import DAMAGED_INDEX, EMPTY
from filmstrip.store._survey import (
    ArrayState,
    GroupState,
    column_file,
    fill_of,
    local_path,
    members_of_root,
    stores_of,
    survey,
)
from filmstrip.store.errors import FormatError, KindNotFoundError, LayerNotFoundError

Steps = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `prune` took away, or would take away.

    Attributes
    ----------
    frames, bytes : int
        How much; bytes as stored.
    kept : int
        Frames of the same layers that stay.
    layers : tuple of str
        Layers that vanish as a whole.
    """

    frames: int
    bytes: int
    kept: int
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Rule:
    keep_every: int | None
    keep_last: int | None
    before: int | None

    @property
    def everything(self) -> bool:
        return self.keep_every is None and self.keep_last is None and self.before is None

    def taken(self, steps: Steps) -> npt.NDArray[np.bool_]:
        """Return which of the steps that have a frame lose it."""
        taken = np.ones(len(steps), bool)
        if self.before is not None:
            taken &= steps < self.before
        if self.keep_every is not None:
            taken &= steps % self.keep_every != 0
        if self.keep_last:
            taken[-self.keep_last :] = False
        return taken


def prune(
    run: str | os.PathLike[str],
    *,
    kind: str,
    layers: Selector | None = None,
    keep_every: int | None = None,
    keep_last: int | None = None,
    before: int | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Take frames out of a run to free space; rows, statistics and scalars stay.

    A frame is taken away unless one of the rules keeps it. Without any rule, the layers vanish as
    a whole, and have to be named.

    Parameters
    ----------
    run : str or path-like
        Local path of a run that nobody is writing to.
    kind : str
        Kind of the frames.
    layers : str or iterable of str, optional
        Layers, as globs or as regular expressions behind ``re:``; all by default.
    keep_every : int, optional
        Keep the frames of steps that this number divides.
    keep_last : int, optional
        Keep the last frames of every layer, so many.
    before : int, optional
        Keep the frames of this step and all later ones.
    dry_run : bool
        Change nothing, and say what would be.

    Returns
    -------
    Pruned
        How much.

    Raises
    ------
    RunLockedError
        If the run is being written. Nothing was changed.
    KindNotFoundError, LayerNotFoundError
        If there is nothing like that.
    FormatError
        If something of it is damaged. Repair it first.
    ValueError
        If neither layers nor what to keep is said, or a number has no meaning.
    StoreWriteError
        If the disk refuses. What was not taken away yet is still there.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from filmstrip.store import FrameSpec, create_run, open_run
    >>> folder = tempfile.mkdtemp()
    >>> with create_run(f"{folder}/run.zarr") as run:
    ...     writer = run.writer("weights", {"fc": FrameSpec((2,), "float32")})
    ...     for step in range(0, 50, 10):
    ...         writer.append(step, {"fc": np.full(2, step, np.float32)})
    >>> prune(f"{folder}/run.zarr", kind="weights", keep_every=20).frames
    2
    >>> open_run(f"{folder}/run.zarr").weights["fc"].steps
    array([ 0, 20, 40])
    """
    path, rule = local_path(run), _Rule(keep_every, keep_last, before)
    for name, value, least in (
        ("keep_every", keep_every, 1),
        ("keep_last", keep_last, 0),
        ("before", before, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} has no meaning; it is {least} or more")
    if rule.everything and layers is None:
        raise ValueError(
            f"pruning needs to know what to keep of {kind} (keep_every, keep_last, before), "
            "or which layers vanish (layers)"
        )
    run_attributes(LocalPlace(path))
    if kind not in FRAME_KINDS:
        raise KindNotFoundError(str(path), kind, _kinds(path))
    with contextlib.ExitStack() as stack, translated(path):
        stores = stores_of(path)
        for store in [] if dry_run else stores:
            lock = WriterLock(store)
            stack.callback(lock.release)
        groups = {store: g for store in stores if (g := survey(store).get(kind)) is not None}
        if not groups:
            raise KindNotFoundError(str(path), kind, _kinds(path))
        names = list(dict.fromkeys(layer for group in groups.values() for layer in group.layers))
        chosen = select("*" if layers is None else layers, names)
        if not chosen:
            shown = layers if isinstance(layers, str) else ", ".join(layers or ["*"])
            where = f"{kind} in {path.name}"
            raise LayerNotFoundError(shown, where, nearest_names(shown, names))
        plans = [plan for group in groups.values() for plan in _plans(group, chosen, rule)]
        vanishing = [
            _Vanishing(store, group, chosen)
            for store, group in (groups.items() if rule.everything else ())
        ]
        for act in () if dry_run else (*plans, *vanishing):
            act.carry_out()
    return Pruned(
        frames=sum(plan.frames for plan in plans),
        bytes=sum(plan.bytes for plan in plans),
        kept=sum(plan.kept for plan in plans),
        layers=tuple(chosen) if rule.everything else (),
    )


def _kinds(path: Path) -> list[str]:
    return sorted({name for store in stores_of(path) for name in survey(store)} & set(FRAME_KINDS))


def _plans(group: GroupState, layers: list[str], rule: _Rule) -> list[_ShardPlan | _ColumnPlan]:
    """Return what every file of a group loses; nothing is changed yet."""
    wrong = group.damaged or ("" if group.told else "how many rows are committed is lost")
    if wrong:
        raise FormatError(str(group.path), f"{wrong}; see `filmstrip check`")
    plans: list[_ShardPlan | _ColumnPlan] = []
    for layer, array in group.layers.items():
        if layer in layers:
            plans += _array_plans(group, array, rule)
    return plans


def _array_plans(
    group: GroupState, array: ArrayState, rule: _Rule
) -> list[_ShardPlan | _ColumnPlan]:
    if array.form is None:
        raise FormatError(str(array.path), "no description of it can be understood")
    if array.linked:
        raise FormatError(str(array.path), "it is a link, which is not followed")
    per_file, files = array.form.rows, array.parts()
    present = {
        where: _present(file, array, group.rows - where[0] * per_file)
        for where, file in files.items()
    }
    rows = [
        index * per_file + position
        for (index, part), positions in present.items()
        for position in positions
        if part == 0
    ]
    taken = dict(zip(rows, rule.taken(group.steps[rows]).tolist(), strict=True))
    plans: list[_ShardPlan | _ColumnPlan] = []
    for (index, part), positions in present.items():
        # Without the first part a frame is not there: pruning was cut short.
        lost = [p for p in positions if taken.get(index * per_file + p, True)]
        make = _ColumnPlan if array.form.layout is None else _ShardPlan
        plan = make(files[index, part], array, lost, len(positions) - len(lost))
        if part:
            plan.frames = plan.kept = 0
        plans.append(plan)
    return plans


def _present(file: Path, array: ArrayState, rows: int) -> list[int]:
    """Return the positions inside a file of the committed rows that have a frame."""
    assert array.form is not None
    rows = max(0, min(rows, array.form.rows))
    if array.form.layout is None:
        stored = column_file(file, array.form)[:rows]
        there = (stored != np.frombuffer(fill_of(array), np.uint8)).any(axis=1)
        return [int(position) for position in np.flatnonzero(there)]
    with ShardFile(file, array.form) as shard:
        if shard.entries is None:
            raise FormatError(str(file), DAMAGED_INDEX)
        lie = shard.lies()
        if lie:
            raise FormatError(str(file), f"its index cannot be true: {lie}")
        return [position for position in range(rows) if shard.row(position)[0][0] != EMPTY]


class _ShardPlan:
    """What one shard loses."""

    def __init__(self, file: Path, array: ArrayState, lost: list[int], kept: int) -> None:
        assert array.form is not None
        self._file, self._form, self._lost = file, array.form, frozenset(lost)
        self.frames, self.kept = len(lost), kept
        self.bytes = 0
        if lost:
            with ShardFile(file, array.form) as shard:
                entries = [entry for position in lost for entry in shard.row(position)]
                self.bytes = sum(aligned(length) for _, length in entries)

    def carry_out(self) -> None:
        if not self._lost:
            return
        with ShardFile(self._file, self._form) as shard:
            assert shard.entries is not None
            blocks = [
                None
                if entry[0] == EMPTY or slot // shard.blocks in self._lost
                else Stored(self._file, entry)
                for slot, entry in enumerate(shard.entries)
            ]
        if not any(blocks):
            _files.unlink(self._file)
            return
        reader = BlockReader()
        try:
            # What it replaces is committed: the new one must be on the disk before.
            write_shard(self._file, blocks, reader, fsync=True)
        finally:
            reader.close()


class _ColumnPlan:
    """What one file of a column loses; it frees nothing unless all of it goes."""

    def __init__(self, file: Path, array: ArrayState, lost: list[int], kept: int) -> None:
        assert array.form is not None
        self._file, self._form, self._lost = file, array.form, lost
        self._fill = fill_of(array)
        self.frames, self.kept = len(lost), kept
        self.bytes = 0 if kept or not lost else self._form.rows * len(self._fill)

    def carry_out(self) -> None:
        if not self._lost:
            return
        if not self.kept:
            _files.unlink(self._file)
            return
        stored = column_file(self._file, self._form).copy()
        stored[self._lost] = np.frombuffer(self._fill, np.uint8)
        _files.replace(self._file, stored.tobytes(), fsync=True)


class _Vanishing:
    """What a group and its root say once layers are gone; decided before anything is changed."""

    def __init__(self, store: Path, group: GroupState, layers: list[str]) -> None:
        self._gone = [array for layer, array in group.layers.items() if layer in layers]
        names = {array.name for array in self._gone}
        members = {
            name: ArrayMetadata.of(array.document).text(group.published)
            for name, array in group.arrays.items()
            if name not in names and array.document is not None
        }
        below = {  # in the order that it has
            key: _text(document, store)
            for key, document in members_of_root(store).items()
            if key not in {f"{group.name}/{name}" for name in names}
        }
        self._texts = {
            group.path: group_text(group.attributes or {}, members),
            store: group_text(dict(run_attributes(LocalPlace(store))), below),
        }

    def carry_out(self) -> None:
        """Take layers, whose frames are gone, out of the metadata; then remove their folders."""
        for folder, text in self._texts.items():
            _files.replace(folder / METADATA, text.encode(), fsync=True)
        for array in self._gone:
            _files.remove_tree(array.path)


def _text(document: Any, store: Path) -> str:
    """Return one member of consolidated metadata as it is written."""
    try:
        if document.get("node_type") == "array":
            return ArrayMetadata.of(document).text(document["shape"][0])
        return group_text((document.get("attributes") or {}).get("filmstrip", {}), {})
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise FormatError(str(store / METADATA), "it is damaged; see `filmstrip check`") from error
