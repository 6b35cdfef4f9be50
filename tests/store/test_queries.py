from __future__ import annotations

import json
import os
import pickle
import threading
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
    KindNotFoundError,
    LayerNotFoundError,
    NotARunError,
    RunNotFoundError,
    SelectionError,
    StatisticNotFoundError,
    StoreError,
    create_run,
    open_run,
    summarize,
)
from filmstrip.store import errors as error_module

from .conftest import STEPS, activation


def test_a_run_lists_its_kinds_layers_and_steps(run_path: Path) -> None:
    run = open_run(run_path)

    assert run.kinds == ("activations", "scalars", "weights")
    assert run.layers("activations") == ["conv1", "fc"]
    assert run.layers("activations", "re:c.*") == ["conv1"]
    assert run.steps("weights").tolist() == [0, 20, 40, 60, 80]
    assert run.metadata == {"seed": 1}


def test_every_frame_is_the_one_that_was_appended(run_path: Path) -> None:
    strip = open_run(run_path).activations["conv1"]

    assert (strip.shape, strip.dtype.name, strip.layout) == ((4, 3, 5, 5), "float32", "NCHW")
    for step in STEPS[:-1]:
        np.testing.assert_array_equal(strip.frame(step), activation(step))


def test_a_short_batch_comes_back_short(run_path: Path) -> None:
    run = open_run(run_path)

    np.testing.assert_array_equal(run.activations["conv1"].frame(-1), activation(90, 3))
    assert run.activations["fc"].frame(90).shape == (3, 2)
    padded = run.activations["conv1"].read([90])[0]
    assert np.isnan(padded[3]).all()


def test_steps_are_counted_from_the_end_below_zero(run_path: Path) -> None:
    strip = open_run(run_path).weights["fc.weight"]

    assert [strip.frame(step)[0, 0] for step in (-1, -2, -5)] == [80, 60, 0]
    with pytest.raises(FrameNotFoundError):
        strip.frame(-6)


def test_a_step_that_was_not_kept_names_its_neighbours(run_path: Path) -> None:
    strip = open_run(run_path).weights["fc.weight"]

    with pytest.raises(
        FrameNotFoundError, match=r"'fc.weight' has no frame at step 30; nearest kept: 20 and 40"
    ):
        strip.frame(30)
    assert strip.frame(30, nearest=True)[0, 0] == 20
    assert strip.frame(10**9, nearest=True)[0, 0] == 80


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_reading_is_numpy_indexing_of_the_stacked_frames(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    global _stacked
    path, frames = _stacked_run(tmp_path_factory)
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 35), st.integers(0, 35))))
    index = data.draw(hnp.basic_indices(frames.shape[1:], allow_newaxis=True, allow_ellipsis=True))

    read = open_run(path).activations["a"].read(slice(start, stop), index=index)
    items = index if isinstance(index, tuple) else (index,)

    np.testing.assert_array_equal(read, frames[start:stop][(slice(None), *items)])


_stacked: tuple[Path, np.ndarray] | None = None


