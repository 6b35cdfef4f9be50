from __future__ import annotations

import numpy as np
import pytest
import torch

from filmstrip.store import FrameSpec
from filmstrip.store._frame import as_stored


def test_bfloat16_is_widened_without_loss() -> None:
    values = torch.randn(1000).to(torch.bfloat16)
    bits = values.view(torch.uint16).numpy()

    np.testing.assert_array_equal(
        as_stored(bits, FrameSpec((1000,), "bfloat16"), "fc"), values.float().numpy()
    )


@pytest.mark.parametrize("dtype", ["object", "complex128", "float128", "<U3", "nonsense"])
def test_a_dtype_that_cannot_be_stored_is_named(dtype: str) -> None:
    with pytest.raises(ValueError, match=r"frames of dtype .* cannot be stored"):
        FrameSpec((1,), dtype)


def test_a_layout_must_have_a_letter_for_every_axis() -> None:
    with pytest.raises(ValueError, match="'NCHW' does not fit"):
        FrameSpec((1, 2), "float32", layout="NCHW")


def test_a_frame_of_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="float32; got float64"):
        as_stored(np.zeros(3), FrameSpec((3,), "float32"), "fc")
