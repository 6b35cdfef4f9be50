"""NumPy: the only place that reads `.npz` files; objects in them are refused, as they are code."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from filmstrip.capture.ingest._checkpoint import Checkpoint, of_trainer

_ENDING = ".npy"


def read(parts: Sequence[Path], checkpoint: Checkpoint) -> None:
    """Read a file."""
    for part in parts:
        with zipfile.ZipFile(part) as archive:
            for member in archive.namelist():
                name = member.removesuffix(_ENDING)
                if any(map(of_trainer, name.replace("/", ".").split("."))):
                    checkpoint.left_out["of the optimizer"] += 1
                    continue
                with archive.open(member) as file:
                    shape, dtype = _header(file)
                if dtype.hasobject:
                    raise ValueError(f"{name!r} holds objects, which loading would run")
                checkpoint.add(name, shape, dtype.name, partial(_array, part, member))


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    reader = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = reader(file)
    return shape, dtype


def _array(part: Path, member: str) -> npt.NDArray[Any]:
    with zipfile.ZipFile(part) as archive, archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
    return np.asarray(array, array.dtype.newbyteorder("="))
