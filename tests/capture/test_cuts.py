"""Where the pieces of a tensor lie that is cut over a mesh, and what is kept of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", "2.5", reason="torch 2.4 has no torch.distributed.tensor")

from torch.distributed.tensor import Replicate, Shard, _utils
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from filmstrip.capture._budget import Take, fit_sites, ladder
from filmstrip.capture._seams import Piece, Site
from filmstrip.capture.pytorch._shards import Cut, Split


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Cut, list[Placement]]:
    shape = draw(st.tuples(st.integers(0, 9), st.integers(1, 9)))
    mesh = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    splits: list[Split | None] = []
    placements: list[Placement] = []
    for _ in mesh:
        axis = draw(st.sampled_from([None, 0, 1]))
        splits.append(None if axis is None else Split(axis))
        placements.append(Replicate() if axis is None else Shard(axis))
    return Cut(shape, tuple(mesh), tuple(splits)), placements


@given(drawn=cuts())
def test_pieces_lie_where_pytorch_says(drawn: tuple[Cut, list[Placement]]) -> None:
    cut, placements = drawn
    theirs = getattr(_utils, "_compute_local_shape_and_global_offset", None)
    if theirs is None:
        pytest.skip("this torch has no such function")

    for place in itertools.product(*map(range, cut.mesh)):
        piece = cut.piece(place)
        assert piece is not None
        shape, offset = theirs(cut.shape, cut.mesh, list(place), placements)
        assert piece[1] == tuple(shape)
        if 0 not in shape:
            assert piece[0] == tuple(offset)


@given(parts=st.tuples(st.integers(1, 4), st.integers(1, 4)), each=st.integers(1, 3))
def test_an_axis_that_is_cut_twice_in_strides_lies_where_pytorch_says(
    parts: tuple[int, int], each: int
) -> None:
    theirs = getattr(_utils, "_compute_local_shape_and_global_offset", None)
    if theirs is None:
        pytest.skip("this torch has no such function")
    data, tensor = parts
    length = data * tensor * each
    cut = Cut((length,), parts, (Split(0, strides=tensor), Split(0)))
    placements = [_StridedShard(0, split_factor=tensor), Shard(0)]

    for place in itertools.product(range(data), range(tensor)):
        shape, offset = theirs((length,), parts, list(place), placements)
        assert cut.piece(place) == (tuple(offset), tuple(shape))


@given(drawn=cuts())
def test_pieces_of_those_that_write_cover_everything_once(
    drawn: tuple[Cut, list[Placement]],
) -> None:
    cut, _ = drawn
    covered = np.zeros(cut.shape, int)
    for place in cut.owners():
        piece = cut.piece(place)
        assert piece is not None
        offset, shape = piece
        covered[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))] += 1

    np.testing.assert_array_equal(covered, np.ones(cut.shape, int))


def test_a_piece_with_gaps_has_no_place() -> None:
    assert Cut((8,), (2,), (Split(0, strides=2),)).piece((0,)) is None


def site(kind: str, shape: tuple[int, ...], *, framed: bool | None = None) -> Site:
    piece = None
    if framed is not None:
        piece = Piece(
            global_shape=(64, *shape[1:]),
            offset=(0,) * len(shape),
            mesh=("data=2",),
            placements=("Shard(0)",),
            framed=framed,
        )
    return Site(kind=kind, layer="a", shape=shape, dtype="float32", piece=piece)


def test_a_piece_is_kept_whole_or_not_at_all() -> None:
    assert ladder(site("weights", (32, 4), framed=True)) == [Take((32, 4), "float32")]
    assert ladder(site("weights", (32, 4), framed=False)) == []


@given(outputs=st.lists(st.integers(1, 64), max_size=4), budget=st.integers(0, 2000))
def test_what_is_kept_of_parameters_does_not_depend_on_activations(
    outputs: list[int], budget: int
) -> None:
    parameters = [
        site("weights", (8, 4), framed=True),
        site("gradients", (16,)),
        site("weights", (3,)),
    ]
    activations = [site("activations", (length, 4)) for length in outputs]

    def kept(sites: list[Site]) -> list[Take | None]:
        return fit_sites(sites, [ladder(one) for one in sites], budget, parameters=budget // 2)

    alone, beside = kept(parameters), kept([*activations, *parameters])
    assert beside[len(activations) :] == alone
    assert alone[0] == Take((8, 4), "float32")
    assert sum(take.nbytes for take in beside[: len(activations)] if take) <= budget - budget // 2
