"""The store beside its peers: ``scripts/bench store``."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import safetensors.numpy
import tensorstore
import torch
import zarr
from measure import Figure, interleaved, report
from torch.utils.tensorboard import SummaryWriter
from zarr.codecs import Crc32cCodec

from filmstrip.store import FrameSpec, create_run, open_run

SIZES: dict[str, tuple[tuple[int, ...], int]] = {
    "1 KB": ((256,), 200),
    "1.6 MB": ((64, 80, 80), 12),
    "25.7 MB": ((32, 64, 56, 56), 6),
}
"""Shape of a frame, and how many rows an alternative writes in one round."""
ROUNDS = 5
SLOW = {"TensorBoard add_tensor"}
"""Measured once: a round of it takes longer than all the others."""

Frame = npt.NDArray[np.float32]
Append = Callable[[int], object]


def timed(rows: int, append: Append) -> float:
    """Return the mean seconds of an append; the first into a shard costs others less."""
    start = time.perf_counter()
    for row in range(rows):
        append(row)
    return (time.perf_counter() - start) / rows


class Peers:
    """Ways to append one frame after the other, each in a folder of its own."""

    def __init__(self, folder: Path, frame: Frame, rows: int) -> None:
        self.folder, self.frame, self.rows = folder, frame, rows
        self.shards = max(1, min(rows, (64 << 20) // frame.nbytes))

    def ours(self) -> float:
        with create_run(self.folder / "run.zarr") as run:
            writer = run.writer("weights", {"a": FrameSpec(self.frame.shape, "float32")})
            return timed(self.rows, lambda row: writer.append(row, {"a": self.frame}))

    def os_write(self) -> float:
        def append(row: int) -> None:
            os.write(files[row], self.frame.data)

        flags = os.O_CREAT | os.O_WRONLY
        files = [os.open(self.folder / f"{row}.raw", flags) for row in range(self.rows)]
        seconds = timed(self.rows, append)
        for file in files:
            os.close(file)
        return seconds

    def zarr(self, *, sharded: bool = False) -> float:
        shape = (self.rows, *self.frame.shape)
        array: Any = zarr.create_array(
            self.folder / "array.zarr",
            shape=shape,
            chunks=(1, *self.frame.shape),
            shards=(self.shards, *self.frame.shape) if sharded else None,
            dtype="f4",
            compressors=[Crc32cCodec()],
            config={"write_empty_chunks": True},
        )
        return timed(self.rows, lambda row: array.__setitem__(row, self.frame))

    def zarr_sharded(self) -> float:
        return self.zarr(sharded=True)

    def tensorstore(self) -> float:
        shape = [self.rows, *self.frame.shape]
        chunk = {"name": "regular", "configuration": {"chunk_shape": [1, *self.frame.shape]}}
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{self.folder}/ts/", "file_io_sync": False},
            "metadata": {"shape": shape, "data_type": "float32", "chunk_grid": chunk},
        }
        array = tensorstore.open(spec, create=True).result()
        return timed(self.rows, lambda row: array[row].write(self.frame).result())

    def h5py(self) -> float:
        with h5py.File(self.folder / "file.h5", "w") as file:
            shape = (self.rows, *self.frame.shape)
            data = file.create_dataset("a", shape, "f4", chunks=(1, *self.frame.shape))

            def append(row: int) -> None:
                data[row] = self.frame
                file.flush()

            return timed(self.rows, append)

    def np_save(self) -> float:
        return timed(self.rows, lambda row: np.save(self.folder / f"{row}.npy", self.frame))

    def torch_save(self) -> float:
        tensor = torch.from_numpy(self.frame)
        return timed(self.rows, lambda row: torch.save(tensor, self.folder / f"{row}.pt"))

    def safetensors(self) -> float:
        def append(row: int) -> None:
            safetensors.numpy.save_file({"a": self.frame}, self.folder / f"{row}.safetensors")

        return timed(self.rows, append)

    def tensorboard(self) -> float:
        writer = SummaryWriter(str(self.folder / "board"))
        tensor = torch.from_numpy(self.frame)

        def append(row: int) -> None:
            writer.add_tensor("a", tensor, row)
            writer.flush()

        seconds = timed(min(self.rows, 3), append)
        writer.close()
        return seconds

    def all(self) -> dict[str, Callable[[], float]]:
        return {
            "os.write": self.os_write,
            "filmstrip": self.ours,
            "zarr-python": self.zarr,
            "zarr-python, same shards": self.zarr_sharded,
            "tensorstore": self.tensorstore,
            "h5py": self.h5py,
            "np.save": self.np_save,
            "torch.save": self.torch_save,
            "safetensors": self.safetensors,
            "TensorBoard add_tensor": self.tensorboard,
        }


def appends(folder: Path) -> Iterator[Figure]:
    """Append frames of three sizes, beside everything that people use."""
    for size, (shape, rows) in SIZES.items():
        peers = Peers(folder, np.random.default_rng(0).standard_normal(shape).astype("f4"), rows)
        least = dict.fromkeys(peers.all(), float("inf"))
        for turn in range(ROUNDS):
            for name, measure in peers.all().items():
                if turn and name in SLOW:
                    continue
                folder.mkdir(exist_ok=True)
                least[name] = min(least[name], measure())
                shutil.rmtree(folder)
        for name, seconds in least.items():
            yield Figure(f"{size}: {name}, of os.write", seconds / least["os.write"])
        # It reads and writes a shard again for every frame: at 25.7 MB, two frames' worth.
        ratio = least["zarr-python, same shards"] / least["filmstrip"]
        goal = {"1.6 MB": 4.0, "25.7 MB": 2.0}.get(size)
        yield Figure(f"{size}: zarr-python into shards, of ours", ratio, "at least", goal)


def large(folder: Path) -> Iterator[Figure]:
    """Append frames of 25.7 MB and write as many bytes, in turn, row by row."""
    frame = np.random.default_rng(0).standard_normal(SIZES["25.7 MB"][0]).astype("f4")
    other = frame.copy()
    plain, ours = float("inf"), float("inf")
    for turn in range(ROUNDS):  # a run does not grow beyond what the page cache holds
        with create_run(folder / f"large-{turn}.zarr") as run:
            writer = run.writer("weights", {"a": FrameSpec(frame.shape, "float32")})
            for row in range(6):
                file = os.open(folder / "plain", os.O_CREAT | os.O_WRONLY)
                start = time.perf_counter()
                os.write(file, other.data)
                plain = min(plain, time.perf_counter() - start)
                os.close(file)
                (folder / "plain").unlink()
                start = time.perf_counter()
                writer.append(row, {"a": frame})
                ours = min(ours, time.perf_counter() - start)
        shutil.rmtree(run.path)
    yield Figure("25.7 MB, in turn: filmstrip, of os.write", ours / plain, "at most", 1.45)


def layers(folder: Path) -> Iterator[Figure]:
    """Append 50 layers of 1 KB a step, beside zarr-python; compare early and late; count files."""
    frames = {f"layer{i}": np.random.default_rng(i).random(256, np.float32) for i in range(50)}
    array: Any = zarr.create_array(
        folder / "small.zarr",
        shape=(1000, 256),
        chunks=(1, 256),
        dtype="f4",
        compressors=None,
        config={"write_empty_chunks": True},
    )
    seconds: dict[str, list[float]] = {"ours": [], "zarr": [], "early": [], "late": []}
    with create_run(folder / "many.zarr") as run:
        specs = {name: FrameSpec((256,), "float32") for name in frames}
        writer = run.writer("weights", specs)
        for step in range(10_100):
            chosen = frames if step < 1000 or step >= 10_000 else {"layer0": frames["layer0"]}
            start = time.perf_counter()
            writer.append(step, chosen)
            taken = (time.perf_counter() - start) / len(chosen)
            if step < 1000:
                seconds["ours"].append(taken)
                start = time.perf_counter()
                array[step] = frames["layer0"]
                seconds["zarr"].append(time.perf_counter() - start)
            if 10 <= step < 110:
                seconds["early"].append(taken)
            if step >= 10_000:
                seconds["late"].append(taken)
    least = {name: min(taken) for name, taken in seconds.items()}
    yield Figure("1 KB, 50 layers a step, microseconds", 1e6 * least["ours"], unit="µs")
    ratio = least["zarr"] / least["ours"]
    yield Figure("1 KB: zarr-python's assignment, of ours", ratio, "at least", 40)
    yield Figure(
        "the same at step 10,000, of step 10", least["late"] / least["early"], "at most", 1.5
    )
    with create_run(folder / "files.zarr") as run:
        specs = {f"layer{i}": FrameSpec((256,), "float32") for i in range(100)}
        writer = run.writer("weights", specs)
        for step in range(1000):
            writer.append(step, dict.fromkeys(specs, frames["layer0"]))
    files = sum(len(names) for _, _, names in os.walk(folder / "files.zarr"))
    yield Figure("files, 100 layers x 1,000 steps", files, "at most", 1300, "")


def reads(folder: Path) -> Iterator[Figure]:
    """Read a timeline of 1,000 small frames, and one channel over 8 steps of a large layer."""
    with create_run(folder / "read.zarr") as run:
        small = run.writer("weights", {"small": FrameSpec((256,), "float32")})
        for step in range(1000):
            small.append(step, {"small": np.full(256, step, np.float32)})
        large = run.writer("gradients", {"large": FrameSpec((64, 224, 224), "float32")})
        for step in range(8):
            large.append(step, {"large": np.full((64, 224, 224), step, np.float32)})
    opened = open_run(folder / "read.zarr")
    group: Any = zarr.open_group(folder / "read.zarr", mode="r")
    lines, maps = opened.weights["small"], opened.gradients["large"]
    timeline = {"ours": lines.read, "zarr": lambda: group["weights/small"][:]}
    channel = {
        "ours": lambda: maps.read(slice(0, 8), index=3),
        "zarr": lambda: group["gradients/large"][:8, 3],
    }
    for name, actions in (("timeline of 1,000", timeline), ("a channel of 8 steps", channel)):
        least = interleaved({key: _discard(action) for key, action in actions.items()}, 5)
        goal = 10 if name.startswith("timeline") else None
        yield Figure(
            f"{name}: zarr-python, of ours", least["zarr"] / least["ours"], "at least", goal
        )
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            group = zarr.open_group(folder / "read.zarr", mode="r")
            rust = interleaved({"zarrs": _discard(actions["zarr"])}, 5)["zarrs"]
        group = zarr.open_group(folder / "read.zarr", mode="r")
        yield Figure(f"{name}: zarrs, of ours", rust / least["ours"])


def _discard(read: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        read()

    return run


def main() -> int:
    """Measure everything, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="filmstrip-bench-") as name:
        folder = Path(name)
        figures = [
            *appends(folder / "peers"),
            *large(folder),
            *layers(folder),
            *reads(folder),
        ]
    return report("store", figures)


if __name__ == "__main__":
    sys.exit(main())
