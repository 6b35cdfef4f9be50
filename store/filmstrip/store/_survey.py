"""Surveys: the only place that looks at a whole store as it lies on disk, damaged or not.

What metadata say is compared with what is there: of every array there are up to three descriptions,
its own, its group's and the root's.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmstrip.store import _files
from filmstrip.store._arrays import ArrayForm
from filmstrip.store._group import AXIS_COLUMNS
from filmstrip.store._metadata import FORMAT, MOST_RANKS, Json, read_json, run_attributes
from filmstrip.store._names import (
    FRAME_KINDS,
    HEALTH,
    LOCK,
    METADATA,
    RANKS,
    SAMPLES,
    SCALARS,
    STATISTICS,
    STEP,
    VALUES,
    WALL_TIME,
    chunk_key,
    rank_path,
    statistics_group,
)
from filmstrip.store._place import LocalPlace, checked_part
from filmstrip.store.errors import FormatError, NotARunError, RunNotFoundError, StoreError

DAMAGED = ".damaged"
"""Ending of shards that were set aside."""

AXIS = (WALL_TIME, SAMPLES, STEP)
KNOWN_GROUPS = (*FRAME_KINDS, SCALARS, HEALTH, *map(statistics_group, FRAME_KINDS))
Steps = npt.NDArray[np.int64]
_LEFT = re.compile(rf"({re.escape(METADATA)}|{LOCK}|probe|c(\.\d+)*)\.[0-9a-f]+{_files.PARTIAL}")


@contextmanager
def _looking(where: Path) -> Iterator[None]:
    """Turn what the file system refuses to tell into a StoreError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        reason = os.strerror(error.errno or 0)
        raise StoreError(f"{error.filename or where} cannot be read: {reason}") from error


def readable(path: Path) -> Json | None:
    """Return a JSON document, None when it is missing or damaged."""
    try:
        return read_json(LocalPlace(path))
    except (StoreError, OSError, ValueError, RecursionError):
        return None


def local_path(run: str | os.PathLike[str]) -> Path:
    """Return the path of a run that is to be looked at file by file.

    Raises
    ------
    FormatError
        If it is a URL.
    """
    location = os.fspath(run)
    if "://" in location:
        raise FormatError(location, "this needs the run at a local path")
    return Path(location).absolute()


def local_stores(run: str | os.PathLike[str]) -> tuple[Path, list[Path]]:
    """Return the path of a run that is to be looked at file by file, and its stores.

    Raises
    ------
    FormatError
        If it is a URL, or a newer filmstrip wrote it.
    RunNotFoundError, NotARunError, StoreError
        As `stores_of`.
    """
    path = local_path(run)
    return path, stores_of(path)


def stores_of(run: Path) -> list[Path]:
    """Return the stores of a run: that of rank 0, then those of other ranks.

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
    """
    with _looking(run):
        return _stores_of(run)


def _stores_of(run: Path) -> list[Path]:
    if not run.exists():
        raise RunNotFoundError(str(run))
    if not run.is_dir():
        raise NotARunError(str(run), "it is a file")
    found = [run] if _is_store(run) else []
    ranks = run / RANKS
    if ranks.is_dir() and not ranks.is_symlink():
        found += [
            child
            for child in sorted(ranks.iterdir())
            if _is_rank(child.name) and not child.is_symlink() and _is_store(child)
        ]
    if not found:
        raise NotARunError(str(run), f"it has no {METADATA}")
    return found


def _is_rank(name: str) -> bool:
    digits = re.fullmatch(r"[0-9]{4,6}", name)
    return bool(digits) and int(name) < MOST_RANKS and rank_path(int(name)) == f"{RANKS}/{name}"


def _is_store(path: Path) -> bool:
    if not path.is_dir():
        return False
    known = root_attributes(path) is not None or bool(groups_on_disk(path))
    return known or os.path.lexists(path / METADATA)


