from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.store import _layout
from filmstrip.store._layout import lay_out

shapes = st.lists(st.integers(0, 300), min_size=1, max_size=4).map(tuple)
huge = st.lists(st.integers(0, 3000), min_size=1, max_size=4).map(tuple)


@given(shapes | huge, st.sampled_from([1, 2, 4, 8]))
def test_blocks_cover_the_frame_and_an_index_fits_one_page(
    shape: tuple[int, ...], itemsize: int
) -> None:
    try:
        layout = lay_out(shape, itemsize)
    except ValueError:
        assert math.prod(shape) * itemsize > 1 << 36
        return

    assert layout.slots <= 255
    assert layout.rows >= 1
    assert all(g * b >= n for g, b, n in zip(layout.grid, layout.block, shape, strict=True))
    assert all(
        (g - 1) * b < max(n, 1) for g, b, n in zip(layout.grid, layout.block, shape, strict=True)
    )


@given(shapes)
def test_a_block_is_one_piece_of_the_flat_frame(shape: tuple[int, ...]) -> None:
    layout = lay_out(shape, 1)
    cut = [axis for axis, pieces in enumerate(layout.grid) if pieces > 1]

    if cut:
        assert all(length == 1 for length in layout.block[: cut[-1]])
        assert layout.block[cut[-1] + 1 :] == tuple(max(1, n) for n in shape[cut[-1] + 1 :])


def test_small_frames_are_one_block_and_share_files() -> None:
    layout = lay_out((64, 28, 28), 4)

    assert layout.block == (64, 28, 28)
    assert layout.rows == 255


def test_large_frames_are_cut_into_blocks_of_a_few_megabytes() -> None:
    layout = lay_out((32, 64, 56, 56), 4)

    assert 1 << 20 <= math.prod(layout.block) * 4 <= 4 << 20
    assert layout.rows == 2


def test_a_frame_that_no_index_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layout, "LARGEST_BLOCK", 1 << 12)

    with pytest.raises(ValueError, match="too large"):
        lay_out((1 << 20,), 4)
