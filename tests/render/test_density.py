"""Histograms out of bit counts, against histograms of the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from filmstrip import render
from filmstrip.render._array_source import ArraySource
from filmstrip.render._counting import counts_of_frames
from filmstrip.render._density import density_counts, edges_between, monotone
from filmstrip.render._histogram_views import edges_of
from filmstrip.render._spec import HistogramSpec
from filmstrip.store import bit_histogram

values = hnp.arrays(
    np.float32,
    hnp.array_shapes(max_dims=1, max_side=200),
    elements=st.floats(-1e6, 1e6, width=32),
)


@given(x=values)
def test_the_interpolated_count_passes_through_what_was_counted(x: npt.NDArray[np.float32]) -> None:
    bits = bit_histogram(x).astype(float)
    powers = np.concatenate([-(2.0 ** np.arange(19, -20, -1)), 2.0 ** np.arange(-19, 20)])

    total = monotone(bits, float(x.min()), float(x.max()), powers)

    inside = (powers > x.min()) & (powers < x.max())
    for at, count in zip(powers[inside], total[inside], strict=True):
        # A power of two is the border of a bin: below it for positive ones, above for negative.
        expected = (x < at).sum() if at > 0 else (x <= at).sum()
        assert count == pytest.approx(expected, abs=1e-6 * x.size)


@given(x=values, bins=st.integers(1, 60))
def test_nothing_is_lost_or_negative_between_the_ends(
    x: npt.NDArray[np.float32], bins: int
) -> None:
    counts = counts_of_frames(lambda _: x, [0], available=1)
    low, high = float(x.min()), float(x.max())
    edges = edges_between(low, high, bins, "linear")

    binned = density_counts(counts, edges, zeros=True)

    assert (binned >= 0).all()
    assert binned.sum() == pytest.approx(x.size, rel=1e-6, abs=1e-6)


def test_a_smooth_distribution_comes_back_within_sampling_noise() -> None:
    x = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    edges = np.linspace(-4, 4, 81)

    counts = counts_of_frames(lambda _: x, [0], available=1)
    binned = density_counts(counts, edges, zeros=True)[0]

    exact = np.histogram(x, edges)[0]
    assert np.abs(binned - exact).sum() / 2 / exact.sum() < 0.003
    # Terraces of the stored bins would show as a jump between neighbours.
    assert np.abs(np.diff(binned, 2)).max() < 1.6 * np.abs(np.diff(exact, 2)).max()


def test_exact_zeros_are_kept_apart_and_counted_once() -> None:
    x = np.concatenate([np.zeros(900), np.linspace(0.5, 1.5, 100)]).astype(np.float32)
    edges = np.linspace(0, 1.5, 4)
    counts = counts_of_frames(lambda _: x, [0], available=1)

    with_zeros = density_counts(counts, edges, zeros=True)[0]
    without = density_counts(counts, edges, zeros=False)[0]

    assert with_zeros[0] - without[0] == 900
    assert without.sum() == pytest.approx(100)
    assert counts.zero_share == 0.9


@pytest.mark.parametrize("scale", ["linear", "symlog", "tensorboard"])
@pytest.mark.parametrize("size", [1e-320, 1e-42, 1e-12, 1.0, 1e38, 1e300, 1.7e308])
def test_edges_ascend_and_hold_everything_at_any_magnitude(scale: str, size: float) -> None:
    x = np.array([-1.0, -0.3, 0.0, 1e-9, 0.5, 1.0]) * size
    counts = counts_of_frames(lambda _: x, [0], available=1)
    edges = edges_between(float(counts.minimum[0]), float(counts.maximum[0]), 50, scale)

    binned = density_counts(counts, edges, zeros=True)

    assert (np.diff(edges) > 0).all()
    assert binned.sum() == pytest.approx(6)


@pytest.mark.parametrize("scale", ["linear", "symlog", "tensorboard"])
@pytest.mark.parametrize("view", ["single", "ridge", "overlay", "heatmap", "distribution"])
def test_values_that_differ_in_their_last_digits_have_a_histogram(view: Any, scale: Any) -> None:
    weights = np.exp(np.random.default_rng(0).normal(size=(5, 64, 64)))
    sums = (weights / weights.sum(-1, keepdims=True)).sum(-1)  # ones, but for rounding
    x = sums[0] if view == "single" else sums
    spec = HistogramSpec(view=view, bin_scale=scale, step="all")

    edges = edges_of(ArraySource(x, None).counts(spec), spec)
    picture = render.histogram(x, view=view, bin_scale=scale)

    assert (np.diff(edges) > 0).all()
    assert edges[0] <= x.min()
    assert edges[-1] >= x.max()
    assert len(np.unique(np.asarray(picture.to_image().convert("L")))) > 20


def test_bins_of_tensorboard_are_a_tenth_wider_each() -> None:
    edges = edges_between(-3.0, 5.0, 50, "tensorboard")

    assert (edges[0], edges[-1]) == (-3.0, 5.0)
    inside = edges[(edges > 1e-5) & (edges < 5.0)]
    np.testing.assert_allclose(inside[1:] / inside[:-1], 1.1)
    power = np.log(inside / 1e-12) / np.log(1.1)
    np.testing.assert_allclose(power, np.rint(power), atol=1e-6)


def test_values_that_are_not_finite_are_counted_apart() -> None:
    x = np.array([1.0, np.nan, np.inf, np.inf, -np.inf], np.float32)

    counts = counts_of_frames(lambda _: x, [0], available=1)

    assert counts.others == (1, 2, 1)
    assert counts.finite.tolist() == [1.0]


def test_an_array_over_steps_is_counted_step_by_step() -> None:
    x = np.arange(24.0).reshape(4, 6)

    counts = ArraySource(x, None).counts(HistogramSpec(view="ridge", step="0:3"))

    assert counts.steps.tolist() == [0, 1, 2]
    assert counts.minimum.tolist() == [0.0, 6.0, 12.0]


@pytest.mark.parametrize("view", ["single", "ridge", "heatmap"])
def test_an_only_value_is_in_the_middle_of_a_bin(view: Any) -> None:
    counts = counts_of_frames(lambda step: np.full(9, 3.5, np.float32), [0, 1], available=2)
    edges = edges_of(counts, HistogramSpec(layer="fc", view=view))

    middle = np.searchsorted(edges, 3.5) - 1
    assert edges[middle : middle + 2].mean() == pytest.approx(3.5)
