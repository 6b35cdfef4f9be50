"""Keras on PyTorch: the only place that gives a Keras model to the agent of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import keras
import torch

from filmstrip.capture._clock import StepLike
from filmstrip.capture._selection import choose
from filmstrip.capture._settings import Settings
from filmstrip.capture.errors import UnsupportedModelError
from filmstrip.capture.keras import _layers
from filmstrip.capture.keras._layout import input_layout
from filmstrip.capture.keras._optimizers import optimizers_in
from filmstrip.capture.pytorch._capture import Capture
from filmstrip.capture.pytorch._images import whole_frame
from filmstrip.capture.pytorch._model import Layer, Selection, Variable
from filmstrip.capture.pytorch._probe import Probe


@dataclass(frozen=True, slots=True)
class _Weight(Variable):
    """A weight of a Keras layer."""

    variable: Any = None

    @property
    def tensor(self) -> torch.Tensor | None:
        """The parameter as it is now."""
        tensor: torch.Tensor | None = _layers.underlying(self.variable)
        return tensor


class _KerasCapture(Capture):
    """The agent of PyTorch, with Keras' names."""

    def _select(self, model: Any, settings: Settings) -> Selection:
        found = list(_layers.layers_of(_layers.layer_at("", model)))

        def layers(wanted: bool) -> list[Layer]:
            chosen = _layers.first_places([layer for layer, leaf in found if leaf is wanted])
            return [
                Layer(layer.name, layer.original, layer.module, layer.aliases, layer.types)
                for layer in chosen
            ]

        weights = _layers.known_once(
            [weight for layer, leaf in found for weight in _layers.variables_of(layer, leaf=leaf)]
        )
        variables: list[Variable] = [
            _Weight(
                weight.name,
                weight.original,
                weight.owner,
                weight.variable.name,
                weight.aliases,
                weight.types,
                variable=weight.variable,
            )
            for weight in weights
        ]
        picked = choose(
            layers(True), layers(False), variables, settings, model=type(model).__name__
        )
        return Selection(model, *picked)

    def _keep_probe(self, probe: Probe) -> None:
        if self._session is not None:
            frames = {
                name: whole_frame(tensor, input_layout(tensor.ndim))
                for name, tensor in probe.tensors().items()
            }
            self._session.frames("inputs", self._clock.step, frames)


class TorchEngine:
    """Follows the optimizer of a Keras model, and its numbers.

    Parameters
    ----------
    model : keras.Model
        Compiled and built.
    settings : Settings
        What was asked for.
    step : int, callable or None
        First step.
    probe : array, tuple, mapping or None
        A fixed batch.
    epochs : collection of int
        Steps at which an epoch began.
    """

    def __init__(
        self,
        model: keras.Model,
        settings: Settings,
        *,
        step: StepLike,
        probe: Any,
        epochs: Collection[int],
    ) -> None:
        self._model = model
        self.optimizers = optimizers_in(model)
        self._optimizer = self.optimizers[0]
        if getattr(self._optimizer, "gradient_accumulation_steps", None):
            raise UnsupportedModelError(
                "the optimizer accumulates gradients inside of itself, which capture cannot see on "
                "PyTorch; set KERAS_BACKEND=tensorflow, or leave out gradient_accumulation_steps"
            )
        values = {field.name: getattr(settings, field.name) for field in fields(settings)}
        if probe is not None:
            probe = keras.tree.map_structure(keras.ops.convert_to_tensor, probe)
        self.agent = _KerasCapture._from_command(
            model,
            None,
            {**values, "enabled": None},
            plan=None,
            command=values,
            step=int(self._optimizer.iterations) if step is None else step,
            probe=probe,
            epochs=epochs,
        )
        self._plain: Callable[[Iterator[Any]], Any] | None = None

    def install(self) -> None:
        """Watch what the optimizer is given, and what the train function returns."""
        if self._plain is not None and self._model.train_function == self._logged:
            return
        self.remove()
        before = self._optimizer.apply

        def apply(*args: Any, **kwargs: Any) -> Any:
            self.agent.step()
            return before(*args, **kwargs)

        object.__setattr__(self._optimizer, "apply", apply)
        self._model.make_train_function()
        self._plain = self._model.train_function
        self._model.train_function = self._logged

    def remove(self) -> None:
        """Leave the model as it was before."""
        if "apply" in vars(self._optimizer):
            object.__delattr__(self._optimizer, "apply")
        if self._plain is not None and self._model.train_function == self._logged:
            self._model.train_function = self._plain

    def _logged(self, iterator: Iterator[Any]) -> Any:
        assert self._plain is not None
        logs = self._plain(iterator)
        if isinstance(logs, Mapping):
            self.agent.log(logs)
        return logs
