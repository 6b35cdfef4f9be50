"""Capture for TensorFlow: the only place that a training loop touches."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from operator import index
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec, Self, SupportsIndex, TypeVar, Unpack

import tensorflow as tf

from filmstrip.capture._agent import Agent, plain_number
from filmstrip.capture._keywords import Keywords, read_flag
from filmstrip.capture._plan import PlanLike
from filmstrip.capture._settings import Settings, said_by_code, settle, switched_off
from filmstrip.capture.errors import PlanError

if TYPE_CHECKING:
    from filmstrip.capture._clock import Clock, StepLike
    from filmstrip.capture.tensorflow._probe import ProbeLike
    from filmstrip.capture.tensorflow._taps import Window

P = ParamSpec("P")
R = TypeVar("R")


class Capture(Agent):
    """Records activations, weights and gradients of a training loop.

    Create it after the model and its optimizer, and wrap the function that does one train step. At
    due steps a second graph of that function runs, which returns what layers, variables and the
    optimizer held besides; the graph of all other steps is never touched. A frame of step i holds
    what step i used: activations of its forward pass, gradients as the optimizer is about to apply
    them, weights before they change.

    Parameters
    ----------
    model : keras.Model, keras.layers.Layer or tf.Module
        What is trained. Layers of a Keras model are named by their paths, modules by attributes.
    optimizer : optimizer or sequence of them, optional
        To whose ``apply`` or ``apply_gradients`` gradients are given; None: they are not captured.
    run : str or path
        Where the run is written.
    step : int or callable, optional
        First step, or what returns the trainer's step, read before each call. None: the
        optimizer's count, else from 0; every call is a step.
    probe : array, tuple or mapping, optional
        What the model is called with, with ``training=False``, at the beginning of captured steps:
        frames of activations are then of all its samples, statistics still of the training batch.
        It is kept once, as ``inputs``.
    plan : Plan, mapping or path of a TOML file, optional
        Beats the keywords.
    enabled : bool, optional
        False: do nothing at all.
    **keywords
        As for `filmstrip.capture.pytorch.Capture`; `filmstrip.capture.Plan` says what they mean.
        Only replica 0, of worker 0, is recorded.

    Raises
    ------
    PlanError
        If a keyword, the plan or the environment holds a value that cannot be used.
    UnsupportedModelError
        If the model or the optimizer cannot be watched.
    StoreError
        If the run exists, or cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> import keras
    >>> from filmstrip.store import open_run
    >>> folder = tempfile.TemporaryDirectory()
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="fc")])
    >>> optimizer = keras.optimizers.SGD(0.1)
    >>> @tf.function
    ... def train_step(x):
    ...     with tf.GradientTape() as tape:
    ...         loss = tf.reduce_sum(model(x, training=True))
    ...     variables = model.trainable_variables
    ...     optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
    ...     return loss
    >>> with Capture(model, optimizer, run=f"{folder.name}/run.zarr", every=1) as cap:
    ...     train_step = cap.wrap(train_step)
    ...     loss = train_step(tf.ones((4, 3)))
    ...     cap.log({"loss": loss})
    >>> open_run(f"{folder.name}/run.zarr").gradients["fc.kernel"].frame(0)
    array([[4., 4.],
           [4., 4.],
           [4., 4.]], dtype=float32)
    >>> folder.cleanup()
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any = None,
        run: str | PathLike[str] = "run.zarr",
        *,
        step: int | Callable[[], int] | None = None,
        probe: ProbeLike | None = None,
        plan: PlanLike | None = None,
        enabled: bool | None = None,
        **keywords: Unpack[Keywords],
    ) -> None:
        code = {**said_by_code("Capture", keywords), "run": run, "enabled": enabled}
        self._prepare(model, optimizer, code, plan=plan, command={}, step=step, probe=probe)

    @classmethod
    def _from_command(
        cls,
        model: Any,
        optimizer: Any,
        code: Mapping[str, object],
        *,
        plan: PlanLike | None,
        command: Mapping[str, object],
        step: StepLike,
        probe: ProbeLike | None,
    ) -> Self:
        """Return a capture whose keywords may be overruled by a command line."""
        capture = cls.__new__(cls)
        capture._prepare(model, optimizer, code, plan=plan, command=command, step=step, probe=probe)
        return capture

    def _prepare(
        self,
        model: Any,
        optimizer: Any,
        code: Mapping[str, object],
        *,
        plan: PlanLike | None,
        command: Mapping[str, object],
        step: StepLike,
        probe: ProbeLike | None,
    ) -> None:
        self._first = index(step) if isinstance(step, SupportsIndex) else 0
        on = code["enabled"] is None or read_flag("enabled", code["enabled"])
        if not on or switched_off(os.environ):
            return
        settings = settle(code, plan=plan, environment=os.environ, command=command)
        self._attach(model, optimizer, settings, step=step, probe=probe)

    @classmethod
    def for_trainer(
        cls,
        model: Any,
        optimizer: Any,
        settings: Settings,
        *,
        step: StepLike,
        probe: ProbeLike | None,
        framework: str,
        epochs: Collection[int],
    ) -> Self:
        """Return a capture for a trainer that has settled what it takes, and runs steps itself."""
        capture = cls.__new__(cls)
        capture._attach(
            model, optimizer, settings, step=step, probe=probe, framework=framework, epochs=epochs
        )
        return capture

    def window(self) -> Window:
        """Return what a step runs in to be noted."""
        return self._taps.window(None if self._probe is None else self._probe.run)

    def due_within(self, steps: int) -> bool:
        """Return whether something is due at one of so many steps from now on."""
        if self._session is None:
            return False
        first, recorder = self._clock.step, self._session.recorder
        return any(any(recorder.due(first + ahead)) for ahead in range(steps))

    def _attach(
        self,
        model: Any,
        optimizer: Any,
        settings: Settings,
        *,
        step: StepLike,
        probe: ProbeLike | None,
        framework: str = f"tensorflow {tf.__version__}",
        epochs: Collection[int] | None = None,
    ) -> None:
        from filmstrip.capture._clock import checked_step
        from filmstrip.capture._images import ImageShelf
        from filmstrip.capture._report import say
        from filmstrip.capture._session import Company, Session
        from filmstrip.capture.tensorflow import _gradients
        from filmstrip.capture.tensorflow._images import whole_frame
        from filmstrip.capture.tensorflow._model import select_built, select_layers
        from filmstrip.capture.tensorflow._probe import Probe
        from filmstrip.capture.tensorflow._ranks import Bystander, check_settings, ranks_here
        from filmstrip.capture.tensorflow._stage import DryStage, HeldStage
        from filmstrip.capture.tensorflow._steps import Steps
        from filmstrip.capture.tensorflow._taps import Taps

        rank, ranks = ranks_here()
        check_settings(settings, ranks=ranks)
        optimizers = _gradients.optimizers_of(optimizer)
        step = _gradients.first_step(optimizers) if step is None else checked_step(step)
        selection = select_built(model, settings)
        self._probe = None if probe is None else Probe(probe, model)
        stage = DryStage() if rank or settings.dry_run else HeldStage()
        session: Session[Any] | None = None
        if rank == 0:
            session = Session(
                settings,
                stage=stage,
                framework=framework,
                first_step=int(step()) if callable(step) else step,
                company=Company(ranks=ranks),
                epochs=epochs,
            )
        bystander = Bystander()
        self._taps = Taps(
            selection,
            lambda: select_layers(model, settings),
            optimizers,
            kinds=settings.kinds,
            failed=(session.recorder if session else bystander).trip,
        )
        self._steps = Steps(
            self._taps,
            stage,
            settings=settings,
            step=step,
            parts=_gradients.accumulates(optimizers),
            part=_gradients.part_of(optimizers),
            probed=probe is not None,
            together=ranks > 1,
        )
        self._attached = True
        if session is None:
            self._steps.install(bystander)
            return
        self._session = session
        self._images = ImageShelf(session, whole_frame)
        layers = {
            "activations": len(selection.layers),
            "weights": len(selection.variables) if "weights" in settings.kinds else 0,
            "gradients": len(selection.trained)
            if optimizers and "gradients" in settings.kinds
            else 0,
        }
        try:
            session.start(self._steps, unfired=lambda: self._steps.unfired, layers=layers)
            if "gradients" in settings.kinds and not optimizers:
                say("no gradients: give capture the optimizer to which they are given")
        except BaseException:
            self._close_quietly()
            raise
        if self._probe is not None:
            session.frames("inputs", self._clock.step, self._probe.frames())
        self._watch_process()

    @property
    def _clock(self) -> Clock:
        return self._steps.clock

    @staticmethod
    def _number(value: object) -> object:
        """Return what the writer thread can turn into a float; raise if it is not one number."""
        from filmstrip.capture.tensorflow._images import Later, constant

        value = constant(value)
        if isinstance(value, tf.Tensor):
            if value.shape.num_elements() != 1 or value.dtype.is_complex:
                raise TypeError(f"it is a tensor of dtype {value.dtype.name}, shape {value.shape}")
            return float(value) if tf.is_symbolic_tensor(value) else Later(value)
        return plain_number(value)

    def wrap(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a train step that is captured when it is due.

        Parameters
        ----------
        function : callable
            Does one step: a function, or one of `tf.function`, with XLA or without. Call the result
            in its place, outside of other functions of `tf.function`.

        Returns
        -------
        callable
            Takes and returns the same.

        Raises
        ------
        PlanError
            If one was wrapped before.
        """
        if not self._attached:
            return function
        if self._wrapped:
            raise PlanError(
                "wrap() was called twice, and steps would be counted twice; "
                "wrap one function that does all of a step"
            )
        self._wrapped = True
        captured = self._traced(function)

        def step(*args: P.args, **kwargs: P.kwargs) -> R:
            if tf.inside_function():
                self._complain()
                return function(*args, **kwargs)
            return self._steps.run(
                lambda: function(*args, **kwargs), lambda: captured(*args, **kwargs)
            )

        return step

    def close(self) -> None:
        """Write what is pending and close the run; a second call does nothing.

        Raises
        ------
        CaptureError
            If something was lost that capture had promised to keep.
        """
        if self._attached and self._session is None:
            self._steps.remove()
        super().close()

    _attached = _wrapped = False

    def _complain(self) -> None:
        if self._session is not None:
            self._session.ledger.lose(
                "skipped",
                "inside",
                "the wrapped train step was called inside of a tf.function, where no step can be "
                "told from another; nothing is captured: wrap the function around it instead",
            )

    def _traced(self, function: Callable[..., R]) -> Callable[..., tuple[R, Mapping[int, Any]]]:
        """Return a function that also returns what was noted; with a graph, if it has one."""
        python = getattr(function, "python_function", function)
        window = self.window()

        def traced(*args: Any, **kwargs: Any) -> tuple[R, Mapping[int, Any]]:
            with window:
                result = python(*args, **kwargs)
            return result, window.noted()

        if python is function:
            return traced
        traced.__signature__ = inspect.signature(python)  # type: ignore[attr-defined]
        graph: Callable[..., tuple[R, Mapping[int, Any]]] = tf.function(
            traced,
            autograph=getattr(function, "_autograph", True),
            jit_compile=getattr(function, "_jit_compile", None),
            reduce_retracing=getattr(function, "_reduce_retracing", False),
            input_signature=getattr(function, "input_signature", None),
        )
        return graph