def _stacked_run(factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """Thirty frames of three padded blocks, in shards of a few rows."""
    global _stacked
    if _stacked is None:
        from filmstrip.store import _layout

        path = factory.mktemp("stacked") / "run.zarr"
        frames = np.random.default_rng(0).standard_normal((30, 2, 7, 5)).astype(np.float32)
        with pytest.MonkeyPatch.context() as patch, create_run(path) as run:
            patch.setattr(_layout, "BLOCK_BYTES", 3 * 5 * 4)
            patch.setattr(_layout, "SHARD_BYTES", 4 * 2 * 7 * 5 * 4)
            writer = run.writer("activations", {"a": FrameSpec((2, 7, 5), "float32")})
            for step, frame in enumerate(frames):
                writer.append(step, {"a": frame})
        form = open_run(path).view("activations").reader("a").form
        assert form.layout is not None
        assert (form.layout.grid, form.rows) == ((2, 3, 1), 4)
        _stacked = path, frames
    return _stacked


def test_fancy_indices_and_single_steps_work_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    path, frames = _stacked_run(tmp_path_factory)
    strip = open_run(path).activations["a"]

    np.testing.assert_array_equal(strip.read([7, 3, 3]), frames[[7, 3, 3]])
    np.testing.assert_array_equal(strip.read(5), frames[5:6])
    np.testing.assert_array_equal(strip.read(slice(3, 20, 5), [1, 0]), frames[3:20:5][:, [1, 0]])
    with pytest.raises(FrameNotFoundError):
        strip.read([1, 99])
    with pytest.raises(SelectionError, match="positive stride"):
        strip.read(slice(None, None, -1))
    with pytest.raises(IndexError):
        strip.read(slice(None), 5)


def test_a_slice_reads_only_the_blocks_that_it_needs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, frames = _stacked_run(tmp_path_factory)
    strip = open_run(path).activations["a"]
    strip.read([0])
    sizes: list[int] = []
    pread = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        sizes.append(length)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    read = strip.read([10], index=(1, slice(0, 2)))

    np.testing.assert_array_equal(read, frames[10:11, 1, 0:2])
    assert sizes.count(3 * 5 * 4 + 4) == 1


def test_statistics_are_those_of_the_whole_tensors(run_path: Path) -> None:
    statistics = open_run(run_path).statistics("activations")
    frames = {step: activation(step, 3 if step == 90 else 4).astype(np.float64) for step in STEPS}

    expected = {
        "mean": [frame.mean() for frame in frames.values()],
        "std": [frame.std() for frame in frames.values()],
        "l2": [np.linalg.norm(frame) for frame in frames.values()],
        "max": [frame.max() for frame in frames.values()],
        "rms": [np.sqrt((frame**2).mean()) for frame in frames.values()],
        "nan": [0.0] * 10,
        "dead": [0.0] * 10,
    }
    for name, values in expected.items():
        steps, found = statistics["conv1", name]
        assert steps.tolist() == list(STEPS)
        np.testing.assert_allclose(found, values, rtol=1e-6)
    low, high = statistics.range("conv1")
    assert low == min(frame.min() for frame in frames.values())
    assert high == max(frame.max() for frame in frames.values())


def test_histograms_have_their_own_schedule(run_path: Path) -> None:
    run = open_run(run_path)
    steps, bits = run.statistics("activations").bits("conv1")

    assert steps.tolist() == [0, 20, 40, 60, 80]
    assert bits.sum(axis=1).tolist() == [300] * 5
    counts, edges = run.activations["conv1"].histogram(40, bins=10)
    assert counts.sum() == pytest.approx(300)
    assert (edges[0], edges[-1]) == (activation(40).min(), activation(40).max())
    assert run.activations["conv1"].histogram(-1)[0].sum() == pytest.approx(300)


def test_a_strip_without_stored_bits_takes_its_histogram_from_the_frame(run_path: Path) -> None:
    strip = open_run(run_path).weights["fc.weight"]

    counts, edges = strip.histogram(20, bins=[0, 20, 40])

    assert counts.tolist() == [0, 150]
    assert edges.tolist() == [0, 20, 40]


def test_a_step_without_stored_bits_takes_its_histogram_from_the_frame(run_path: Path) -> None:
    counts, _ = open_run(run_path).activations["conv1"].histogram(10)

    assert counts.sum() == pytest.approx(300)


def test_the_first_value_that_is_not_finite_is_named(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.statistics_writer("activations", ["a", "b", "c"])
        for step, bad in ((0, "   "), (1, " i "), (2, "nni")):
            rows = [{" ": [1.0], "i": [np.inf, 1], "n": [np.nan]}[kind] for kind in bad]
            writer.append(step, np.stack([summarize(row) for row in rows]))
            if step == 0:
                run.publish()
                assert open_run(tmp_path / "run.zarr").nonfinite() is None

    assert open_run(tmp_path / "run.zarr").nonfinite() == (1, "activations", "b", 0, 1, 0)


def test_a_live_run_is_read_as_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with create_run(path) as writer_run:
        writer = writer_run.writer("weights", {"a": FrameSpec((2,), "float32")})
        run = open_run(path)
        strip = run.weights["a"]
        assert strip.steps.tolist() == []
        for step in range(600):
            writer.append(step, {"a": np.full(2, step, np.float32)})
            if step % 50 == 0:
                assert strip.frame(-1)[0] == step
        assert run.status().state == "running"
    assert run.status().state == "finished"
    assert len(strip.steps) == 600


def test_following_yields_every_step_of_a_live_run(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    run = create_run(path)
    writer = run.writer("weights", {"a": FrameSpec((2,), "float32")})
    writer.append(0, {"a": np.zeros(2, np.float32)})
    seen: list[int] = []
    thread = threading.Thread(
        target=lambda: seen.extend(open_run(path).follow("weights", poll=0.01))
    )
    thread.start()
    for step in range(1, 30):
        writer.append(step, {"a": np.zeros(2, np.float32)})
    run.close()
    thread.join(10)

    assert seen == list(range(30))


def test_mistakes_are_told_in_one_line_with_the_way_out(run_path: Path, tmp_path: Path) -> None:
    run = open_run(run_path)
    cases: list[tuple[type[Exception], str, object]] = [
        (
            RunNotFoundError,
            f"there is no run at {tmp_path}/none",
            lambda: open_run(tmp_path / "none"),
        ),
        (NotARunError, "it has no zarr.json", lambda: open_run(tmp_path)),
        (
            KindNotFoundError,
            "no 'gradients'; it has: activations, scalars, weights",
            lambda: run.layers("gradients"),
        ),
        (
            KindNotFoundError,
            "no 'statistics of weights'; it has: activations",
            lambda: run.statistics("weights"),
        ),
        (LayerNotFoundError, "matches 'cnv1'; nearest: conv1", lambda: run.activations["cnv1"]),
        (LayerNotFoundError, "matches 'x*'; nearest: ", lambda: run.layers("activations", "x*")),
        (
            LayerNotFoundError,
            "matches 'train/los'; nearest: train/loss",
            lambda: run.scalars["train/los"],
        ),
        (
            StatisticNotFoundError,
            "no statistic 'median'; there are: count",
            lambda: run.statistics("activations")["conv1", "median"],
        ),
    ]
    for error, message, ask in cases:
        with pytest.raises(error) as caught:
            ask()  # type: ignore[operator]
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_tensor_with_several_names_is_one_layer_that_each_of_them_finds(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as writer:
        spec = FrameSpec((2,), "float32", original="net/embed", aliases=("head", "tail"))
        other = FrameSpec((2,), "float32", original="rnn")
        layers = {"embed": spec, "rnn.0": other, "rnn.1": other}
        frames = writer.writer("weights", layers)
        frames.append(0, {name: np.full(2, i, "f") for i, name in enumerate(layers)})
        described = np.stack([summarize(np.full(2, i, np.float32)) for i in range(3)])
        writer.statistics_writer("weights", list(layers)).append(0, described)
    run = open_run(tmp_path / "run.zarr")
    statistics = run.statistics("weights")

    assert run.layers("weights") == list(run.weights) == list(layers)
    for name in ("head", "tail", "net/embed"):
        assert run.strip("weights", name).layer == "embed"
        assert run.layers("weights", ["rnn.1", name]) == ["embed", "rnn.1"]
        assert statistics[name, "count"].values.tolist() == [2]
        assert statistics.select([name, "rnn.1"]) == ["embed", "rnn.1"]
    assert "head" in run.weights
    with pytest.raises(LayerNotFoundError):  # it means two of them
        run.weights["rnn"]


def test_a_newer_format_is_refused_with_advice(run_path: Path) -> None:
    document = json.loads((run_path / "zarr.json").read_text())
    document["attributes"]["filmstrip"]["format"] = 2
    (run_path / "zarr.json").write_text(json.dumps(document))

    with pytest.raises(FormatError, match="format 2, this filmstrip reads up to 1; upgrade it"):
        open_run(run_path)


def test_another_zarr_group_is_not_a_run(tmp_path: Path) -> None:
    import zarr

    zarr.create_group(tmp_path / "other.zarr")

    with pytest.raises(NotARunError, match="something else"):
        open_run(tmp_path / "other.zarr")


def test_damage_is_noticed_and_named(run_path: Path) -> None:
    shard = run_path / "activations" / "conv1" / "c.0.0.0.0.0"
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 0xFF
    shard.write_bytes(raw)

    with pytest.raises(FormatError, match=r"conv1/c\.0\.0\.0\.0\.0 cannot be read: a checksum"):
        open_run(run_path).activations["conv1"].frame(0)


def test_every_error_survives_the_way_back_from_a_worker() -> None:
    examples: list[StoreError] = [
        error_module.RunNotFoundError("p"),
        error_module.NotARunError("p", "r"),
        error_module.FormatError("p", "r"),
        error_module.RunExistsError("p", 3),
        error_module.RunLockedError("p", "o"),
        error_module.KindNotFoundError("p", "k", ["a"]),
        error_module.LayerNotFoundError("s", "w", ["a"]),
        error_module.FrameNotFoundError("l", 1, [0, 2]),
        error_module.StatisticNotFoundError("n", ["a"]),
        error_module.SelectionError("s"),
        error_module.StoreWriteError(28, "p"),
        error_module.DeniedError("p"),
    ]
    assert {type(error) for error in examples} == set(StoreError.__subclasses__())
    for error in examples:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_run_shows_itself_in_a_notebook_with_its_path_escaped(tmp_path: Path) -> None:
    with create_run(tmp_path / "<b>.zarr") as run:
        run.log(0, {"loss": 1.0})

    shown = open_run(tmp_path / "<b>.zarr")._repr_html_()
    assert "&lt;b&gt;.zarr" in shown
    assert "<td>scalars</td><td>1</td><td>1</td>" in shown
