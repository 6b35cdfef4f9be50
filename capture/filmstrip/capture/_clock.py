"""The clock: the only place that knows which step it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from filmstrip.capture._keywords import read_step
from filmstrip.capture._seams import Watcher
from filmstrip.capture.errors import PlanError

StepLike = int | Callable[[], int] | None


def checked_step(step: object) -> StepLike:
    """Return a first step, or what returns the trainer's."""
    if step is None or callable(step):
        return step
    try:
        return read_step("step", step)
    except PlanError as error:
        raise PlanError(
            f"step={step!r} is not a step; give a number of 0 or more, or a function of one"
        ) from error


class Clock:
    """Counts optimizer steps, or reads the trainer's count, and begins and ends them.

    A count of our own is known as soon as the step before has ended. The trainer's is read at every
    forward pass of a step, since trainers raise it some time after the optimizer's step, and since
    it moves on past a step that was never taken.

    Parameters
    ----------
    recorder : Recorder
        Is told of every step.
    step : int, callable or None
        First step, or what returns the trainer's step. None: 0.

    Attributes
    ----------
    step : int
        The step in progress, or the one that ended last.
    entered : bool
        Whether the step's forward pass has begun.
    stepping : bool
        Whether some of several optimizers have stepped in it.
    """

    def __init__(self, recorder: Watcher[Any], step: StepLike) -> None:
        self._recorder = recorder
        self._read = step if callable(step) else None
        self.step = 0 if step is None or callable(step) else int(step)
        self.entered = self.stepping = False
        self._begun = False
        self._first = self.step

    def start(self) -> None:
        """Make ready for the next step."""
        self.entered = self.stepping = self._begun = False
        if self._read is None:
            self._begin()
        else:
            self._recorder.on = True  # until the trainer's step is known, every tap asks

    def _begin(self) -> None:
        self._begun = True
        step = self._number()
        if step is None:
            self._recorder.on = False
            return
        self.step = step
        self._recorder.begin(step)

    def _number(self) -> int | None:
        """Return the number of the step that begins; None where the trainer's cannot be read."""
        if self._read is None:
            return self.step
        try:
            return int(self._read())
        except Exception as error:
            self._recorder.trip("step() could not be read", error)
            return None

    def enter(self) -> None:
        """Note that the step's forward pass has begun."""
        if not self._begun:
            self._begin()
        self.entered = True

    def enter_pass(self) -> bool:
        """Note that a forward pass begins; return whether the step in progress was given up for it.

        So it is where the trainer's count moved on though nothing stepped: a scaler left the step
        out, or the loop caught an exception.
        """
        moved = False
        if self._begun and self._read is not None and not self.stepping:
            step = self._number()
            if step is not None and step != self.step:
                moved, self.step = True, step
                self._recorder.begin(step)
        self.enter()
        return moved

    def advance(self) -> None:
        """End the step, and make ready for the next."""
        self.enter()
        self._recorder.end()
        if self._read is None:
            self.step += 1
        self.start()

    def again(self) -> None:
        """Give up the step in progress, which is not taken; the next one has its number."""
        entered = self.entered
        self.start()
        self.entered = entered  # numbers that are logged now belong to it

    def set(self, step: int) -> None:
        """Go on from a step, as after loading a checkpoint."""
        self.step = self._first = int(step)
        self.start()

    @property
    def logged(self) -> int:
        """The step that a number belongs to: the one in progress, else the one that ended last."""
        behind = self._read is None and not self.entered and self.step > self._first
        return self.step - 1 if behind else self.step
