"""Closing: the only place that says how a ``with`` around a training ends."""

from __future__ import annotations

from abc import abstractmethod
from types import TracebackType
from typing import Self


class Closing:
    """What is closed by a ``with``, and raises then what was lost."""

    @abstractmethod
    def close(self) -> None:
        """Close the run, and raise what was lost."""

    @abstractmethod
    def _close_quietly(self) -> None:
        """Close the run, and only log what was lost."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What went wrong in training must not be hidden by what went wrong in capture.
        if error is None:
            self.close()
        else:
            self._close_quietly()
