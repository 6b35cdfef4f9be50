"""Measure what a histogram of a strip costs, from frames and from stored bits, beside its peers.

Wall seconds, the least of several rounds, as ratios of one run: reading overlaps with counting, so
that CPU seconds would not say what one waits for. Those stand beside them where they tell more.
"""

from __future__ import annotations

import time
from pathlib import Path

import dask.array as da
import numpy as np
from measure import Figure, interleaved

from filmstrip.render._counting import counts_of_frames
from filmstrip.render._source import RunSource
from filmstrip.render._spec import HistogramSpec
from filmstrip.render.pictures.histogram import draw
from filmstrip.store import FrameSpec, bit_histogram, create_run, open_run, summarize

SHAPE = (32, 64, 56, 56)  # 25.7 MB
ROUNDS = 3
FROM_FRAMES = 1.3
FROM_BITS = 100.0
RANGE = (-20.0, 20.0)


def write(path: Path, megabytes: float) -> int:
    """Write one strip twice: with statistics, and without. Returns how many frames it has."""
    rng = np.random.default_rng(0)
    frame = rng.normal(size=SHAPE).astype(np.float32)
    count = max(2, round(megabytes * 1e6 / frame.nbytes))
    with create_run(path) as run:
        writer = run.writer("activations", {"maps": FrameSpec(SHAPE, "float32", layout="NCHW")})
        statistics = run.statistics_writer("activations", ["maps"])
        for step in range(count):
            now = frame * np.float32(1 + step / count)
            writer.append(step, {"maps": now})
            statistics.append(step, summarize(now)[None], bit_histogram(now)[None])
    return count


def figures(folder: Path, megabytes: float) -> list[Figure]:
    """Return the measured figures beside their goals."""
    count = write(folder / "strip.zarr", megabytes)
    source = RunSource(open_run(folder / "strip.zarr"))
    strip = source.strip("activations", "maps")
    steps = [int(step) for step in strip.steps]
    spec = HistogramSpec(layer="maps", view="ridge")

    def read() -> None:
        for step in steps:
            strip.frame(step)

    def counted() -> None:
        counts_of_frames(strip.frame, steps, available=count)

    def by_dask() -> None:
        counts, _ = da.histogram(strip.to_dask(), bins=200, range=RANGE)  # type: ignore[no-untyped-call]
        counts.compute(scheduler="threads")

    def by_numpy() -> None:
        for step in steps:
            np.histogram(strip.frame(step), bins=200, range=RANGE)

    def stored() -> None:
        fresh = RunSource(open_run(folder / "strip.zarr"))
        fresh.counts(spec)

    def drawn() -> None:
        draw(source, spec).encode("png")

    actions = {
        "read": read,
        "counted": counted,
        "dask": by_dask,
        "numpy": by_numpy,
        "stored": stored,
        "drawn": drawn,
    }
    drawn()
    wall = interleaved(actions, ROUNDS)
    few = {name: actions[name] for name in ("read", "counted")}
    spent = interleaved(few, ROUNDS, clock=time.process_time)
    size = f"{strip.nbytes * count / 1e9:.2f} GB strip of {count} frames"
    reading = wall["read"]
    return [
        Figure(f"read a {size}", reading * 1e3, unit="ms"),
        Figure(
            "bit counts from frames / reading them", wall["counted"] / reading, goal=FROM_FRAMES
        ),
        Figure("   the same in CPU seconds", spent["counted"] / spent["read"]),
        Figure("dask.array.histogram / reading", wall["dask"] / reading),
        Figure("np.histogram a frame / reading", wall["numpy"] / reading),
        Figure(
            "np.histogram over frames / stored bits",
            wall["numpy"] / wall["stored"],
            "at least",
            FROM_BITS,
        ),
        Figure("a ridge picture from stored bits", wall["drawn"] * 1e3, unit="ms"),
    ]
