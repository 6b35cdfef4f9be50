from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from filmstrip.store import STATISTICS, FrameSpec, bit_histogram, create_run, summarize

STEPS = tuple(range(0, 100, 10))


def activation(step: int, samples: int = 4) -> np.ndarray:
    """Return the frame that the fixture run holds for ``conv1`` at a step."""
    return np.random.default_rng(step).standard_normal((samples, 3, 5, 5)).astype(np.float32)


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    """A finished run: two kinds, statistics, scalars; the last batch is short."""
    path = tmp_path / "run.zarr"
    with create_run(path, metadata={"seed": 1}, framework="pytorch") as run:
        activations = run.writer(
            "activations",
            {
                "conv1": FrameSpec((4, 3, 5, 5), "float32", layout="NCHW"),
                "fc": FrameSpec((4, 2), "float32", layout="NC"),
            },
        )
        weights = run.writer("weights", {"fc.weight": FrameSpec((2, 75), "float32", layout="OI")})
        statistics = run.statistics_writer("activations", ["conv1", "fc"])
        for step in STEPS:
            frame = activation(step, 3 if step == STEPS[-1] else 4)
            fc = frame[:, :2, 0, 0]
            activations.append(step, {"conv1": frame, "fc": fc})
            if step % 20 == 0:
                weights.append(step, {"fc.weight": np.full((2, 75), step, np.float32)})
            statistics.append(
                step,
                np.stack([summarize(frame), summarize(fc)]),
                np.stack([bit_histogram(frame), bit_histogram(fc)]) if step % 20 == 0 else None,
            )
            run.log(step, {"train/loss": 1.0 / (step + 1)})
        assert len(STATISTICS) == 9
    return path
