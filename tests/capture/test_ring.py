from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from filmstrip.capture._ring import Ring, State

SLOTS = 3


class RingMachine(RuleBasedStateMachine):
    """Against a model of plain lists."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = Ring(SLOTS)
        self.armed: list[int] = []
        self.sealed: list[int] = []
        self.writing: list[int] = []

    @rule()
    def arm(self) -> None:
        slot = self.ring.arm()
        busy = len(self.armed) + len(self.sealed) + len(self.writing)

        assert (slot is None) == (busy == SLOTS)
        if slot is not None:
            assert slot not in [*self.armed, *self.sealed, *self.writing]
            self.armed.append(slot)

    @precondition(lambda self: self.armed)
    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.armed))
        self.ring.seal(slot)
        self.armed.remove(slot)
        self.sealed.append(slot)

    @precondition(lambda self: self.armed)
    @rule(data=st.data())
    def disarm(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.armed))
        self.ring.disarm(slot)
        self.armed.remove(slot)

    @rule()
    def write(self) -> None:
        slot = self.ring.write()

        assert slot == (self.sealed[0] if self.sealed else None)
        if slot is not None:
            self.writing.append(self.sealed.pop(0))

    @precondition(lambda self: self.writing)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.writing))
        self.ring.release(slot)
        self.writing.remove(slot)

    @invariant()
    def states_add_up(self) -> None:
        counts = [self.ring.count(state) for state in (State.ARMED, State.SEALED, State.WRITING)]

        assert counts == [len(self.armed), len(self.sealed), len(self.writing)]


TestRing = RingMachine.TestCase


def test_a_slot_that_is_not_armed_cannot_be_sealed() -> None:
    with pytest.raises(RuntimeError, match="slot 0 is free, not armed"):
        Ring(1).seal(0)
