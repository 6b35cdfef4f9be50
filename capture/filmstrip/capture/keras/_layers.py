"""Layers: the only place that names the layers and variables of a Keras model, on any backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras

from filmstrip.capture._selection import types_of
from filmstrip.store._names import dotted

# Their layers run inside of a loop, where no tensor can be taken out.
_LOOPS = (keras.layers.RNN, keras.layers.TimeDistributed)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer or module whose output is taken."""

    name: str
    original: str
    module: Any
    aliases: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Variable:
    """A variable that is taken; `owner` is the Keras layer that it belongs to."""

    name: str
    original: str
    variable: Any
    owner: Any = None
    aliases: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    @property
    def value(self) -> Any:
        """The backend's own variable."""
        return underlying(self.variable)


def underlying(variable: Any) -> Any:
    """Return the backend's own variable inside of Keras' one."""
    return variable._value if isinstance(variable, keras.Variable) else variable


def layer_at(path: str, module: Any, *plain: type) -> Layer:
    """Return the layer at a path; `plain`: classes that make no type, besides Keras' own layer."""
    types = types_of(module, keras.layers.Layer, *plain)
    return Layer(dotted(path), path, module, types=types)


def layers_of(layer: Layer) -> Iterator[tuple[Layer, bool]]:
    """Yield a layer and all inside of it, each with whether it is a leaf.

    Names are those of the layers, joined: paths as Keras has them, which it knows only of layers
    that have been called, and which begin with the model's own name.
    """
    inner = [] if isinstance(layer.module, _LOOPS) else _sublayers(layer.module)
    yield layer, not inner
    taken: dict[str, int] = {}
    for child in inner:
        path = _joined(layer.original, _numbered(child.name, taken))
        yield from layers_of(layer_at(path, child))


def variables_of(layer: Layer, *, leaf: bool) -> Iterator[Variable]:
    """Yield what Keras calls the weights of a layer: its own, or of a leaf all inside of it."""
    inside = () if leaf else _sublayers(layer.module)
    theirs = {id(weight) for child in inside for weight in child.weights}
    taken: dict[str, int] = {}
    for weight in layer.module.weights:
        if id(weight) not in theirs:
            path = _joined(layer.original, _numbered(weight.name, taken))
            yield Variable(dotted(path), path, weight, layer.module, types=layer.types)


def first_places(layers: list[Layer]) -> list[Layer]:
    """Return layers once, with the other names of those that are in several places."""
    found: dict[int, list[Layer]] = {}
    for layer in reversed(layers):
        found.setdefault(id(layer.module), []).append(layer)
    return [
        replace(first, aliases=tuple(other.name for other in reversed(others)))
        for *others, first in reversed(found.values())
    ]


def known_once(variables: list[Variable]) -> list[Variable]:
    """Return variables once, with the other names they go by."""
    found: dict[int, list[Variable]] = {}
    for variable in variables:
        found.setdefault(id(variable.value), []).append(variable)
    return [
        replace(
            first,
            aliases=tuple(
                dict.fromkeys(other.name for other in others if other.name != first.name)
            ),
        )
        for first, *others in found.values()
    ]


def _sublayers(layer: Any) -> list[Any]:
    inside = {id(child): child for child in getattr(layer, "_layers", ())}
    return [child for child in inside.values() if not isinstance(child, keras.layers.InputLayer)]


def _numbered(name: str, taken: dict[str, int]) -> str:
    """Return a name that none of its neighbours has."""
    count = taken[name] = taken.get(name, 0) + 1
    return name if count == 1 else f"{name}_{count}"


def _joined(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
