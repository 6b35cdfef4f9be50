from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from filmstrip.capture._schedule import (
    EVERYTHING,
    NOTHING,
    Thrift,
    Tiers,
    schedule_of,
    thinned,
)


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


@given(
    limit=st.floats(0.001, 0.5),
    costs=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60),
    training=st.floats(0.01, 2.0),
)
def test_capture_exceeds_its_share_by_one_due_step_at_most(
    limit: float, costs: list[float], training: float
) -> None:
    thrift, now, spent = Thrift(limit, began=0.0), 0.0, 0.0
    for cost in costs:
        now += training
        if not thrift.exceeded(now=now):
            thrift.spend(cost)
            spent, now = spent + cost, now + cost

        assert spent <= limit * now + max(costs) + 1e-9


def test_a_limit_that_was_exceeded_is_kept_to_in_the_long_run_and_capture_goes_on() -> None:
    thrift, taken = Thrift(0.1, began=0.0), []
    for step in range(1000):
        if not thrift.exceeded(now=float(step)):
            thrift.spend(0.5)
            taken.append(step)

    assert 190 <= len(taken) <= 202
    assert max(after - before for before, after in pairwise(taken)) <= 6


@given(
    every=st.one_of(
        st.integers(1, 40),
        st.dictionaries(
            st.sampled_from(["frames", "statistics", "histograms"]), st.integers(1, 40), min_size=1
        ),
    ),
    wanted=st.builds(Tiers, st.booleans(), st.booleans(), st.booleans()),
    step=st.integers(0, 500),
)
def test_thinned_statistics_are_due_at_some_of_the_steps_that_were_asked_for(
    every: int | dict[str, int], wanted: Tiers, step: int
) -> None:
    asked = schedule_of(every, wanted=wanted)
    sparing = schedule_of(thinned(every, wanted=wanted, least=10), wanted=wanted)

    assert sparing.due(step).frames == asked.due(step).frames
    assert sparing.due(step) & asked.due(step) == sparing.due(step)
    for name in ("statistics", "histograms"):
        interval, before = getattr(sparing, name), getattr(asked, name)
        assert interval is None or interval >= 10
        assert before is None or before < 10 or interval == before
