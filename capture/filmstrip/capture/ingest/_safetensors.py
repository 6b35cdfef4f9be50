"""Safetensors: the only place that reads this format, which is a JSON header and raw bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filmstrip.capture.ingest._checkpoint import Checkpoint
from filmstrip.store._widen import NARROW

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_FRAMEWORKS = {"pt": "pytorch", "tf": "tensorflow"}
_LARGEST_HEADER = 100_000_000  # bytes, as the format says


def read(parts: Sequence[Path], checkpoint: Checkpoint) -> None:
    """Read the files of a checkpoint."""
    for part in parts:
        header, start = _header(part)
        about = header.pop("__metadata__", None) or {}
        checkpoint.framework = _FRAMEWORKS.get(about.get("format", "pt"))
        for name, entry in header.items():
            _add(checkpoint, part, start, name, entry)


def _header(part: Path) -> tuple[dict[str, Any], int]:
    with part.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise ValueError("what it begins with is no header of this format")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise TypeError("its header names no tensors")
    return header, 8 + length


def _add(checkpoint: Checkpoint, part: Path, start: int, name: str, entry: dict[str, Any]) -> None:
    shape = [int(length) for length in entry["shape"]]
    begin, end = (int(offset) for offset in entry["data_offsets"])
    if entry["dtype"] not in _DTYPES:
        checkpoint.left_out[f"of dtype {entry['dtype']}"] += 1
        return
    dtype = _DTYPES[entry["dtype"]]
    bits = np.dtype(NARROW[dtype].bits if dtype in NARROW else dtype).newbyteorder("<")
    size = part.stat().st_size - start
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= size:
        raise ValueError(f"{name!r} lies outside of the file, which may have been cut short")
    if end - begin != math.prod(shape) * bits.itemsize:
        raise ValueError(f"{name!r} has {end - begin} bytes, which do not fit shape {shape}")
    checkpoint.add(name, shape, dtype, partial(_tensor, part, start + begin, bits, shape))


def _tensor(part: Path, at: int, bits: np.dtype[Any], shape: list[int]) -> npt.NDArray[Any]:
    return np.fromfile(part, bits, math.prod(shape), offset=at).reshape(shape)
