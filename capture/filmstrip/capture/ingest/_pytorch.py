"""PyTorch: the only place that opens what `torch.save` wrote, and never runs what is in it."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from filmstrip.capture.ingest._checkpoint import HOMES, Checkpoint, of_trainer
from filmstrip.store._names import canonical

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


class _Nothing:
    """Takes the place of what holds no weights and need not be made: paths, arrays of NumPy.

    An array can be told to begin anywhere in memory, and a path of Windows is one only there.
    """

    def __init__(self, *made_of: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _plain_dict(*made_of: object) -> dict[object, object]:
    """Take the place of a dict with a default."""
    return {}


# What checkpoints hold beside tensors, and what cannot do anything when it is made.
_HARMLESS: list[Any] = [
    *(argparse.Namespace, dict, float, int, list),
    (_plain_dict, "collections.defaultdict"),
    *((_Nothing, f"numpy.{name}") for name in ("dtype", "ndarray")),
    *(
        (_Nothing, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    *(
        (_Nothing, f"{module}.{pure}{system}Path")
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for system in ("Posix", "Windows")
    ),
]


def read(parts: Sequence[Path], checkpoint: Checkpoint) -> None:
    """Read the files of a checkpoint.

    Raises
    ------
    ValueError
        If one holds more than plain data, or no weights.
    """
    checkpoint.framework = "pytorch"
    seen: dict[tuple[object, ...], str] = {}
    for part in parts:
        loaded = _load(part)
        state = _model(loaded)
        found = 0
        for name, tensor in _tensors(state if isinstance(state, Mapping) else {}):
            found += 1
            add_tensor(checkpoint, name, tensor, seen)
        others = sum(1 for _ in _tensors(loaded, everything=True)) - found
        if others:
            checkpoint.left_out["outside of the model"] += others
        if not found:
            raise ValueError(f"it holds {_said(loaded)} and no weights")


def add_tensor(
    checkpoint: Checkpoint, name: str, tensor: torch.Tensor, seen: dict[tuple[object, ...], str]
) -> None:
    """Take a tensor, or note a further name of one that was seen before."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        checkpoint.left_out["sparse, quantized or without numbers"] += 1
        return
    key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
    if tensor.numel() and key in seen:
        checkpoint.weights[seen[key]].aliases.append(canonical(name))
        return
    before = len(checkpoint.weights)
    dtype = str(tensor.dtype).removeprefix("torch.")
    checkpoint.add(name, tensor.shape, dtype, lambda: tensor.detach().resolve_conj().resolve_neg())
    if len(checkpoint.weights) > before:
        seen[key] = next(reversed(checkpoint.weights))


def load(file: Any, *, mmap: bool = False) -> Any:
    """Return what a file holds: tensors and plain data only.

    Raises
    ------
    ValueError
        If loading would run code.
    """
    if torch.__version__ < "2.6":  # CVE-2025-32434
        raise ValueError(f"torch {torch.__version__} may run what is in it; install 2.6 or newer")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        what = f"it holds {found[1]}, and" if found else "it holds more than tensors, and"
        raise ValueError(
            f"{what} loading that could run anything; save model.state_dict() alone"
        ) from error


def _load(part: Path) -> Any:
    if zipfile.is_zipfile(part):
        with zipfile.ZipFile(part) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ValueError("it is a TorchScript program; save model.state_dict() instead")
        return load(str(part), mmap=True)
    return load(str(part))


def _model(loaded: Any) -> Any:
    """Return the part of a checkpoint that is the model, whatever lies beside it."""
    while isinstance(loaded, Mapping):
        homes = [key for key in HOMES if _holds_tensors(loaded.get(key))]
        if not homes:
            return loaded
        loaded = loaded[homes[0]]
    return loaded


def _holds_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(True for _ in _tensors(value))


def _tensors(
    state: Any, path: str = "", *, everything: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors below, those of an optimizer only on demand."""
    if isinstance(state, torch.Tensor):
        yield path, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            if everything or not of_trainer(str(key)):
                below = f"{path}.{key}" if path else str(key)
                yield from _tensors(value, below, everything=everything)
    elif everything and isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value, path, everything=True)


def _said(loaded: Any) -> str:
    if isinstance(loaded, Mapping):
        return f"the keys {', '.join(map(repr, list(loaded)[:6]))}" if loaded else "an empty dict"
    return f"a {type(loaded).__name__}"
