"""Models: the only place that picks the layers and variables of Keras models and `tf.Module`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from filmstrip.capture._selection import choose
from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import PlanError, UnsupportedModelError
from filmstrip.capture.keras._layers import (
    Layer,
    Variable,
    first_places,
    known_once,
    layer_at,
    layers_of,
    underlying,
    variables_of,
)
from filmstrip.store._names import dotted


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a model is watched."""

    layers: tuple[Layer, ...]
    variables: tuple[Variable, ...]

    @property
    def trained(self) -> list[Variable]:
        """Variables that have a gradient."""
        return [one for one in self.variables if getattr(one.variable, "trainable", True)]


def select_layers(model: Any, settings: Settings) -> Selection:
    """Return the layers and variables that the settings pick.

    Parameters
    ----------
    model : keras.Model, keras.layers.Layer or tf.Module
        The model.
    settings : Settings
        Selectors and kinds.

    Returns
    -------
    Selection
        In the order in which the model tracks them; what has several names comes once.

    Raises
    ------
    UnsupportedModelError
        If it is neither a Keras model or layer nor a module.
    PlanError
        If a selector matches nothing; names the nearest layers, or the types of layers.
    """
    if not isinstance(model, keras.layers.Layer | tf.Module):
        raise UnsupportedModelError(
            f"model is a {type(model).__name__}, neither a Keras model nor a tf.Module; "
            "give what holds the variables that are trained"
        )
    found = list(_layers(model))
    leaves = first_places([layer for layer, leaf in found if leaf])
    containers = first_places([layer for layer, leaf in found if not leaf])
    variables = [variable for layer, leaf in found for variable in _own_variables(layer, leaf=leaf)]
    picked, kept = choose(
        leaves, containers, known_once(variables), settings, model=type(model).__name__
    )
    return Selection(picked, kept)


def select_built(model: Any, settings: Settings) -> Selection:
    """Return what can be said of a model that may not be built yet, of which nothing is missed.

    Raises
    ------
    UnsupportedModelError, PlanError
        As `select_layers`.
    """
    try:
        return select_layers(model, settings)
    except PlanError:
        if all(getattr(layer.module, "built", True) for layer, _ in _layers(model)):
            raise
        return Selection((), ())


def state_of(model: Any) -> list[Any]:
    """Return the variables that a call may change: those not trained, and what layers remember."""
    inside = [model] if isinstance(model, keras.layers.Layer) else dict(_inside(model)).values()
    found = [] if isinstance(model, keras.layers.Layer) else [*model.variables]
    for layer in (one for one in inside if isinstance(one, keras.layers.Layer)):
        found += layer.non_trainable_variables
        for inner in layer._flatten_layers():
            held = [*vars(inner).values(), *tf.nest.flatten(getattr(inner, "states", None) or ())]
            found += [value for value in held if isinstance(value, keras.Variable | tf.Variable)]
    changing = [underlying(value) for value in found if not value.trainable]
    return list({id(value): value for value in changing}.values())


def _layers(model: Any) -> Iterator[tuple[Layer, bool]]:
    """Yield every layer, the model itself first, and whether it is a leaf."""
    if isinstance(model, keras.layers.Layer):
        yield from layers_of(layer_at("", model))
        return
    yield layer_at("", model, tf.Module), not _inside(model)
    for path, module in _inside(model):
        name = ".".join(map(str, path))
        layer = layer_at(name, module, tf.Module)
        if isinstance(module, keras.layers.Layer):
            yield from layers_of(layer)
        else:
            yield layer, not _inside(module)


def _inside(module: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Return the modules and Keras layers of a module, with their paths."""
    return list(
        module._flatten(
            recursive=True,
            predicate=lambda value: isinstance(value, tf.Module | keras.layers.Layer),
            with_path=True,
        )
    )


def _own_variables(layer: Layer, *, leaf: bool) -> Iterator[Variable]:
    """Yield the variables that a layer or module holds itself."""
    if isinstance(layer.module, keras.layers.Layer):
        yield from variables_of(layer, leaf=leaf)
        return
    for path, variable in layer.module._flatten(
        recursive=False, predicate=lambda value: isinstance(value, tf.Variable), with_path=True
    ):
        name = ".".join((*([layer.original] if layer.original else []), *map(str, path)))
        yield Variable(dotted(name), name, variable, types=layer.types)
