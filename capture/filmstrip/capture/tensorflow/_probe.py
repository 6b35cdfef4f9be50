"""The probe: the only place that runs a model on inputs of our own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import keras
import numpy.typing as npt
import tensorflow as tf

from filmstrip.capture._row import Kept
from filmstrip.capture.errors import PlanError
from filmstrip.capture.keras._layout import input_layout
from filmstrip.capture.tensorflow._images import whole_frame
from filmstrip.capture.tensorflow._model import state_of
from filmstrip.capture.tensorflow._taps import named_leaves
from filmstrip.store import FrameSpec

ProbeLike: TypeAlias = "npt.ArrayLike | tuple[Any, ...] | Mapping[str, Any]"


class Probe:
    """A fixed batch on which a model's activations are compared over steps.

    Parameters
    ----------
    inputs : array, tuple, list or mapping
        What the model is called with. A Keras model takes several inputs as one argument, as
        ``fit`` gives them; a module takes them one by one, or by name.
    model : keras.Model, keras.layers.Layer or tf.Module
        The model.

    Raises
    ------
    PlanError
        If it holds no array.
    """

    def __init__(self, inputs: ProbeLike, model: Any) -> None:
        self._model = model
        try:
            self._inputs = tf.nest.map_structure(_numbers, inputs)
        except (TypeError, ValueError) as error:
            raise PlanError(
                f"probe is a {type(inputs).__name__} that cannot be given to a model: {error}; "
                "give what the model is called with"
            ) from error
        if not tf.nest.flatten(self._inputs):
            raise PlanError("probe is empty; give what the model is called with")

    def frames(self) -> dict[str, tuple[Kept, FrameSpec]]:
        """Return its arrays by name: ``input``, or ``input.0`` or ``input.mask``."""
        return {
            name: whole_frame(tensor, input_layout(len(tensor.shape)))
            for name, tensor in named_leaves(self._inputs, "input")
        }

    def run(self) -> None:
        """Call the model as for inference; what the call changes of it is put back."""
        held = [_here(variable) for variable in state_of(self._model)]
        saved = [tf.identity(variable) for variable in held]
        try:
            self._call()
        finally:
            for variable, before in zip(held, saved, strict=True):
                variable.assign(before)

    def _call(self) -> None:
        if isinstance(self._model, keras.layers.Layer):
            self._model(self._inputs, training=False)
            return
        call = self._model if tf.executing_eagerly() else _converted(self._model)
        if isinstance(self._inputs, dict):
            call(**self._inputs)
        elif isinstance(self._inputs, tuple | list):
            call(*self._inputs)
        else:
            call(self._inputs)


def _numbers(array: Any) -> Any:
    tensor = tf.convert_to_tensor(array)
    if tensor.dtype == tf.string:
        raise TypeError("text is not kept")
    return tensor


def _here(variable: Any) -> Any:
    """Return a variable's copy of the replica that runs; others put back their own."""
    if tf.distribute.has_strategy() and isinstance(variable, tf.distribute.DistributedValues):
        return variable._get()
    return variable


def _converted(call: Any) -> Any:
    """Let AutoGraph rewrite a module, as it does inside of `tf.function`."""
    autograph = tf.__internal__.autograph
    context = autograph.control_status_ctx()
    enabled = type(context)(status=type(context.status).ENABLED)
    return autograph.tf_convert(call, enabled)
