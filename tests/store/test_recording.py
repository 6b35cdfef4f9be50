from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from filmstrip.store import (
    FrameSpec,
    NotARunError,
    RunExistsError,
    RunLockedError,
    StoreError,
    StoreWriteError,
    create_run,
    open_run,
)
from filmstrip.store._recording import RunWriter

SPEC = {"fc": FrameSpec((3,), "float32")}


def record(run: RunWriter, *steps: int) -> None:
    writer = run.writer("weights", SPEC)
    for step in steps:
        writer.append(step, {"fc": np.full(3, step, np.float32)})
        run.log(step, {"loss": step})


def files(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_running_a_cell_twice_touches_nothing(run_path: Path) -> None:
    before = files(run_path)

    with pytest.raises(
        RunExistsError, match=r"up to step 90; nothing was touched.*if_exists='new'"
    ):
        create_run(run_path)
    assert files(run_path) == before


@pytest.mark.parametrize("if_exists", ["fail", "auto"])
def test_a_first_step_of_zero_does_not_resume(run_path: Path, if_exists: str) -> None:
    with pytest.raises(RunExistsError):
        create_run(run_path, if_exists=if_exists, first_step=0)  # type: ignore[arg-type]


def test_new_makes_a_run_beside_the_old_one(tmp_path: Path) -> None:
    for expected in ("run.zarr", "run-2.zarr", "run-3.zarr"):
        with create_run(tmp_path / "run.zarr", if_exists="new") as run:
            record(run, 0)
        assert run.path == tmp_path / expected


def test_overwrite_starts_afresh(run_path: Path) -> None:
    old = open_run(run_path).id
    with create_run(run_path, if_exists="overwrite") as run:
        record(run, 5)

    opened = open_run(run_path)
    assert opened.kinds == ("scalars", "weights")
    assert opened.steps("weights").tolist() == [5]
    assert opened.id != old


def test_resuming_takes_back_the_steps_from_there_on(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with create_run(path) as run:
        record(run, *range(600))
    with create_run(path, first_step=300) as run:
        assert run.rewound == (300, 300, 599)
        assert run.attempt == 2
        assert open_run(path).weights["fc"].steps[-1] == 299
        record(run, *range(300, 310))

    strip = open_run(path).weights["fc"]
    assert strip.steps.tolist() == list(range(310))
    np.testing.assert_array_equal(strip.read()[:, 0], np.arange(310))
    assert open_run(path).scalars["loss"].steps.tolist() == list(range(310))


def test_resuming_behind_the_end_takes_nothing_back(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with create_run(path) as run:
        record(run, 0, 10)
    with create_run(path, first_step=11) as run:
        assert run.rewound is None
        record(run, 20)

    assert open_run(path).weights["fc"].read()[:, 0].tolist() == [0, 10, 20]


def test_a_resumed_layer_must_have_its_old_shape(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with create_run(path) as run:
        record(run, 0)
    with (
        create_run(path, if_exists="resume") as run,
        pytest.raises(StoreError, match=r"\(4,\) now and were float32 \(3,\).*if_exists='new'"),
    ):
        run.writer("weights", {"fc": FrameSpec((4,), "float32")})


def test_layers_that_come_later_have_no_frame_before(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with create_run(path) as run:
        record(run, 0, 1)
        writer = run.writer("weights", {"late": FrameSpec((2, 2), "float16")})
        writer.append(2, {"late": np.ones((2, 2), np.float16)})

    opened = open_run(path)
    assert opened.layers("weights") == ["fc", "late"]
    assert opened.weights["late"].steps.tolist() == [2]
    assert opened.weights["fc"].steps.tolist() == [0, 1]


def test_a_second_writer_is_kept_out_and_told_who_writes(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        record(run, 3)
        with pytest.raises(RunLockedError, match="by this process; close that one"):
            create_run(tmp_path / "run.zarr", first_step=5)
        code = (
            "import sys; from filmstrip.store import create_run, RunLockedError\n"
            "try: create_run(sys.argv[1], first_step=5)\n"
            "except RunLockedError as error: print(error)"
        )
        arguments = [sys.executable, "-c", code, str(run.path)]
        told = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        assert f"by process {os.getpid()} on" in told


def test_something_else_at_the_path_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")

    for name, reason in (("notes", "it has no zarr.json"), ("file", "it is a file")):
        with pytest.raises(NotARunError, match=reason):
            create_run(tmp_path / name, if_exists="overwrite")
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_a_path_that_cannot_be_written_is_named() -> None:
    with pytest.raises(StoreWriteError, match=r"/proc/nothing.*could not be written"):
        create_run("/proc/nothing/run.zarr")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"if_exists": "maybe"}, "if_exists='maybe'"),
        ({"compression": "gzip"}, "compression='gzip'"),
        ({"rank": 2, "world_size": 2}, "rank=2"),
        ({"metadata": {"model": object()}}, "JSON"),
    ],
)
def test_arguments_without_a_meaning_are_named(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_run(tmp_path / "run.zarr", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_url_cannot_be_written() -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/run\.zarr"):
        create_run("s3://bucket/run.zarr")


def test_wrong_frames_raise_before_anything_is_written(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", SPEC)
        writer.append(5, {"fc": np.zeros(3, np.float32)})
        for step, frames, error in (
            (6, {"fc": np.zeros(4, np.float32)}, ValueError),
            (6, {"fc": np.zeros(3)}, ValueError),
            (6, {"other": np.zeros(3, np.float32)}, KeyError),
            (5, {"fc": np.zeros(3, np.float32)}, ValueError),
            (-1, {"fc": np.zeros(3, np.float32)}, ValueError),
        ):
            with pytest.raises(error):
                writer.append(step, frames)
        assert open_run(tmp_path / "run.zarr").steps("weights").tolist() == [5]


def test_scalars_of_one_step_make_one_row_and_nan_is_a_value(tmp_path: Path) -> None:
    with create_run(tmp_path / "run.zarr") as run:
        run.log(0, {"loss": 1.0})
        run.log(0, {"train/accuracy": np.float32(0.5), "lr": 1})
        run.log(7, {"loss": float("nan")})
        with pytest.raises(ValueError, match="must rise"):
            run.log(3, {"loss": 1.0})
        with pytest.raises(TypeError, match="'loss' is 'high'"):
            run.log(9, {"loss": "high"})  # type: ignore[dict-item]

    scalars = open_run(tmp_path / "run.zarr").scalars
    assert list(scalars) == ["loss", "train/accuracy", "lr"]
    assert scalars["loss"].steps.tolist() == [0, 7]
    assert np.isnan(scalars["loss"].values[1])
    assert scalars["train.accuracy"].steps.tolist() == [0]


def test_columns_and_strips_grow_past_their_first_capacity(tmp_path: Path) -> None:
    steps = 9000
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer(
            "weights", {"a": FrameSpec((), "float32"), "b": FrameSpec((2,), "int8")}
        )
        for step in range(steps):
            writer.append(step, {"a": np.float32(step), "b": np.full(2, step % 100, np.int8)})

    opened = open_run(tmp_path / "run.zarr")
    np.testing.assert_array_equal(opened.weights["a"].read(), np.arange(steps))
    np.testing.assert_array_equal(opened.weights["b"].read()[:, 1], np.arange(steps) % 100)


def test_a_thousand_steps_of_a_hundred_layers_make_few_files(tmp_path: Path) -> None:
    frames = {f"layer{i}": np.zeros(8, np.float32) for i in range(100)}
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", {name: FrameSpec((8,), "float32") for name in frames})
        for step in range(1000):
            writer.append(step, frames)

    assert len(files(tmp_path)) <= 1300


def test_files_honour_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with create_run(tmp_path / "run.zarr") as run:
            record(run, 0)
    finally:
        os.umask(old)

    modes = {f.stat().st_mode & 0o777 for f in (tmp_path / "run.zarr").rglob("*") if f.is_file()}
    assert modes == {0o640}


def test_fsync_writes_the_same_store(tmp_path: Path) -> None:
    for name, fsync in (("a", False), ("b", True)):
        with create_run(tmp_path / name, fsync=fsync) as run:
            record(run, *range(5))

    one, other = (open_run(tmp_path / name).weights["fc"].read() for name in "ab")
    np.testing.assert_array_equal(one, other)


_WRITER = """
import sys, numpy as np
from filmstrip.store import FrameSpec, create_run, open_run
path, first = sys.argv[1], int(sys.argv[2])
run = create_run(path, if_exists="resume" if first else "auto")
specs = {f"l{i}": FrameSpec((i * 700 + 1,), "float32") for i in range(4)}
writer = run.writer("activations", specs)
for step in range(first, 10**9):
    frames = {n: np.full(s.shape, step, np.float32) for n, s in specs.items()}
    writer.append(step, frames)
    print(step, flush=True)
"""


def test_kill_9_loses_no_step_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    first = 0
    for pause in (0.05, 0.2, 0.12, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(first)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(first)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        acknowledged = [int(line) for line in process.stdout if line.endswith("\n")]
        process.stdout.close()
        process.wait()
        last = acknowledged[-1] if acknowledged else first
        opened = open_run(path)
        steps = opened.steps("activations")
        assert opened.status().state == "stopped"
        assert steps.tolist() == list(range(len(steps)))
        assert steps[-1] >= last
        for strip in opened.activations.values():
            read = strip.read()
            np.testing.assert_array_equal(read, np.broadcast_to(steps[:, None], read.shape))
        first = int(steps[-1]) + 1


def test_an_attempt_is_recorded_with_its_process(run_path: Path) -> None:
    attempts = json.loads((run_path / "zarr.json").read_text())["attributes"]["filmstrip"][
        "attempts"
    ]

    assert [attempt["number"] for attempt in attempts] == [1]
    assert attempts[0]["pid"] == os.getpid()
    assert attempts[0]["ended"] >= attempts[0]["time"]


def test_a_closed_run_takes_nothing_more(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run.zarr")
    record(run, 0)
    writer = run.writer("weights", SPEC)
    run.close()
    run.close()

    before = files(tmp_path)
    for write in (
        lambda: writer.append(1, {"fc": np.zeros(3, np.float32)}),
        lambda: run.log(1, {"loss": 1.0}),
        lambda: run.writer("weights", SPEC),
        run.publish,
    ):
        with pytest.raises(StoreError, match="is closed"):
            write()
    assert files(tmp_path) == before


def test_a_forked_child_leaves_the_run_to_its_parent(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run.zarr")
    record(run, 0)
    child = os.fork()
    if child == 0:
        try:
            run.log(1, {"loss": 1.0})
        except StoreError as error:
            os._exit(0 if "belongs to the process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    record(run, 1)
    run.close()

    assert open_run(run.path).steps("weights").tolist() == [0, 1]


def test_a_run_that_nobody_closes_is_closed_at_exit(tmp_path: Path) -> None:
    code = (
        "import sys; from filmstrip.store import create_run\n"
        "run = create_run(sys.argv[1]); run.log(3, {'loss': 1.0})\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.zarr")], check=True)

    assert open_run(tmp_path / "run.zarr").status().state == "finished"


def test_a_script_may_change_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with create_run("run.zarr") as run:
        opened = open_run("run.zarr")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        record(run, 0)

    assert opened.steps("weights").tolist() == [0]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_threads_may_share_a_writer(tmp_path: Path) -> None:
    import itertools
    import threading

    counter = itertools.count()
    refused: list[int] = []
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", SPEC)

        def work() -> None:
            for _ in range(300):
                step = next(counter)
                try:
                    writer.append(step, {"fc": np.full(3, step, np.float32)})
                except ValueError:  # another thread was ahead
                    refused.append(step)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    strip = open_run(run.path).weights["fc"]
    assert (np.diff(strip.steps) > 0).all()
    assert len(strip.steps) + len(refused) == 900
    np.testing.assert_array_equal(strip.read()[:, 0], strip.steps)


@pytest.mark.parametrize("first_step", [-1, 2.5])
def test_a_first_step_that_is_none_is_refused(run_path: Path, first_step: float) -> None:
    before = files(run_path)

    with pytest.raises((ValueError, TypeError)):
        create_run(run_path, first_step=first_step)  # type: ignore[arg-type]
    assert files(run_path) == before


def test_an_interrupt_in_the_middle_of_a_row_leaves_no_ghost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filmstrip.store._arrays import StripArray

    specs = {"a": FrameSpec((3,), "float32"), "b": FrameSpec((3,), "float32")}
    frames = {name: np.full(3, 1, np.float32) for name in specs}
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", specs)
        put, calls = StripArray.put, []

        def interrupted(array: StripArray, row: int, values: np.ndarray) -> None:
            calls.append(row)
            if len(calls) == 2:
                raise KeyboardInterrupt
            put(array, row, values)

        with monkeypatch.context() as patch:
            patch.setattr(StripArray, "put", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.append(0, frames)
        writer.append(7, {"b": frames["b"]})

    opened = open_run(run.path)
    assert opened.weights["a"].steps.tolist() == []
    assert opened.weights["b"].steps.tolist() == [7]


def test_a_killed_overwrite_leaves_a_run(run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filmstrip.store import _files

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_files, "remove_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            create_run(run_path, if_exists="overwrite")

    assert open_run(run_path).kinds == ()
    with create_run(run_path, if_exists="resume") as run:
        record(run, 0)
    assert open_run(run_path).steps("weights").tolist() == [0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int16", "complex64", "float16"])
def test_frames_of_any_memory_order_come_back_right(tmp_path: Path, dtype: str) -> None:
    given = {"bfloat16": "uint16"}.get(dtype, dtype)
    frame = np.arange(2 * 3 * 64 * 64).reshape(2, 64, 64, 3).astype(given).transpose(0, 3, 1, 2)
    spec = {"a": FrameSpec((2, 3, 64, 64), dtype), "b": FrameSpec((64, 384), dtype)}
    matrix = np.asfortranarray(np.ascontiguousarray(frame).reshape(64, 384))
    with create_run(tmp_path / "run.zarr") as run:
        run.writer("activations", spec).append(0, {"a": frame, "b": matrix})

    opened = open_run(run.path)
    for name, expected in (("a", frame), ("b", matrix)):
        if dtype == "bfloat16":
            expected = (np.ascontiguousarray(expected).astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(opened.activations[name].frame(0), expected)


def test_a_number_that_was_not_taken_is_not_there_whatever_its_dtype(tmp_path: Path) -> None:
    dtypes = ("float16", "float32", "float64", "int8", "uint16", "bool", "complex64")
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", {dtype: FrameSpec((), dtype) for dtype in dtypes})
        writer.append(0, {})
        writer.append(1, {dtype: np.ones((), dtype) for dtype in dtypes})
        writer.append(2, {})

    for dtype, strip in open_run(run.path).weights.items():
        assert strip.steps.tolist() == [1]
        assert strip.frame(1) == np.ones((), dtype)


def test_short_frames_are_cropped_where_their_first_axis_holds_samples(tmp_path: Path) -> None:
    specs = {
        "a": FrameSpec((4, 2), "float32", layout="NC"),
        "b": FrameSpec((4, 2), "float32"),
        "c": FrameSpec((7, 2), "float32"),
    }
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("activations", specs)
        ones = {name: np.ones(spec.shape, np.float32) for name, spec in specs.items()}
        writer.append(0, ones)
        writer.append(1, {"a": ones["a"][:3], "b": ones["b"][:3], "c": ones["c"]})
        with pytest.raises(ValueError, match=r"need one length: 'a' 3, 'b' 2"):
            writer.append(2, {"a": ones["a"][:3], "b": ones["b"][:2]})
        weights = run.writer("weights", {"w": FrameSpec((4, 2), "float32")})
        with pytest.raises(ValueError, match=r"shape \(3, 2\); its layer was announced with"):
            weights.append(0, {"w": ones["a"][:3]})

    opened = open_run(run.path).activations
    assert [opened[name].frame(0).shape for name in "abc"] == [(4, 2), (4, 2), (7, 2)]
    assert [opened[name].frame(1).shape for name in "abc"] == [(3, 2), (3, 2), (7, 2)]


def test_two_names_of_one_layer_are_refused(tmp_path: Path) -> None:
    with (
        create_run(tmp_path / "run.zarr") as run,
        pytest.raises(ValueError, match=r"'a/b' and 'a\.b' are one: 'a\.b'"),
    ):
        run.writer("weights", {"a/b": SPEC["fc"], "a.b": SPEC["fc"]})


@pytest.mark.parametrize(
    "name", ["back\\slash", "zarr.json", "a b", "ü", "%41", "..", "step", "", "nul\0"]
)
def test_any_name_can_be_kept_and_read_by_others(tmp_path: Path, name: str) -> None:
    import zarr

    with create_run(tmp_path / "run.zarr") as run:
        run.writer("weights", {name: SPEC["fc"]}).append(0, {name: np.ones(3, np.float32)})
        run.log(0, {name or "empty": 1.0})

    opened = open_run(run.path)
    assert opened.weights[name].frame(0).tolist() == [1, 1, 1]
    assert len(list(zarr.open_group(run.path, mode="r")["weights"].arrays())) == 4  # type: ignore[union-attr]
    assert opened.scalars[name or "empty"].values.tolist() == [1.0]


def test_closing_a_writer_commits_its_rows_for_everybody(tmp_path: Path) -> None:
    import zarr

    run = create_run(tmp_path / "run.zarr")
    writer = run.writer("weights", SPEC)
    statistics = run.statistics_writer("weights", ["fc"])
    for step in range(3):
        writer.append(step, {"fc": np.full(3, step, np.float32)})
        statistics.append(step, np.zeros((1, 9)))
    writer.close()
    statistics.close()

    group = zarr.open_group(run.path, mode="r")
    assert group["weights/fc"].shape[0] == group["statistics/weights/values"].shape[0] == 3  # type: ignore[union-attr]
    writer.append(3, {"fc": np.full(3, 3, np.float32)})
    run.close()
    writer.close()
    assert open_run(run.path).steps("weights").tolist() == [0, 1, 2, 3]
