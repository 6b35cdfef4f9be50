"""Frames with more blocks than an index can hold: a row lies in several shard files."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store.faults import Disk, Killed

from filmstrip.store import (
    FormatError,
    FrameSpec,
    StoreWriteError,
    _layout,
    check,
    copy,
    create_run,
    open_run,
    prune,
    repair,
)
from filmstrip.store._usage import usage

SHAPE = (3, 10, 8)
SPECS = {
    "large": FrameSpec(SHAPE, "float32"),  # 15 blocks in 6 files
    "small": FrameSpec((2,), "float32"),
}
PARTS = [f"c.{{}}.{i}.{j}.0" for i in range(3) for j in range(2)]
STEPS = (0, 10, 20, 30)


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layout, "SLOTS", 4)
    monkeypatch.setattr(_layout, "BLOCK_BYTES", 64)
    monkeypatch.setattr(_layout, "LARGEST_BLOCK", 64)


def frame(step: int) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(SHAPE).astype(np.float32)


def frames(step: int) -> dict[str, np.ndarray]:
    return {"large": frame(step), "small": np.full(2, step, np.float32)}


def record(path: Path, steps: tuple[int, ...] = STEPS) -> None:
    with create_run(path) as run:
        writer = run.writer("weights", SPECS)
        for step in steps:
            writer.append(step, frames(step))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    record(tmp_path / "run.zarr")
    return tmp_path / "run.zarr"


def files(path: Path) -> list[str]:
    return sorted(file.name for file in (path / "weights/large").iterdir() if "c." in file.name)


def holds(path: Path, steps: tuple[int, ...]) -> None:
    strip = open_run(path).weights["large"]
    assert strip.steps.tolist() == list(steps)
    for step in steps:
        np.testing.assert_array_equal(strip.frame(step), frame(step))


def wrong(path: Path) -> list[str]:
    return [str(finding) for finding in check(path) if finding.severity != "note"]


def test_a_row_lies_in_several_files_and_is_read_back_whole(path: Path) -> None:
    assert files(path) == sorted(name.format(row) for row in range(4) for name in PARTS)
    holds(path, STEPS)
    assert wrong(path) == []


@pytest.mark.parametrize(
    "index",
    [
        (),
        (1,),
        (slice(None), slice(5, 7), slice(None, None, -3)),
        (slice(0, 2), 9),
        (..., 4),
        ([2, 0],),
        (slice(3, 3),),
        (-1, slice(None, None, -2)),
    ],
)
def test_any_index_gives_what_numpy_does(path: Path, index: Any) -> None:
    strip = open_run(path).weights["large"]

    expected = np.stack([frame(step)[index] for step in STEPS])
    np.testing.assert_array_equal(strip.read(slice(None), index), expected)


def test_only_files_that_an_index_needs_are_read(path: Path) -> None:
    for name in PARTS:
        if name not in (PARTS[0], PARTS[3]):
            (path / "weights/large" / name.format(2)).write_bytes(b"damaged")
    strip = open_run(path).weights["large"]

    np.testing.assert_array_equal(strip.read(20, (1, slice(6, None)))[0], frame(20)[1, 6:])
    with pytest.raises(FormatError, match=r"c\.2\.2\.0\.0"):
        strip.read(20, (2, 0))


def test_dask_reads_a_frame_in_parts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_layout, "SHARD_BYTES", 400)
    array = open_run(path).weights["large"].to_dask()

    assert array.chunks == ((1,) * 4, (1,) * 3, (10,), (8,))
    np.testing.assert_array_equal(np.asarray(array[2, 1]), frame(20)[1])
    np.testing.assert_array_equal(np.asarray(array), np.stack([frame(step) for step in STEPS]))


def test_a_short_batch_is_padded_over_the_files_that_it_does_not_reach(tmp_path: Path) -> None:
    spec = FrameSpec((13, 8), "float32", layout="NC")
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("activations", {"a": spec})
        writer.append(0, {"a": np.ones((13, 8), np.float32)})
        writer.append(1, {"a": np.ones((3, 8), np.float32)})
    strip = open_run(tmp_path / "run.zarr").activations["a"]

    assert strip.frame(0).sum() == 104
    assert strip.frame(1).shape == (3, 8)
    assert np.isnan(strip.read(1)[0, 3:]).all()


def test_rewinding_takes_back_all_files_of_a_row(path: Path) -> None:
    with create_run(path, first_step=20) as run:
        assert files(path) == sorted(name.format(row) for row in range(2) for name in PARTS)
        run.writer("weights", SPECS).append(25, frames(25))

    holds(path, (0, 10, 25))
    assert wrong(path) == []


def changes(act: Callable[[], Any], disk: Disk) -> int:
    disk.arm(0, "full")
    act()
    return disk.count


def killed_anywhere(
    make: Callable[[Path], None], act: Callable[[Path], Any], path: Path
) -> Iterator[Path]:
    """Yield a run after an act on it was killed at every one of its changes, in turn."""
    with Disk() as disk:
        disk.arm(0, "kill")
        make(path)
        total = changes(lambda: act(path), disk)
        for at in range(1, total + 1):
            shutil.rmtree(path)
            disk.arm(0, "kill")
            make(path)
            disk.arm(at, "kill")
            with pytest.raises(Killed):
                act(path)
            disk.arm(0, "kill")
            yield path


def test_a_row_is_there_whole_or_not_at_all_wherever_its_writer_was_killed(tmp_path: Path) -> None:
    path, seen = tmp_path / "run.zarr", set()

    def write_and_die(path: Path, at: int) -> int:
        with Disk() as disk:
            run = create_run(path)
            writer = run.writer("weights", SPECS)
            writer.append(0, frames(0))
            disk.arm(at, "kill")
            with contextlib.suppress(Killed):
                writer.append(10, frames(10))
            count, disk.at = disk.count, 0
            run._abandon_after_fork()
        return count

    for at in range(write_and_die(tmp_path / "whole.zarr", 0), 0, -3):
        write_and_die(path, at)
        steps = tuple(open_run(path).weights["large"].steps.tolist())
        seen.add(steps)
        holds(path, steps)
        repaired = tmp_path / "repaired.zarr"
        shutil.copytree(path, repaired)
        repair(repaired)
        holds(repaired, steps)
        assert wrong(repaired) == []
        with create_run(path, first_step=10) as run:
            run.writer("weights", SPECS).append(11, frames(11))
        holds(path, (0, 11))
        assert wrong(path) == []
        shutil.rmtree(path)
        shutil.rmtree(repaired)
    assert seen == {(0,), (0, 10)}


def test_a_row_that_fails_between_its_files_is_taken_back(tmp_path: Path) -> None:
    with Disk() as disk, create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("weights", SPECS)
        writer.append(0, frames(0))
        disk.arm(20, "full")
        with pytest.raises(StoreWriteError):
            writer.append(10, frames(10))
        assert disk.count >= 20
        disk.arm(0, "full")
        writer.append(11, frames(11))
    holds(tmp_path / "run.zarr", (0, 11))
    assert wrong(tmp_path / "run.zarr") == []


def test_a_missing_file_is_told_and_never_read_as_fill(path: Path) -> None:
    (path / "weights/large" / PARTS[2].format(1)).unlink()
    strip = open_run(path).weights["large"]

    with pytest.raises(
        FormatError, match=r"c\.1\.1\.0\.0 cannot be read: a part of a frame is missing"
    ):
        strip.frame(10)
    np.testing.assert_array_equal(strip.frame(20), frame(20))
    assert wrong(path) == ["error: weights/large: the frame of step 10 has 5 of 6 files"]
    assert all(not act.done for act in repair(path))
    assert len(repair(path)) == 5
    with pytest.raises(FormatError, match=r"c\.1\.1\.0\.0 .*a part of a frame is missing"):
        copy(path, path.parent / "copy.zarr")
    repair(path, set_aside=True)
    holds(path, (0, 20, 30))
    assert wrong(path) == []


def test_setting_aside_a_damaged_file_sets_aside_the_others_of_its_frames(path: Path) -> None:
    (path / "weights/large" / PARTS[0].format(3)).write_bytes(b"damage")
    with pytest.raises(FormatError, match="set-aside"):
        open_run(path).weights["large"].frame(30)
    repair(path, set_aside=True)

    holds(path, (0, 10, 20))
    assert len(list((path / "weights/large").glob("*.damaged"))) == 6
    assert wrong(path) == []


def test_a_copy_has_the_same_files(path: Path) -> None:
    whole, late = path.parent / "copy.zarr", path.parent / "late.zarr"

    assert copy(path, whole).frames == 8
    assert copy(path, late, steps=slice(20, None)).frames == 4
    holds(whole, STEPS)
    holds(late, (20, 30))
    for name in files(path):
        stored = (path / "weights/large" / name).read_bytes()
        assert (whole / "weights/large" / name).read_bytes() == stored
    assert wrong(late) == []


def test_pruning_takes_all_files_of_a_frame_wherever_it_was_killed(tmp_path: Path) -> None:
    def act(path: Path) -> Any:
        return prune(path, kind="weights", layers="large", keep_every=20)

    for path in killed_anywhere(record, act, tmp_path / "run.zarr"):
        steps = open_run(path).weights["large"].steps.tolist()
        assert {0, 20} <= set(steps) <= set(STEPS)
        act(path)
        holds(path, (0, 20))
        assert files(path) == sorted(name.format(row) for row in (0, 2) for name in PARTS)
        assert wrong(path) == []


def test_what_is_pruned_and_used_counts_a_frame_once(path: Path) -> None:
    assert {one.layer: one.raw for one in usage(path)}["large"] == 4 * 3 * 10 * 8 * 4
    done = prune(path, kind="weights", layers="large", keep_last=1)

    assert (done.frames, done.kept) == (3, 1)
    assert done.bytes >= 3 * 3 * 10 * 8 * 4


def test_pieces_of_ranks_are_put_together_from_several_files_each(tmp_path: Path) -> None:
    whole = np.random.default_rng(5).standard_normal((21, 8)).astype(np.float32)
    for rank, (low, high) in enumerate(((0, 12), (12, 21))):
        spec = FrameSpec((high - low, 8), "float32", global_shape=(21, 8), offset=(low, 0))
        with create_run(tmp_path / "run.zarr", rank=rank, world_size=2) as run:
            run.writer("weights", {"w": spec}).append(0, {"w": whole[low:high]})
    strip = open_run(tmp_path / "run.zarr").weights["w"]

    np.testing.assert_array_equal(strip.frame(0), whole)
    np.testing.assert_array_equal(strip.read(0, (slice(9, 17), 3))[0], whole[9:17, 3])
