"""Models: the only place that looks through a PyTorch model, refuses one, and picks its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import AlreadyCompiledError, PlanError, UnsupportedModelError
from filmstrip.store._names import canonical
from filmstrip.store._select import matches, nearest_names

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList, nn.ParameterDict)
_PARAMETRIZATIONS = "parametrizations"


@dataclass(frozen=True, slots=True)
class Layer:
    """A module whose output is taken."""

    name: str
    original: str
    module: nn.Module


@dataclass(frozen=True, slots=True)
class Variable:
    """A parameter that is taken; looked up by name, since training may replace it."""

    name: str
    original: str
    module: nn.Module
    attribute: str
    aliases: tuple[str, ...]

    @property
    def tensor(self) -> torch.Tensor | None:
        """The parameter as it is now."""
        return self.module._parameters.get(self.attribute)


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
        If a selector matches nothing; names the nearest layers.
    """
    root = checked(model)
    layers, containers = _layers(root)
    variables = list(_variables(root))
    _check_selectors(settings.layers, [*layers, *containers], variables)

    def chosen_layer(layer: Layer, leaf: bool, selectors: Sequence[str]) -> bool:
        return layer.name in selectors or (leaf and matches(selectors, layer.name))

    def chosen_variable(variable: Variable, selectors: Sequence[str]) -> bool:
        names = (variable.name, *variable.aliases)
        paths = {*names, *(_owner(name) for name in names)}
        return any(path in selectors or matches(selectors, path) for path in paths)

    picked = [
        layer
        for leaf, group in ((True, layers), (False, containers))
        for layer in group
        if "activations" in settings.kinds
        and chosen_layer(layer, leaf, settings.layers)
        and not chosen_layer(layer, leaf, settings.exclude)
    ]
    kept = [
        variable
        for variable in variables
        if {"weights", "gradients"} & set(settings.kinds)
        and chosen_variable(variable, settings.layers)
        and not chosen_variable(variable, settings.exclude)
    ]
    if not picked and not kept:
        raise PlanError(
            f"layers={_said(settings.layers)} with exclude={_said(settings.exclude)} leaves no "
            f"{' or '.join(settings.kinds)} of this {type(root).__name__} to take"
        )
    return Selection(root, tuple(picked), tuple(kept))


def _said(selectors: Sequence[str]) -> str:
    return repr(selectors[0] if len(selectors) == 1 else list(selectors))


def _check_selectors(
    selectors: Sequence[str], layers: Sequence[Layer], variables: Sequence[Variable]
) -> None:
    names = [layer.name for layer in layers] + [variable.name for variable in variables]
    aliases = [alias for variable in variables for alias in variable.aliases]
    for selector in selectors:
        if not any(name == selector or matches(selector, name) for name in (*names, *aliases)):
            near = nearest_names(selector, [name for name in names if name])
            raise PlanError(f"no layer matches {selector!r}; nearest: {', '.join(near) or 'none'}")


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _layers(root: nn.Module) -> tuple[list[Layer], list[Layer]]:
    """Return the leaf modules, and the others."""
    leaves: list[Layer] = []
    containers: list[Layer] = []
    for name, module in root.named_modules():
        if _PARAMETRIZATIONS in name.split("."):
            continue
        children = [child for child, _ in module.named_children() if child != _PARAMETRIZATIONS]
        layer = Layer(canonical(name), name, module)
        if not children and not isinstance(module, _CONTAINERS):
            leaves.append(layer)
        elif not isinstance(module, nn.ModuleList | nn.ModuleDict):
            containers.append(layer)
    return leaves, containers


def _variables(root: nn.Module) -> Iterator[Variable]:
    """Yield every parameter once, with the other names it goes by."""
    names: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None and not isinstance(parameter, nn.UninitializedParameter):
                name = f"{path}.{attribute}" if path else attribute
                names.setdefault(id(parameter), []).append((name, module, attribute))
    for (name, module, attribute), *others in names.values():
        aliases = tuple(canonical(other) for other, _, _ in others)
        yield Variable(canonical(name), name, module, attribute, aliases)


def checked(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, or raise if it cannot be watched.

    Raises
    ------
    UnsupportedModelError
        If it is no module, or of a kind whose forward passes run past the taps.
    AlreadyCompiledError
        If it, or a part of it, is compiled.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"model is a {type(model).__name__}, not a torch.nn.Module; "
            "give the module that is trained"
        )
    for name, module in model.named_modules():
        _check_module(name or "the model", module)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner = model.module
        assert isinstance(inner, nn.Module)
        return inner
    return model


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
            "use DistributedDataParallel"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{name} is a ScriptModule, whose parts run past hooks; "
            "give capture the module as it was before torch.jit, and train that"
        )
    if "OptimizedModule" in kinds or getattr(module, "_compiled_call_impl", None) is not None:
        raise AlreadyCompiledError(
            f"{name} is compiled, and compiled code runs past the taps; "
            "attach capture to the model without torch.compile, and train that one"
        )
    for attribute, parameter in module._parameters.items():
        if parameter is not None and "DTensor" in type(parameter).__name__:
            raise UnsupportedModelError(
                f"{attribute} of {name} is a DTensor, spread over ranks; "
                "capture watches replicated parameters, as DistributedDataParallel has them"
            )
