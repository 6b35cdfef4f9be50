"""The probe: the only place that runs a model on inputs of our own, and leaves no trace of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from filmstrip.capture.errors import PlanError

ProbeLike: TypeAlias = "torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]"


class Probe:
    """A fixed batch on which a model's activations are compared over steps.

    Parameters
    ----------
    inputs : Tensor, tuple, list or mapping
        What the model is called with: one argument, several, or several by name.

    Raises
    ------
    PlanError
        If it holds no tensor.
    """

    def __init__(self, inputs: ProbeLike) -> None:
        if isinstance(inputs, Mapping):
            self._args: tuple[Any, ...] = ()
            self._kwargs = dict(inputs)
        elif isinstance(inputs, tuple | list):
            self._args, self._kwargs = tuple(inputs), {}
        else:
            self._args, self._kwargs = (inputs,), {}
        if not self.tensors():
            raise PlanError(
                f"probe is a {type(inputs).__name__} without a tensor; "
                "give what the model is called with"
            )
        self._args, self._kwargs = pytree.tree_map_only(
            torch.Tensor, lambda tensor: tensor.detach().clone(), (self._args, self._kwargs)
        )
        self._device: torch.device | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return its tensors by name: ``input``, or ``input.0`` or ``input.mask``."""
        return dict(named_leaves("input", arguments(self._args, self._kwargs)))

    def run(self, model: nn.Module) -> None:
        """Call the model in eval mode; buffers, modes and random numbers stay as they were.

        Of a compiled model, nothing more is compiled for it.
        """
        self._move(model)
        with _undisturbed(model), torch.no_grad(), _uncompiled(), _uncached():
            model(*self._args, **self._kwargs)

    def _move(self, model: nn.Module) -> None:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        if device != self._device:
            self._device = device
            self._args, self._kwargs = pytree.tree_map_only(
                torch.Tensor, lambda tensor: tensor.to(device), (self._args, self._kwargs)
            )


def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a model is called with: an only tensor, or all by their places and names.

    Examples
    --------
    >>> arguments((torch.ones(1),), {}), sorted(arguments((1, 2), {"mask": 3}))
    (tensor([1.]), ['0', '1', 'mask'])
    """
    if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
        return args[0]
    return {**{str(place): given for place, given in enumerate(args)}, **kwargs}


def named_leaves(name: str, tree: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of nested tuples, mappings and dataclasses with dotted names.

    Examples
    --------
    >>> [name for name, _ in named_leaves("lstm", (torch.ones(1), {"h": torch.ones(1)}))]
    ['lstm.0', 'lstm.1.h']
    """
    if isinstance(tree, torch.Tensor):
        yield name, tree
        return
    for path, leaf in pytree.tree_flatten_with_path(tree)[0]:
        inner = ".".join((name, *map(_key, path)))
        if isinstance(leaf, torch.Tensor):
            yield inner, leaf
        elif parts := _parts(leaf):
            yield from named_leaves(inner, parts)


def _parts(leaf: object) -> dict[str, Any]:
    """Return what a dataclass or a mapping of its own class holds, which pytree does not enter."""
    if leaf is None:  # of which Dynamo in torch 2.9 cannot tell that it is no dataclass
        return {}
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return {field.name: getattr(leaf, field.name, None) for field in fields(leaf)}
    return {str(key): leaf[key] for key in leaf} if isinstance(leaf, Mapping) else {}


def _key(key: object) -> str:
    for attribute in ("idx", "key", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _uncompiled() -> AbstractContextManager[object]:
    """Let a model run without compiled code, where this torch can."""
    stance = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


@contextmanager
def _uncached() -> Iterator[None]:
    """Keep casts of weights, which are about to change, out of what autocast remembers."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while.

    The flags are set one by one: ``eval()`` may be overridden with effects of its own, as adapters
    that merge their weights in it.
    """
    modes = [(module, module.training) for module in model.modules()]
    named = [(module._buffers, dict(module._buffers)) for module, _ in modes]
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in model.buffers()]
    restore = [_random_states(model)]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
        for now, before in named:
            now |= before  # a forward pass may put another tensor in a buffer's place
        with torch.no_grad():
            for buffer, copy, version in buffers:
                if buffer._version != version:
                    buffer.copy_(copy)
        for one in restore:
            one()


def _random_states(model: nn.Module) -> Callable[[], None]:
    """Return what puts the generators back where they are now."""
    host, python, numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = {
        parameter.device for parameter in model.parameters() if parameter.device.type != "cpu"
    }
    states = {
        device: torch.get_device_module(device).get_rng_state(device)
        for device in devices
        if device.type != "meta"
    }

    def restore() -> None:
        torch.set_rng_state(host)
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        for device, state in states.items():
            torch.get_device_module(device).set_rng_state(state, device)

    return restore
