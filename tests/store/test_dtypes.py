from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from filmstrip.store import FrameSpec, create_run, open_run
from filmstrip.store._widen import NARROW, widened

PLAIN = [
    *(f"float{bits}" for bits in (16, 32, 64)),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    "bool",
    "complex64",
]


def written(path: Path, spec: FrameSpec, frame: Any) -> np.ndarray:
    with create_run(path) as run:
        run.writer("activations", {"a": spec}).append(0, {"a": frame})
    return open_run(path).activations["a"].frame(0)


@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (3, 5), (40, 30, 20)])
def test_every_dtype_and_rank_comes_back_as_it_was(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    frame = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)

    read = written(tmp_path / "run.zarr", FrameSpec(shape, dtype), frame)

    assert read.dtype == dtype
    np.testing.assert_array_equal(read, frame)


@pytest.mark.parametrize("dtype", sorted(NARROW))
def test_narrow_floats_are_widened_to_the_values_that_others_give_them(dtype: str) -> None:
    codes = np.arange(1 << (16 if dtype == "bfloat16" else 8)).astype(NARROW[dtype].bits)
    with np.errstate(invalid="ignore"):  # some codes are signalling NaNs
        reference = codes.view(getattr(ml_dtypes, dtype)).astype(np.float64)
        values = widened(codes, dtype)

        np.testing.assert_array_equal(values.astype(np.float64), reference)
    assert values.dtype == NARROW[dtype].stored


@pytest.mark.parametrize("dtype", sorted(NARROW))
def test_narrow_floats_are_taken_as_arrays_bits_or_tensors(tmp_path: Path, dtype: str) -> None:
    values = np.array([0.25, 1.0, 2.0, 0.5], np.float32).reshape(2, 2)
    narrow = values.astype(getattr(ml_dtypes, dtype))
    bits = narrow.view(NARROW[dtype].bits)
    tensor = torch.from_numpy(bits.copy()).view(getattr(torch, dtype))
    spec = FrameSpec((2, 2), dtype)

    for number, frame in enumerate(
        (narrow, narrow.T.copy().T, bits, tensor, tensor.t().contiguous().t())
    ):
        read = written(tmp_path / f"run-{number}.zarr", spec, frame)
        np.testing.assert_array_equal(read.astype(np.float32), values)
    strip = open_run(tmp_path / "run-0.zarr").activations["a"]
    assert strip.source_dtype == dtype


def test_tensors_are_frames_too(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4, requires_grad=True)

    read = written(tmp_path / "run.zarr", FrameSpec((4, 3), "float32"), tensor.t())

    np.testing.assert_array_equal(read, tensor.detach().numpy().T)


@pytest.mark.parametrize("kind", ["activations", "weights"])
@pytest.mark.parametrize("compression", [None, "zstd", "lz4", "none"])
def test_every_compression_keeps_every_bit(tmp_path: Path, kind: str, compression: Any) -> None:
    frame = np.random.default_rng(0).standard_normal((64, 600)).astype(np.float32)
    with create_run(tmp_path / "run.zarr", compression=compression) as run:
        run.writer(kind, {"a": FrameSpec(frame.shape, "float32")}).append(0, {"a": frame})

    np.testing.assert_array_equal(open_run(run.path).strip(kind, "a").frame(0), frame)


def test_frames_whose_axes_vary_are_padded_or_cropped_and_marked(tmp_path: Path) -> None:
    frames = {
        0: np.ones((2, 5, 3), np.float32),
        1: np.ones((2, 4, 3), np.float32),
        2: np.ones((2, 7, 3), np.float32),
        3: np.ones((1, 5, 3), np.float32),
    }
    with create_run(tmp_path / "run.zarr") as run:
        writer = run.writer("activations", {"a": FrameSpec((2, 5, 3), "float32", layout="NLC")})
        for step, frame in frames.items():
            writer.append(step, {"a": frame})
        with pytest.raises(ValueError, match=r"shape \(2, 5\)"):
            writer.append(4, {"a": np.ones((2, 5), np.float32)})

    strip = open_run(run.path).activations["a"]
    assert strip.attributes["varies"] == [1]
    assert strip.frame(0).shape == (2, 5, 3)
    assert np.isnan(strip.frame(1)[:, 4]).all()
    assert (strip.frame(1)[:, :4] == 1).all()
    assert (strip.frame(2) == 1).all()
    assert strip.frame(3).shape == (1, 5, 3)
