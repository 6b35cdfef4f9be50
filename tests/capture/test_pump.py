from __future__ import annotations

import errno
import logging
import threading
from dataclasses import dataclass

import pytest

from filmstrip.capture._ledger import Ledger
from filmstrip.capture._pump import Pump


@dataclass
class Work:
    """A job that notes that it was done, waits for leave, or fails."""

    done: list[int]
    number: int = 0
    slot: int | None = None
    leave: threading.Event | None = None
    error: Exception | None = None
    name: str = "a job"

    def write(self) -> None:
        if self.leave is not None:
            assert self.leave.wait(10)
        if self.error is not None:
            raise self.error
        self.done.append(self.number)


def pump_of(ledger: Ledger | None = None) -> Pump:
    return Pump(lambda: None, ledger=ledger or Ledger())


def test_jobs_are_done_in_order_and_close_waits_for_all_of_them() -> None:
    pump, done = pump_of(), list[int]()
    for number in range(50):
        assert pump.submit(Work(done, number))

    assert pump.close(timeout=10)
    assert done == list(range(50))


def test_the_run_is_closed_by_the_thread_that_wrote_it_and_once() -> None:
    threads = list[str]()
    pump = Pump(lambda: threads.append(threading.current_thread().name), ledger=Ledger())
    pump.start()
    pump.close(timeout=10)
    pump.close(timeout=10)

    assert threads == ["filmstrip-writer"]


def test_a_slot_is_free_again_only_when_it_has_been_written() -> None:
    pump, leave = pump_of(), threading.Event()
    pump.provide(1)
    slot = pump.arm(timeout=0)
    assert slot is not None
    pump.submit(Work([], slot=slot, leave=leave))

    assert pump.arm(timeout=0.05) is None
    leave.set()
    assert pump.arm(timeout=10) == slot
    pump.disarm(slot)
    assert pump.close(timeout=10)


def test_a_failing_job_is_counted_said_once_and_its_slot_comes_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = Ledger()
    pump = pump_of(ledger)
    pump.provide(1)
    with caplog.at_level(logging.ERROR, "filmstrip"):
        for _ in range(3):
            slot = pump.arm(timeout=10)
            assert slot is not None
            pump.submit(Work([], slot=slot, error=ValueError("the cause")))
        assert pump.close(timeout=10)

    assert ledger.counts["failed"] == 3
    assert len(caplog.records) == 1
    assert "the cause" in caplog.text


def test_after_a_full_disk_nothing_more_is_tried() -> None:
    ledger, done = Ledger(), list[int]()
    pump = pump_of(ledger)
    pump.submit(Work(done, error=OSError(errno.ENOSPC, "No space left on device")))
    pump.submit(Work(done, 1))
    pump.close(timeout=10)

    assert ledger.full
    assert done == []


def test_close_gives_up_on_a_thread_that_hangs() -> None:
    pump, leave = pump_of(), threading.Event()
    pump.submit(Work([], leave=leave))

    assert not pump.close(timeout=0.05)
    leave.set()
    assert pump.close(timeout=10)


def test_a_job_after_close_is_refused_and_its_slot_given_back() -> None:
    pump = pump_of()
    pump.provide(1)
    slot = pump.arm(timeout=0)
    pump.close(timeout=10)

    assert not pump.submit(Work([], slot=slot))
    assert pump.arm(timeout=0) == slot


def test_what_waits_is_bounded() -> None:
    pump, leave = pump_of(), threading.Event()
    pump.submit(Work([], leave=leave))
    accepted = sum(pump.submit(Work([])) for _ in range(10_100))
    leave.set()
    pump.close(timeout=30)

    assert 9_990 <= accepted <= 10_001
