"""The callback of Keras: the only place that follows ``fit``, whatever the backend."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, Self, Unpack

import keras

from filmstrip.capture._agent import Agent
from filmstrip.capture._closing import Closing
from filmstrip.capture._keywords import Keywords, read_flag
from filmstrip.capture._plan import PlanLike
from filmstrip.capture._report import say
from filmstrip.capture._schedule import EPOCH
from filmstrip.capture._settings import Settings, said_by_code, settle, switched_off
from filmstrip.capture.errors import PlanError, UnsupportedModelError
from filmstrip.capture.keras._optimizers import (
    check_compiled,
    optimizers_in,
    steps_counted,
    trained_in,
)

if TYPE_CHECKING:
    from filmstrip.capture._clock import StepLike

_LOGGER = logging.getLogger("filmstrip")


class Engine(Protocol):
    """What captures a model on one backend."""

    @property
    def agent(self) -> Agent:
        """What records."""

    @property
    def optimizers(self) -> list[Any]:
        """Those of the model that is watched."""

    def install(self) -> None:
        """Watch the model's train step, unless that is done."""

    def remove(self) -> None:
        """Leave the model as it was before."""


class Capture(Closing, keras.callbacks.Callback):  # type: ignore[misc]
    """Records activations, weights and gradients of ``model.fit``.

    Give it to ``fit`` with the other callbacks. A frame of step i, which is what the optimizer has
    counted, holds what step i used: activations of its forward pass, gradients as the optimizer is
    about to apply them, weights (what Keras calls so: with moving averages of batch normalization)
    before they change. Numbers that ``fit`` reports, ``val_…`` among them, become scalars. The run
    is closed when ``fit`` ends; the next ``fit`` with the same object goes on with it.

    Parameters
    ----------
    run : str or path
        Where the run is written.
    model : keras.Model, optional
        The compiled model, where ``train_on_batch`` is called instead of ``fit``; close it then.
    step : int, optional
        First step; None: what the optimizer has counted.
    probe : array, tuple or mapping, optional
        What the model is called with, with ``training=False``, at due steps: frames of activations
        are then of all its samples, statistics still of the training batch.
    plan : Plan, mapping or path of a TOML file, optional
        Beats the keywords.
    enabled : bool, optional
        False: do nothing at all.
    **keywords
        As for `filmstrip.capture.pytorch.Capture`; `filmstrip.capture.Plan` says what they mean.
        ``every="epoch"`` is the first step of each epoch.

    Raises
    ------
    PlanError
        If a keyword, the plan or the environment holds a value that cannot be used.
    UnsupportedModelError
        If the model cannot be watched, or the backend is JAX.
    StoreError
        If the run exists, or cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from filmstrip.store import open_run
    >>> folder = tempfile.TemporaryDirectory()
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="fc")])
    >>> model.compile("sgd", "mse")
    >>> capture = Capture(run=f"{folder.name}/run.zarr", every="epoch")
    >>> x, y = np.ones((8, 3)), np.ones((8, 2))
    >>> history = model.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=[capture])
    >>> open_run(f"{folder.name}/run.zarr").weights["fc.kernel"].steps.tolist()
    [0, 4]
    >>> folder.cleanup()
    """

    def __init__(
        self,
        run: str | PathLike[str] = "run.zarr",
        *,
        model: keras.Model | None = None,
        step: StepLike = None,
        probe: Any = None,
        plan: PlanLike | None = None,
        enabled: bool | None = None,
        **keywords: Unpack[Keywords],
    ) -> None:
        code = {**said_by_code("Capture", keywords), "run": run, "enabled": enabled}
        self._prepare(model, code, plan=plan, command={}, step=step, probe=probe)

    @classmethod
    def _from_command(
        cls,
        model: keras.Model | None,
        optimizer: Any,
        code: Mapping[str, object],
        *,
        plan: PlanLike | None,
        command: Mapping[str, object],
        step: StepLike,
        probe: Any,
    ) -> Self:
        """Return a callback whose keywords may be overruled by a command line."""
        capture = cls.__new__(cls)
        capture._prepare(None, code, plan=plan, command=command, step=step, probe=probe)
        return capture

    def _prepare(
        self,
        model: keras.Model | None,
        code: Mapping[str, object],
        *,
        plan: PlanLike | None,
        command: Mapping[str, object],
        step: StepLike,
        probe: Any,
    ) -> None:
        super().__init__()
        self._engine: Engine | None = None
        self._step, self._probe = step, probe
        self._reached: tuple[int, Any, int] | None = None
        self._trained: list[object] | None = None
        self._closed = False
        self._error: Exception | None = None
        self._epochs: set[int] = set()
        self._settings: Settings | None = None
        self._named = ""
        on = code["enabled"] is None or read_flag("enabled", code["enabled"])
        if not on or switched_off(os.environ):
            return
        self._settings = settle(code, plan=plan, environment=os.environ, command=command)
        self._named = self._settings.run
        self._make = _engine_of_backend()
        if model is not None:
            if self._settings.every == EPOCH:
                raise PlanError(
                    "every='epoch' needs fit, which knows epochs; give a number of steps"
                )
            check_compiled(model)
            self.set_model(model)
            self._open()

    def _open(self) -> None:
        """Begin to capture, or to go on, once everything that fit restores is restored."""
        if self._settings is None or self._closed:
            return
        if self._engine is not None and self._engine.optimizers != optimizers_in(self.model):
            self._leave()  # the model was compiled anew
        if self._engine is None:
            self._move_on()
            self._engine = self._make(
                self.model,
                self._settings,
                step=self._first_step(),
                probe=self._probe,
                epochs=self._epochs,
            )
        self._engine.install()

    def _move_on(self) -> None:
        """Take a new run, where layers were frozen or thawed: strips are of the same layers."""
        before, now = self._trained, trained_in(self.model)
        self._trained = now
        if before is not None and now != before and self._settings is not None:
            say(
                f"other weights are trained than in {self._settings.run}; "
                "a new run is made beside it"
            )
            self._settings = replace(self._settings, run=self._named, if_exists="new")

    def _first_step(self) -> StepLike:
        """Return where the run goes on; an optimizer of a model compiled anew counts from 0."""
        if self._reached is None or callable(self._step):
            return self._step
        step, optimizer, counted = self._reached
        if optimizer is not self.model.optimizer:
            return step
        now = steps_counted(optimizer)
        return None if self._step is None and step == counted else max(0, step + now - counted)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Attach, in the first epoch; and note which step begins an epoch."""
        self._open()
        if self._engine is not None and self._engine.agent._session is not None:
            clock = self._engine.agent._clock
            self._epochs.add(clock.step)
            clock.start()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Record what fit reports of an epoch."""
        self.log(logs)
        if self._trained == []:
            self._trained = trained_in(self.model)  # the first batch has built it

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Close the run; what went wrong is logged, and raised by `close`."""
        try:
            self._leave()
        except Exception as error:
            self._error = error
            _LOGGER.error("filmstrip: %s", error)  # noqa: TRY400  # its cause was logged when it came

    def _leave(self) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        try:
            engine.remove()
            optimizer = optimizers[0] if (optimizers := engine.optimizers) else None
            step, counted = engine.agent.state_dict()["step"], steps_counted(optimizer)
            if engine.agent._session is not None and engine.agent._clock._read is not None:
                step = counted  # the clock still says the last step, until it reads the next
            self._reached = (step, optimizer, counted)
            if self._settings is not None and engine.agent.path is not None:
                self._settings = replace(self._settings, run=engine.agent.path, if_exists="resume")
        finally:
            engine.agent.close()

    @property
    def path(self) -> str | None:
        """Where the run is written; None when nothing is."""
        if self._engine is None:
            return None
        return self._engine.agent.path

    @property
    def enabled(self) -> bool:
        """Whether anything may be recorded."""
        return self._engine is not None and self._engine.agent.enabled

    def pause(self) -> None:
        """Record nothing until `resume`; steps are still counted."""
        self._tell(Agent.pause)

    def resume(self) -> None:
        """Go on recording, from the next step that has not begun."""
        self._tell(Agent.resume)

    def log(self, values: Mapping[str, object] | None = None, /, **named: object) -> None:
        """Record numbers of a step: the one in progress, or the one that ended last."""
        self._tell(lambda agent: agent.log(values, **named))

    def image(self, name: str, x: Any, *, layout: str | None = None) -> None:
        """Record an image, or any array, at steps at which frames are due."""
        self._tell(lambda agent: agent.image(name, x, layout=layout))

    def state_dict(self) -> dict[str, int]:
        """Return the step, for a checkpoint; what the optimizer has counted tells it, too."""
        if self._engine is not None:
            return self._engine.agent.state_dict()
        if self._reached is not None:
            return {"step": self._reached[0]}
        return {"step": self._step if isinstance(self._step, int) else 0}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from the step of a checkpoint."""
        self._step, self._reached = int(state["step"]), None
        self._tell(lambda agent: agent.load_state_dict(state))

    def _tell(self, act: Callable[[Agent], None]) -> None:
        if self._engine is not None:
            act(self._engine.agent)

    def close(self) -> None:
        """Write what is pending and close the run; a second call does nothing.

        Raises
        ------
        CaptureError
            If something was lost that capture had promised to keep, also in a ``fit`` before.
        """
        self._closed = True
        self._leave()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _close_quietly(self) -> None:
        self.on_train_end()


def _engine_of_backend() -> Callable[..., Engine]:
    """Return what makes an engine for Keras' backend; its framework is imported only now."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        from filmstrip.capture.keras._tensorflow import TensorFlowEngine

        return TensorFlowEngine
    if backend == "torch":
        from filmstrip.capture.keras._torch import TorchEngine

        return TorchEngine
    raise UnsupportedModelError(
        f"Keras runs on {backend}, whose train step capture cannot watch; "
        "set KERAS_BACKEND=tensorflow or KERAS_BACKEND=torch"
    )
