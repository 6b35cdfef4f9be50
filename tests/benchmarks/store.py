"""The store beside os.write and zarr-python: ``scripts/bench store``."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from measure import Figure, interleaved, report
from zarr.codecs import Crc32cCodec

from filmstrip.store import FrameSpec, create_run, open_run
from filmstrip.store._recording import RunWriter

ROUNDS = 30


def large_frames(folder: Path) -> list[Figure]:
    """Append a frame of 25.7 MB, uncompressed and checked."""
    frame = np.random.default_rng(0).standard_normal((32, 64, 56, 56)).astype(np.float32)
    other = frame.copy()
    spec = FrameSpec(frame.shape, "float32")
    runs: list[RunWriter] = []
    step = 0

    def write() -> float:
        path = folder / "plain"
        fd = os.open(path, os.O_CREAT | os.O_WRONLY)
        start = time.perf_counter()
        os.write(fd, other.data)
        seconds = time.perf_counter() - start
        os.close(fd)
        path.unlink()
        return seconds

    def append() -> float:
        nonlocal step
        if step % 6 == 0:  # a run does not grow beyond what the page cache holds
            for run in runs:
                run.close()
                shutil.rmtree(run.path)
            runs[:] = [create_run(folder / f"large-{step}.zarr")]
        writer = runs[0].writer("weights", {"layer": spec})
        start = time.perf_counter()
        writer.append(step, {"layer": frame})
        seconds = time.perf_counter() - start
        step += 1
        return seconds

    def assign() -> float:
        array = zarr.create_array(
            folder / "plain.zarr",
            shape=(2, *frame.shape),
            chunks=(1, 4, *frame.shape[1:]),
            shards=(2, *frame.shape),
            dtype="f4",
            compressors=[Crc32cCodec()],
        )
        start = time.perf_counter()
        array[0] = frame
        seconds = time.perf_counter() - start
        shutil.rmtree(folder / "plain.zarr")
        return seconds

    least = interleaved({"write": write, "append": append, "zarr": assign}, ROUNDS)
    runs[0].close()
    return [
        Figure("25.7 MB frame, of os.write", least["append"] / least["write"], "at most", 1.45),
        Figure(
            "zarr-python into the same shards, of ours",
            least["zarr"] / least["append"],
            "at least",
            4,
        ),
    ]


def small_frames(folder: Path) -> list[Figure]:
    """Append frames of 1 KB, 50 layers a step."""
    layers = {f"layer{i}": np.random.default_rng(i).random(256, np.float32) for i in range(50)}
    array = zarr.create_array(
        folder / "small.zarr",
        shape=(10_000, 256),
        chunks=(1, 256),
        dtype="f4",
        compressors=None,
        config={"write_empty_chunks": True},
    )
    run = create_run(folder / "small-run.zarr")
    writer = run.writer("weights", {name: FrameSpec((256,), "float32") for name in layers})
    rows = iter(range(10_000))
    steps = iter(range(10_000))

    def append() -> float:
        start = time.perf_counter()
        for _ in range(10):
            writer.append(next(steps), layers)
        return (time.perf_counter() - start) / 500

    def assign() -> float:
        start = time.perf_counter()
        for _ in range(10):
            array[next(rows)] = layers["layer0"]
        return (time.perf_counter() - start) / 10

    least = interleaved({"append": append, "zarr": assign}, ROUNDS)
    run.close()
    ratio = least["zarr"] / least["append"]
    return [
        Figure("1 KB frame, microseconds", 1e6 * least["append"], unit="µs"),
        Figure("1 KB frame, zarr-python's assignment of ours", ratio, "at least", 40),
    ]


def files(folder: Path) -> list[Figure]:
    """Count the files of 100 layers and 1,000 steps."""
    frames = {f"layer{i}": np.zeros(256, np.float32) for i in range(100)}
    seconds: dict[int, list[float]] = {10: [], 900: []}
    with create_run(folder / "many.zarr") as run:
        writer = run.writer("weights", {name: FrameSpec((256,), "float32") for name in frames})
        for step in range(1000):
            start = time.perf_counter()
            writer.append(step, frames)
            for first, kept in seconds.items():
                if first <= step < first + 50:
                    kept.append(time.perf_counter() - start)
    count = sum(len(names) for _, _, names in os.walk(folder / "many.zarr"))
    return [
        Figure("files, 100 layers, 1,000 steps", count, "at most", 1300, ""),
        Figure(
            "append at step 900, of step 10", min(seconds[900]) / min(seconds[10]), "at most", 1.5
        ),
    ]


def timelines(folder: Path) -> list[Figure]:
    """Read one small layer over 1,000 steps."""
    strip = open_run(folder / "many.zarr").weights["layer7"]
    array: Any = zarr.open_group(folder / "many.zarr", mode="r")["weights/layer7"]
    actions = {"ours": lambda: _seconds(strip.read), "zarr": lambda: _seconds(lambda: array[:])}
    least = interleaved(actions, 5)
    return [
        Figure(
            "timeline of 1,000, zarr-python of ours", least["zarr"] / least["ours"], "at least", 10
        )
    ]


def _seconds(read: Callable[[], object]) -> float:
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


def main() -> int:
    """Measure everything, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="filmstrip-bench-") as name:
        folder = Path(name)
        parts = (large_frames, small_frames, files, timelines)
        return report("store", [figure for part in parts for figure in part(folder)])


if __name__ == "__main__":
    sys.exit(main())
