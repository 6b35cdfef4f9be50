from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from filmstrip.store import FrameSpec, StoreError, create_run, open_run, summarize
from filmstrip.store._diff import difference

from .conftest import STEPS, activation


def test_a_strip_becomes_a_dask_array_that_reads_only_what_is_asked(run_path: Path) -> None:
    strip = open_run(run_path).activations["conv1"]
    array = strip.to_dask()

    assert array.shape == (10, 4, 3, 5, 5)
    assert max(array.chunks[0]) < strip.rows_per_shard
    np.testing.assert_array_equal(array[3, 1].compute(), activation(30)[1])
    np.testing.assert_array_equal(array[:9].compute(), [activation(step) for step in STEPS[:9]])
    again = pickle.loads(pickle.dumps(array))
    np.testing.assert_array_equal(again[2].compute(), activation(20))


def test_large_frames_are_chunks_of_their_own(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", {"a": FrameSpec((600, 600), "float32")})
        for step in range(3):
            writer.append(step, {"a": np.full((600, 600), step, np.float32)})

    array = open_run(run.path).weights["a"].to_dask()
    assert array.chunks[0] == (1, 1, 1)
    assert np.asarray(array[:, 7, 7]).tolist() == [0, 1, 2]


def test_a_strip_becomes_a_data_array(run_path: Path) -> None:
    array = open_run(run_path).activations["conv1"].to_xarray()

    assert array.dims == ("step", "N", "C", "H", "W")
    np.testing.assert_array_equal(array.sel(step=40), activation(40))
    assert array.attrs["layer"] == "conv1"


def test_statistics_become_tables(run_path: Path) -> None:
    statistics = open_run(run_path).statistics("activations")
    array, frame = statistics.to_xarray(), statistics.to_dataframe()

    expected = np.linalg.norm(activation(30).astype(np.float64))
    assert float(array.sel(step=30, layer="conv1", stat="l2")) == pytest.approx(expected)
    assert frame.loc[(30, "conv1"), "l2"] == pytest.approx(expected)
    assert len(frame) == 20


def test_two_runs_are_compared_the_worst_first(run_path: Path, tmp_path: Path) -> None:
    with create_run(tmp_path / "other.zarr") as run:
        spec = {"conv1": FrameSpec((4, 3, 5, 5), "float32", layout="NCHW")}
        writer = run.writer("activations", spec)
        for step in (0, 10, 20, 25):
            frame = activation(step)
            if step == 20:
                frame[0, 0, 0, 0] += 0.5
            writer.append(step, {"conv1": frame})

    found = open_run(run_path).diff(tmp_path / "other.zarr")
    assert [one.step for one in found] == [20, 0, 10]
    assert found[0].max_abs == pytest.approx(0.5, abs=1e-6)
    assert found[0].relative_l2 == pytest.approx(0.5 / np.linalg.norm(activation(20)), rel=1e-3)
    assert found[1][3:] == (0.0, 0.0)


def test_runs_with_nothing_in_common_or_other_shapes_are_refused(
    run_path: Path, tmp_path: Path
) -> None:
    for name, layer in (("a", "other"), ("b", "conv1")):
        with create_run(tmp_path / name) as run:
            writer = run.writer("activations", {layer: FrameSpec((2,), "float32")})
            writer.append(0, {layer: np.zeros(2, np.float32)})

    with pytest.raises(StoreError, match="no frame in common"):
        open_run(run_path).diff(tmp_path / "a")
    with pytest.raises(StoreError, match=r"'conv1' are \(4, 3, 5, 5\) in run.zarr and \(2,\) in b"):
        open_run(run_path).diff(tmp_path / "b")


def test_values_that_are_not_finite_are_compared_as_people_would() -> None:
    nan, inf = np.nan, np.inf

    assert difference(np.array([nan, inf, 1.0]), np.array([nan, inf, 1.0])) == (0.0, 0.0)
    assert difference(np.array([nan, 1.0]), np.array([2.0, 1.0])) == (inf, inf)
    assert difference(np.array([1.0]), np.array([0.0])) == (1.0, inf)


def test_a_histogram_is_taken_over_layers_and_steps(run_path: Path) -> None:
    statistics = open_run(run_path).statistics("activations")
    counts, edges = statistics.histogram("*", slice(0, 50), bins=11)

    values = [activation(step) for step in (0, 20, 40)]
    assert counts.sum() == pytest.approx(3 * (300 + 8))
    assert edges[0] == min(frame.min() for frame in values)
    assert summarize(values[0])[0] == 300
    one, _ = statistics.histogram("conv1", [0, 20], bins=edges)
    assert one.sum() == pytest.approx(600, abs=2)
