from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from capture.extract_contract import ExtractContract
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from filmstrip.capture.pytorch._extract import Extractor
from filmstrip.capture.pytorch._extract_device import DeviceExtractor
from filmstrip.store import summarize
from filmstrip.store._bits import ascending


class TestHost(ExtractContract):
    extractor = Extractor()

    def extract(self, tensor: torch.Tensor) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint64]]:
        """Return what came; what was in memory before must not show through."""
        values, counts = np.full(9, 7.0), np.full(4096, 7)
        self.extractor.extract(tensor, values, counts)
        return values, ascending(counts)


class TestDevice(ExtractContract):
    extractor = DeviceExtractor()

    def extract(self, tensor: torch.Tensor) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint64]]:
        values, counts = self.extractor.extract(tensor)
        return values.numpy(), ascending(counts.numpy())


class TestDeviceWithoutFloat64(TestDevice):
    extractor = DeviceExtractor(torch.float32)
    doubles = False
    rounding = 1e-6


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_no_number_and_no_shape_depends_on_what_the_device_holds(
    kind: str, dtype: torch.dtype
) -> None:
    """A fake tensor has no values: whatever asks for one raises, as does an op of two devices."""
    if kind == "mps" and dtype is torch.float64:
        pytest.skip("there are no such tensors")
    extractor = DeviceExtractor()
    with FakeTensorMode():
        for shape in ((), (0,), (3, 5), (2_000_000,)):
            values, counts = extractor.extract(torch.empty(shape, dtype=dtype, device=kind))

            assert (values.shape, counts.shape) == ((9,), (4096,))
            assert values.device.type == counts.device.type == kind


class Strict(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises where an accelerator would be waited for."""

    waits = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "is_nonzero")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if any(word in func.name() for word in self.waits):
            raise AssertionError(f"{func.name()} waits for the device")
        return func(*args, **(kwargs or {}))


def test_nothing_that_is_asked_for_waits_for_the_device() -> None:
    tensor = torch.tensor([1.0, torch.nan, torch.inf])
    with Strict():  # type: ignore[no-untyped-call]
        DeviceExtractor().extract(tensor)
        with pytest.raises(AssertionError, match="waits for the device"):
            Extractor().extract(tensor.repeat(100_000), np.empty(9), np.empty(4096, np.int64))


def test_a_million_equal_values_are_counted_one_by_one() -> None:
    values, counts = DeviceExtractor().extract(torch.ones(3_000_000))

    assert [int(values[0]), int(values[7]), int(counts[0x3F8])] == [3_000_000] * 3


def test_extraction_is_the_same_to_the_bit_every_time() -> None:
    tensor = torch.randn(2_500_000, generator=torch.Generator().manual_seed(0))
    extractor = DeviceExtractor()
    first = extractor.extract(tensor)

    assert all(torch.equal(first[0], extractor.extract(tensor)[0]) for _ in range(3))


def test_deterministic_algorithms_are_no_obstacle() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        values, _ = DeviceExtractor().extract(torch.arange(5.0))
    finally:
        torch.use_deterministic_algorithms(False)

    np.testing.assert_array_equal(values.numpy(), summarize(np.arange(5.0)))
