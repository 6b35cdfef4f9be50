"""Agents: the only place for what the captures of all frameworks have in common."""

from __future__ import annotations

import atexit
import logging
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from filmstrip.capture._closing import Closing

if TYPE_CHECKING:
    from filmstrip.capture._clock import Clock
    from filmstrip.capture._images import ImageShelf
    from filmstrip.capture._session import Session

_LOGGER = logging.getLogger("filmstrip")


class Agent(Closing, ABC):
    """A capture at work, or an inert one, which has no session."""

    _session: Session[Any] | None = None
    _images: ImageShelf | None = None
    _first = 0
    _closed = _done = False

    @property
    @abstractmethod
    def _clock(self) -> Clock:
        """What knows the step; asked for only while there is a session."""

    @staticmethod
    @abstractmethod
    def _number(value: object) -> object:
        """Return what the writer thread can turn into a float; raise if it is not one number."""

    def _watch_process(self) -> None:
        """Close at exit, and do nothing in a process that is forked."""
        atexit.register(self._close_quietly)
        itself = weakref.ref(self)

        def forked() -> None:
            capture = itself()
            if capture is not None:
                capture._leave_to_parent()

        os.register_at_fork(after_in_child=forked)

    @property
    def path(self) -> str | None:
        """Where the run is written; None when nothing is."""
        if self._session is None or self._session.settings.dry_run:
            return None
        return self._session.path

    @property
    def enabled(self) -> bool:
        """Whether anything may be recorded."""
        return self._session is not None and not self._closed and not self._session.recorder.paused

    def pause(self) -> None:
        """Record nothing until `resume`; steps are still counted."""
        if self._session is not None:
            self._session.recorder.paused = True
            self._session.recorder.begin(self._clock.step)

    def resume(self) -> None:
        """Go on recording, from the next step that has not begun."""
        if self._session is not None:
            self._session.recorder.paused = False
            if not self._clock.entered:
                self._clock.start()

    def log(self, values: Mapping[str, object] | None = None, /, **named: object) -> None:
        """Record numbers of a step: the one in progress, or the one that ended last.

        Parameters
        ----------
        values : mapping of str to number, optional
            Numbers, or tensors of one element, for which an accelerator is not waited for.
        **named
            The same, by keyword.
        """
        if self._session is None or self._closed:
            return
        numbers: dict[str, object] = {}
        try:
            for name, value in {**({} if values is None else values), **named}.items():
                self._add_number(numbers, name, value)
        except Exception as error:
            self._session.ledger.lose(
                "unlogged", "log", f"log needs a mapping of names to numbers; not kept: {error}"
            )
        if numbers:
            self._session.log(self._clock.logged, numbers)

    def _add_number(self, numbers: dict[str, object], name: object, value: object) -> None:
        try:
            numbers[str(name)] = self._number(value)
        except Exception as error:
            assert self._session is not None
            self._session.ledger.lose(
                "unlogged", f"scalar {name}", f"log of {name!r} needs one number; not kept: {error}"
            )

    def image(self, name: str, x: Any, *, layout: str | None = None) -> None:
        """Record an image, or any array, at steps at which frames are due.

        Parameters
        ----------
        name : str
            Name of the strip, of kind ``images``.
        x : tensor or ndarray
            As it is now. Shape and dtype stay the same over the run.
        layout : str, optional
            One letter an axis, as ``"NCHW"`` or ``"HW"``; of a leading N, ``samples`` are kept.
        """
        if self._images is not None and not self._closed:
            self._images.put(str(name), x, layout=layout, step=self._clock.logged)

    def state_dict(self) -> dict[str, int]:
        """Return the step, for a checkpoint."""
        return {"step": self._first if self._session is None else self._clock.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from the step of a checkpoint.

        Of a run that is resumed, rows at and behind the step are taken back, as long as nothing was
        recorded since attach.
        """
        if self._session is None:
            self._first = int(state["step"])
        else:
            self._session.rewind(int(state["step"]))
            self._clock.set(int(state["step"]))

    def close(self) -> None:
        """Write what is pending and close the run; a second call does nothing.

        Raises
        ------
        CaptureError
            If something was lost that capture had promised to keep.
        """
        if self._session is None or self._done:
            return
        if self._images is not None and not self._closed:
            self._images.flush()
        self._closed = True
        try:
            self._session.close()
        except KeyboardInterrupt:
            raise  # who is in a hurry may call again; at exit, what is pending is waited for
        except BaseException:
            self._end()
            raise
        self._end()

    def _end(self) -> None:
        self._done = True
        atexit.unregister(self._close_quietly)

    def _leave_to_parent(self) -> None:
        """Do nothing in a forked process, which has neither the writer thread nor the run."""
        self._closed = self._done = True
        if self._session is not None:
            self._session.recorder.leave()

    def _close_quietly(self) -> None:
        try:
            self.close()
        except Exception as error:
            _LOGGER.error("filmstrip: %s", error)  # noqa: TRY400  # its cause was logged when it came


def plain_number(value: object) -> float:
    """Return a number, or the only one of an array.

    Examples
    --------
    >>> import numpy as np
    >>> plain_number(np.ones((1, 1)))
    1.0
    """
    if getattr(value, "size", None) == 1:
        value = value.item()  # type: ignore[attr-defined]  # NumPy gives up float(array)
    return float(value)  # type: ignore[arg-type]
