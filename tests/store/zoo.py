"""A run with every form that an array can have on disk, and what must be read from it.

As a script, it records one in a process of its own: ``zoo.py PATH wait`` keeps it open until its
input ends, ``zoo.py PATH die`` kills itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from filmstrip.store import FrameSpec, RunWriter, bit_histogram, create_run, repair, summarize
from filmstrip.store import _layout as layout
from filmstrip.store._frame import PLAIN

STEPS = (0, 10, 25, 30, 40)
STATES = ("live", "live elsewhere", "closed", "repaired")
"""How a run can be found: its writer at work here, in another process, done, or killed."""
GAP = 2  # the row without a frame of the layers called `gap`
LIMITS = {"BLOCK_BYTES": 24 << 10, "LARGEST_BLOCK": 24 << 10, "SLOTS": 4}


def shapes(itemsize: int) -> dict[str, tuple[int, ...]]:
    """Return by array what frames of a dtype look like: where blocks, padding and codecs differ."""
    return {
        "number": (),
        "small": (3,),
        "block": (2, 40, 320 // itemsize),  # 25 kB: two blocks
        "padded": (7, 40, 160 // itemsize),  # 45 kB: three blocks of 3, padded to 9
        "parted": (2, 7, 80, 80 // itemsize),  # six blocks in two files, padded to 9
        "narrow": (13, 40, 160 // itemsize),  # five blocks in two files, padded to 18
        "gap": (3, 5),
        "empty": (0, 4),
    }


def values(dtype: str, shape: tuple[int, ...], row: int) -> np.ndarray:
    """Return a frame: any bits, but NaN is as numpy makes it."""
    random = np.random.default_rng([row, len(shape), *dtype.encode()])
    if dtype == "bool":
        return random.integers(0, 2, shape, np.uint8).astype(bool)
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    if dtype == "complex64":
        return (random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(dtype)
    frame = np.asarray(random.standard_normal(shape)).astype(dtype)
    if frame.size > 3:
        frame.reshape(-1)[:4] = np.nan, np.inf, -np.inf, -0.0
    return frame


def frames(row: int) -> dict[str, np.ndarray]:
    """Return the frames of one row by layer."""
    return {
        f"{dtype}.{name}": values(dtype, shape, row)
        for dtype in sorted(PLAIN)
        for name, shape in shapes(np.dtype(dtype).itemsize).items()
        if not (name == "gap" and row == GAP)
    }


def expected() -> Iterator[tuple[str, np.ndarray]]:
    """Yield the path of every array of frames, scalars and statistics, and all of its rows."""
    rows = [frames(row) for row in range(len(STEPS))]
    for kind in ("activations", "weights"):
        yield f"{kind}/step", np.array(STEPS)
        for layer, first in rows[0].items():
            fill = {"f": np.nan, "c": complex("nan+nanj")}.get(first.dtype.kind, 0)
            absent = np.full(first.shape, fill, first.dtype)
            yield f"{kind}/{layer}", np.stack([row.get(layer, absent) for row in rows])
    yield "scalars/loss", np.array(STEPS) / 7
    fill_of = values("float32", (9, 11), 0)
    yield "statistics/activations/values", np.stack([summarize(fill_of)[None]] * len(STEPS))
    yield "statistics/activations/histogram", np.stack([bit_histogram(fill_of)[None]] * len(STEPS))


def record(path: Path) -> RunWriter:
    """Write the run and leave it open: raw strips are weights, compressed ones activations."""
    usual = {name: getattr(layout, name) for name in LIMITS}
    vars(layout).update(LIMITS)
    try:
        run = create_run(path)
        specs = {
            name: FrameSpec(frame.shape, frame.dtype.name) for name, frame in frames(0).items()
        }
        writers = [run.writer(kind, specs) for kind in ("activations", "weights")]
        statistics = run.statistics_writer("activations", ["any"])
        described = values("float32", (9, 11), 0)
        for row, step in enumerate(STEPS):
            for writer in writers:
                writer.append(step, frames(row))
            statistics.append(step, summarize(described)[None], bit_histogram(described)[None])
            run.log(step, {"loss": step / 7})
        run.publish()
        return run
    finally:
        vars(layout).update(usual)


@contextlib.contextmanager
def recorded(path: Path, state: str) -> Iterator[Path]:
    """Yield a recorded run in one of the states."""
    if state in ("live", "closed"):
        with record(path) as run:
            if state == "closed":
                run.close()
            yield path
        return
    command = [sys.executable, __file__, str(path), "die" if state == "repaired" else "wait"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        if state == "repaired":
            assert process.wait() == -signal.SIGKILL
            repair(path)
        else:
            assert said == b"recorded\n"
        yield path


def differences(read: dict[str, Any]) -> list[str]:
    """Return the paths of arrays that were read with other values, or another dtype."""
    wanted = dict(expected())
    return [
        path
        for path, array in read.items()
        if (found := np.asarray(array)).dtype != wanted[path].dtype
        or found.shape != wanted[path].shape
        or found.tobytes() != wanted[path].tobytes()
    ]


if __name__ == "__main__":
    writer = record(Path(sys.argv[1]))
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("recorded", flush=True)
    sys.stdin.read()
    writer.close()
