"""What every way to extract must do; the oracle is the store's, in NumPy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from filmstrip.store import STATISTICS, bit_histogram, summarize

# Every subclass draws its own examples.
shared = settings(
    suppress_health_check=[HealthCheck.differing_executors], deadline=None, max_examples=50
)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class ExtractContract(ABC):
    """Counts and extremes exactly, sums to rounding, whatever a tensor holds."""

    doubles: ClassVar[bool] = True
    rounding: ClassVar[float] = 1e-12

    @abstractmethod
    def extract(self, tensor: torch.Tensor) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint64]]:
        """Return statistics, and the histogram in ascending order.

        The extractor is the same for all tensors: nothing of one may show in the next.
        """

    def check(self, tensor: torch.Tensor, oracle: npt.NDArray[np.generic]) -> None:
        """Compare with the oracle."""
        values, counts = self.extract(tensor)
        expected = summarize(oracle)
        np.testing.assert_array_equal(counts, bit_histogram(oracle))
        np.testing.assert_array_equal(values[:7], expected[:7])
        finite = oracle.astype(np.float64)[np.isfinite(oracle)]
        rounding = self.rounding * np.abs(finite).sum()
        largest = np.finfo(values.dtype).max  # of sums; beyond it they are infinite
        if np.abs(finite).sum() < largest:
            np.testing.assert_allclose(values[7], expected[7], rtol=self.rounding, atol=rounding)
        if np.abs(expected[8]) < largest:
            np.testing.assert_allclose(values[8], expected[8], rtol=self.rounding, atol=1e-40)

    @shared
    @given(
        hnp.arrays(
            np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(width=32)
        )
    )
    def test_float32_agrees_with_the_store(self, array: npt.NDArray[np.float32]) -> None:
        self.check(torch.from_numpy(array), array)

    @shared
    @given(hnp.arrays(np.float64, 20, elements=st.floats(-1e150, 1e150)))
    def test_float64_beyond_the_range_of_float32_agrees_with_the_store(
        self, array: npt.NDArray[np.float64]
    ) -> None:
        if not self.doubles:
            pytest.skip("the device has no float64")
        self.check(torch.from_numpy(array), array)

    @shared
    @given(hnp.arrays(np.float16, 20, elements=st.floats(width=16)))
    def test_float16_agrees_with_the_store(self, array: npt.NDArray[np.float16]) -> None:
        self.check(torch.from_numpy(array), array)

    @shared
    @given(hnp.arrays(np.int64, 20, elements=st.integers(-(2**40), 2**40)))
    def test_integers_agree_with_the_store(self, array: npt.NDArray[np.int64]) -> None:
        if not self.doubles:
            array = array % 2**20
        self.check(torch.from_numpy(array), array)

    @shared
    @given(
        hnp.arrays(
            np.float32,
            st.tuples(*[st.integers(0, 5)] * 3),
            elements=st.sampled_from([0, 0, 0, 1.5, -2, np.nan, np.inf]),
        ),
        st.integers(1, 3),
    )
    def test_sparse_tensors_agree_with_the_store(
        self, array: npt.NDArray[np.float32], dimensions: int
    ) -> None:
        self.check(torch.from_numpy(array).to_sparse(dimensions), array)

    @pytest.mark.parametrize(
        "value", [0.0, -0.0, 1e-42, float("nan"), float("inf"), float("-inf"), 3e38]
    )
    def test_one_value_agrees_with_the_store(self, value: float) -> None:
        self.check(torch.tensor(value), np.array(value, np.float32))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("length", [5, 4096, 4097, 300_000, 1_100_000])
    def test_a_tensor_of_any_length_agrees_with_the_store(
        self, length: int, dtype: torch.dtype
    ) -> None:
        tensor = randn(length).relu()
        tensor[::7], tensor[1::11] = -0.0, 1e-40
        tensor[0], tensor[length // 2], tensor[-1] = torch.nan, torch.inf, -torch.inf
        tensor = tensor.to(dtype)

        self.check(tensor, tensor.float().numpy())

    def test_bfloat16_agrees_with_the_store_after_widening(self) -> None:
        tensor = randn(1000).bfloat16()

        self.check(tensor, tensor.float().numpy())

    @pytest.mark.parametrize("bits", [0x7F800001, -1, 0x7FC00000, -0x7FFFFF])
    def test_a_nan_of_any_bits_counts_as_nan_and_not_as_infinity(self, bits: int) -> None:
        tensor = torch.tensor([bits, 0], dtype=torch.int32).view(torch.float32)
        values, counts = self.extract(tensor)

        assert dict(zip(STATISTICS, values, strict=True))["nan"] == 1
        assert counts[2048 + 0x7FC] == 1
        assert counts[2048 + 0x7F8] == counts[2047 - 0x7F8] == 0

    def test_a_tensor_of_nan_alone_has_no_extremes(self) -> None:
        tensor = torch.full((10,), torch.nan)

        self.check(tensor, tensor.numpy())

    @pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
    def test_an_empty_tensor_has_no_extremes(self, shape: tuple[int, ...]) -> None:
        self.check(torch.empty(shape), np.empty(shape, np.float32))

    def test_the_order_in_memory_does_not_matter(self) -> None:
        tensor = randn(4, 6, 5, 3)
        for other in (
            tensor.to(memory_format=torch.channels_last),
            tensor.transpose(1, 3),
            tensor[:, ::2],
            tensor[:1].expand(3, -1, -1, -1),
        ):
            self.check(other, other.contiguous().numpy())

    def test_of_complex_numbers_the_parts_are_taken(self) -> None:
        tensor = torch.complex(randn(50), randn(50).neg()).conj()

        self.check(tensor, torch.view_as_real(tensor.resolve_conj()).numpy())
        self.check(tensor.imag, tensor.imag.resolve_neg().numpy())

    @pytest.mark.parametrize(
        "dtype", [torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn]
    )
    def test_short_dtypes_agree_with_the_store(self, dtype: torch.dtype) -> None:
        tensor = randn(1000).mul(4).abs().to(dtype)

        self.check(tensor, tensor.float().numpy())

    def test_the_tensor_is_not_changed(self) -> None:
        tensor = torch.tensor([torch.nan, 1.0, -torch.inf])
        self.extract(tensor)

        assert tensor._version == 0
        assert torch.equal(tensor.nan_to_num(5.0, neginf=-7.0), torch.tensor([5.0, 1.0, -7.0]))

    def test_autocast_around_the_tap_changes_no_number(self) -> None:
        tensor = randn(5000)
        with torch.autocast("cpu", torch.bfloat16):
            self.check(tensor, tensor.numpy())

    def test_what_was_made_in_inference_mode_spoils_nothing_for_what_follows(self) -> None:
        with torch.inference_mode():
            self.check(inside := randn(5000), inside.numpy())
        self.check(outside := randn(5000), outside.numpy())
