"""Trainers: the only place for what callbacks of trainers over PyTorch have in common."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from filmstrip.capture._closing import Closing
from filmstrip.capture._keywords import Keywords
from filmstrip.capture._settings import said_by_code, settle
from filmstrip.capture.errors import PlanError

if TYPE_CHECKING:
    import torch

    from filmstrip.capture._plan import PlanLike
    from filmstrip.capture.pytorch._capture import Capture
    from filmstrip.capture.pytorch._images import ImageLike
    from filmstrip.capture.pytorch._probe import ProbeLike


_LOGGER = logging.getLogger("filmstrip")


class TrainerKeywords(Keywords, total=False):
    """What the captures of trainers are told by keyword."""

    probe: ProbeLike | None
    plan: PlanLike | None
    enabled: bool | None


class TrainerCapture(Closing):
    """A capture that is attached when a trainer begins, and knows the trainer's step.

    What is asked of it before is remembered; after the training it is harmless.
    """

    _capture: Capture | None = None
    _epochs: set[int]
    _first = 0
    _now: Callable[[], int] | None = None
    _error: Exception | None = None
    _paused = _closed = False

    def _prepare(self, run: str | PathLike[str], keywords: Mapping[str, object]) -> None:
        """Check all keywords, before the trainer does anything."""
        if "step" in keywords:
            raise PlanError(f"step={keywords['step']!r} is the trainer's to say; leave it out")
        code: dict[str, Any] = {"run": run, **keywords}
        self._plan = code.pop("plan", None)
        self._probe = code.pop("probe", None)
        self._code = said_by_code("Capture", code)
        self._epochs = set()
        settle(self._code, plan=self._plan, environment=os.environ, command={})

    def _attach(
        self,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        step: Callable[[], int],
    ) -> Capture:
        from filmstrip.capture.pytorch._capture import Capture

        self._leave()
        self._now = step
        self._capture = Capture._from_command(
            model,
            optimizers,
            {**self._code, "enabled": False} if self._closed else self._code,
            plan=self._plan,
            command={},
            step=step,
            probe=self._probe,
            epochs=self._epochs,
        )
        if self._paused:
            self._capture.pause()
        return self._capture

    @property
    def path(self) -> str | None:
        """Where the run is written; None when nothing is."""
        return None if self._capture is None else self._capture.path

    @property
    def enabled(self) -> bool:
        """Whether anything may be recorded."""
        return self._capture is not None and self._capture.enabled

    def pause(self) -> None:
        """Record nothing until `resume`; steps are still counted."""
        self._paused = True
        if self._capture is not None:
            self._capture.pause()

    def resume(self) -> None:
        """Go on recording, from the next step that has not begun."""
        self._paused = False
        if self._capture is not None:
            self._capture.resume()

    def state_dict(self) -> dict[str, Any]:
        """Return the trainer's step, for a checkpoint."""
        return {"step": self._first if self._now is None else self._now()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Remember the step of a checkpoint, until a trainer begins and says its own.

        During a training, take back what a resumed run has at and behind the step, as long as
        nothing was recorded.
        """
        capture = self._capture
        if capture is not None and capture._session is not None and not capture._closed:
            capture.load_state_dict(state_dict)
        else:
            self._first, self._now = int(state_dict["step"]), None

    def log(self, values: Mapping[str, object] | None = None, /, **named: object) -> None:
        """Record numbers of a step, beside those that the trainer logs."""
        if self._capture is not None:
            self._capture.log(values, **named)

    def image(self, name: str, x: ImageLike, *, layout: str | None = None) -> None:
        """Record an image, or any array, at steps at which frames are due."""
        if self._capture is not None:
            self._capture.image(name, x, layout=layout)

    def close(self) -> None:
        """Write what is pending and close the run; a second call does nothing.

        The end of a training does the same, but only logs what was lost. Trainings that begin
        after this was called are not captured.

        Raises
        ------
        CaptureError
            If something was lost that capture had promised to keep, also in a training before.
        """
        self._closed = True
        self._leave()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _leave(self) -> None:
        """Close the run, for a trainer; what was lost is logged, and raised by `close`."""
        if self._capture is None:
            return
        try:
            self._capture.close()
        except Exception as error:
            self._error = self._error or error
            _LOGGER.error("filmstrip: %s", error)  # noqa: TRY400  # its cause was logged when it came

    def _close_quietly(self) -> None:
        self._closed = True
        self._leave()
