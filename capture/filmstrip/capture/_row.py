"""Rows: the only place that says what travels from the training thread to the writer thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from filmstrip.capture._budget import Blueprint
from filmstrip.capture._schedule import Tiers
from filmstrip.capture._seams import Slot


class Kept(Protocol):
    """An array, or what becomes one in the writer thread."""

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""

    def __array__(self) -> npt.NDArray[Any]:
        """Return the array; writer thread."""


@dataclass(frozen=True, slots=True)
class Row:
    """One due step on its way to the store.

    Parameters
    ----------
    step : int
        The step.
    tiers : Tiers
        What was due.
    plan : Blueprint
        What lies where in the slot.
    taken : dict of int to int
        Sites that were taken, with the samples that their frames hold.
    memory : Slot
        The slot.
    wait : callable
        Returns when the slot may be read.
    seconds : float
        What the step cost the training thread.
    """

    step: int
    tiers: Tiers
    plan: Blueprint
    taken: dict[int, int]
    memory: Slot
    wait: Callable[[], None]
    seconds: float


class Sink(Protocol):
    """What the writer thread calls."""

    def write(self, row: Row) -> None:
        """Write a row; may raise."""

    def lose(self, step: int) -> None:
        """Note that a due step was lost; may raise."""


@dataclass(frozen=True, slots=True)
class RowJob:
    """Writes a row out of its slot."""

    row: Row
    slot: int
    sink: Sink

    @property
    def name(self) -> str:
        """What it writes."""
        return f"step {self.row.step}"

    def write(self) -> None:
        """Write it; writer thread."""
        self.row.wait()
        self.sink.write(self.row)


@dataclass(frozen=True, slots=True)
class LossJob:
    """Notes a due step of which nothing was kept."""

    step: int
    sink: Sink
    slot: None = None

    @property
    def name(self) -> str:
        """What it writes."""
        return f"the loss of step {self.step}"

    def write(self) -> None:
        """Write it; writer thread."""
        self.sink.lose(self.step)
