"""Models: the only place that looks through a PyTorch model, refuses one, and picks its layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from filmstrip.capture._selection import choose, types_of
from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import AlreadyCompiledError, UnsupportedModelError
from filmstrip.capture.pytorch._shards import Sharding
from filmstrip.store._names import dotted

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList, nn.ParameterDict)
_PARAMETRIZATIONS = "parametrizations"
_WRAPPERS = {
    "module": frozenset(
        {
            *("DataParallel", "DistributedDataParallel", "ShardedDataParallel"),
            *("AveragedModel", "DeepSpeedEngine", "Float16Module"),
        }
    ),
    "_orig_mod": frozenset({"OptimizedModule"}),
    "_fsdp_wrapped_module": frozenset({"FullyShardedDataParallel"}),
    "_checkpoint_wrapped_module": frozenset({"ActivationWrapper"}),
}
"""What wrappers call the module inside of them, and the names of their classes."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A module whose output is taken."""

    name: str
    original: str
    module: nn.Module
    aliases: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Variable:
    """A parameter that is taken; looked up by name, since training may replace it."""

    name: str
    original: str
    module: nn.Module
    attribute: str
    aliases: tuple[str, ...]
    types: tuple[str, ...] = ()
    sharding: Sharding | None = None
    root: nn.Module | None = None

    @property
    def tensor(self) -> torch.Tensor | None:
        """The parameter as it is now, of whatever module is now in the place of its own."""
        module = None if self.root is None else at(self.root, self.original.rpartition(".")[0])
        if module is None or self.attribute not in module._parameters:
            module = self.module  # as where an adapter was put around it
        tensor = module._parameters.get(self.attribute)
        return tensor if self.sharding is None else self.sharding.current(tensor)


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a model is watched."""

    root: nn.Module
    layers: tuple[Layer, ...]
    variables: tuple[Variable, ...]


def select_layers(model: nn.Module, settings: Settings) -> Selection:
    """Return the layers and parameters that the settings pick.

    Parameters
    ----------
    model : torch.nn.Module
        The model; DistributedDataParallel is looked through.
    settings : Settings
        Selectors and kinds.

    Returns
    -------
    Selection
        In the order in which the model registers them; a parameter or module with several names
        comes once.

    Raises
    ------
    UnsupportedModelError, AlreadyCompiledError
        If the model cannot be watched.
    PlanError
        If a selector matches nothing; names the nearest layers, or the types of modules.
    """
    root = checked(model)
    layers, containers = _layers(root)
    variables = list(_variables(root))
    picked, kept = choose(layers, containers, variables, settings, model=type(root).__name__)
    return Selection(root, picked, kept)


def _layers(root: nn.Module) -> tuple[list[Layer], list[Layer]]:
    """Return the leaf modules, and the others; of wrappers, what is inside of them."""
    leaves: list[Layer] = []
    containers: list[Layer] = []
    paths: dict[nn.Module, list[str]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        if _PARAMETRIZATIONS not in path.split(".") and inside(module) is module:
            paths.setdefault(module, []).append(path)
    names = _distinct(root, (first for first, *_ in paths.values()))
    for module, (path, *others) in paths.items():
        children = [child for child, _ in module.named_children() if child != _PARAMETRIZATIONS]
        aliases = tuple(name_in(root, other) for other in others)
        layer = Layer(names[path], path, module, aliases, types_of(module, nn.Module))
        if not children and not isinstance(module, _CONTAINERS):
            leaves.append(layer)
        elif not isinstance(module, nn.ModuleList | nn.ModuleDict):
            containers.append(layer)
    return leaves, containers


def enclosing(root: nn.Module, layer: Layer) -> str:
    """Return in words which module around a layer has an output, if any but the model has."""
    path = layer.original
    while path := path.rpartition(".")[0]:
        module = root.get_submodule(path)
        if not isinstance(module, nn.ModuleList | nn.ModuleDict) and inside(module) is module:
            return f" (name {name_in(root, path)!r} in layers instead)"
    return ""


def _variables(root: nn.Module) -> Iterator[Variable]:
    """Yield every parameter once, with the other names it goes by."""
    names: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{path}.{attribute}" if path else attribute
                names.setdefault(id(parameter), []).append((name, module, attribute))
    distinct = _distinct(root, (first for (first, _, _), *_ in names.values()))
    for (name, module, attribute), *others in names.values():
        aliases = tuple(name_in(root, other) for other, _, _ in others)
        types = types_of(module, nn.Module)
        yield Variable(distinct[name], name, module, attribute, aliases, types, root=root)


def name_in(root: nn.Module, path: str) -> str:
    """Return the canonical name of what is at a path, which leaves out how wrappers call it.

    Examples
    --------
    >>> inner = nn.ModuleDict({"module": nn.Linear(2, 2)})
    >>> name_in(inner, "module.weight"), name_in(nn.DataParallel(inner), "module.module.weight")
    ('module.weight', 'module.weight')
    """
    module: nn.Module | None = root
    kept = []
    for part in path.split("."):
        if module is None or not _wraps(module, part):
            kept.append(part)
        module = None if module is None else module._modules.get(part)
    return dotted(".".join(kept))


def inside(module: nn.Module) -> nn.Module:
    """Return the module that a wrapper, such as DistributedDataParallel, holds, or the one given.

    Examples
    --------
    >>> inside(nn.DataParallel(nn.ReLU())), inside(nn.ReLU())
    (ReLU(), ReLU())
    """
    for name, child in module._modules.items():
        if child is not None and _wraps(module, name):
            return child
    return module


def _wraps(module: nn.Module, child: str) -> bool:
    """Return whether a module is a wrapper, and calls what it holds by this name."""
    classes = _WRAPPERS.get(child)
    return classes is not None and any(kind.__name__ in classes for kind in type(module).__mro__)


def _distinct(root: nn.Module, originals: Iterable[str]) -> dict[str, str]:
    """Return canonical names, marked where another one has it already.

    Examples
    --------
    >>> wrapper = nn.DataParallel(nn.ModuleDict({"fc": nn.ReLU()}))
    >>> wrapper.fc = nn.ReLU()
    >>> _distinct(wrapper, ["module.fc", "fc"])
    {'fc': 'fc', 'module.fc': "fc'"}
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for original in sorted(originals, key=lambda path: name_in(root, path) != path):
        name = name_in(root, original)
        while name in taken:
            name += "'"
        taken.add(name)
        names[original] = name
    return names


