"""What capture of Keras on TensorFlow costs: scripts/bench keras [--quick]

Every way to train has a model of its own, and they take turns for a block of ten steps, at the
first of which something is taken, in one process with one thread for TensorFlow. CPU time is that
of the process, with whatever threads do afterwards, and of all its threads but capture's writer,
which is what holds up training and what the goal is for: the least of all rounds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
from measure import Figure, report

from filmstrip.capture.keras import Capture

BLOCK, BATCH = 10, 8
COLUMNS = ("training", "process", "wall")
L = keras.layers


def network(*, compiled: bool) -> Any:
    """Return a small residual network for images of 32 x 32, of a million parameters."""

    def normed(x: Any, filters: int, stride: int, name: str) -> Any:
        options = {"strides": stride, "padding": "same", "use_bias": False, "name": name}
        return L.BatchNormalization()(L.Conv2D(filters, 3, **options)(x))

    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = L.ReLU()(normed(inputs, 40, 1, "stem"))
    for number, (filters, stride) in enumerate([(40, 1), (80, 2), (80, 1), (160, 2), (160, 1)]):
        y = normed(L.ReLU()(normed(x, filters, stride, f"b{number}_a")), filters, 1, f"b{number}_b")
        if x.shape[-1] != filters:
            x = normed(x, filters, stride, f"b{number}_s")
        x = L.ReLU()(L.Add()([x, y]))
    model = keras.Model(inputs, L.Dense(10, name="fc")(L.GlobalAveragePooling2D()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss, jit_compile=compiled)
    return model


def watched(model: Any) -> list[Any]:
    """Return the layers with kernels."""
    return [layer for layer in model.layers if isinstance(layer, L.Conv2D | L.Dense)]


class Way:
    """Nothing: what is done besides training."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.model = model

    def after(self, x: Any) -> None:
        """Do what is done once a block."""

    def close(self) -> None:
        """End."""


class Ours(Way):
    """Capture, of whole batches, whatever the machine's disk still holds."""

    def __init__(self, model: Any, folder: Path, **keywords: Any) -> None:
        layers = [layer.name for layer in watched(model)]
        common = {"every": BLOCK, "samples": BATCH, "layers": layers, "min_free": 0}
        self.close = Capture(folder, model=model, **{**common, **keywords}).close  # type: ignore[method-assign]


class TensorBoard(Way):
    """Histograms of weights, once an epoch: here, a block is one."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._board = keras.callbacks.TensorBoard(folder, histogram_freq=1, write_graph=False)
        self._board.set_model(model)
        self._board.on_train_begin()
        self._epoch = 0

    def after(self, x: Any) -> None:
        """End an epoch."""
        self._board.on_epoch_end(self._epoch, {})
        self._epoch += 1

    def close(self) -> None:
        """End."""
        self._board.on_train_end()


class ExtraModel(Way):
    """What people are told to do: a second model of all outputs, whose arrays are saved."""

    def __init__(self, model: Any, folder: Path) -> None:
        folder.mkdir()
        self._folder, self._layers = folder, watched(model)
        outputs = keras.Model(model.inputs, [layer.output for layer in self._layers])
        self._run = tf.function(lambda x: outputs(x, training=True), jit_compile=model.jit_compile)

    def after(self, x: Any) -> None:
        """Save activations and weights; there are no gradients to be had."""
        arrays = [output.numpy() for output in self._run(x)]
        arrays += [weight.numpy() for layer in self._layers for weight in layer.weights]
        for number, array in enumerate(arrays):
            np.save(self._folder / f"{number}.npy", array)


WAYS: dict[str, Callable[[Any, Path], Way]] = {
    "no capture": Way,
    "no capture, again: the noise": Way,
    "frames": partial(Ours, statistics=False, histograms=False),
    "everything": Ours,
    "TensorBoard, weights alone": TensorBoard,
    "extra model, without gradients": ExtraModel,
}


@dataclass
class Contestant:
    """One way to train, and the least that it cost so far.

    Parameters
    ----------
    model : keras.Model
        Trains.
    way : Way
        What is done besides.
    """

    model: Any
    way: Way
    least: list[float] = field(default_factory=lambda: [float("inf")] * len(COLUMNS))

    def block(self, x: Any, y: Any) -> None:
        """Train for a block, and keep what it cost if it is less than ever."""
        wall, process, writer = time.perf_counter(), time.process_time(), writing()
        for _ in range(BLOCK):
            self.model.train_on_batch(x, y)
        self.way.after(x)
        wall = time.perf_counter() - wall
        settle()
        process = time.process_time() - process
        costs = (process - (writing() - writer), process, wall)
        self.least = [min(pair) for pair in zip(self.least, costs, strict=True)]


def writing() -> float:
    """Return the seconds of CPU time that writer threads have had; none where Linux is not."""
    seconds = 0.0
    for thread in threading.enumerate():
        if thread.name == "filmstrip-writer":
            with suppress(OSError):
                had = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
                seconds += int(had.split()[0]) / 1e9
    return seconds


def settle() -> None:
    """Wait until no thread of the process works any more."""
    before = -1.0
    while time.process_time() - before > 1e-3:
        before = time.process_time()
        time.sleep(5e-3)


def costs_of(mode: str, folder: Path, *, rounds: int) -> Iterator[Figure]:
    """Train in every way, print the table, and yield what has a goal."""
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(BATCH, 32, 32, 3)).astype("float32"))
    y = tf.constant(rng.integers(0, 10, BATCH))
    contestants = {}
    for number, (name, way) in enumerate(WAYS.items()):
        model = network(compiled=mode == "XLA")
        contestants[name] = Contestant(model, way(model, folder / f"{mode}-{number}"))
    for each in contestants.values():
        each.block(x, y)
    for each in contestants.values():
        each.least = [float("inf")] * len(COLUMNS)
    for _ in range(rounds):
        for each in contestants.values():
            each.block(x, y)
    for each in contestants.values():
        each.way.close()
    plain = contestants["no capture"].least
    print(f"{mode}: {plain[1] / BLOCK * 1e3:.1f} ms CPU a step; every {BLOCK}th step, in % more")
    print(f"  {'':32s}" + "".join(f"{title:>9s}" for title in COLUMNS))
    for name, each in contestants.items():
        extra = [(cost / least - 1) * 100 for cost, least in zip(each.least, plain, strict=True)]
        print(f"  {name:32s}" + "".join(f"{cost:+9.1f}" for cost in extra))
        if name == "frames":
            yield Figure(f"{mode}: frames, every {BLOCK}th step", extra[0], "at most", 3, "%")


def main() -> int:
    """Measure graphs and XLA, in a folder of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds, for a first look")
    rounds = 2 if parser.parse_args().quick else 8
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    os.environ["FILMSTRIP_QUIET"] = "1"
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="filmstrip-bench-") as name:
        figures = [
            figure
            for mode in ("graph", "XLA")
            for figure in costs_of(mode, Path(name), rounds=rounds)
        ]
    load = os.getloadavg()[0]
    seconds = time.perf_counter() - started
    print(f"{rounds} rounds in {seconds:.0f} s; load {load:.1f} on {os.cpu_count()} cores")
    return report("keras", figures)


if __name__ == "__main__":
    sys.exit(main())
