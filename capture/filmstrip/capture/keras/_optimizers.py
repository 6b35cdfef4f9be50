"""Optimizers: the only place that finds those of a Keras model, and what they train."""

from __future__ import annotations

from typing import Any

import keras

from filmstrip.capture.errors import UnsupportedModelError


def check_compiled(model: object) -> None:
    """Refuse what has no train step.

    Raises
    ------
    UnsupportedModelError
        If it is no Keras model, or was not compiled.
    """
    if not isinstance(model, keras.Model):
        raise UnsupportedModelError(f"model is a {type(model).__name__}, not a keras.Model")
    if not model.compiled:
        raise UnsupportedModelError(
            f"the model {model.name!r} is not compiled; compile it, then give it to capture"
        )


def optimizers_in(model: keras.Model) -> list[Any]:
    """Return the optimizer that the model was compiled with, and others that it holds itself."""
    held = [model.optimizer, *vars(model).values()]
    found = {id(one): one for one in held if isinstance(one, keras.optimizers.Optimizer)}
    return list(found.values())


def steps_counted(optimizer: Any) -> int:
    """Return the steps that an optimizer has counted, or reckons where it accumulates gradients."""
    if optimizer is None:
        return 0
    iterations = optimizer.iterations
    count = getattr(iterations, "value", iterations)
    return int(count if hasattr(type(count), "__int__") else count.numpy())  # of several replicas


def trained_in(model: keras.Model) -> list[object]:
    """Return names and shapes of what is trained; of nothing, where the model is not built."""
    return [(weight.name, tuple(weight.shape)) for weight in model.trainable_weights]
