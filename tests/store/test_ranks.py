from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from filmstrip.store import (
    FormatError,
    FrameNotFoundError,
    FrameSpec,
    StoreError,
    bit_histogram,
    create_run,
    open_run,
    summarize,
)

STEPS = (0, 10, 20)


def whole(step: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(shape).astype(np.float32)


def record(path: Path, shape: tuple[int, ...], cuts: list[list[int]]) -> None:
    """Write a tensor sharded over a grid: ``cuts`` are the inner borders along each axis."""
    borders = [[0, *inner, length] for inner, length in zip(cuts, shape, strict=True)]
    boxes: list[tuple[tuple[int, int], ...]] = [()]
    for axis in borders:
        spans = list(itertools.pairwise(axis))
        boxes = [(*box, span) for box in boxes for span in spans]
    for rank, box in enumerate(boxes):
        index = tuple(slice(low, high) for low, high in box)
        piece = tuple(high - low for low, high in box)
        spec = FrameSpec(
            piece,
            "float32",
            global_shape=shape,
            offset=tuple(low for low, _ in box),
            placements=("Shard(0)",),
        )
        with create_run(path, rank=rank, world_size=len(boxes)) as run:
            if 0 in piece:
                continue  # an empty piece writes nothing
            writer = run.writer("weights", {"fc.weight": spec})
            statistics = run.statistics_writer("weights", ["fc.weight"])
            for step in STEPS:
                local = whole(step, shape)[index]
                writer.append(step, {"fc.weight": local})
                statistics.append(step, summarize(local)[None], bit_histogram(local)[None])


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_sharded_tensor_is_the_whole_one_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 7)))
    cuts = [sorted(data.draw(st.lists(st.integers(0, n), max_size=2))) for n in shape]
    path = tmp_path_factory.mktemp("ranks") / "run.zarr"
    record(path, shape, cuts)
    strip = open_run(path).weights["fc.weight"]
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    items = index if isinstance(index, tuple) else (index,)

    assert strip.shape == shape
    assert strip.steps.tolist() == list(STEPS)
    for step in STEPS:
        np.testing.assert_array_equal(strip.frame(step), whole(step, shape))
    expected = np.stack([whole(step, shape) for step in STEPS])[(slice(None), *items)]
    np.testing.assert_array_equal(strip.read(slice(None), index), expected)


def test_statistics_and_histograms_are_those_of_the_whole_tensor(tmp_path: Path) -> None:
    record(tmp_path / "run.zarr", (10, 8), [[3, 6], []])
    run = open_run(tmp_path / "run.zarr")
    statistics = run.statistics("weights")

    steps, values = statistics.values("fc.weight")
    assert steps.tolist() == list(STEPS)
    np.testing.assert_allclose(values, [summarize(whole(step, (10, 8))) for step in STEPS])
    _, bits = statistics.bits("fc.weight")
    np.testing.assert_array_equal(bits, [bit_histogram(whole(step, (10, 8))) for step in STEPS])
    counts, edges = statistics.histogram("fc.weight", slice(None), bins=7)
    assert counts.sum() == pytest.approx(240)
    assert edges[0] == min(whole(step, (10, 8)).min() for step in STEPS)
    _, table = statistics.table()
    np.testing.assert_array_equal(table[:, 0], values)


def test_only_the_pieces_that_are_needed_are_read(tmp_path: Path) -> None:
    record(tmp_path / "run.zarr", (10, 8), [[5], []])
    (tmp_path / "run.zarr/ranks/0001/weights/fc.weight/c.0.0.0").write_bytes(b"damage" * 1000)
    strip = open_run(tmp_path / "run.zarr").weights["fc.weight"]

    assert [piece.rank for piece in strip.pieces] == [0, 1]
    np.testing.assert_array_equal(strip.pieces[0].frame(10), whole(10, (10, 8))[:5])