def root_attributes(store: Path) -> Json | None:
    """Return what a store's root says of it, None when that is lost, or is not what it must be.

    Raises
    ------
    NotARunError
        If it is the root of something else.
    FormatError
        If a newer filmstrip wrote it.
    StoreError
        If it cannot be looked at: then nothing is known of it, neither that it is lost.
    """
    try:
        return run_attributes(LocalPlace(store))
    except RunNotFoundError:
        return None
    except NotARunError:
        if groups_on_disk(store) or not os.path.lexists(store / METADATA):
            return None
        raise
    except FormatError:
        version = (remembered(store) or {}).get("format")
        if isinstance(version, int) and version > FORMAT:
            raise
        return None


def remembered(store: Path) -> Json | None:
    """Return what a store's root says of it, whether or not that can be true."""
    return _attributes(readable(store / METADATA))


def groups_on_disk(store: Path) -> list[str]:
    """Return the groups that have a step axis on disk, whatever the root says."""
    return [
        name
        for name in KNOWN_GROUPS
        if (store / name / STEP).is_dir() and not (store / name).is_symlink()
    ]


@dataclass(slots=True)
class ArrayState:
    """One array as it lies on disk.

    Attributes
    ----------
    name : str
        Its name.
    path : Path
        Its folder.
    own, grouped, rooted : dict or None
        Its description in its own, the group's and the root's zarr.json; None where that is lost.
    document : dict or None
        The description to go by; None when there is no understandable one.
    form : ArrayForm or None
        What the description means.
    """

    name: str
    path: Path
    own: Json | None
    grouped: Json | None
    rooted: Json | None
    document: Json | None = None
    form: ArrayForm | None = None

    def __post_init__(self) -> None:
        # The group's is what readers go by; an array's own may lag behind it.
        for candidate in (self.grouped, self.own, self.rooted):
            if isinstance(candidate, dict):
                try:
                    form = ArrayForm.of(candidate, self.path)
                except StoreError:
                    continue
                if self.name not in AXIS or _is_axis(form, AXIS_COLUMNS[self.name][0]):
                    self.form, self.document = form, candidate
                    return

    @property
    def linked(self) -> bool:
        """Whether the folder is a link, which is not followed."""
        return self.path.is_symlink()

    @property
    def about(self) -> Json:
        """What the description says of the layer."""
        attributes = (self.document or {}).get("attributes")
        about = attributes.get("filmstrip", {}) if isinstance(attributes, dict) else {}
        return about if isinstance(about, dict) else {}

    def files(self) -> list[tuple[int, Path]]:
        """Return chunk files by their position along the step axis; the parts of rows in order."""
        return [(index, file) for (index, _), file in self.parts().items()]

    def parts(self) -> dict[tuple[int, int], Path]:
        """Return chunk files by their position along the step axis and the part that they hold."""
        if self.form is None or not self.path.is_dir() or self.linked:
            return {}
        found = [
            (self.form.where(file.name), file)
            for file in self.path.iterdir()
            if not file.is_symlink() and file.is_file()
        ]
        return dict(sorted((where, file) for where, file in found if where is not None))


def _is_axis(form: ArrayForm, dtype: str) -> bool:
    return form.layout is None and form.shape == () and form.dtype == np.dtype(dtype)


@dataclass(slots=True)
class GroupState:
    """One group as it lies on disk.

    Attributes
    ----------
    name : str
        Its path inside the store.
    path : Path
        Its folder.
    whole : bool
        Whether its own zarr.json can be read.
    attributes : dict or None
        What it says of itself, or the root says of it; None when that is lost.
    arrays : dict
        Its arrays by name.
    told : bool
        Whether its metadata, or else the root's, tell how many rows are committed.
    published : int
        How many they tell, 0 when nothing is left of them.
    steps : ndarray of int64, shape (n_rows,)
        Steps of the longest prefix of complete rows.
    """

    name: str
    path: Path
    whole: bool = False
    attributes: Json | None = None
    arrays: dict[str, ArrayState] = field(default_factory=dict)
    told: bool = False
    published: int = 0
    steps: Steps = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def rows(self) -> int:
        """Rows that are complete."""
        return len(self.steps)

    @property
    def damaged(self) -> str:
        """What is wrong with the steps, "" when nothing is."""
        step = self.arrays.get(STEP)
        if step is None or step.form is None:
            return "its step axis has no metadata that can be read"
        if step.linked:
            return "its step axis is a link, which is not followed"
        falls = np.flatnonzero(np.diff(self.steps) <= 0)
        if falls.size:
            row = int(falls[0])
            first, second = self.steps[row : row + 2].tolist()
            return f"its steps do not rise: {second} comes after {first}, in row {row + 1}"
        if not self.told and self._more(step, step.form):
            return (
                f"how many rows are committed is lost; {self.rows} have a step, and more is there"
            )
        if self.rows < self.published:
            return f"{self.published} rows are committed, and {self.rows} have a step"
        return ""

    def _more(self, step: ArrayState, form: ArrayForm) -> bool:
        """Return whether files tell of more rows than have a step."""
        length = form.rows * form.dtype.itemsize
        return any(file.stat().st_size < length for _, file in step.files()) or any(
            index * array.form.rows >= self.rows
            for array in self.arrays.values()
            if array.form is not None
            for index, _ in array.files()
        )

    @property
    def layers(self) -> dict[str, ArrayState]:
        """Arrays of layers by name of the layer, in forward order."""
        named = [
            (_order(array), position, str(array.about["layer"]), array)
            for position, array in enumerate(self.arrays.values())
            if "layer" in array.about
        ]
        return {layer: array for _, _, layer, array in sorted(named, key=lambda item: item[:2])}


