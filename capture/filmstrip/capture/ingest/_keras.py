"""Keras: the only place that reads `.keras`, `.weights.h5` and `.h5` files, as HDF5.

No model is built, so that nothing that such a file describes is run. What it does not tell, the
names of a layer's variables, follows from their number and shapes.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy.typing as npt

from filmstrip.capture.ingest._checkpoint import Checkpoint

_CONTAINERS = frozenset({"layers", "_layer_checkpoint_dependencies"})
_VARIABLES, _TRAINER = "vars", ("optimizer", "optimizer_weights")
_NORMS = {
    4: ("gamma", "beta", "moving_mean", "moving_variance"),
    2: ("gamma", "beta"),
}
_DIGITS = re.compile(r"(\d+)")


def read(parts: Sequence[Path], checkpoint: Checkpoint) -> None:
    """Read a file."""
    checkpoint.framework, stack = "keras", checkpoint.resources
    for part in parts:
        order: list[str] = []
        if zipfile.is_zipfile(part):
            archive = stack.enter_context(zipfile.ZipFile(part))
            order = _order(json.loads(archive.read("config.json")))
            root = stack.enter_context(
                h5py.File(stack.enter_context(archive.open("model.weights.h5")), "r")
            )
        else:
            root = stack.enter_context(h5py.File(part, "r"))
        everything, root = root, _hard(root, "model_weights") or root
        found = _legacy(root) if "layer_names" in root.attrs else _named(root, order)
        for name, dataset in found:
            _check(name, dataset)
            dtype = dataset.attrs.get("dtype", dataset.dtype.name)
            checkpoint.add(name, dataset.shape, str(dtype), partial(_array, dataset))
        for trainer in _TRAINER:
            group = _hard(everything, trainer)
            if group is not None:
                checkpoint.left_out["of the optimizer"] += sum(1 for _ in _datasets(group))


def _array(dataset: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = dataset[()]
    return array.view("u2") if dataset.attrs.get("dtype") == "bfloat16" else array


def _check(name: str, dataset: Any) -> None:
    """Refuse numbers that lie in other files: a checkpoint is not trusted."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{name!r} lies in another file")


def _hard(group: Any, path: str) -> Any:
    """Return what is at a path, None where there is nothing, or a link to somewhere else."""
    for name in path.split("/"):
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            return None
        group = group[name]
    return group


def _members(group: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a group holds itself, in the order of its numbers."""
    for name in sorted(group, key=_natural):
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield name, group[name]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(name)]


def _datasets(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, member in _members(group):
        below = f"{path}/{name}" if path else name
        if isinstance(member, h5py.Dataset):
            yield below, member
        else:
            yield from _datasets(member, below)


def _legacy(root: Any) -> Iterator[tuple[str, Any]]:
    """Yield the weights of a file that names them: of Keras 2, and of Keras 3's `.h5`."""
    for layer in map(_text, [*root.attrs["layer_names"], "top_level_model_weights"]):
        group = _hard(root, layer)
        for weight in () if group is None else map(_text, group.attrs["weight_names"]):
            dataset = _hard(group, weight)
            if dataset is None:
                raise ValueError(f"{weight!r} is missing")
            own = weight.removesuffix(":0").split("/")
            start = own.index(layer) if layer in own else 0  # behind the model's own name
            yield "/".join(own[start:]), dataset


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _order(config: Any) -> list[str]:
    """Return the names of a model's layers in their order."""
    layers = config.get("config", {}).get("layers", []) if isinstance(config, dict) else []
    return [str(layer.get("config", {}).get("name")) for layer in layers]


def _named(root: Any, order: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Yield the weights of a file that names only the layers."""
    position = {name: number for number, name in enumerate(order)}
    found = [pair for name, group in _members(root) for pair in _layer(name, group, "")]
    yield from sorted(found, key=lambda pair: position.get(pair[0].partition("/")[0], len(order)))


def _layer(name: str, group: Any, path: str) -> Iterator[tuple[str, Any]]:
    if name in _TRAINER or not isinstance(group, h5py.Group):
        return
    if name == _VARIABLES:  # of the model itself
        yield from ((key, variable) for key, variable in _members(group))
        return
    if name not in _CONTAINERS:
        variables = _hard(group, _VARIABLES)
        own = name if variables is None else _text(variables.attrs.get("name", name))
        path = f"{path}/{own}" if path else own
    for member_name, member in _members(group):
        if member_name == _VARIABLES:
            variables = [variable for _, variable in _members(member)]
            for key, variable in zip(_keys(name, variables), variables, strict=True):
                yield f"{path}/{key}", variable
        else:
            yield from _layer(member_name, member, path)


def _keys(kind: str, variables: Sequence[Any]) -> Sequence[str]:
    """Return what Keras calls the variables of a layer, or their numbers where that is open."""
    ranks = [len(variable.shape) for variable in variables]
    if "norm" in kind and set(ranks) == {1} and len(ranks) in _NORMS:
        return _NORMS[len(ranks)]
    if "embedding" in kind and ranks == [2]:
        return ("embeddings",)
    if "separable" in kind and ranks[:2] in ([4, 4], [3, 3]):
        return ("depthwise_kernel", "pointwise_kernel", "bias")[: len(ranks)]
    if ranks and ranks[0] > 1:
        if len(ranks) == 1 or (len(ranks) == 2 and ranks[1] < ranks[0]):
            return ("kernel", "bias")[: len(ranks)]
        if (
            ranks[:2] == [2, 2]
            and len(ranks) <= 3
            and variables[0].shape[1] == variables[1].shape[1]
        ):
            return ("kernel", "recurrent_kernel", "bias")[: len(ranks)]
    return [str(number) for number in range(len(ranks))]