def test_a_step_counts_once_all_owners_have_it(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    for rank, steps in enumerate([(0, 1, 2), (0, 1), (0, 2)]):
        with create_run(path, rank=rank, world_size=3) as run:
            spec = FrameSpec((2,), "float32", global_shape=(6,), offset=(2 * rank,))
            writer = run.writer("gradients", {"w": spec})
            for step in steps:
                writer.append(step, {"w": np.full(2, step, np.float32)})

    run_read = open_run(path)
    assert run_read.gradients["w"].steps.tolist() == [0]
    assert run_read.steps("gradients").tolist() == [0]
    with pytest.raises(FrameNotFoundError):
        run_read.gradients["w"].frame(1)
    assert run_read.gradients["w"].pieces[1].frame(1).tolist() == [1, 1]


def test_a_frame_is_not_there_while_an_owner_has_written_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    spec = FrameSpec((3,), "float32", global_shape=(6,), offset=(0,))
    with create_run(path, rank=0, world_size=2) as run:
        run.writer("weights", {"w": spec}).append(0, {"w": np.zeros(3, np.float32)})

    strip = open_run(path).weights["w"]
    assert strip.steps.tolist() == []
    with pytest.raises(StoreError, match=r"lack pieces .* those of rank 0 are in strip\.pieces"):
        strip.frame(0)
    assert strip.pieces[0].frame(0).tolist() == [0, 0, 0]


def test_replicas_are_joined_along_their_samples(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    for rank in range(3):
        with create_run(path, rank=rank, world_size=3) as run:
            writer = run.writer("activations", {"a": FrameSpec((2, 4), "float32", layout="NC")})
            writer.append(0, {"a": np.full((2, 4), rank, np.float32)})
            writer.append(1, {"a": np.full((1 if rank == 1 else 2, 4), rank, np.float32)})

    strip = open_run(path).activations["a"]
    assert strip.shape == (6, 4)
    assert strip.frame(0)[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert strip.frame(1)[:, 0].tolist() == [0, 0, 1, 2, 2]
    assert strip.read(slice(None), (slice(2, 4), 0)).shape == (2, 2)
    assert [piece.frame(0)[0, 0] for piece in strip.pieces] == [0, 1, 2]


def test_pieces_that_several_ranks_hold_alike_count_once(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    for rank in range(4):  # two shards, each on two replicas
        half = rank % 2
        with create_run(path, rank=rank, world_size=4) as run:
            spec = FrameSpec((3,), "float32", global_shape=(6,), offset=(3 * half,))
            run.writer("weights", {"w": spec}).append(0, {"w": np.full(3, half, np.float32)})
            values = summarize(np.full(3, half))[None]
            run.statistics_writer("weights", ["w"]).append(0, values)

    run_read = open_run(path)
    assert run_read.weights["w"].frame(0).tolist() == [0, 0, 0, 1, 1, 1]
    assert run_read.statistics("weights")["w", "count"].values.tolist() == [6]


def test_statistics_are_those_of_ranks_that_together_describe_all_of_a_layer(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.zarr"
    runs = [create_run(path, rank=rank, world_size=4) for rank in range(4)]
    for rank, run in enumerate(runs):  # two shards, each on two replicas
        spec = FrameSpec((3,), "float32", global_shape=(6,), offset=(3 * (rank % 2),))
        run.writer("weights", {"w": spec}).append(0, {"w": np.full(3, rank % 2, np.float32)})

    def describe(rank: int) -> None:
        piece = np.full(3, rank % 2)
        writer = runs[rank].statistics_writer("weights", ["w"])
        writer.append(0, summarize(piece)[None], bit_histogram(piece)[None])

    describe(2)
    statistics = open_run(path).statistics("weights")
    assert statistics["w", "count"].steps.tolist() == []
    assert len(statistics.bits("w")[0]) == 0
    assert statistics.table()[1].shape == (1, 1, 9)
    assert np.isnan(statistics.table()[1]).all()
    describe(1)
    statistics = open_run(path).statistics("weights")
    assert statistics["w", "count"].values.tolist() == [6]
    assert statistics["w", "sum"].values.tolist() == [3]
    assert statistics.bits("w")[1].sum() == 6
    for run in runs:
        run.close()


def test_layers_of_a_pipeline_are_on_the_ranks_that_own_them(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    for rank in range(2):
        with create_run(path, rank=rank, world_size=2) as run:
            spec = {f"layer{rank}": FrameSpec((2,), "float32", order=1 - rank)}
            run.writer("weights", spec).append(0, {f"layer{rank}": np.zeros(2, np.float32)})

    run_read = open_run(path)
    assert run_read.layers("weights") == ["layer1", "layer0"]
    assert run_read.weights["layer1"].pieces[0].rank == 1


def test_status_names_ranks_that_are_missing_or_behind(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    for rank, last in ((0, 3), (2, 1)):
        with create_run(path, rank=rank, world_size=4) as run:
            writer = run.writer("weights", {f"w{rank}": FrameSpec((2,), "float32")})
            for step in range(last):
                writer.append(step, {f"w{rank}": np.zeros(2, np.float32)})

    status = open_run(path).status()
    assert (status.ranks, status.missing, status.behind) == (4, (1, 3), {2: 0})


def test_one_ranks_store_can_be_opened_by_itself(tmp_path: Path) -> None:
    record(tmp_path / "run.zarr", (10, 8), [[5], []])
    run = open_run(tmp_path / "run.zarr/ranks/0001")

    assert run.ranks == (1,)
    np.testing.assert_array_equal(
        run.weights["fc.weight"].pieces[0].frame(0), whole(0, (10, 8))[5:]
    )


def test_resuming_with_another_world_size_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "run.zarr", (10, 8), [[5], []])

    with pytest.raises(StoreError, match=r"2 ranks and now 4.*if_exists='new'"):
        create_run(tmp_path / "run.zarr", first_step=20, world_size=4)


def test_resuming_with_another_sharding_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "run.zarr", (10, 8), [[5], []])
    spec = FrameSpec((5, 8), "float32", global_shape=(15, 8), offset=(0, 0))

    with (
        create_run(tmp_path / "run.zarr", first_step=20, world_size=2) as run,
        pytest.raises(StoreError, match=r"at \[0, 0\] of \[15, 8\] now.*of \[10, 8\]"),
    ):
        run.writer("weights", {"fc.weight": spec})


def test_overwriting_leaves_the_stores_of_ranks_that_write_their_own(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    record(path, (10, 8), [[2, 5], []])
    with create_run(path, if_exists="overwrite", rank=0, world_size=2):
        assert (path / "ranks/0001/zarr.json").exists()
        assert not (path / "ranks/0002").exists()


def test_a_piece_outside_its_tensor_is_refused() -> None:
    for offset, shape in (((5,), (4,)), ((-1,), (9,)), (None, (9,)), ((0, 0), (9,))):
        with pytest.raises(ValueError, match="piece"):
            FrameSpec((2,), "float32", offset=offset, global_shape=shape)


def test_ranks_that_have_nothing_to_write_are_not_missing(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    for rank in (0, 2):
        with create_run(path, rank=rank, world_size=4, writers=[0, 2]) as run:
            run.writer("weights", {"a": FrameSpec((1,), "float32")}).append(
                0, {"a": np.ones(1, "f4")}
            )
    status = open_run(path).status()

    assert (status.ranks, status.missing, status.behind) == (2, (), {})
    with pytest.raises(ValueError, match=r"writers=\[0, 4\]"):
        create_run(tmp_path / "other.zarr", world_size=4, writers=[0, 4])


def test_a_list_of_writers_that_cannot_be_true_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    create_run(path, world_size=4, writers=[0, 2]).close()
    text = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(re.sub(r'("writers": ?)\[[^]]*\]', r"\1[0, 9]", text))

    with pytest.raises(FormatError, match="writers"):
        open_run(path)


def test_the_store_of_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    create_run(path, rank=1, world_size=2, run_id="first").close()

    with pytest.raises(StoreError, match="belongs to run first, and not to second"):
        create_run(path, rank=1, world_size=2, run_id="second", if_exists="resume")
    with create_run(path, rank=1, world_size=2, run_id="first", if_exists="resume") as run:
        assert (run.run_id, run.attempt) == ("first", 2)


def test_overwriting_takes_away_what_a_rank_wrote_that_writes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    record(path, (10, 8), [[2, 5], []])
    create_run(path, if_exists="overwrite", world_size=3, writers=[0, 2]).close()

    assert not (path / "ranks/0001").exists()
    assert (path / "ranks/0002").exists()


def test_a_run_goes_back_to_a_step_as_long_as_nothing_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    record(path, (10, 8), [[], []])
    with create_run(path, if_exists="resume") as run:
        run.rewind(10)
        assert run.rewound == (2, 10, 20)
        run.log(10, {"loss": 1.0})
        run.rewind(11)  # nothing lies there
        with pytest.raises(StoreError, match="cannot go back to step 10"):
            run.rewind(10)

    opened = open_run(path)
    assert opened.steps("weights").tolist() == [0]
    assert opened.attributes["attempts"][-1]["first_step"] == 10


def test_replicas_of_other_shapes_are_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    for rank, length in enumerate((3, 4)):
        with create_run(path, rank=rank, world_size=2) as run:
            writer = run.writer("activations", {"a": FrameSpec((2, length), "float32")})
            writer.append(0, {"a": np.ones((2, length), np.float32)})

    with pytest.raises(FormatError, match="does not belong"):
        open_run(path).activations["a"].frame(0)
    assert open_run(path / "ranks/0001").activations["a"].frame(0).shape == (2, 4)
