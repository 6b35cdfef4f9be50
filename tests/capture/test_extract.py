from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from filmstrip.capture.pytorch._extract import Extractor
from filmstrip.store import STATISTICS, bit_histogram, summarize
from filmstrip.store._bits import ascending

EXTRACTOR = Extractor()  # shared, so that nothing of one tensor may show in the next


def extracted(tensor: torch.Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint64]]:
    """Return statistics and histogram; what was in memory before must not show through."""
    values, counts = np.full(len(STATISTICS), 7.0), np.full(4096, 7)
    EXTRACTOR.extract(tensor, values, counts)
    return values, ascending(counts)


def check(tensor: torch.Tensor, oracle: npt.NDArray[np.generic]) -> None:
    """Compare with the store: counts and extremes exactly, sums to rounding."""
    values, counts = extracted(tensor)
    expected = summarize(oracle)
    np.testing.assert_array_equal(counts, bit_histogram(oracle))
    np.testing.assert_array_equal(values[:7], expected[:7])
    finite = oracle.astype(np.float64)[np.isfinite(oracle)]
    rounding = 1e-12 * np.abs(finite).sum()
    np.testing.assert_allclose(values[7], expected[7], rtol=1e-12, atol=rounding)
    np.testing.assert_allclose(values[8], expected[8], rtol=1e-12)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(width=32))
)
def test_float32_agrees_with_the_store(array: npt.NDArray[np.float32]) -> None:
    check(torch.from_numpy(array), array)


@given(hnp.arrays(np.float64, 20, elements=st.floats(-1e150, 1e150)))
def test_float64_beyond_the_range_of_float32_agrees_with_the_store(
    array: npt.NDArray[np.float64],
) -> None:
    check(torch.from_numpy(array), array)


@given(hnp.arrays(np.float16, 20, elements=st.floats(width=16)))
def test_float16_agrees_with_the_store(array: npt.NDArray[np.float16]) -> None:
    check(torch.from_numpy(array), array)


@given(hnp.arrays(np.int64, 20, elements=st.integers(-(2**40), 2**40)))
def test_integers_agree_with_the_store(array: npt.NDArray[np.int64]) -> None:
    check(torch.from_numpy(array), array)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1e-42, float("nan"), float("inf"), float("-inf"), 3e38]
)
def test_one_value_agrees_with_the_store(value: float) -> None:
    check(torch.tensor(value), np.array(value, np.float32))


def test_a_tensor_of_several_pieces_agrees_with_the_store() -> None:
    tensor = torch.randn(300_000, generator=torch.Generator().manual_seed(0))
    tensor[::7] = 0.0
    tensor[5], tensor[200_001], tensor[299_999] = torch.nan, torch.inf, -torch.inf

    check(tensor, tensor.numpy())


def test_bfloat16_agrees_with_the_store_after_widening() -> None:
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()

    check(tensor, tensor.float().numpy())


@pytest.mark.parametrize("bits", [0x7F800001, -1, 0x7FC00000, -0x7FFFFF])
def test_a_nan_of_any_bits_counts_as_nan_and_not_as_infinity(bits: int) -> None:
    tensor = torch.tensor([bits, 0], dtype=torch.int32).view(torch.float32)
    values, counts = extracted(tensor)

    assert dict(zip(STATISTICS, values, strict=True))["nan"] == 1
    assert counts[2048 + 0x7FC] == 1
    assert counts[2048 + 0x7F8] == counts[2047 - 0x7F8] == 0


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_an_empty_tensor_has_no_extremes(shape: tuple[int, ...]) -> None:
    check(torch.empty(shape), np.empty(shape, np.float32))


def test_the_order_in_memory_does_not_matter() -> None:
    tensor = torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(0))
    for other in (
        tensor.to(memory_format=torch.channels_last),
        tensor.transpose(1, 3),
        tensor[:, ::2],
        tensor[:1].expand(3, -1, -1, -1),
    ):
        check(other, other.contiguous().numpy())


def test_the_tensor_is_not_changed() -> None:
    tensor = torch.tensor([torch.nan, 1.0, -torch.inf])
    extracted(tensor)

    assert tensor._version == 0
    assert torch.equal(tensor.nan_to_num(5.0, neginf=-7.0), torch.tensor([5.0, 1.0, -7.0]))


def test_autocast_around_the_tap_changes_no_number() -> None:
    tensor = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        check(tensor, tensor.numpy())
