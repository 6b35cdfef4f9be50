"""The ring: the only place that knows which slots are free.

A slot goes free → armed (the step before a due step ended) → sealed (the due step ended) →
writing (the writer thread has it) → free. Pure: whoever shares it between threads holds a lock.
"""

from __future__ import annotations

from collections import deque
from enum import Enum


class State(Enum):
    """Where a slot is on its way round."""

    FREE = "free"
    ARMED = "armed"
    SEALED = "sealed"
    WRITING = "writing"


class Ring:
    """A fixed number of slots, each in one state, written in the order in which they were sealed.

    Parameters
    ----------
    slots : int
        How many; at least one.

    Examples
    --------
    >>> ring = Ring(2)
    >>> first = ring.arm()
    >>> ring.seal(first)
    >>> ring.write() == first, ring.count(State.FREE)
    (True, 1)
    """

    __slots__ = ("_sealed", "_states")

    def __init__(self, slots: int) -> None:
        if slots < 1:
            raise ValueError(f"a ring needs at least one slot; got {slots}")
        self._states = [State.FREE] * slots
        self._sealed: deque[int] = deque()

    def arm(self) -> int | None:
        """Take a free slot, or return None when there is none."""
        for slot, state in enumerate(self._states):
            if state is State.FREE:
                self._states[slot] = State.ARMED
                return slot
        return None

    def seal(self, slot: int) -> None:
        """Hand an armed slot on to be written."""
        self._move(slot, State.ARMED, State.SEALED)
        self._sealed.append(slot)

    def disarm(self, slot: int) -> None:
        """Give back an armed slot, unused."""
        self._move(slot, State.ARMED, State.FREE)

    def write(self) -> int | None:
        """Take the slot sealed longest ago, or return None when none is."""
        if not self._sealed:
            return None
        slot = self._sealed.popleft()
        self._move(slot, State.SEALED, State.WRITING)
        return slot

    def release(self, slot: int) -> None:
        """Free a slot that has been written."""
        self._move(slot, State.WRITING, State.FREE)

    def count(self, state: State) -> int:
        """Return how many slots are in a state."""
        return self._states.count(state)

    def _move(self, slot: int, expected: State, state: State) -> None:
        if self._states[slot] is not expected:
            raise RuntimeError(f"slot {slot} is {self._states[slot].value}, not {expected.value}")
        self._states[slot] = state
