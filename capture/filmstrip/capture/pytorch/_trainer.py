"""Trainers: the only place for what callbacks of trainers over PyTorch have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from filmstrip.capture._keywords import Keywords
from filmstrip.capture._settings import said_by_code, settle
from filmstrip.capture.errors import PlanError

if TYPE_CHECKING:
    import torch

    from filmstrip.capture._plan import PlanLike
    from filmstrip.capture.pytorch._capture import Capture
    from filmstrip.capture.pytorch._images import ImageLike
    from filmstrip.capture.pytorch._probe import ProbeLike


class TrainerKeywords(Keywords, total=False):
    """What the captures of trainers are told by keyword."""

    probe: ProbeLike | None
    plan: PlanLike | None
    enabled: bool | None


class TrainerCapture:
    """A capture that is attached when a trainer begins, and knows the trainer's step."""

    _capture: Capture | None = None
    _epochs: set[int]

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

        self.close()
        self._capture = Capture._from_command(
            model,
            optimizers,
            self._code,
            plan=self._plan,
            command={},
            step=step,
            probe=self._probe,
            epochs=self._epochs,
        )
        return self._capture

    @property
    def path(self) -> str | None:
        """Where the run is written; None when nothing is."""
        return None if self._capture is None else self._capture.path

    @property
    def enabled(self) -> bool:
        """Whether anything may be recorded."""
        return self._capture is not None and self._capture.enabled

    def log(self, values: Mapping[str, object] | None = None, /, **named: object) -> None:
        """Record numbers of a step, beside those that the trainer logs."""
        if self._capture is not None:
            self._capture.log(values, **named)

    def image(self, name: str, x: ImageLike, *, layout: str | None = None) -> None:
        """Record an image, or any array, at steps at which frames are due."""
        if self._capture is not None:
            self._capture.image(name, x, layout=layout)

    def close(self) -> None:
        """Write what is pending and close the run; what was lost is logged, never raised."""
        if self._capture is not None:
            self._capture._close_quietly()
