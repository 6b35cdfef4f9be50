"""What other programs see: no line here reads through filmstrip."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
import zarrs
from store import zoo

from filmstrip.store import FrameSpec, bit_histogram, create_run, open_run, summarize

FRAMES = np.random.default_rng(0).standard_normal((300, 2, 3, 40, 40)).astype(np.float32)
STEPS = np.arange(0, 3000, 10)


@pytest.fixture(params=["live", "closed"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    run = create_run(tmp_path / "run.zarr")
    spec = {
        "conv2d": FrameSpec((2, 3, 40, 40), "float32", layout="NCHW"),
        "conv2d_1": FrameSpec((3,), "float32"),
    }
    writer = run.writer("activations", spec)
    statistics = run.statistics_writer("activations", list(spec))
    for kind in ("weights", "gradients"):  # so that groups of one parent are made apart
        run.writer(kind, {"fc": FrameSpec((3,), "float32")}).append(
            0, {"fc": FRAMES[0, 0, :, 0, 0]}
        )
        run.statistics_writer(kind, ["fc"]).append(0, summarize([1.0])[None])
    for step, frame in zip(STEPS.tolist(), FRAMES, strict=True):
        small = frame[0, :, 0, 0]
        writer.append(step, {"conv2d": frame, "conv2d_1": small})
        both = (frame, small)
        statistics.append(
            step, np.stack([*map(summarize, both)]), np.stack([*map(bit_histogram, both)])
        )
        run.log(step, {"loss": step})
    run.publish()
    if request.param == "closed":
        run.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield tmp_path / "run.zarr"
    run.close()


def test_zarr_sees_the_committed_rows(path: Path) -> None:
    group = zarr.open_group(path, mode="r")
    strip: Any = group["activations/conv2d"]

    assert strip.shape == FRAMES.shape
    np.testing.assert_array_equal(strip[::37], FRAMES[::37])
    np.testing.assert_array_equal(np.asarray(group["activations/step"]), STEPS)
    assert sorted(dict(group.groups())) == [
        "activations",
        "gradients",
        "scalars",
        "statistics",
        "weights",
    ]


def test_xarray_opens_a_kind(path: Path) -> None:
    for dataset in (
        xarray.open_zarr(path, group="activations"),
        xarray.open_zarr(path / "activations"),
    ):
        np.testing.assert_array_equal(dataset.step, STEPS)
        np.testing.assert_array_equal(dataset["conv2d"].sel(step=420), FRAMES[42])
        assert dataset["conv2d_1"].dims == ("step", "conv2d_1[0]")


def test_xarray_opens_the_whole_run(path: Path) -> None:
    tree = xarray.open_datatree(path, engine="zarr")

    np.testing.assert_array_equal(tree["activations"].step, STEPS)
    np.testing.assert_array_equal(tree["activations"].dataset["conv2d"][-1], FRAMES[-1])
    np.testing.assert_array_equal(tree["scalars/loss"], STEPS)
    histogram = tree["statistics/activations"].dataset["histogram"]
    assert histogram.sizes == {"step": 300, "layer": 2, "bin": 4096}
    assert int(histogram[7, 0].sum()) == FRAMES[0].size


def test_tensorstore_reads_the_values_and_once_closed_the_length(
    path: Path, request: pytest.FixtureRequest
) -> None:
    folder = f"{path / 'activations' / 'conv2d'}/"
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": folder}}
    array = tensorstore.open(spec).result()

    closed = request.node.callspec.params["path"] == "closed"
    assert array.shape == (300 if closed else 4096, *FRAMES.shape[1:])
    np.testing.assert_array_equal(array[250:300].read().result(), FRAMES[250:])


def test_a_scalar_that_was_not_logged_is_nan_to_others(path: Path, tmp_path: Path) -> None:
    with create_run(tmp_path / "other.zarr") as run:
        run.log(0, {"a": 1.0})
        run.log(1, {"b": 2.0})

    dataset = xarray.open_zarr(tmp_path / "other.zarr", group="scalars")
    np.testing.assert_array_equal(dataset.a, [1.0, np.nan])
    np.testing.assert_array_equal(dataset.b, [np.nan, 2.0])


@pytest.fixture(scope="module", params=zoo.STATES)
def animals(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """A run with every form of array, and how it was found."""
    with zoo.recorded(tmp_path_factory.mktemp("zoo") / "run.zarr", request.param) as found:
        yield found


def through_zarr(path: Path) -> dict[str, Any]:
    group = zarr.open_group(path, mode="r")
    arrays: dict[str, Any] = {array: group[array] for array, _ in zoo.expected()}
    return {name: array[...] for name, array in arrays.items()}


def through_xarray(path: Path) -> dict[str, Any]:
    tree = xarray.open_datatree(path, engine="zarr")
    return {array: tree[array].values for array, _ in zoo.expected()}


def through_tensorstore(path: Path) -> dict[str, Any]:
    read = {}
    for name, _ in zoo.expected():
        kvstore = {"driver": "file", "path": f"{path / name}/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        read[name] = array[: len(zoo.STEPS)].read().result()
    return read


def through_zarrs(path: Path) -> dict[str, Any]:
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        some: Any = zarr.open_group(path, mode="r")["weights/step"]
        assert isinstance(some._async_array.codec_pipeline, zarrs.ZarrsCodecPipeline)
        return through_zarr(path)


def through_filmstrip(path: Path) -> dict[str, Any]:
    """Read as the others do: every row, absent frames as fill."""
    run, read = open_run(path), {}
    for name, _ in zoo.expected():
        group, array = name.rsplit("/", 1)
        view = run.view(group)
        read[name] = view.reader(array).read(np.arange(len(view.steps())))
    return read


@pytest.mark.parametrize(
    "through",
    [through_zarr, through_xarray, through_tensorstore, through_zarrs, through_filmstrip],
)
def test_every_form_of_array_is_equal_to_the_bit(animals: Path, through: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = through(animals)

    assert len(read) > 160
    assert zoo.differences(read) == []