def at(root: nn.Module, path: str) -> nn.Module | None:
    """Return the module that is at a path now, None where there is none.

    Examples
    --------
    >>> at(nn.Sequential(nn.ReLU()), "0"), at(nn.ReLU(), ""), at(nn.ReLU(), "0.1")
    (ReLU(), ReLU(), None)
    """
    module: nn.Module | None = root
    for name in path.split(".") if path else ():
        module = None if module is None else module._modules.get(name)
    return module


def checked(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers, or raise if it cannot be watched.

    Raises
    ------
    UnsupportedModelError
        If it is no module, or of a kind whose forward passes run past the taps.
    AlreadyCompiledError
        If it, or a part of it, was compiled ahead of time.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"model is a {type(model).__name__}, not a torch.nn.Module; "
            "give the module that is trained"
        )
    for name, module in model.named_modules():
        _check_module(name or "the model", module)
    inner = uncompiled(model)
    if isinstance(inner, nn.parallel.DistributedDataParallel):
        inner = uncompiled(inner.module)
    return inner


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile` wrapped, or the one that is given."""
    inner = module._modules.get("_orig_mod") if type(module).__name__ == "OptimizedModule" else None
    return module if inner is None else inner


def _check_module(name: str, module: nn.Module) -> None:
    kinds = {kind.__name__ for kind in type(module).__mro__}
    if isinstance(module, nn.DataParallel):
        raise UnsupportedModelError(
            f"{name} is a DataParallel, whose replicas live for one step only; "
            "use DistributedDataParallel, or give capture the module inside it and train that"
        )
    if "FullyShardedDataParallel" in kinds:
        raise UnsupportedModelError(
            f"{name} is a FullyShardedDataParallel, which hides its parameters; "
            "use fully_shard of torch.distributed.fsdp, or DistributedDataParallel"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{name} is a ScriptModule, whose parts run past hooks; "
            "give capture the module as it was before torch.jit, and train that"
        )
    if "AOTCompiled" in type(vars(module).get("forward")).__name__:
        raise AlreadyCompiledError(
            f"{name} was compiled ahead of time, and its code runs past the taps; "
            "attach capture first, or train it with torch.compile alone"
        )
