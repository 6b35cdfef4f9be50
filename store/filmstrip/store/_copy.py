"""Copying: the only place that copies a run, or a part of it, to another place.

Blocks are copied as they are stored, verified on the way, into shards that are sealed and dense. A
file takes its place whole, columns after strips, and a group's metadata after its arrays: a copy
that was cut short is a run of what it has got so far, and a second one goes on with it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmstrip.store import _files
from filmstrip.store._blocks import (
    BlockReader,
    ShardFile,
    Stored,
    dense_entries,
    write_shard,
)
from filmstrip.store._lock import WriterLock
from filmstrip.store._metadata import ArrayMetadata, Json, group_text, parent_groups, run_attributes
from filmstrip.store._names import FRAME_KINDS, LOCK, METADATA, RANKS, STATISTICS, STEP
from filmstrip.store._place import LocalPlace
from filmstrip.store._publish import translated
from filmstrip.store._select import Selector, nearest_names, select, slice_steps
from filmstrip.store._shardlog import DAMAGED_INDEX, EMPTY
from filmstrip.store._survey import (
    AXIS,
    ArrayState,
    GroupState,
    column_file,
    fill_of,
    leftovers,
    local_path,
    root_attributes,
    steps_of,
    stores_of,
    survey,
)
from filmstrip.store.errors import (
    FormatError,
    KindNotFoundError,
    LayerNotFoundError,
    StoreError,
)

Progress = Callable[[int, int], None]
"""Is told of bytes done and bytes in all."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What `copy` did.

    Attributes
    ----------
    path : str
        The copy.
    frames, bytes : int
        In the copy, of all kinds; bytes as stored.
    written : int
        Bytes of those that were written this time; a copy that was cut short had the others.
    """

    path: str
    frames: int
    bytes: int
    written: int


def copy(
    run: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    kinds: str | Iterable[str] | None = None,
    layers: Selector = "*",
    steps: slice = slice(None),
    progress: Progress | None = None,
) -> Copied:
    """Copy a run, or a part of it, to another place, equal to the bit, sealed and without holes.

    Parameters
    ----------
    run : str or path-like
        Local path of a run. Of a live one, the rows that are complete now are copied.
    destination : str or path-like
        Local path of the copy. A copy there that was cut short, or has fewer steps, is completed.
    kinds : str or iterable of str, optional
        Kinds whose frames and statistics are copied; all by default. Scalars always come along.
    layers : str or iterable of str
        Layers whose frames are copied: globs, or regular expressions behind ``re:``.
    steps : slice
        Steps that are copied, by label; half open.
    progress : callable, optional
        Called with the bytes done and the bytes in all.

    Returns
    -------
    Copied
        How much.

    Raises
    ------
    RunLockedError
        If somebody is writing to the destination.
    KindNotFoundError, LayerNotFoundError, SelectionError
        If nothing is selected.
    FormatError
        If a block, or a step axis, of the run is damaged.
    StoreError
        If another run is at the destination, or a copy of another selection. Nothing was touched.
    StoreWriteError
        If the disk refuses. A second copy goes on.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from filmstrip.store import FrameSpec, create_run, open_run
    >>> folder = tempfile.mkdtemp()
    >>> with create_run(f"{folder}/run.zarr") as run:
    ...     writer = run.writer("weights", {"fc": FrameSpec((2,), "float32")})
    ...     for step in (0, 100, 200):
    ...         writer.append(step, {"fc": np.full(2, step, np.float32)})
    >>> copy(f"{folder}/run.zarr", f"{folder}/late.zarr", steps=slice(100, None)).frames
    2
    >>> open_run(f"{folder}/late.zarr").weights["fc"].steps
    array([100, 200])
    """
    source, target = local_path(run), local_path(destination)
    if target == source or source in target.parents or target in source.parents:
        raise StoreError(f"a run cannot be copied into itself: {target}")
    run_attributes(LocalPlace(source))
    stores = stores_of(source)
    chosen = None if kinds is None else sorted({kinds} if isinstance(kinds, str) else set(kinds))
    selection: Json = {
        "kinds": chosen,
        "layers": [layers] if isinstance(layers, str) else list(layers),
        "steps": [steps.start, steps.stop, steps.step],
    }
    slice_steps(np.empty(0, np.int64), steps)  # raises before anything is made
    _check_selection(source, stores, chosen, selection["layers"])
    total = _Total(progress)
    copies = [_StoreCopy(store, target / store.relative_to(source), selection) for store in stores]
    with translated(target):
        try:
            for one in copies:
                one.begin()
            total.all = sum(one.plan() for one in copies)
            for one in copies:
                one.run(total)
            _copy_rank_group(source, target, stores)
        finally:
            for one in copies:
                one.release()
    return Copied(str(target), total.frames, total.all, total.written)


@dataclass(slots=True)
class _Total:
    progress: Progress | None
    all: int = 0
    done: int = 0
    written: int = 0
    frames: int = 0

    def add(self, count: int, *, written: bool) -> None:
        self.done += count
        self.written += count if written else 0
        if self.progress is not None:
            self.progress(self.done, self.all)


def _check_selection(
    source: Path, stores: list[Path], kinds: list[str] | None, layers: list[str]
) -> None:
    groups = [group for store in stores for group in survey(store).values()]
    there = sorted({group.name.removeprefix(f"{STATISTICS}/") for group in groups})
    for kind in kinds or []:
        if kind not in there:
            raise KindNotFoundError(str(source), kind, there)
    names = {
        layer: None
        for group in groups
        if group.name in FRAME_KINDS and (kinds is None or group.name in kinds)
        for layer in group.layers
    }
    if layers != ["*"] and not select(layers, names):
        raise LayerNotFoundError(", ".join(layers), source.name, nearest_names(layers, list(names)))


@dataclass(slots=True)
class _GroupPlan:
    group: GroupState
    rows: npt.NDArray[np.int64]
    arrays: dict[str, ArrayState]


class _StoreCopy:
    """The copy of one rank's store."""

    def __init__(self, source: Path, target: Path, selection: Json) -> None:
        self._source, self._target, self._selection = source, target, selection
        self._lock: WriterLock | None = None
        self._attributes: Json = {}
        self._plans: list[_GroupPlan] = []
        self._resumed = False

    def begin(self) -> None:
        """Make the destination, or see that it is an unfinished copy of the same."""
        origin = root_attributes(self._source)
        if origin is None:
            reason = f"its {METADATA} is damaged; `filmstrip repair` mends it"
            raise FormatError(str(self._source), reason)
        there = _check_target(self._target)
        _files.make_directory(self._target)
        self._lock = WriterLock(self._target)
        there = _check_target(self._target)
        entry: Json = {
            "number": len(origin["attempts"]) + 1,
            "first_step": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": time.time(),
            "copied": {"from": str(self._source), **self._selection},
        }
        if there is not None:
            before = (there["attempts"] or [{}])[-1].get("copied")
            if not before or there["run_id"] != origin["run_id"]:
                what = f"{self._target} already holds another run, and nothing was touched"
                raise StoreError(f"{what}; choose another path")
            if any(before.get(key) != value for key, value in self._selection.items()):
                old = ", ".join(f"{key} {before.get(key)}" for key in self._selection)
                raise StoreError(
                    f"{self._target} is a copy of another selection ({old}); choose another path"
                )
            self._check_not_rewound(there["attempts"][:-1], origin["attempts"])
            entry["time"] = there["attempts"][-1]["time"]
        self._attributes = {**origin, "attempts": [*origin["attempts"], entry]}
        self._attributes["groups"] = [] if there is None else list(there["groups"])
        if there is None:
            self._write(self._target / METADATA, group_text(self._attributes, {}))
        for partial in list(leftovers(self._target)):
            _files.unlink(partial)

    def _check_not_rewound(self, then: list[Json], now: list[Json]) -> None:
        """Raise if steps that are in the copy may since have been recorded a second time."""
        same = _attempts(now[: len(then)]) == _attempts(then)
        since = [a.get("first_step") for a in now[len(then) :]]
        groups = survey(self._target).values()
        last = max((int(group.steps[-1]) for group in groups if group.rows), default=-1)
        if not same or any(first is not None and first <= last for first in since):
            raise StoreError(
                f"{self._target} is a copy from before {self._source} was resumed from an earlier "
                "step; choose another path"
            )
        self._resumed = True

    def plan(self) -> int:
        """Decide what is copied; return its bytes."""
        kinds, total = self._selection["kinds"], 0
        for name, group in survey(self._source).items():
            kind = name.removeprefix(f"{STATISTICS}/")
            if kinds is not None and kind in FRAME_KINDS and kind not in kinds:
                continue
            if group.damaged:
                raise FormatError(str(group.path), f"{group.damaged}; see `filmstrip check`")
            picked = slice_steps(group.steps, slice(*self._selection["steps"]))
            arrays = {key: a for key, a in group.arrays.items() if a.form is not None}
            if name in FRAME_KINDS:
                layers = select(self._selection["layers"], group.layers)
                arrays = {
                    key: array
                    for key, array in arrays.items()
                    if "layer" not in array.about or array.about["layer"] in layers
                }
            plan = _GroupPlan(group, np.searchsorted(group.steps, picked), arrays)
            for array in arrays.values():
                assert array.form is not None
                if array.form.layout is None:
                    total += len(picked) * len(fill_of(array))
                else:
                    total += sum(
                        block.entry[1]
                        for _, _, shard in _planned(array, plan.rows)
                        for block in shard
                        if block is not None
                    )
            self._plans.append(plan)
        return total

    def run(self, total: _Total) -> None:
        """Copy what was planned and is not there yet."""
        texts: dict[str, dict[str, str]] = {}
        reader = BlockReader()
        try:
            for plan in self._plans:
                # The step last: where it stands, the row is whole.
                for array in sorted(plan.arrays.values(), key=lambda array: array.name == STEP):
                    assert array.form is not None
                    if array.form.layout is None:
                        self._column(plan, array, total)
                    else:
                        self._strip(plan, array, reader, total)
                self._check_unmoved(plan)
                name = plan.group.name
                texts[name] = {
                    key: ArrayMetadata.of(array.document or {}).text(len(plan.rows))
                    for key, array in plan.arrays.items()
                }
                for key, text in texts[name].items():
                    self._write(self._target / name / key / METADATA, text)
                about = group_text(plan.group.attributes or {}, texts[name])
                self._write(self._target / name / METADATA, about)
                if not self._resumed:
                    self._publish(texts)
        finally:
            reader.close()
        self._attributes["attempts"][-1]["ended"] = time.time()
        self._publish(texts)

    def _publish(self, texts: dict[str, dict[str, str]]) -> None:
        """Name the groups that are whole, for every reader."""
        parents = parent_groups(texts)
        members = {parent: group_text({}, {}) for parent in parents}
        for parent in parents:
            self._write(self._target / parent / METADATA, members[parent])
        about = {plan.group.name: plan.group.attributes or {} for plan in self._plans}
        for name in sorted(texts):
            members[name] = group_text(about[name], {})
        for name, arrays in texts.items():
            members.update({f"{name}/{key}": text for key, text in arrays.items()})
        self._attributes["groups"] = list(texts)
        self._write(self._target / METADATA, group_text(self._attributes, members))

    def _write(self, path: Path, text: str) -> None:
        _files.make_directory(path.parent)
        _files.replace(path, text.encode())

    def _strip(
        self,
        plan: _GroupPlan,
        array: ArrayState,
        reader: BlockReader,
        total: _Total,
    ) -> None:
        folder = self._target / plan.group.name / array.name
        _files.make_directory(folder)
        for name, frames, blocks in _planned(array, plan.rows):
            held = [block for block in blocks if block is not None]
            total.frames += frames
            path = folder / name
            if not held:
                _files.unlink(path)  # the source was pruned since
                continue
            there = self._resumed and _holds(path, array, blocks)
            if not there:
                write_shard(path, blocks, reader)
            total.add(sum(block.entry[1] for block in held), written=not there)

    def _column(self, plan: _GroupPlan, array: ArrayState, total: _Total) -> None:
        assert array.form is not None
        form, fill = array.form, fill_of(array)
        folder = self._target / plan.group.name / array.name
        _files.make_directory(folder)
        per_file, files = form.rows, dict(array.files())
        for number, start in enumerate(range(0, len(plan.rows), per_file)):
            rows = plan.rows[start : start + per_file]
            values = np.tile(np.frombuffer(fill, np.uint8), (per_file, 1))
            for index in np.unique(rows // per_file).tolist():
                here = np.flatnonzero(rows // per_file == index)
                if index not in files:
                    continue
                stored = column_file(files[index], form)
                local = rows[here] - index * per_file
                if local.size and local[-1] >= len(stored):
                    raise FormatError(str(files[index]), "it is too short")
                values[here] = stored[local]
            data, path = values.tobytes(), folder / form.key(number)
            empty = data == fill * per_file and array.name not in AXIS
            if array.about.get("layer") is not None and plan.group.name in FRAME_KINDS:
                total.frames += int(
                    (values != np.frombuffer(fill, np.uint8)).any(axis=1)[: len(rows)].sum()
                )
            there = path.exists() and path.read_bytes() == data
            if empty:
                _files.unlink(path)
            elif not there:
                _files.replace(path, data)
            total.add(len(rows) * len(fill), written=not there)

    def _check_unmoved(self, plan: _GroupPlan) -> None:
        """Raise if a live run took back rows while they were copied."""
        now = steps_of(plan.group.arrays[STEP])
        before = plan.group.steps
        moved = len(now) < len(before) or not np.array_equal(now[: len(before)], before)
        if moved or _attempts((root_attributes(self._source) or self._attributes)["attempts"]) != (
            _attempts(self._attributes["attempts"][:-1])
        ):
            raise StoreError(f"{self._source} was resumed meanwhile; copy it again")

    def release(self) -> None:
        """Let others write to the destination."""
        if self._lock is not None:
            self._lock.release()


def _check_target(path: Path) -> Json | None:
    """Return the root's attributes of a store that is there, None without any."""
    if not path.exists():
        return None
    mine = (LOCK, RANKS)  # of a copy that was only begun
    if path.is_dir() and all(
        child.name in mine or child.name.endswith(_files.PARTIAL) for child in path.iterdir()
    ):
        return None
    return dict(run_attributes(LocalPlace(path)))


def _attempts(attempts: list[Json]) -> list[Any]:
    """Return what tells attempts apart, whether they have ended or not."""
    return [[a.get("number"), a.get("host"), a.get("pid"), a.get("time")] for a in attempts]


def _planned(
    array: ArrayState, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[str, int, list[Stored | None]]]:
    """Yield every shard of the copy: name of its file, frames that begin in it, blocks by slot."""
    form, files = array.form, array.parts()
    assert form is not None
    assert form.layout is not None
    blocks = form.layout.blocks
    for number, start in enumerate(range(0, len(rows), form.rows)):
        some = rows[start : start + form.rows].tolist()
        there: list[bool] = []
        for part in range(form.parts):
            found = list(_stored(array, files, part, some))
            there = there or [bool(row) for row in found]
            for row, known, held in zip(some, there, found, strict=True):
                if known and not held:
                    path = array.path / form.key(row // form.rows, part)
                    raise FormatError(str(path), "a part of a frame is missing")
            slots: list[Stored | None] = []
            for known, held in zip(there, found, strict=True):
                slots += held if known else [None] * blocks
            slots += [None] * (form.layout.slots - len(slots))
            yield form.key(number, part), 0 if part else sum(there), slots


def _stored(
    array: ArrayState, files: dict[tuple[int, int], Path], part: int, rows: list[int]
) -> Iterator[list[Stored]]:
    """Yield the blocks that one part of some rows has; none where there is no frame."""
    assert array.form is not None
    assert array.form.layout is not None
    per_file, blocks = array.form.rows, array.form.layout.blocks
    last, entries, path = -1, None, Path()
    for row in rows:
        index, position = divmod(row, per_file)
        if index != last:
            path = files.get((index, part), Path())
            last, entries = index, _entries(path, array) if (index, part) in files else None
        some = (entries or [])[position * blocks : (position + 1) * blocks]
        yield [Stored(path, entry) for entry in some if entry[0] != EMPTY]


def _entries(path: Path, array: ArrayState) -> list[tuple[int, int]] | None:
    assert array.form is not None
    try:
        with ShardFile(path, array.form) as shard:
            if shard.entries is None:
                raise FormatError(str(path), DAMAGED_INDEX)
            lie = shard.lies()
            if lie:
                raise FormatError(str(path), f"its index cannot be true: {lie}")
            return shard.entries
    except FileNotFoundError:
        return None


def _holds(path: Path, array: ArrayState, blocks: list[Stored | None]) -> bool:
    """Return whether a shard of the copy has these blocks already."""
    assert array.form is not None
    if not path.exists():
        return False
    with ShardFile(path, array.form) as shard:
        return shard.entries == dense_entries(blocks)


def _copy_rank_group(source: Path, target: Path, stores: list[Path]) -> None:
    if len(stores) > 1 and (source / RANKS / METADATA).exists():
        _files.replace(target / RANKS / METADATA, group_text({}, {}).encode())
