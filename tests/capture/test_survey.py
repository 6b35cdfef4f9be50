from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
import torch

from filmstrip.capture._budget import fit, ladder
from filmstrip.capture._schedule import Tiers
from filmstrip.capture._seams import Site
from filmstrip.capture._survey import Survey, coarser, view
from filmstrip.capture.pytorch._stage import CpuStage

EVERYTHING = Tiers(frames=True, statistics=True, histograms=True)


def sites(count: int, *, channels: int, width: int = 64) -> list[Site]:
    return [
        Site(
            kind="activations",
            layer=str(number),
            shape=(1, channels // (1 + number % 3), width),
            dtype="float32",
            batched=True,
            samples=1,
        )
        for number in range(count)
    ]


def tensor(site: Site) -> torch.Tensor:
    assert site.shape is not None
    return torch.randn(site.shape, generator=torch.Generator().manual_seed(int(site.layer)))


def surveyed(several: list[Site], budget: int) -> Survey[torch.Tensor]:
    survey: Survey[torch.Tensor] = Survey(
        CpuStage(), budget=budget, dtype=None, parameters=None, tiers=EVERYTHING
    )
    for number, site in enumerate(several):
        survey.take(number, site, tensor(site))
    return survey


@pytest.mark.parametrize("budget", [1 << 16, 1 << 20, 1 << 24])
def test_what_a_survey_took_is_what_a_step_would_have_taken_that_knew_all_sites(
    budget: int,
) -> None:
    several = sites(50, channels=512)
    survey = surveyed(several, budget)
    plan = survey.plan(several)
    memory = np.zeros(plan.nbytes, np.uint8)
    survey.move(plan, memory)

    ladders = [ladder(site) for site in several]
    assert [order and order.take for order in plan.orders] == fit(ladders, budget)
    for site, order, rungs in zip(several, plan.orders, ladders, strict=True):
        assert order is not None
        assert order.values is not None
        numbers = memory[order.values : order.values + 72].view(np.float64)
        values = tensor(site).numpy()
        assert numbers[0] == values.size
        assert numbers[5] == values.min()
        if order.take is not None and order.frame is not None:
            expected = coarser(values, rungs[0], order.take)
            np.testing.assert_array_equal(view(memory, order.frame, order.take), expected)


def test_a_survey_of_many_large_layers_holds_no_more_than_the_slots_that_follow() -> None:
    budget = 4 << 20
    several = sites(300, channels=4096)
    tensors = list(map(tensor, several[:3]))
    survey: Survey[torch.Tensor] = Survey(
        CpuStage(), budget=budget, dtype=None, parameters=None, tiers=Tiers(frames=True)
    )
    tracemalloc.start()
    try:
        for number, site in enumerate(several):
            survey.take(number, site, tensors[number % 3])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    numbers = len(several) * (9 * 8 + 4096 * 8)
    assert peak - numbers < 3.5 * budget


def test_a_survey_of_ten_thousand_small_layers_takes_seconds() -> None:
    several = sites(10_000, channels=3, width=2)
    started = time.process_time()
    plan = surveyed(several, 1 << 30).plan(several)

    assert len(plan.orders) == 10_000
    assert time.process_time() - started < 12
