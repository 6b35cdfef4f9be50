"""Surveys: the only place that looks at a whole store as it lies on disk, damaged or not.

What metadata say is compared with what is there: of every array there are up to three descriptions,
its own, its group's and the root's.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmstrip.store import _files
from filmstrip.store._arrays import ArrayForm
from filmstrip.store._metadata import FORMAT, Json, read_json
from filmstrip.store._names import (
    FRAME_KINDS,
    HEALTH,
    METADATA,
    RANKS,
    SAMPLES,
    SCALARS,
    STEP,
    WALL_TIME,
    chunk_index,
    chunk_key,
    statistics_group,
)
from filmstrip.store._place import LocalPlace
from filmstrip.store.errors import FormatError, NotARunError, RunNotFoundError, StoreError

DAMAGED = ".damaged"
"""Ending of shards that were set aside."""

AXIS = (WALL_TIME, SAMPLES, STEP)
KNOWN_GROUPS = (*FRAME_KINDS, SCALARS, HEALTH, *map(statistics_group, FRAME_KINDS))
Steps = npt.NDArray[np.int64]


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
    """
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
            if re.fullmatch(r"\d{4,}", child.name) and not child.is_symlink() and _is_store(child)
        ]
    if not found:
        raise NotARunError(str(run), f"it has no {METADATA}")
    return found


def _is_store(path: Path) -> bool:
    if not path.is_dir():
        return False
    if (path / METADATA).exists() and root_attributes(path) is not None:
        return True
    return bool(groups_on_disk(path)) or (
        (path / METADATA).exists() and readable(path / METADATA) is None
    )


def root_attributes(store: Path) -> Json | None:
    """Return what a store's root says of it, None when that is lost.

    Raises
    ------
    NotARunError
        If it is the root of something else.
    FormatError
        If a newer filmstrip wrote it.
    """
    document = readable(store / METADATA)
    if document is None:
        return None
    about = document.get("attributes")
    attributes = about.get("filmstrip") if isinstance(about, dict) else None
    if not isinstance(attributes, dict):
        if groups_on_disk(store):
            return None
        raise NotARunError(str(store), "it is a Zarr group of something else")
    version = attributes.get("format")
    if isinstance(version, int) and version > FORMAT:
        reason = f"it has format {version}, this filmstrip reads up to {FORMAT}; upgrade it"
        raise FormatError(str(store), reason)
    if not (isinstance(version, int) and isinstance(attributes.get("run_id"), str)):
        return None
    for key in ("groups", "attempts"):
        if not isinstance(attributes.get(key), list):
            return None
    return attributes


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
                    self.form = ArrayForm.of(candidate, self.path)
                except StoreError:
                    continue
                self.document = candidate
                return

    @property
    def about(self) -> Json:
        """What the description says of the layer."""
        attributes = (self.document or {}).get("attributes")
        about = attributes.get("filmstrip", {}) if isinstance(attributes, dict) else {}
        return about if isinstance(about, dict) else {}

    def files(self) -> list[tuple[int, Path]]:
        """Return chunk files by their position along the step axis."""
        if not self.path.is_dir() or self.path.is_symlink():
            return []
        found = [
            (chunk_index(file.name), file)
            for file in self.path.iterdir()
            if not file.is_symlink() and file.is_file()
        ]
        return sorted((index, file) for index, file in found if index is not None)


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
    published : int
        Rows that its metadata, or else the root's, commit; 0 when nothing is left of them.
    steps : ndarray of int64, shape (n_rows,)
        Steps of the longest prefix of complete rows.
    """

    name: str
    path: Path
    whole: bool = False
    attributes: Json | None = None
    arrays: dict[str, ArrayState] = field(default_factory=dict)
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
        falls = np.flatnonzero(np.diff(self.steps) <= 0)
        if falls.size:
            row = int(falls[0])
            first, second = self.steps[row : row + 2].tolist()
            return f"its steps do not rise: {second} comes after {first}, in row {row + 1}"
        if self.rows < self.published:
            return f"{self.published} rows are committed, and {self.rows} have a step"
        return ""

    @property
    def layers(self) -> dict[str, ArrayState]:
        """Arrays of layers by name of the layer, in forward order."""
        named = [
            (array.about.get("order", 0), position, str(array.about["layer"]), array)
            for position, array in enumerate(self.arrays.values())
            if "layer" in array.about
        ]
        return {layer: array for _, _, layer, array in sorted(named, key=lambda item: item[:2])}


def survey(store: Path) -> dict[str, GroupState]:
    """Return the groups of a store as they lie on disk."""
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
    group.attributes = attributes if attributes is not None else _attributes(root.get(name))
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
    step = group.arrays.get(STEP)
    group.published = _length(grouped.get(STEP) or rooted.get(STEP))
    if step is not None and step.form is not None:
        group.steps = steps_on_disk(step.path, step.form.rows)
    return group


def is_array_name(name: str) -> bool:
    """Return whether a name is that of one folder inside a group."""
    return name not in ("", ".", "..") and not re.search(r"[/\\\0]", name)


def _length(document: Any) -> int:
    try:
        length = document["shape"][0]
    except (KeyError, TypeError, IndexError):
        return 0
    return length if isinstance(length, int) and length > 0 else 0


def steps_on_disk(path: Path, rows_per_file: int) -> Steps:
    """Return the steps of the longest prefix of rows that have one."""
    found: list[Steps] = []
    while True:
        try:
            steps = np.fromfile(path / chunk_key(len(found), 1), "<i8", count=rows_per_file)
        except OSError:
            break
        behind = np.flatnonzero(steps < 0)
        found.append(steps[: behind[0]] if behind.size else steps)
        if behind.size or len(steps) < rows_per_file:
            break
    return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)


def column_file(path: Path, form: ArrayForm) -> npt.NDArray[np.uint8]:
    """Return the rows that one file of a column has, shape (n_rows, bytes of a row)."""
    row = math.prod(form.shape) * form.dtype.itemsize
    if not row:
        return np.empty((0, 0), np.uint8)
    raw = np.fromfile(path, np.uint8, count=form.rows * row)
    return raw[: len(raw) // row * row].reshape(-1, row)


def fill_of(array: ArrayState) -> bytes:
    """Return a column's row as it is where nothing was written."""
    assert array.form is not None
    if array.name == STEP:
        return np.array(-1, array.form.dtype).tobytes()
    if array.name == SAMPLES:
        return np.array(0, array.form.dtype).tobytes()
    return array.form.absent()


def leftovers(store: Path) -> Iterator[Path]:
    """Yield what killed processes left half made; other ranks' stores left out."""
    for folder, folders, files in os.walk(store):
        here = Path(folder)
        if here == store and RANKS in folders:
            folders.remove(RANKS)
        yield from (here / name for name in sorted(files) if name.endswith(_files.PARTIAL))


def running(attributes: Json | None) -> str:
    """Return who is writing to a store, by what its root says; "" when nobody is."""
    from filmstrip.store._status import state_of

    attempts = (attributes or {}).get("attempts", [])
    try:
        if not attempts or state_of(attempts) != "running":
            return ""
        return f"process {attempts[-1]['pid']} on {attempts[-1]['host']}"
    except (KeyError, TypeError, ValueError, OverflowError):
        return ""
