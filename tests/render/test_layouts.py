"""How frames become planes."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip import render
from filmstrip.render import SourceError, SpecError
from filmstrip.render._layout import arrange

if TYPE_CHECKING:
    from filmstrip.store import Run


@given(order=st.sampled_from(sorted(permutations("NCHW"))))
def test_every_order_of_an_activation_gives_the_same_planes(order: tuple[str, ...]) -> None:
    base = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    frame = base.transpose(["NCHW".index(letter) for letter in order])

    arranged = arrange(frame, "".join(order), kind="activations", sample=1)

    np.testing.assert_array_equal(arranged.values[:, 0], base[1])


def test_kernels_of_both_frameworks_give_the_same_planes() -> None:
    oihw = np.random.default_rng(0).normal(size=(6, 2, 3, 3))

    first = arrange(oihw, "OIHW", kind="weights")
    second = arrange(oihw.transpose(2, 3, 1, 0), "HWIO", kind="weights")

    np.testing.assert_array_equal(first.values, oihw)
    np.testing.assert_array_equal(second.values, oihw)


def test_a_dense_matrix_has_its_outputs_as_rows_whatever_the_framework() -> None:
    matrix = np.arange(6.0).reshape(2, 3)

    np.testing.assert_array_equal(arrange(matrix, "OI").values[0, 0], matrix)
    np.testing.assert_array_equal(arrange(matrix.T, "IO").values[0, 0], matrix)


def test_one_by_one_kernels_are_a_matrix() -> None:
    arranged = arrange(np.ones((8, 4, 1, 1)), "OIHW")

    assert arranged.flat
    assert arranged.values.shape == (1, 1, 8, 4)


def test_without_a_layout_the_kind_decides() -> None:
    frame = np.zeros((4, 3, 6, 6))

    assert arrange(frame, None, kind="weights").values.shape == (4, 3, 6, 6)
    assert arrange(frame, None, kind="activations").values.shape == (3, 1, 6, 6)


def test_volumes_and_sequences_have_planes_too() -> None:
    assert arrange(np.zeros((2, 3, 4, 5, 6)), "NCDHW").values.shape == (3, 4, 5, 6)
    assert arrange(np.zeros((8, 4, 2, 3, 3)), "OIDHW").values.shape == (8, 8, 3, 3)
    assert arrange(np.zeros((2, 7, 16)), "NLC").values.shape == (1, 1, 7, 16)
    assert arrange(np.zeros((2, 4, 9, 9)), "NCQK").values.shape == (4, 1, 9, 9)


def test_a_batch_of_vectors_is_a_matrix_until_a_sample_is_asked_for() -> None:
    frame = np.arange(12.0).reshape(3, 4)

    assert arrange(frame, "NC").values.shape == (1, 1, 3, 4)
    np.testing.assert_array_equal(arrange(frame, "NC", sample=2).values[0, 0, 0], frame[2])


def test_a_sample_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SourceError, match=r"no sample 9: the frame has 2 \(0 to 1\)"):
        arrange(np.zeros((2, 3, 4, 4)), "NCHW", sample=9)


@pytest.mark.parametrize("layout", ["NCXW", "NNHW", "NCH", ""])
def test_a_layout_that_does_not_fit_is_refused(layout: str) -> None:
    with pytest.raises(SpecError, match="layout"):
        arrange(np.zeros((2, 3, 4, 4)), layout)


def test_an_empty_array_is_refused_with_its_shape() -> None:
    with pytest.raises(SpecError, match="0×3"):
        arrange(np.zeros((0, 3)), None)


def test_a_layout_with_other_axes_is_refused_of_strips_too(run: Run) -> None:
    strip = run.activations["relu1"]
    for draw in (render.grid, render.mosaic, render.animation):
        with pytest.raises(SpecError, match="layout 'NC' names 2 axes, relu1 has 4 axes"):
            draw(strip, layout="nc")

    assert render.mosaic(strip, None).shape == render.mosaic(strip, "nchw").shape
