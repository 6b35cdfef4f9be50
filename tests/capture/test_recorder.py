from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from filmstrip.capture._budget import Order
from filmstrip.capture._ledger import Ledger
from filmstrip.capture._pump import Pump
from filmstrip.capture._recorder import Limits, Recorder
from filmstrip.capture._ring import State
from filmstrip.capture._row import Row
from filmstrip.capture._schedule import EVERYTHING, schedule_of
from filmstrip.capture._seams import Site, Slot

Array = npt.NDArray[Any]
SLOTS = 2


@dataclass
class Memory:
    """A slot."""

    memory: Array


@dataclass
class ArrayStage:
    """A framework whose tensors are arrays; keeps account of the memory it gave out."""

    allocated: int = 0
    apart: str = ""

    def dtype(self, tensor: Array) -> str:
        return str(tensor.dtype)

    def slot(self, nbytes: int) -> Memory:
        return Memory(np.zeros(nbytes, np.uint8))

    def ring(self, slots: int, nbytes: int) -> list[Memory]:
        self.allocated += slots * nbytes
        return [self.slot(nbytes) for _ in range(slots)]

    def put(self, slot: Slot, order: Order, tensor: Array) -> None:
        if order.take is not None and order.frame is not None:
            part = np.ascontiguousarray(tensor[: order.take.samples]).view(np.uint8).reshape(-1)
            slot.memory[order.frame : order.frame + len(part)] = part

    def fence(self) -> object:
        return None

    def wait(self, fence: object) -> None:
        pass


@dataclass
class Gate:
    """A sink that writes a row when it is let, and notes what was in it."""

    leaves: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    rows: dict[int, list[Array]] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    fails: bool = False

    def write(self, row: Row) -> None:
        assert self.leaves.acquire(timeout=20)
        assert row.step not in self.rows
        if self.fails:
            raise ValueError("no")
        frames = []
        for number in row.taken:
            order = row.plan.orders[number]
            assert order is not None
            if order.take is not None and order.frame is not None:
                part = row.memory.memory[order.frame : order.frame + order.take.nbytes]
                frames.append(part.view(order.take.dtype).copy())
        self.rows[row.step] = frames

    def lose(self, step: int) -> None:
        self.lost.append(step)


@dataclass
class Rig:
    """A recorder with one weight and one activation, in training without a framework."""

    gate: Gate = field(default_factory=Gate)
    ledger: Ledger = field(default_factory=Ledger)
    stage: ArrayStage = field(default_factory=ArrayStage)

    def recorder(self, **limits: Any) -> tuple[Recorder[Array], Pump]:
        pump = Pump(lambda: None, ledger=self.ledger)
        recorder: Recorder[Array] = Recorder(
            schedule_of(1, wanted=EVERYTHING),
            limits=Limits(**{"capture_bytes": 10_000, **limits}),
            stage=self.stage,
            pump=pump,
            sink=self.gate,
            ledger=self.ledger,
        )
        recorder.add(Site(kind="weights", layer="w"))
        recorder.add(Site(kind="activations", layer="a", batched=True))
        return recorder, pump


def tensors(step: int) -> list[Array]:
    return [np.full((5, 3), step, np.float32), np.full((2, 7), -step, np.float64)]


def train(recorder: Recorder[Array], step: int) -> None:
    recorder.begin(step)
    for number, tensor in enumerate(tensors(step)):
        if recorder.on:
            recorder.take(number, tensor)
        tensor.fill(np.nan)
    recorder.end()


def settled(pump: Pump, free: int) -> bool:
    """Wait until the writer thread has given so many slots back."""
    with pump._changed:
        return pump._changed.wait_for(
            lambda: pump._ring is not None and pump._ring.count(State.FREE) == free, timeout=20
        )


