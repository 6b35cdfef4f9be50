from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from filmstrip.store import BINS, STATISTICS, bin_edges, bit_histogram, quantiles, rebin, summarize
from filmstrip.store._bits import FINITE, non_finite

floats = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(width=32))
finite = hnp.arrays(
    np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
)


@given(floats)
def test_counts_agree_with_a_loop_over_the_bits(values: np.ndarray) -> None:
    expected = np.zeros(BINS, np.uint64)
    for value in values:
        bits = 0x7FC00000 if np.isnan(value) else int(value.view(np.uint32))
        code = bits >> 20
        expected[2047 - (code & 2047) if code & 2048 else 2048 + code] += 1

    np.testing.assert_array_equal(bit_histogram(values), expected)


@given(floats, floats)
def test_counts_of_parts_add_up_to_those_of_the_whole(one: np.ndarray, other: np.ndarray) -> None:
    together = bit_histogram(np.concatenate([one, other]))

    np.testing.assert_array_equal(bit_histogram(one) + bit_histogram(other), together)


@given(floats)
def test_what_is_not_finite_has_bins_of_its_own(values: np.ndarray) -> None:
    counts = bit_histogram(values)

    assert non_finite(counts) == (
        np.isnan(values).sum(),
        (values == np.inf).sum(),
        (values == -np.inf).sum(),
    )
    assert counts[FINITE].sum() == np.isfinite(values).sum()


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int64", "uint8", "bool"])
def test_other_dtypes_count_as_their_float32(dtype: str) -> None:
    values = np.array([0, 1, 1, 3, 100]).astype(dtype)

    np.testing.assert_array_equal(bit_histogram(values), bit_histogram(values.astype(np.float32)))


def test_finite_values_that_overflow_count_in_the_last_finite_bins() -> None:
    counts = bit_histogram(np.array([1e300, -1e300, np.inf]))

    assert counts[FINITE][-1] == counts[FINITE][0] == 1
    assert non_finite(counts) == (0, 1, 0)


def test_a_bin_holds_the_values_between_its_edges() -> None:
    edges = bin_edges()
    middles = ((edges[:-1] + edges[1:]) / 2).astype(np.float32)
    for position in (10, 2000, 2040, 2041, 3000, 4070):
        assert np.flatnonzero(bit_histogram(middles[position : position + 1]))[0] == position + 8


def test_complex_numbers_have_no_bit_histogram() -> None:
    with pytest.raises(TypeError, match="complex64"):
        bit_histogram(np.ones(2, np.complex64))


@given(finite, st.integers(1, 40))
def test_no_value_is_lost_by_re_binning_over_the_exact_range(values: np.ndarray, bins: int) -> None:
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high, bins + 1) if low < high else np.array([low - 1, high + 1])
    if not (np.diff(edges) > 0).all():
        return

    counts = rebin(bit_histogram(values), edges, low, high)

    assert counts.sum() == pytest.approx(len(values))
    assert (counts >= 0).all()


@given(finite)
def test_re_binning_at_the_bits_own_edges_is_exact(values: np.ndarray) -> None:
    values = np.abs(values)  # a negative value on an edge belongs to the bin below, in bits
    counts = bit_histogram(values)
    edges = bin_edges()[::8]
    low, high = float(values.min()), float(values.max())

    expected = np.add.reduceat(counts[FINITE], np.arange(0, len(bin_edges()) - 1, 8))

    np.testing.assert_allclose(rebin(counts, edges, low, high), expected[: len(edges) - 1])


def test_re_binned_normals_look_like_numpys_histogram() -> None:
    values = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
    edges = np.linspace(values.min(), values.max(), 51)

    counts = rebin(bit_histogram(values), edges, values.min(), values.max())
    exact, _ = np.histogram(values, edges)

    assert np.abs(counts - exact).sum() / 2 / len(values) < 0.01


def test_many_rows_are_re_binned_at_once() -> None:
    rows = np.stack([bit_histogram([0.5, 0.5]), bit_histogram([2.5])])

    np.testing.assert_array_equal(rebin(rows, [0, 1, 3], [0.5, 2.5], [0.5, 2.5]), [[2, 0], [0, 1]])


@pytest.mark.parametrize("value", [-5.0, -1.0, -0.0, 0.0, 1.0, 3.0, 1e30, -1e-40])
def test_a_constant_on_an_edge_lies_on_its_right(value: float) -> None:
    edges = sorted({-2e30, value, 2e30})

    counts = rebin(bit_histogram([value] * 3), edges, value, value)

    assert counts.tolist() == [0.0, 3.0]


def test_edges_that_do_not_rise_are_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        rebin(bit_histogram([1.0]), [0, 2, 1])


@given(finite)
def test_quantiles_lie_within_a_bin_of_the_exact_ones(values: np.ndarray) -> None:
    low, high = float(values.min()), float(values.max())

    estimate = quantiles(bit_histogram(values), [0.0, 0.5, 1.0], low, high)
    lower, upper = np.sort(values)[[(len(values) - 1) // 2, len(values) // 2]].tolist()

    assert estimate[0] == low
    assert estimate[2] == high
    assert min(lower, lower * 0.875, lower * 1.125) <= estimate[1] + 1e-30
    assert estimate[1] <= max(upper, upper * 1.125, upper * 0.875) + 1e-30


def test_quantiles_of_nothing_are_nan() -> None:
    assert np.isnan(quantiles(bit_histogram([np.nan]), [0.5])).all()


@given(hnp.arrays(np.float32, st.integers(0, 100), elements=st.floats(width=32)))
def test_statistics_are_those_of_the_finite_values(values: np.ndarray) -> None:
    found = dict(zip(STATISTICS, summarize(values).tolist(), strict=True))
    good = values[np.isfinite(values)].astype(np.float64)

    assert found["count"] == len(values)
    assert found["nan"] == np.isnan(values).sum()
    assert found["zeros"] == (values == 0).sum()
    assert found["sum"] == pytest.approx(good.sum(), rel=1e-9)
    assert found["sumsq"] == pytest.approx((good**2).sum(), rel=1e-9)
    if len(good):
        assert (found["min"], found["max"]) == (good.min(), good.max())
    else:
        assert np.isnan([found["min"], found["max"]]).all()