def _order(array: ArrayState) -> int:
    order = array.about.get("order")
    return order if isinstance(order, int) else 0


def survey(store: Path) -> dict[str, GroupState]:
    """Return the groups of a store as they lie on disk.

    Raises
    ------
    NotARunError, FormatError
        As `root_attributes`.
    StoreError
        If it cannot be looked at.
    """
    with _looking(store):
        attributes = root_attributes(store) or {}
        listed = [name for name in attributes.get("groups", []) if name in KNOWN_GROUPS]
        names = [*dict.fromkeys([*listed, *groups_on_disk(store)])]
        root = members_of_root(store)
        return {
            name: _group(store, name, root)
            for name in names
            if not any((store / part).is_symlink() for part in (name, name.partition("/")[0]))
        }


def members_of_root(store: Path) -> dict[str, Json]:
    """Return the metadata of everything below that a store's root holds, {} when they are lost."""
    return _members(readable(store / METADATA))


def _members(document: Json | None) -> dict[str, Json]:
    """Return the metadata of everything below that a group's consolidated metadata hold."""
    try:
        members = (document or {})["consolidated_metadata"]["metadata"]
    except (KeyError, TypeError):
        return {}
    return members if isinstance(members, dict) else {}


def _attributes(document: Any) -> Json | None:
    about = document.get("attributes") if isinstance(document, dict) else None
    attributes = about.get("filmstrip") if isinstance(about, dict) else None
    return attributes if isinstance(attributes, dict) else None


def _group(store: Path, name: str, root: dict[str, Json]) -> GroupState:
    path = store / name
    document = readable(path / METADATA)
    grouped = _members(document)
    rooted = {
        key.removeprefix(f"{name}/"): member
        for key, member in root.items()
        if key.startswith(f"{name}/")
    }
    attributes = _attributes(document)
    group = GroupState(name, path, whole=attributes is not None and STEP in grouped)
    folders = [
        child.name
        for child in (sorted(path.iterdir()) if path.is_dir() else [])
        if child.is_dir() and not child.is_symlink() and (child / METADATA).exists()
    ]
    # The root stands in for what the group lost; what the group left out is no longer there.
    listed = [*grouped] if group.whole else [*grouped, *rooted]
    for array in dict.fromkeys([*listed, *folders]):
        if not is_array_name(array):
            continue
        folder = path / array
        own = None if folder.is_symlink() else readable(folder / METADATA)
        group.arrays[array] = ArrayState(array, folder, own, grouped.get(array), rooted.get(array))
    for candidate in (attributes, _attributes(root.get(name))):
        if candidate is not None and group.attributes is None and _describes(candidate, group):
            group.attributes = candidate
    group.whole &= group.attributes is attributes
    step = group.arrays.get(STEP)
    # The root never says more than the group does, unless one of them is damaged.
    told = [n for level in (grouped, rooted) if (n := length_of(level.get(STEP))) is not None]
    group.told, group.published = bool(told), max(told, default=0)
    if step is not None:
        group.steps = steps_of(step)
    return group