class RecorderMachine(RuleBasedStateMachine):
    """Steps, a writer as slow as it likes, pauses, failures; drops where there is no slot."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.recorder, self.pump = self.rig.recorder()
        self.step = 0
        self.waiting: list[int] = []
        self.kept: list[int] = []
        self.dropped: list[int] = []
        self.failed: list[int] = []

    @rule()
    def train(self) -> None:
        room = len(self.waiting) < SLOTS
        train(self.recorder, self.step)
        if not self.recorder.paused:
            (self.waiting if room else self.dropped).append(self.step)
        self.step += 1

    @rule()
    def leave_a_step_in_the_middle(self) -> None:
        self.recorder.begin(self.step)
        if self.recorder.on:
            self.recorder.take(0, tensors(self.step)[0])

    @precondition(lambda self: self.waiting)
    @rule(fails=st.booleans())
    def write(self, fails: bool) -> None:
        self.rig.gate.fails = fails
        (self.failed if fails else self.kept).append(self.waiting.pop(0))
        self.rig.gate.leaves.release()
        armed = self.recorder._slot is not None
        assert settled(self.pump, SLOTS - len(self.waiting) - armed)

    @rule()
    def pause(self) -> None:
        self.recorder.paused = not self.recorder.paused

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.rig.ledger.counts

        assert counts["dropped"] == len(self.dropped)
        assert counts["failed"] == len(self.failed)
        assert counts["errors"] == 0
        assert list(self.rig.gate.rows) == self.kept

    def teardown(self) -> None:
        self.rig.gate.fails = False
        self.recorder.close()
        for _ in self.waiting:
            self.rig.gate.leaves.release()

        assert self.pump.close(timeout=20)
        kept = self.kept + self.waiting
        assert list(self.rig.gate.rows) == kept
        assert self.rig.gate.lost == self.dropped
        for step in kept:
            for frame, tensor in zip(self.rig.gate.rows[step], tensors(step), strict=True):
                np.testing.assert_array_equal(frame, tensor.reshape(-1))


RecorderMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestRecorder = RecorderMachine.TestCase


def test_slots_are_allocated_once_whatever_comes() -> None:
    rig = Rig()
    recorder, pump = rig.recorder()
    for step in range(50):
        train(recorder, step)
        rig.gate.leaves.release()
    pump.close(timeout=20)

    frames = 5 * 3 * 4 + 4 + 2 * 7 * 8 + 16  # each frame begins at a multiple of 64
    assert rig.stage.allocated == SLOTS * (frames + 2 * 72 + 48 + 2 * 4096 * 8)


def slow(rig: Rig, pump: Pump, seconds: float) -> Callable[[], None]:
    """Let the writer write one row, some time later."""

    def later() -> None:
        time.sleep(seconds)
        rig.gate.leaves.release()

    thread = threading.Thread(target=later)
    thread.start()
    return thread.join


def test_a_step_that_blocks_waits_for_a_slot_and_is_kept() -> None:
    rig = Rig()
    recorder, pump = rig.recorder(block=20.0)
    for step in (0, 1):
        train(recorder, step)
    join = slow(rig, pump, 0.1)
    started = time.monotonic()
    train(recorder, 2)
    waited = time.monotonic() - started
    join()
    for _ in range(2):
        rig.gate.leaves.release()
    pump.close(timeout=20)

    assert list(rig.gate.rows) == [0, 1, 2]
    assert waited < 10
    assert rig.ledger.counts["dropped"] == 0


def test_a_step_that_blocks_too_long_is_dropped_and_counted() -> None:
    rig = Rig()
    recorder, pump = rig.recorder(block=0.1)
    for step in (0, 1):
        train(recorder, step)
    started = time.monotonic()
    train(recorder, 2)
    waited = time.monotonic() - started
    for _ in range(2):
        rig.gate.leaves.release()
    pump.close(timeout=20)

    assert list(rig.gate.rows) == [0, 1]
    assert 0.09 < waited < 10
    assert rig.gate.lost == [2]
    assert rig.ledger.counts["dropped"] == 1


@pytest.mark.parametrize("overhead", [1e-9, 1e9])
def test_due_steps_are_left_out_while_the_cost_is_over_its_limit(overhead: float) -> None:
    rig = Rig()
    recorder, pump = rig.recorder(overhead=overhead, block=20.0)
    for step in range(6):
        rig.gate.leaves.release()
        train(recorder, step)
    pump.close(timeout=20)

    # The survey is not counted, and one step is needed to learn what it costs.
    kept = [0, 1] if overhead < 1 else [0, 1, 2, 3, 4, 5]
    assert list(rig.gate.rows) == kept
    assert rig.gate.lost == [step for step in range(6) if step not in kept]
    assert rig.ledger.counts["thinned"] == 6 - len(kept)


def test_a_row_says_what_it_cost() -> None:
    costs = []

    class Noting(Gate):
        def write(self, row: Row) -> None:
            costs.append(row.seconds)

    rig = Rig(gate=Noting())
    recorder, pump = rig.recorder(block=20.0)
    for step in range(4):
        recorder.begin(step)
        time.sleep(0.05)  # training's own time
        recorder.take(0, tensors(step)[0])
        recorder.take(1, tensors(step)[1])
        recorder.end()
    pump.close(timeout=20)

    assert len(costs) == 4
    assert 0 < min(costs) < 0.05


def test_a_forked_process_takes_nothing_and_lets_go_of_no_memory() -> None:
    rig = Rig(gate=Gate(leaves=threading.Semaphore(10)))
    recorder, pump = rig.recorder()
    train(recorder, 0)
    slots = [weakref.ref(slot) for slot in recorder._slots]
    recorder.leave()
    train(recorder, 1)
    pump.close(timeout=20)

    assert list(rig.gate.rows) == [0]
    assert [slot() is not None for slot in slots] == [True, True]
    recorder.close()
    gc.collect()
    assert [slot() is not None for slot in slots] == [False, False]
