"""A run of a small network on real digits, made once with numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.datasets import load_digits

from filmstrip.store import FrameSpec, Run, bit_histogram, create_run, open_run, summarize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

STEPS = (0, 10, 20, 30, 40)


def convolve(
    images: npt.NDArray[np.float32], kernel: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Correlate (n, h, w) with (o, kh, kw), same size."""
    kh, kw = kernel.shape[1:]
    padded = np.pad(images, ((0, 0), (kh // 2,) * 2, (kw // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), axis=(1, 2))
    return np.asarray(np.einsum("nhwij,oij->nohw", windows, kernel), np.float32)


def frames_at(step: int) -> dict[str, dict[str, npt.NDArray[np.float32]]]:
    """All frames of a step; filters drift, one channel of relu1 is dead."""
    rng = np.random.default_rng(7)
    digits = (load_digits().images[:4] / 16).astype(np.float32)
    kernel = (rng.normal(size=(12, 3, 3)) * (1 + step / 40)).astype(np.float32)
    kernel[5] = -np.abs(kernel[5])
    conv = convolve(digits, kernel)
    relu = np.maximum(conv, 0)
    dense = (relu.reshape(4, -1) @ rng.normal(size=(768, 20)) / 28).astype(np.float32)
    weight = (rng.normal(size=(10, 20)) / 4).astype(np.float32)
    return {
        "activations": {"conv1": conv, "relu1": relu, "fc": dense},
        "weights": {
            "conv1.weight": kernel[:, None],
            "fc.weight": weight,
            "fc.bias": weight[:, 0] * (1 + step),
        },
        "gradients": {"fc.weight": (weight * 1e-5).astype(np.float32)},
    }


LAYOUTS = {
    "conv1": "NCHW",
    "relu1": "NCHW",
    "fc": "NC",
    "conv1.weight": "OIHW",
    "fc.weight": "OI",
    "fc.bias": "C",
}


def _write_run(path: Path, steps: tuple[int, ...] = STEPS, first_step: int | None = None) -> None:
    """Write, or resume, a run."""
    first = frames_at(0)
    with create_run(path, first_step=first_step) as run:
        for kind, frames in first.items():
            specs = {
                layer: FrameSpec(frame.shape, "float32", layout=LAYOUTS[layer])
                for layer, frame in frames.items()
            }
            writer = run.writer(kind, specs)
            statistics = run.statistics_writer(kind, list(frames)) if kind != "gradients" else None
            for step in steps:
                now = frames_at(step)[kind]
                writer.append(step, now)
                if statistics is not None:
                    statistics.append(
                        step,
                        np.stack([summarize(frame) for frame in now.values()]),
                        np.stack([bit_histogram(frame) for frame in now.values()]),
                    )
        for step in steps:
            run.log(step, {"train/loss": 2.3 * 0.9**step, "accuracy": 1 - 0.9 ** (step + 1)})


@pytest.fixture(scope="session")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the run. Tests must not write into it."""
    path = tmp_path_factory.mktemp("runs") / "run.zarr"
    _write_run(path)
    return path


@pytest.fixture
def run(run_path: Path) -> Run:
    """Return the run, opened."""
    return open_run(run_path)


@pytest.fixture
def write_run() -> Callable[..., None]:
    """Return the function that writes a run, or resumes one at ``first_step``."""
    return _write_run