def _describes(attributes: Json, group: GroupState) -> bool:
    """Return whether a group's attributes can be true; those of statistics name its layers."""
    if not group.name.startswith(f"{STATISTICS}/"):
        return True
    layers, values = attributes.get("layers"), group.arrays.get(VALUES)
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        return False
    return values is None or values.form is None or values.form.shape[:1] >= (len(layers),)


def is_array_name(name: str) -> bool:
    """Return whether a name is that of one folder inside a group."""
    try:
        checked_part(name, "")
    except FormatError:
        return False
    return name != METADATA


def length_of(document: Any) -> int | None:
    """Return the rows that an array's metadata tell of, None when they do not."""
    try:
        length = document["shape"][0]
    except (KeyError, TypeError, IndexError):
        return None
    return length if type(length) is int and length >= 0 else None


def steps_of(array: ArrayState) -> Steps:
    """Return the steps of the longest prefix of rows that have one."""
    found: list[Steps] = []
    while array.form is not None and not array.linked:
        try:
            stored = column_file(array.path / chunk_key(len(found)), array.form)
        except (OSError, StoreError):
            break
        steps = stored.reshape(-1).view("<i8")
        behind = np.flatnonzero(steps < 0)
        found.append(steps[: behind[0]] if behind.size else steps)
        if behind.size or len(steps) < array.form.rows:
            break
    return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)


def column_file(path: Path, form: ArrayForm) -> npt.NDArray[np.uint8]:
    """Return the rows that one file of a column has, shape (n_rows, bytes of a row).

    Raises
    ------
    OSError, StoreError
        If it cannot be read, or is a link.
    """
    row = math.prod(form.shape) * form.dtype.itemsize
    if not row:
        return np.empty((0, 0), np.uint8)
    with LocalPlace(path).open() as blob:
        raw = np.frombuffer(blob.read(0, form.rows * row), np.uint8)
    return raw[: len(raw) // row * row].reshape(-1, row)


def fill_of(array: ArrayState) -> bytes:
    """Return a column's row as it is where nothing was written."""
    assert array.form is not None
    fill = AXIS_COLUMNS.get(array.name, ("", None))[1]
    return array.form.absent() if fill is None else np.array(fill, array.form.dtype).tobytes()


def leftovers(store: Path) -> Iterator[Path]:
    """Yield what killed processes left half made; other ranks' stores left out."""
    for folder, folders, files in os.walk(store):
        here = Path(folder)
        if here == store and RANKS in folders:
            folders.remove(RANKS)
        yield from (here / name for name in sorted(files) if is_left(name))


def unfinished(store: Path, groups: Mapping[str, GroupState]) -> Iterator[Path]:
    """Yield folders of groups and arrays that nobody describes, since their writer was killed."""
    parents = [STATISTICS] if not any(name.startswith(f"{STATISTICS}/") for name in groups) else []
    begun = [store / name for name in (*KNOWN_GROUPS, *parents) if name not in groups]
    for group in groups.values():
        if group.path.is_dir():
            folders = (child for child in sorted(group.path.iterdir()) if child.is_dir())
            begun += [folder for folder in folders if folder.name not in group.arrays]
    yield from (path for path in begun if path.is_dir() and is_bare(path))


def is_left(name: str) -> bool:
    """Return whether a file's name is that of one which a process is killed in the middle of."""
    return _LEFT.fullmatch(name) is not None


def is_bare(path: Path) -> bool:
    """Return whether nothing is in a folder but metadata and what was left half made."""
    if path.is_symlink():
        return False
    return all(
        file == METADATA or is_left(file)
        for folder, folders, files in os.walk(path)
        for file in [*files, *(name for name in folders if (Path(folder) / name).is_symlink())]
    )


def running(store: Path, attributes: Json | None) -> str:
    """Return who is writing to a store, by what its root says; "" when nobody is."""
    from filmstrip.store._status import state_of

    attempts = (attributes or {}).get("attempts", [])
    try:
        if not attempts or state_of(attempts, LocalPlace(store)) != "running":
            return ""
        return f"process {attempts[-1]['pid']} on {attempts[-1]['host']}"
    except (KeyError, TypeError, ValueError, OverflowError):
        return ""
