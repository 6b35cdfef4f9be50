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
        with pytest.raises(RunLockedError, match=rf"process {os.getpid()} on"):
            create_run(tmp_path / "run.zarr", first_step=5)


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
