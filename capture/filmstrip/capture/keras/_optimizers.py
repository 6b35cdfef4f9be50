"""Optimizers: the only place that finds those of a Keras model."""

from __future__ import annotations

from typing import Any

import keras


def optimizers_in(model: keras.Model) -> list[Any]:
    """Return the optimizer that the model was compiled with, and others that it holds itself."""
    held = [model.optimizer, *vars(model).values()]
    found = {id(one): one for one in held if isinstance(one, keras.optimizers.Optimizer)}
    return list(found.values())
