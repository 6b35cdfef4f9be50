"""A disk that refuses, once, at every single write."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filmstrip.store import FrameSpec, KindWriter, StoreWriteError, _files, create_run, open_run

SPECS = {
    "a": FrameSpec((5, 700), "float32"),
    "b": FrameSpec((3,), "int16"),
    "c": FrameSpec((), "float64"),
}
WRITES = ("pwrite", "truncate", "rename", "unlink")
STEPS = 12


def frames(step: int) -> dict[str, np.ndarray]:
    return {
        "a": np.random.default_rng(step).standard_normal((5, 700)).astype(np.float32),
        "b": np.full(3, step, np.int16),
        "c": np.float64(step) * np.ones(()),
    }


class Fault:
    """Fails the n-th write of the store with a full disk, and counts all of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.at = 0, -1
        for name in WRITES:
            monkeypatch.setattr(_files, name, self._wrapped(getattr(_files, name)))

    def _wrapped(self, write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*args: Any, **kwargs: Any) -> None:
            self.count += 1
            if self.count == self.at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(*args, **kwargs)

        return wrapped


def record(path: Path) -> tuple[list[int], list[int]]:
    """Append every step; return those that went in, those that failed."""
    done: list[int] = []
    failed: list[int] = []
    run = create_run(path)
    try:
        writer = run.writer("activations", SPECS)
        for step in range(STEPS):
            chosen = frames(step)
            if step % 3 == 1:
                del chosen["b"]  # a layer without a frame, so that a row left behind would show up
            try:
                writer.append(step, chosen)
                done.append(step)
            except StoreWriteError:
                failed.append(step)
    finally:
        run.close()
    return done, failed


def check(path: Path, steps: list[int]) -> None:
    run = open_run(path)
    assert run.steps("activations").tolist() == steps
    assert run.activations["b"].steps.tolist() == [step for step in steps if step % 3 != 1]
    for name, strip in run.activations.items():
        for step in strip.steps.tolist():
            np.testing.assert_array_equal(strip.frame(step), frames(step)[name])


def test_a_write_that_fails_costs_its_own_row_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filmstrip.store import _layout

    monkeypatch.setattr(_layout, "SHARD_BYTES", 5 * 5 * 700 * 4)  # several shards
    fault = Fault(monkeypatch)
    assert record(tmp_path / "whole") == (list(range(STEPS)), [])
    total = fault.count
    assert total > 100

    for at in range(1, total + 1):
        path = tmp_path / f"run-{at}"
        fault.count, fault.at = 0, at
        try:
            done, failed = record(path)
        except StoreWriteError:  # creating, or closing, is where it hit
            fault.at = -1
            if not (path / "activations" / "zarr.json").exists():
                continue
            create_run(path, if_exists="resume").close()
            done, failed = open_run(path).steps("activations").tolist(), []
            if not done:
                continue
        fault.at = -1  # a timer publishes too: how many writes there are is not always the same
        assert len(failed) <= 1
        check(path, done)
        with create_run(path, if_exists="resume") as run:
            run.writer("activations", SPECS).append(99, frames(99))
        check(path, [*done, 99])


def fits(writer: KindWriter, step: int) -> bool:
    try:
        writer.append(step, {"a": np.full(250_000, step, np.float32)})
    except StoreWriteError as error:
        return error.errno != errno.ENOSPC
    return True


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_really_full_loses_no_committed_row(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(mount)], check=False
    )
    if made.returncode:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        spec = {"a": FrameSpec((250_000,), "float32")}
        ballast = mount / "ballast"
        ballast.write_bytes(b"x" * (2 << 20))
        run = create_run(mount / "run.zarr")
        writer = run.writer("weights", spec)
        done = []
        for step in range(10):
            if step == 9 or not fits(writer, step):
                break
            done.append(step)
        assert 1 <= len(done) < 9
        assert open_run(mount / "run.zarr").weights["a"].steps.tolist() == done
        ballast.unlink()
        writer.append(50, {"a": np.full(250_000, 50, np.float32)})
        run.close()
        strip = open_run(mount / "run.zarr").weights["a"]
        assert strip.steps.tolist() == [*done, 50]
        np.testing.assert_array_equal(strip.read()[:, 7], [*done, 50])
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
