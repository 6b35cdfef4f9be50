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
    layout = lay_out(shape, itemsize)

    extents = layout.shard[1:]
    assert layout.slots <= 255
    assert layout.rows >= 1
    assert math.prod(layout.block) * itemsize <= 1 << 30
    assert all(f * e >= n for f, e, n in zip(layout.files, extents, shape, strict=True))
    assert all(
        (f - 1) * e < max(n, 1) for f, e, n in zip(layout.files, extents, shape, strict=True)
    )
    assert layout.parts == 1 or math.prod(shape) * itemsize > 1 << 36


@given(shapes | huge, st.integers(1, 4))
def test_blocks_and_parts_are_pieces_of_the_flat_frame(shape: tuple[int, ...], slots: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_layout, "SLOTS", slots)
        patch.setattr(_layout, "MOST_PARTS", 1 << 60)
        patch.setattr(_layout, "LARGEST_BLOCK", 1 << 20)
        layout = lay_out(shape, 1)
    extents = layout.shard[1:]

    assert layout.slots <= slots
    filled = tuple(b * n for b, n in zip(layout.block, layout.whole, strict=True))
    for lengths, counts in ((layout.block, layout.whole), (extents, layout.files)):
        cut = [axis for axis, pieces in enumerate(counts) if pieces > 1]
        if cut:
            assert all(length == 1 for length in lengths[: cut[-1]])
            assert lengths[cut[-1] + 1 :] == filled[cut[-1] + 1 :]


def test_parts_follow_each_other_in_the_order_of_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layout, "SLOTS", 2)
    monkeypatch.setattr(_layout, "LARGEST_BLOCK", 4)
    layout = lay_out((2, 5, 4), 1)

    assert (layout.block, layout.grid, layout.files) == ((1, 1, 4), (1, 2, 1), (2, 3, 1))
    assert [layout.position(part) for part in range(layout.parts)] == [
        (0, 0, 0), (0, 1, 0), (0, 2, 0), (1, 0, 0), (1, 1, 0), (1, 2, 0),
    ]  # fmt: skip
    assert layout.box(4) == [(1, 2), (2, 4), (0, 4)]


def test_small_frames_are_one_block_and_share_files() -> None:
    layout = lay_out((64, 28, 28), 4)

    assert layout.block == (64, 28, 28)
    assert layout.rows == 255


def test_large_frames_are_cut_into_blocks_of_a_few_megabytes() -> None:
    layout = lay_out((32, 64, 56, 56), 4)

    assert 1 << 20 <= math.prod(layout.block) * 4 <= 4 << 20
    assert layout.rows == 2


def test_a_frame_that_no_index_can_hold_lies_in_several_files() -> None:
    layout = lay_out((400, 1 << 30), 4)

    assert layout.block == (1, 1 << 28)
    assert (layout.grid, layout.files) == ((50, 4), (8, 1))
    assert layout.rows == 1


def test_a_frame_that_nothing_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1152921504606846976,\) are too large"):
        lay_out((1 << 60,), 4)
