from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.capture._budget import (
    COUNT_BYTES,
    VALUE_BYTES,
    Order,
    Take,
    blueprint,
    fit,
    ladder,
    total,
)
from filmstrip.capture._schedule import Tiers
from filmstrip.capture._seams import Site
from filmstrip.capture._survey import coarser

shapes = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple)
sites = st.builds(
    Site,
    kind=st.just("activations"),
    layer=st.just("layer"),
    shape=shapes,
    dtype=st.sampled_from(["float32", "float16", "int64"]),
    batched=st.booleans(),
    samples=st.integers(1, 8),
)


@given(st.lists(sites, min_size=1, max_size=6), st.integers(0, 100_000))
def test_frames_fit_the_budget_and_a_higher_cap_would_not(several: list[Site], budget: int) -> None:
    ladders = [ladder(site) for site in several]
    takes = fit(ladders, budget)

    assert total(takes) <= budget
    cap = max((take.nbytes for take in takes if take is not None), default=0)
    finer = [rung.nbytes for rungs in ladders for rung in rungs if rung.nbytes > cap]
    if finer:
        more = [
            next((rung for rung in rungs if rung.nbytes <= min(finer)), None) for rungs in ladders
        ]
        assert total(more) > budget


@given(sites)
def test_a_ladder_only_gets_coarser_and_starts_with_what_was_asked_for(site: Site) -> None:
    takes = ladder(site)
    sizes = [take.nbytes for take in takes]

    assert sizes == sorted(sizes, reverse=True)
    assert takes[0].degraded(site.dtype) is None
    assert all(take.degraded(site.dtype) for take in takes[1:])


@given(sites, st.data())
def test_a_coarser_take_can_be_made_out_of_a_finer_one(site: Site, data: st.DataObject) -> None:
    site = replace(site, dtype="float32")
    takes = ladder(site)
    fine, coarse = sorted(data.draw(st.tuples(*[st.integers(0, len(takes) - 1)] * 2)))
    assert site.shape is not None
    whole = np.random.default_rng(0).normal(size=site.shape).astype(np.float32)
    first = replace(takes[0], shape=site.shape, samples=site.shape[0] if site.batched else None)

    direct = coarser(whole, first, takes[coarse])
    in_two_steps = coarser(coarser(whole, first, takes[fine]), takes[fine], takes[coarse])

    assert direct.shape == takes[coarse].shape
    np.testing.assert_array_equal(in_two_steps, direct)


def test_small_layers_stay_whole_when_a_large_one_breaks_the_budget() -> None:
    small = Site(kind="weights", layer="small", shape=(10,), dtype="float32")
    large = Site(kind="weights", layer="large", shape=(1000, 10), dtype="float32")

    kept, thinned = fit([ladder(small), ladder(large)], 20_100)

    assert kept == Take((10,), "float32")
    assert thinned is not None
    assert (thinned.shape, thinned.stride) == ((500, 10), 2)


def test_the_last_rung_before_statistics_only_is_half_precision_that_keeps_the_range() -> None:
    site = Site(kind="weights", layer="w", shape=(64, 64), dtype="float32")

    assert ladder(site)[-1].dtype == "bfloat16"
    assert fit([ladder(site)], 1) == [None]


def test_a_dtype_that_cannot_be_stored_has_no_frame() -> None:
    assert ladder(Site(kind="weights", layer="w", shape=(4,), dtype="float8_e4m3fn")) == []


def test_nothing_in_a_slot_overlaps_and_statistics_of_a_kind_lie_side_by_side() -> None:
    several = [
        Site(kind="weights", layer="a", shape=(3,), dtype="float32"),
        Site(kind="activations", layer="b", shape=(5, 7), dtype="float32", batched=True),
        Site(kind="weights", layer="c", shape=(1000,), dtype="float16"),
        Site(kind="activations", layer="never seen"),
        Site(kind="gradients", layer="d", shape=(2,), dtype="float32", tiers=Tiers(frames=True)),
    ]
    plan = blueprint(several, [ladder(site)[0] if site.shape else None for site in several])

    spans = []
    for order in plan.orders:
        if order is not None and order.take is not None and order.frame is not None:
            spans.append((order.frame, order.frame + order.take.nbytes))
        if order is not None and order.values is not None and order.counts is not None:
            spans.append((order.values, order.values + VALUE_BYTES))
            spans.append((order.counts, order.counts + COUNT_BYTES))
    spans.sort()
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert spans[-1][1] <= plan.nbytes
    first, third = plan.orders[0], plan.orders[2]
    assert first is not None
    assert third is not None
    assert third.values == (first.values or 0) + VALUE_BYTES
    assert plan.orders[3] is None


def test_an_order_is_reduced_to_the_tiers_that_are_due() -> None:
    order = Order(0, (4,), take=Take((4,), "float32"), frame=0, values=64, counts=192)

    assert order.only(Tiers()) is None
    assert order.only(Tiers(statistics=True)) == Order(0, (4,), values=64)
    assert order.only(Tiers(True, True, True)) == order
