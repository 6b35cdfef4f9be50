from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from filmstrip.capture._schedule import EVERYTHING, NOTHING, Thrift, Tiers, schedule_of


@given(
    every=st.integers(1, 7),
    start=st.integers(0, 20),
    length=st.integers(1, 30),
    step=st.integers(0, 60),
)
def test_a_step_is_due_when_it_is_a_multiple_inside_the_window(
    every: int, start: int, length: int, step: int
) -> None:
    schedule = schedule_of(every, wanted=EVERYTHING, start=start, stop=start + length)

    assert any(schedule.due(step)) == (step % every == 0 and step in range(start, start + length))


@given(st.sets(st.integers(0, 30), min_size=1), st.integers(0, 30))
def test_an_explicit_list_of_steps_replaces_the_interval(steps: set[int], step: int) -> None:
    schedule = schedule_of(100, wanted=EVERYTHING, steps=steps)

    assert schedule.due(step) == (EVERYTHING if step in steps else NOTHING)


def test_each_tier_has_an_interval_of_its_own_and_those_not_named_are_not_taken() -> None:
    schedule = schedule_of({"statistics": 2, "frames": 3}, wanted=EVERYTHING)

    assert [schedule.due(step) for step in (0, 1, 2, 3)] == [
        Tiers(frames=True, statistics=True),
        NOTHING,
        Tiers(statistics=True),
        Tiers(frames=True),
    ]


def test_statistics_come_with_histograms_since_those_are_read_with_the_extremes() -> None:
    schedule = schedule_of(1, wanted=Tiers(histograms=True))

    assert schedule.due(0) == Tiers(statistics=True, histograms=True)


def test_a_tier_that_is_switched_off_is_never_due() -> None:
    assert schedule_of(1, wanted=Tiers(statistics=True)).due(0) == Tiers(statistics=True)


def test_thrift_without_a_limit_is_never_exceeded() -> None:
    thrift = Thrift(None, began=0.0)
    thrift.spend(100.0)

    assert not thrift.exceeded(now=1.0)
