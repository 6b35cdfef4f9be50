"""Distributed checkpoints of PyTorch: the only place that puts their shards together.

The index of such a checkpoint is a pickle, which PyTorch's own reader runs. Here it may make
nothing but the few classes that an index is made of.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from filmstrip.capture.ingest._checkpoint import HOMES, Checkpoint, of_trainer
from filmstrip.capture.ingest._pytorch import load

_INDEX = ".metadata"
_HARMLESS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    "collections": {"OrderedDict"},
}


class _Reader(pickle.Unpickler):
    """Makes what an index is made of, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in _HARMLESS.get(module, ()):
            raise ValueError(
                f"its index holds {module}.{name}, and loading that could run anything"
            )
        return super().find_class(module, name)


def _member(owner: object, name: str) -> Enum:
    """Return a member of an enumeration, which Python before 3.11.4 pickles as its attribute."""
    if not isinstance(owner, type) or not issubclass(owner, Enum):
        raise ValueError(f"its index takes {name!r} of something, and that could run anything")  # noqa: TRY004
    return owner[name]


def read(parts: Sequence[Path], checkpoint: Checkpoint) -> None:
    """Read the folder of a checkpoint.

    Raises
    ------
    ValueError
        If its index holds more than an index does, or names files elsewhere.
    """
    checkpoint.framework = "pytorch"
    for folder in parts:
        with (folder / _INDEX).open("rb") as file:
            index = _Reader(file).load()
        if not isinstance(index, Metadata):
            raise TypeError(f"its index is a {type(index).__name__}")
        kept = {}
        for name, about in index.state_dict_metadata.items():
            if any(map(of_trainer, name.split("."))):
                checkpoint.left_out["of the optimizer"] += 1
            elif isinstance(about, TensorStorageMetadata):
                kept[name] = about
        files = {info.relative_path for info in index.storage_data.values()}
        for file in files:
            if Path(file).name != file:
                raise ValueError(f"its index names {file!r}, which is no file beside it")
            if not (folder / file).is_file():
                raise ValueError(f"{file} is missing")
        home = _home(list(kept))
        for name, about in kept.items():
            dtype = str(about.properties.dtype).removeprefix("torch.")
            read_it = partial(_tensor, folder, index, name)
            checkpoint.add(name.removeprefix(home), about.size, dtype, read_it)


def _home(names: Sequence[str]) -> str:
    """Return the part in front of all names that says that this is the model."""
    home = ""
    while names:
        firsts = {name.removeprefix(home).partition(".")[0] for name in names}
        first = firsts.pop()
        if firsts or first not in (*HOMES, "app"):
            break
        home += f"{first}."
    return home


def _tensor(folder: Path, index: Metadata, name: str) -> torch.Tensor:
    about = index.state_dict_metadata[name]
    assert isinstance(about, TensorStorageMetadata)
    tensor = torch.empty(about.size, dtype=about.properties.dtype)
    filled = 0
    for chunk in about.chunks:
        info = index.storage_data[MetadataIndex(name, chunk.offsets)]
        if getattr(info, "transform_descriptors", None):
            raise ValueError(f"{name!r} is stored as {info.transform_descriptors}")
        with (folder / info.relative_path).open("rb") as file:
            file.seek(info.offset)
            piece = load(io.BytesIO(file.read(info.length)))
        where = tuple(
            slice(offset, offset + length)
            for offset, length in zip(chunk.offsets, chunk.sizes, strict=True)
        )
        if tensor[where].shape != piece.shape:
            raise ValueError(f"a piece of {name!r} has shape {tuple(piece.shape)}")
        tensor[where] = piece
        filled += piece.numel()
    if filled < tensor.numel():
        raise ValueError(f"{name!r} lacks {tensor.numel() - filled} of its values")
    return tensor
