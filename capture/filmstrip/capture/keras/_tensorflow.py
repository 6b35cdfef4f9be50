"""Keras on TensorFlow: the only place that takes the place of a model's train function."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext, suppress
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from filmstrip.capture._clock import StepLike
from filmstrip.capture._report import say
from filmstrip.capture._settings import Settings
from filmstrip.capture.keras._optimizers import optimizers_in
from filmstrip.capture.tensorflow._capture import Capture
from filmstrip.capture.tensorflow._gradients import counted
from filmstrip.capture.tensorflow._taps import Window

Function: TypeAlias = "Callable[[_Batch], tuple[Any, Mapping[int, Any]]]"


class TensorFlowEngine:
    """Runs the model's own train function, or at due steps one with taps.

    Parameters
    ----------
    model : keras.Model
        Compiled.
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
        self._plain: Callable[[Iterator[Any]], Any] | None = None
        self._single: Callable[[Iterator[Any]], Any] | None = None
        self._captured: Function | None = None
        self._take_over()
        self.optimizers = optimizers_in(model)
        self.agent = Capture.for_trainer(
            model,
            self.optimizers,
            settings,
            step=step,
            probe=probe,
            framework=f"keras {keras.__version__}",
            epochs=epochs,
        )

    def install(self) -> None:
        """Take the place of the train function that the model has made, or would make."""
        model = self._model
        if self.agent._session is None or _engine_of(model) is self:
            return
        model.make_train_function()
        if self._captured is None or self._plain is not model.train_function:
            self._captured = _train_function(model, self.agent.window())
            self._single = model.train_function
            if model.steps_per_execution > 1:
                self._single = _without_taps(_train_function(model, None))
        self._plain = model.train_function
        model.train_function = self._dispatch

    def _take_over(self) -> None:
        """Take leave of another capture, whose ``fit`` ended without telling it."""
        other = _engine_of(self._model)
        if other is not None:
            other.remove()
            if other.agent.enabled:
                say(f"capture to {other.agent.path} ends: another one takes its place")
            other.agent._close_quietly()

    def remove(self) -> None:
        """Give the model its own train function back."""
        if _engine_of(self._model) is self:
            self._model.train_function = self._plain

    def _dispatch(self, iterator: Iterator[Any]) -> Any:
        """Run as many steps as Keras asks for at a time."""
        together = self._model.steps_per_execution
        if together == 1:
            return self._one(iterator)
        if self.agent._steps.whole and not self.agent.due_within(together):
            return self._block(iterator, together)
        logs = self._one(iterator)
        with suppress(StopIteration):
            for _ in range(together - 1):
                logs = self._one(iterator)
        return logs

    def _block(self, iterator: Iterator[Any], together: int) -> Any:
        """Run steps in one graph; their number is what the optimizer has counted."""
        assert self._plain is not None
        before = self._count()
        logs = self._plain(iterator)
        ran = self._count() - before
        self.agent._steps.passed(ran if 0 < ran <= together else together)
        return self._logged(logs)

    def _count(self) -> int:
        optimizer = self._model.optimizer
        return 0 if optimizer is None else counted(optimizer.iterations)

    def _one(self, iterator: Iterator[Any]) -> Any:
        run, captured = self._single, self._captured
        assert run is not None
        assert captured is not None
        batch = _Batch(iterator)

        def plain() -> Any:
            return run(iter([batch.value]) if batch.fetched else iterator)

        def with_taps() -> tuple[Any, Mapping[int, Any]]:
            try:
                return captured(batch)
            except StopIteration:
                return run(iterator), {}  # which says so in its own way, with its own effects

        return self._logged(self.agent._steps.run(plain, with_taps))

    def _logged(self, logs: Any) -> Any:
        if isinstance(logs, Mapping):
            self.agent.log(logs)
        return logs


def _train_function(model: keras.Model, window: Window | None) -> Function:
    """Return a train function of one step, made as Keras makes its own, with taps in a window.

    Graphs that are made alike round alike: inside of the graph shapes are as little known. Whether
    there is a batch is found out before it, since without one, part of a step would be done.
    """
    strategy, reduce = model.distribute_strategy, _reduction()

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def on_data(data: Any) -> tuple[Any, Mapping[int, Any]]:
        with window or nullcontext():
            logs = strategy.run(model.train_step, args=(data,))
        return reduce(logs, strategy, "auto"), window.noted() if window is not None else {}

    if not model.run_eagerly:
        on_data = tf.function(on_data, reduce_retracing=True, jit_compile=model.jit_compile)
        on_data._omit_frequent_tracing_warning = True  # of few calls, many are the first of a shape
    on_data = model._autoconvert_optionals(on_data)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def on_batch(batch: Any) -> Any:
        return on_data(batch.get_value())

    if not model.run_eagerly:
        on_batch = tf.function(on_batch, reduce_retracing=True)
        on_batch._omit_frequent_tracing_warning = True

    def function(batch: _Batch) -> Any:
        held = batch.fetch()
        return on_batch(held) if hasattr(held, "get_value") else on_data(held)

    return function


def _without_taps(function: Function) -> Callable[[Iterator[Any]], Any]:
    return lambda iterator: function(_Batch(iterator))[0]


class _Batch:
    """The next batch of an iterator, which is not lost when a step that was begun gives way."""

    def __init__(self, iterator: Any) -> None:
        self._iterator: Any = iterator
        self._held: Any = None
        self.fetched = False

    def fetch(self) -> Any:
        """Return it: as an optional value, whose shapes are as little known as in the iterator.

        Raises
        ------
        StopIteration
            If there is none.
        """
        if not isinstance(self._iterator, tf.data.Iterator | tf.distribute.DistributedIterator):
            self._held = next(self._iterator)
        else:
            self._held = self._iterator.get_next_as_optional()
            if not self._held.has_value():
                raise StopIteration
        self.fetched = True
        return self._held

    @property
    def value(self) -> Any:
        """The batch that was fetched."""
        return self._held.get_value() if hasattr(self._held, "get_value") else self._held


def _engine_of(model: keras.Model) -> TensorFlowEngine | None:
    """Return the engine that has taken the place of a model's train function."""
    engine = getattr(model.train_function, "__self__", None)
    return engine if isinstance(engine, TensorFlowEngine) else None


def _reduction() -> Callable[[Any, Any, str], Any]:
    """Return Keras' own function that makes one of the numbers of several replicas."""
    try:
        from keras.src.backend.tensorflow.trainer import reduce_per_replica
    except ImportError:

        def reduce_per_replica(values: Any, strategy: Any, reduction: str) -> Any:
            return tf.nest.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], values
            )

    found: Callable[[Any, Any, str], Any] = reduce_per_replica
    return found
