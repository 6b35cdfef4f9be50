"""Usage: the only place that says what of a run takes how much room."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from filmstrip.store._blocks import ShardFile
from filmstrip.store._names import FRAME_KINDS
from filmstrip.store._place import LocalPlace
from filmstrip.store._shardlog import EMPTY
from filmstrip.store._status import disk_bytes
from filmstrip.store._survey import ArrayState, GroupState, local_stores, survey


@dataclass(frozen=True, slots=True)
class Usage:
    """The room that one layer takes, or one group without layers; over all ranks.

    Attributes
    ----------
    kind, layer : str
        What it is; layer is "" of statistics, scalars and health.
    disk : int
        Bytes on the disk.
    raw : int
        Bytes of the values, uncompressed.
    """

    kind: str
    layer: str
    disk: int
    raw: int


def usage(run: str | os.PathLike[str]) -> list[Usage]:
    """Return what takes how much room in a run, the largest first.

    Parameters
    ----------
    run : str or path-like
        Local path of a run, live or finished.

    Returns
    -------
    list of Usage
        Layers of frames; statistics, scalars and health as a whole.

    Raises
    ------
    RunNotFoundError, NotARunError, FormatError
        If there is no run, or a newer filmstrip wrote it.
    StoreError
        If it cannot be looked at.
    """
    totals: dict[tuple[str, str], list[int]] = {}
    for store in local_stores(run)[1]:
        for name, group in survey(store).items():
            layers = group.layers if name in FRAME_KINDS else {}
            parts = {layer: [array] for layer, array in layers.items()} or {
                "": list(group.arrays.values())
            }
            for layer, arrays in parts.items():
                total = totals.setdefault((name, layer), [0, 0])
                inside = [array for array in arrays if not array.linked]
                total[0] += sum((disk_bytes(LocalPlace(array.path)) or 0) for array in inside)
                total[1] += sum(_raw(group, array) for array in inside)
    found = [Usage(kind, layer, disk, raw) for (kind, layer), (disk, raw) in totals.items()]
    return sorted(found, key=lambda one: -one.disk)


def _raw(group: GroupState, array: ArrayState) -> int:
    if array.form is None:
        return 0
    row = math.prod(array.form.shape) * array.form.dtype.itemsize
    if array.form.layout is None:
        return group.rows * row
    frames = 0
    for (_, part), file in array.parts().items():
        if part:
            continue
        try:
            with ShardFile(file, array.form) as shard:
                held = sum(offset != EMPTY for offset, _ in shard.entries or [])
                frames += held // shard.blocks
        except OSError:  # taken away meanwhile
            continue
    return frames * row
