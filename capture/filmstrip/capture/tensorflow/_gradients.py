"""Gradients: the only place that knows what an optimizer does to them before it applies them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from typing import Any, TypeAlias

import tensorflow as tf

from filmstrip.capture.errors import UnsupportedModelError
from filmstrip.capture.keras._layers import underlying

Pairs: TypeAlias = "list[tuple[Any, Any]]"

_APPLY = ("apply", "apply_gradients")


def optimizers_of(optimizer: object) -> list[Any]:
    """Return the optimizers given.

    Raises
    ------
    UnsupportedModelError
        If one has no method that applies gradients.
    """
    if optimizer is None:
        return []
    several = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for one in several:
        method_of(one)
    return several


def method_of(optimizer: object) -> str:
    """Return the method of an optimizer to which gradients are given.

    Raises
    ------
    UnsupportedModelError
        If it has none.
    """
    for method in _APPLY:
        if callable(getattr(optimizer, method, None)):
            return method
    raise UnsupportedModelError(
        f"optimizer is a {type(optimizer).__name__}, which has neither apply nor apply_gradients; "
        "leave it out, and gradients are not captured"
    )


def given(optimizer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Pairs:
    """Return the gradients of a call of an optimizer's method, with their variables."""
    said = list(signature(method).bind(*args, **kwargs).arguments.values())
    if method.__name__ == "apply_gradients":
        return list(said[0])
    variables = said[1] if len(said) > 1 and said[1] is not None else optimizer._trainable_variables
    return list(zip(said[0], variables, strict=True))


def applied(optimizer: Any, pairs: Pairs) -> Pairs:
    """Return gradients as the optimizer is about to apply them.

    Keras' optimizers undo the scale of the loss, average what they have accumulated, and clip. All
    of it is repeated here, with the same operations in the same order: the optimizer itself does it
    inside of branches of the graph, out of which no tensor can be taken.

    Parameters
    ----------
    optimizer : object
        With its state before the step.
    pairs : list of (Tensor or IndexedSlices or None, variable)
        As given to it.

    Returns
    -------
    list of (Tensor, variable)
        Dense; without those that have no gradient.
    """
    variables = [variable for gradient, variable in pairs if gradient is not None]
    found = [_dense(gradient) for gradient, _ in pairs if gradient is not None]
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    steps = getattr(inner, "gradient_accumulation_steps", None)
    if (steps or inner is not optimizer) and not optimizer.built:
        optimizer.build([variable for _, variable in pairs])  # as it would now itself
        optimizer.built = True
    name = "loss_scale_factor" if inner is optimizer else "dynamic_scale"
    scale = getattr(optimizer, name, None)
    if scale is not None:
        found = [gradient / tf.cast(scale, gradient.dtype) for gradient in found]
    if steps:
        sums = [
            tf.convert_to_tensor(inner._accumulated_gradients[inner._get_variable_index(variable)])
            for variable in variables
        ]
        found = [(gradient + total) / steps for gradient, total in zip(found, sums, strict=True)]
    clip = getattr(inner, "_clip_gradients", None)
    found = list(clip(found)) if clip is not None and found else found
    return list(zip(_summed(found), variables, strict=True))


def _summed(gradients: list[Any]) -> list[Any]:
    """Add up the gradients of all replicas, as a distributed optimizer does."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1 or not gradients:
        return gradients
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, gradients))


def _dense(gradient: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.math.unsorted_segment_sum(
            gradient.values, gradient.indices, tf.cast(gradient.dense_shape[0], tf.int64)
        )
    return tf.convert_to_tensor(gradient)


def first_step(optimizers: Sequence[Any]) -> int | Callable[[], int]:
    """Return the step at which training goes on: what the first optimizer has counted.

    An optimizer that scales the loss leaves out steps, so that it must be asked each time.
    """
    optimizer = optimizers[0] if optimizers else None
    if getattr(optimizer, "iterations", None) is None:
        return 0
    assert optimizer is not None

    def read() -> int:
        return counted(optimizer.iterations)

    return read if hasattr(optimizer, "inner_optimizer") else read()


def counted(count: Any) -> int:
    """Return a count that an optimizer holds, of the first of several replicas."""
    return int(underlying(count).numpy())


def part_of(optimizers: Sequence[Any]) -> int:
    """Return how many calls of the step in progress were made before."""
    for optimizer in optimizers[:1]:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if steps := getattr(inner, "gradient_accumulation_steps", None):
            return counted(inner._iterations) % int(steps)
    return 0


def accumulates(optimizers: Iterable[Any]) -> int:
    """Return how many calls of the train step make one step of the optimizer."""
    for optimizer in optimizers:
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if steps := getattr(inner, "gradient_accumulation_steps", None):
            return int(steps)
    return 1
