"""Quantising, pooling and putting side by side, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from filmstrip.render import mosaic
from filmstrip.render._palette import BACKGROUND, LEVELS, NAN, NEGINF, POSINF, colors, quantise
from filmstrip.render._scale import choose_scale, ticks
from filmstrip.render._tiles import pool, shape_of_grid, tile_rows

planes = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-100, 100, width=32),
)


@given(plane=planes, factor=st.integers(1, 5))
def test_signed_abs_max_keeps_the_value_farthest_from_zero(
    plane: npt.NDArray[np.float32], factor: int
) -> None:
    pooled = pool(plane, (factor, factor), "absmax")

    for y in range(pooled.shape[0]):
        for x in range(pooled.shape[1]):
            rows = slice(y * factor, (y + 1) * factor)
            block = plane[rows, x * factor : (x + 1) * factor]
            assert pooled[y, x] in block
            assert abs(pooled[y, x]) == np.abs(block).max()


@given(plane=planes, factor=st.integers(1, 5))
def test_means_weigh_short_edge_blocks_by_what_they_hold(
    plane: npt.NDArray[np.float32], factor: int
) -> None:
    mean = pool(plane, (factor, factor), "mean")
    rms = pool(plane, (factor, factor), "rms")

    block = plane[-(plane.shape[0] % factor or factor) :, -(plane.shape[1] % factor or factor) :]
    assert mean[-1, -1] == pytest.approx(block.mean(), rel=1e-4, abs=1e-4)
    if factor > 1:
        assert rms[-1, -1] == pytest.approx(np.sqrt((block**2).mean()), rel=1e-4, abs=1e-4)


def test_a_nan_survives_pooling() -> None:
    plane = np.ones((4, 4), np.float32)
    plane[1, 1] = np.nan

    assert np.isnan(pool(plane, (2, 2), "absmax")[0, 0])


@given(
    tiles=hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 7), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    ),
    columns=st.integers(1, 8),
    zoom=st.integers(1, 4),
    gap=st.integers(0, 3),
    inner_gap=st.integers(0, 2),
)
def test_every_value_is_a_square_of_its_own_byte(
    tiles: npt.NDArray[np.uint8], columns: int, zoom: int, gap: int, inner_gap: int
) -> None:
    strips = tile_rows(tiles, columns=columns, zoom=zoom, gap=gap, inner_gap=inner_gap)

    count, inner, h, w = tiles.shape
    pitch = inner * (w * zoom + inner_gap) - inner_gap + gap
    for group in range(count):
        for plane in range(inner):
            x = group % columns * pitch + plane * (w * zoom + inner_gap)
            seen = strips[group // columns, :, x : x + w * zoom]
            expected = np.kron(tiles[group, plane], np.ones((zoom, zoom), np.uint8))
            np.testing.assert_array_equal(seen, expected)
    used = count * inner * h * w * zoom * zoom
    assert (strips == BACKGROUND).sum() >= strips.size - used


@given(count=st.integers(1, 3000), aspect=st.floats(1e-3, 1e3))
def test_a_grid_has_a_place_for_every_tile_and_no_empty_row(count: int, aspect: float) -> None:
    rows, columns = shape_of_grid(count, aspect)

    assert rows * columns >= count > (rows - 1) * columns


@given(
    values=hnp.arrays(np.float32, 20, elements=st.floats(width=32)),
    low=st.floats(-1e3, 1e3),
    span=st.floats(1e-3, 1e3),
)
def test_levels_rise_with_values_and_bad_values_have_their_own(
    values: npt.NDArray[np.float32], low: float, span: float
) -> None:
    levels = quantise(values, low, low + span)

    assert (levels[np.isnan(values)] == NAN).all()
    assert (levels[values == np.inf] == POSINF).all()
    assert (levels[values == -np.inf] == NEGINF).all()
    finite = np.isfinite(values)
    order = np.argsort(values[finite], kind="stable")
    assert (np.diff(levels[finite][order].astype(int)) >= 0).all()
    assert levels[finite].max(initial=0) < LEVELS


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30, 1e300])
def test_the_ends_of_the_range_are_the_ends_of_the_colours_at_any_magnitude(
    scale: float,
) -> None:
    values = np.array([-1.0, 0.0, 1.0]) * scale

    assert quantise(values, -scale, scale).tolist() == [0, LEVELS // 2, LEVELS - 1]


def test_a_range_of_denormals_is_drawn_in_order_without_a_warning() -> None:
    values = np.array([-1e-320, 0.0, 1e-320])

    assert np.diff(quantise(values, -1e-320, 1e-320).astype(int)).min() >= 0
    assert ticks(-1e-320, 1e-320)[0]


def test_the_palette_keeps_text_and_bad_values_apart_from_the_colour_map() -> None:
    table = colors("magma")

    assert table[BACKGROUND].tolist() == [255, 255, 255]
    assert [table[i].tolist() for i in (NAN, POSINF, NEGINF)] == [
        [255, 0, 255],
        [255, 106, 0],
        [0, 200, 255],
    ]
    assert len(np.unique(table[BACKGROUND:], axis=0)) >= 25


def values_of(x: object) -> npt.NDArray[np.float64]:
    return np.asarray(x, np.float64)[None, None, None, :]


def test_signed_values_are_centred_and_clipped_where_there_are_outliers() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    values[0] = 1000.0

    scale = choose_scale(values_of(values))

    clip = np.quantile(np.abs(values), 0.999)
    assert scale.high == pytest.approx(clip, rel=0.01)
    assert (scale.low, scale.above) == (-scale.high, True)
    assert "q99.9" in scale.words


def test_values_without_sign_start_at_zero_unless_all_are_large() -> None:
    near = choose_scale(values_of([0.1, 4.0]))
    far = choose_scale(values_of([5.0, 6.0]))

    assert (near.low, near.high) == (0.0, 4.0)
    assert (far.low, far.high) == (5.0, 6.0)


@pytest.mark.parametrize(
    ("vmin", "vmax", "x", "expected"),
    [
        (-2.0, None, [-1.0, 1.0], (-2.0, 2.0, True)),
        (None, 2.0, [-1.0, 1.0], (-2.0, 2.0, True)),
        (0.0, None, [-1.0, 1.0], (0.0, 1.0, False)),
        (None, 0.0, [-1.0, 1.0], (-1.0, 0.0, False)),
        (0.5, None, [-1.0, 1.0], (0.5, 1.0, False)),
        (5.0, None, [0.0, 1.0], (5.0, 10.0, False)),
        (None, -5.0, [0.0, 1.0], (-10.0, -5.0, False)),
        (-1.0, 3.0, [-1.0, 1.0], (-1.0, 3.0, False)),
    ],
)
def test_one_end_may_be_fixed_wherever_the_values_are(
    vmin: float | None, vmax: float | None, x: list[float], expected: tuple[float, float, bool]
) -> None:
    scale = choose_scale(values_of(x), vmin=vmin, vmax=vmax)

    assert (scale.low, scale.high, scale.diverging) == expected


def test_values_near_the_largest_float_have_a_scale_without_a_warning() -> None:
    scale = choose_scale(np.full((1, 1, 100, 200), -3e38, np.float32))

    assert scale.high == pytest.approx(3e38)


@pytest.mark.parametrize("x", [[0.0, 0.0], [3.0, 3.0], [-2.0, -2.0], [np.nan, np.inf]])
def test_a_range_always_has_an_extent(x: list[float]) -> None:
    for mode in ("shared", "each"):
        scale = choose_scale(values_of(x), mode=mode)

        assert scale.low < scale.high
        assert math.isfinite(scale.high)


@given(low=st.floats(-1e300, 1e300), span=st.floats(1e-300, 1e300), most=st.integers(3, 10))
def test_ticks_lie_inside_in_order_with_distinct_labels(low: float, span: float, most: int) -> None:
    high = low + span
    if not (high > low and math.isfinite(high)):
        return
    marks, _ = ticks(low, high, most)

    at = [value for value, _ in marks]
    slack = 1e-6 * max(abs(low), abs(high))
    assert at == sorted(at)
    assert all(low - slack <= value <= high + slack for value in at)
    assert len(marks) <= 3 * most


@given(top=st.floats(1e-12, 1e12))
def test_a_bar_has_three_ticks_or_more_whose_labels_say_their_values(top: float) -> None:
    marks, unit = ticks(-top, top, 5)

    power = unit.removeprefix("×10").translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    factor = 10.0 ** int(power or 0)
    assert len(marks) >= 3
    for value, label in marks:
        assert float(label.replace("−", "-")) * factor == pytest.approx(value, rel=1e-6, abs=1e-30)


def test_a_mosaic_holds_the_values_themselves() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)

    pixels = mosaic(x, columns=2, padding=1)

    assert pixels.shape == (11, 9)
    np.testing.assert_array_equal(pixels[8:11, 0:4], x[4])
    assert np.isnan(pixels[3]).all()
