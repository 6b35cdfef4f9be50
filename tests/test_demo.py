"""The demo's training script, as a user would run it, and its run, as others would open it."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr

from filmstrip.store import open_run

ROOT = Path(__file__).parent.parent
STEPS = list(range(0, 92, 10))


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "demo" / "train.py"), "--epochs", "4", *map(str, arguments)]


class Training:
    """One training: looked at while it ran, and afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path
        capture = ("--capture", path, "--capture-every", 10)
        self.process = subprocess.Popen(command(*capture), stdout=subprocess.PIPE, text=True)
        self.live = self._look_live()
        self.output, _ = self.process.communicate(timeout=120)

    def _look_live(self) -> dict[str, Any]:
        """Return what others see once two steps are committed, read in one go."""
        while self.process.poll() is None:
            try:
                steps = np.asarray(zarr.open_group(self.path, mode="r")["activations/step"])
            except (OSError, KeyError):
                steps = np.empty(0)
            if len(steps) >= 2:
                return look(self.path)
            time.sleep(0.05)
        raise AssertionError("the training ended before anybody saw it live")


def look(path: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xarray.open_datatree(path, engine="zarr")
        dataset = xarray.open_zarr(path, group="activations")
        group: Any = zarr.open_group(path, mode="r")
        kvstore = {"driver": "file", "path": f"{path}/activations/relu1/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        return {
            "tree": tree["activations"].dataset["step"].values.tolist(),
            "dataset": dataset["step"].values.tolist(),
            "dataset row 1": dataset["relu1"].sel(step=10).values,
            "group": np.asarray(group["activations/step"]).tolist(),
            "group row 1": group["activations/relu1"][1],
            "tensorstore length": array.shape[0],
            "tensorstore row 1": array[1].read().result(),
        }


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    training = Training(tmp_path_factory.mktemp("demo") / "run.zarr")
    yield training
    training.process.kill()


def test_the_network_learns(training: Training) -> None:
    (accuracy,) = re.findall(r"^test accuracy ([\d.]+)$", training.output, re.MULTILINE)

    assert training.process.returncode == 0
    assert float(accuracy) >= 0.95


def test_losses_are_the_same_without_the_flag(training: Training) -> None:
    without = subprocess.run(command(), capture_output=True, text=True, check=True, timeout=120)

    assert without.stdout == training.output


def test_everything_that_the_flag_promises_is_in_the_run(training: Training) -> None:
    run = open_run(training.path)

    assert run.kinds == ("activations", "gradients", "inputs", "scalars", "weights")
    assert run.steps("activations").tolist() == STEPS
    assert run.activations["relu1"].frame(-1).shape == (8, 64, 28, 28)
    assert run.weights["conv1.weight"].layout == "OIHW"
    assert len(run.scalars["train/loss"].steps) == 92


@pytest.mark.parametrize("reader", ["tree", "dataset", "group"])
def test_others_see_the_committed_steps_live_and_closed(training: Training, reader: str) -> None:
    live, closed = training.live[reader], look(training.path)[reader]

    assert 2 <= len(live) < len(STEPS)
    assert live == STEPS[: len(live)]
    assert closed == STEPS


@pytest.mark.parametrize("reader", ["dataset", "group", "tensorstore"])
def test_others_read_the_same_numbers_live_and_closed(training: Training, reader: str) -> None:
    expected = open_run(training.path).activations["relu1"].frame(10)

    np.testing.assert_array_equal(training.live[f"{reader} row 1"], expected)
    np.testing.assert_array_equal(look(training.path)[f"{reader} row 1"], expected)


def test_tensorstore_sees_the_length_once_the_run_is_closed(training: Training) -> None:
    assert training.live["tensorstore length"] >= len(STEPS)
    assert look(training.path)["tensorstore length"] == len(STEPS)
