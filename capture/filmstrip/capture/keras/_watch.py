"""The watch over Keras: the only place that finds out what an unmodified script trains with it.

Models are trained by ``fit`` and ``train_on_batch``, or by a loop of the script's own, for which
`filmstrip.capture.tensorflow._loops` waits.
"""

from __future__ import annotations

import functools
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import keras

from filmstrip.capture._launched import Wishes
from filmstrip.capture._report import say
from filmstrip.capture._settings import DEFAULTS, Settings, settle, switched_off
from filmstrip.capture._unattended import beside_others, close_on_termination
from filmstrip.capture.keras._callback import Capture
from filmstrip.capture.keras._optimizers import optimizers_in
from filmstrip.capture.tensorflow._ranks import ranks_here

_LOGGER = logging.getLogger("filmstrip")


def watch(wishes: Wishes) -> None:
    """Attach capture to what this process trains with Keras, as soon as it trains something."""
    if not switched_off(os.environ):
        settings = settle(
            DEFAULTS, plan=wishes.plan, environment=os.environ, command=wishes.command
        )
        Watch(wishes, settings).begin()


class Watch:
    """Waits for a model that is trained.

    Parameters
    ----------
    wishes : Wishes
        What was asked for.
    settings : Settings
        What follows from it.
    """

    def __init__(self, wishes: Wishes, settings: Settings) -> None:
        self._wishes, self._settings = wishes, settings
        self._capture: _Unattended | None = None
        self._model: Callable[[], object] = lambda: None
        self._over = False

    @property
    def free(self) -> bool:
        """Return whether nothing is captured yet, and something may be."""
        return self._capture is None and not self._over

    def begin(self) -> None:
        """Follow whatever trains a model from now on."""
        self._wishes.note(
            "imported",
            "keras was imported, but nothing was trained by fit, by train_on_batch or, in a loop "
            "of TensorFlow's, by a tf.function of one step",
        )
        fit, train_on_batch = keras.Model.fit, keras.Model.train_on_batch

        @functools.wraps(fit)
        def fitted(model: keras.Model, *args: Any, **kwargs: Any) -> Any:
            return self._fit(functools.partial(fit, model), model, *args, **kwargs)

        @functools.wraps(train_on_batch)
        def trained(model: keras.Model, *args: Any, **kwargs: Any) -> Any:
            capture = None if self._fitting else self._capture_of(model)
            if capture is not None and model.compiled:
                capture.set_model(model)
                capture._open()
            return train_on_batch(model, *args, **kwargs)

        keras.Model.fit, keras.Model.train_on_batch = fitted, trained
        if keras.backend.backend() == "tensorflow":
            from filmstrip.capture.tensorflow._loops import Loops

            Loops(self).begin()

    _fitting = False

    def _fit(self, fit: Callable[..., Any], model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        try:
            said = signature(fit).bind(*args, **kwargs)
        except TypeError:
            return fit(*args, **kwargs)  # which says what is wrong
        given: Any = said.arguments.get("callbacks")
        listed = isinstance(given, keras.callbacks.CallbackList)
        others = given.callbacks if listed else [] if given is None else keras.tree.flatten(given)
        if any(isinstance(one, Capture) and one is not self._capture for one in others):
            self.refuse("the script captures by itself")
        capture = self._capture_of(model)
        if capture is None:
            return fit(*args, **kwargs)
        if not listed:
            said.arguments["callbacks"] = [*others, capture]
        elif capture not in others:
            capture.set_model(model)
            given.append(capture)
        self._fitting = True
        try:
            return fit(*said.args, **said.kwargs)
        except BaseException:
            capture.on_train_end()
            raise
        finally:
            self._fitting = False

    def _capture_of(self, model: keras.Model) -> _Unattended | None:
        """Return what captures a model: the first one that is trained."""
        try:
            if self.free and self.claim():
                self._capture = _Unattended._of(self._wishes, self._settings, self)
                self._model = weakref.ref(model)
        except Exception as error:
            self.fail(error)
        if self._over:
            return None
        if self._model() is model:
            return self._capture
        self._wishes.note("later", f"{model.name} was trained, too, but not captured")
        return None

    def claim(self) -> bool:
        """Return whether this process may capture; if it may not, it never will."""
        self._over = not self._wishes.claim(ranks_here()[0])
        if self._over:
            self._wishes.note("others")
        return not self._over

    def refuse(self, why: str) -> None:
        """Capture nothing any more."""
        self._over = True
        self._wishes.note("refused", why)

    def fail(self, error: Exception) -> None:
        """Capture nothing any more, and tell of what went wrong."""
        self.refuse(str(error) or type(error).__name__)
        _LOGGER.error("filmstrip: nothing is captured: %s", error)

    def attached(self, model: str, optimizers: Sequence[Any]) -> None:
        """Note that capture has begun."""
        if ranks_here()[0] == 0:
            kinds = " and ".join(type(one).__name__ for one in optimizers)
            say(f"watching {model}, trained by {kinds}")
        self._wishes.note("attached")

    def attach_loop(self, model: Any, optimizers: Sequence[Any]) -> Any:
        """Return a capture of a loop's model, or nothing."""
        from filmstrip.capture.tensorflow._capture import Capture as LoopCapture

        self._over = True

        def attach(**command: object) -> LoopCapture:
            return LoopCapture._from_command(
                model,
                optimizers,
                DEFAULTS,
                plan=self._wishes.plan,
                command={**self._wishes.command, **command},
                step=self._wishes.step,
                probe=None,
            )

        self.attached(type(model).__name__, optimizers)
        capture = beside_others(attach, self._settings, rank=ranks_here()[0])
        close_on_termination(capture._close_quietly)
        return capture


class _Unattended(Capture):
    """A callback of which the script knows nothing."""

    @classmethod
    def _of(cls, wishes: Wishes, settings: Settings, watch: Watch) -> _Unattended:
        capture = cls._from_command(
            None,
            None,
            DEFAULTS,
            plan=wishes.plan,
            command=wishes.command,
            step=wishes.step,
            probe=None,
        )
        capture._watch, capture._asked = watch, settings
        close_on_termination(capture.on_train_end)
        return capture

    _watch: Watch
    _asked: Settings
    _begun = False

    def _open(self) -> None:
        try:
            if self._begun or self._closed:
                super()._open()
            else:
                self._begin()
        except Exception as error:
            self._closed = True
            self._watch.fail(error)

    def _begin(self) -> None:
        def attach(**command: Any) -> None:
            assert self._settings is not None
            self._settings = replace(self._settings, **command)
            super(_Unattended, self)._open()

        self._watch.attached(self.model.name, optimizers_in(self.model))
        beside_others(attach, self._asked, rank=ranks_here()[0])
        self._begun = True
