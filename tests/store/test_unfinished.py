"""What a process began that was killed: it is named, repaired, and in nobody's way."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
from store.faults import Disk, Killed

from filmstrip.store import FrameSpec, bit_histogram, check, create_run, open_run, repair, summarize


def write(path: Path, at: int) -> int:
    """Log a number, then write to two more groups and die at some change of that."""
    values = np.ones(3, np.float32)
    with Disk() as disk:
        run = create_run(path, if_exists="resume" if path.exists() else "auto")
        run.log(0, {"loss": 0.5})
        disk.arm(at, "kill")
        with contextlib.suppress(Killed):
            run.writer("weights", {"fc": FrameSpec((3,), "float32")}).append(0, {"fc": values})
            statistics = run.statistics_writer("weights", ["fc"])
            statistics.append(0, summarize(values)[None], bit_histogram(values)[None])
        count = disk.count
        run._abandon_after_fork()
    return count


def test_groups_and_arrays_that_were_only_begun_are_taken_away(tmp_path: Path) -> None:
    begun = 0
    for at in range(1, write(tmp_path / "whole.zarr", 0) + 1, 3):
        path = tmp_path / "run.zarr"
        write(path, at)
        again = tmp_path / "again.zarr"
        shutil.copytree(path, again)
        kept = open_run(path).groups()
        begun += any("never finished" in act.what or "began" in act.what for act in repair(path))

        assert [str(finding) for finding in check(path)] == []
        assert open_run(path).scalars["loss"].values.tolist() == [0.5]
        assert set(open_run(path).groups()) <= set(kept)
        with create_run(again, first_step=1) as run:
            fc = run.writer("weights", {"fc": FrameSpec((3,), "float32")})
            fc.append(1, {"fc": np.zeros(3, np.float32)})
            statistics = run.statistics_writer("weights", ["fc"])
            statistics.append(1, summarize(np.zeros(3))[None])
        assert [str(finding) for finding in check(again)] == []
        shutil.rmtree(path)
        shutil.rmtree(again)
    assert begun > 2
