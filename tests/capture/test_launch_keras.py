"""Scripts of Keras and TensorFlow that know nothing of capture, run as they are."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capture.launching import CAPTURE, SCRIPTS, Ended, captured, ended, started

from filmstrip.store import create_run, open_run

pytestmark = pytest.mark.slow
Script = Callable[[str], list[str]]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def alone(script: str) -> str:
    """Return what a script prints by itself, in this process, which has loaded TensorFlow."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    return out.getvalue()


def check_same(out: str, alone: str) -> None:
    """Check that two scripts printed the same, with numbers within a graph's rounding."""
    assert NUMBER.sub("#", out) == NUMBER.sub("#", alone)
    printed, expected = ([float(n) for n in NUMBER.findall(text)] for text in (out, alone))
    np.testing.assert_allclose(printed, expected, rtol=1e-4)


def under(run: str, *options: str, script: str, **more: str) -> Ended:
    return captured(run, *options, command=[sys.executable, str(SCRIPTS / script)], **more)


def spoken(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("filmstrip:")]


def check_descent(opened: Any, name: str, rate: float) -> None:
    """Check that weights move by the gradients of the same step."""
    weights, gradients = opened.weights[name], opened.gradients[name]
    for step in weights.steps[:-1]:
        moved = weights.frame(step) - np.float32(rate) * gradients.frame(step)
        np.testing.assert_allclose(weights.frame(step + 1), moved, rtol=1e-5, atol=1e-7)


def test_every_fit_of_a_model_is_one_run(run: str) -> None:
    done = under(run, "--every", "3", script="digits_fit.py")

    assert done.code == 0, done.err
    check_same(done.out, alone("digits_fit.py"))
    assert spoken(done.err)[0] == "filmstrip: watching sequential, trained by Adam"
    opened = open_run(run)
    assert opened.layers("activations") == ["conv1", "drop", "flat", "fc"]
    assert opened.steps("gradients").tolist() == [0, 3, 6, 9]
    assert opened.scalars["loss"].steps.tolist() == list(range(12))
    assert opened.scalars["val_loss"].steps.tolist() == [3]
    assert opened.status().state == "finished"


def test_on_the_torch_backend_a_fit_is_followed_too(run: str) -> None:
    done = under(run, "--every", "3", script="digits_fit.py", KERAS_BACKEND="torch")

    assert done.code == 0, done.err
    opened = open_run(run)
    assert opened.layers("activations") == ["conv1", "drop", "flat", "fc"]
    assert opened.activations["conv1"].layout == "NHWC"
    assert opened.steps("gradients").tolist() == [0, 3, 6, 9]


def test_a_model_that_is_trained_batch_by_batch_is_captured_to_the_end(run: str) -> None:
    done = under(run, "--every", "1", script="digits_batches.py")

    assert done.code == 0, done.err
    check_same(done.out, alone("digits_batches.py"))
    opened = open_run(run)
    assert opened.steps("weights").tolist() == [0, 1, 2, 3, 4]
    assert opened.status().state == "finished"
    check_descent(opened, "hidden.kernel", 0.01)


def test_the_train_step_of_a_loop_is_found_before_it_runs_for_the_first_time(run: str) -> None:
    done = under(run, "--every", "1", script="tape.py")

    check_same(done.out.replace("tracing\n", ""), alone("tape.py").replace("tracing\n", ""))
    assert "filmstrip: watching Net, trained by SGD" in spoken(done.err)
    opened = open_run(run)
    assert opened.layers("activations") == ["hidden", "drop", "fc"]
    assert opened.steps("activations").tolist() == list(range(10))
    check_descent(opened, "fc.kernel", 0.1)


PRELUDE = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, tensorflow as tf
dense = keras.layers.Dense
x, y = np.ones((8, 3), "float32"), np.ones((8, 2), "float32")
def model(name):
    made = keras.Sequential([keras.Input((3,)), dense(2, name="fc")], name=name)
    made.compile("sgd", "mse", jit_compile=False, run_eagerly=True)
    return made
"""


@pytest.fixture
def code(tmp_path: Path) -> Callable[[str], list[str]]:
    """Return what makes a script, in a file: AutoGraph reads it."""

    def written(text: str) -> list[str]:
        (tmp_path / "script.py").write_text(PRELUDE + text)
        return [sys.executable, str(tmp_path / "script.py")]

    return written


def test_two_models_of_one_loop_are_one_run(run: str, code: Script) -> None:
    text = """
first, second = model("first"), model("second")
a, b = keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.1)
@tf.function
def step(x):
    with tf.GradientTape(persistent=True) as tape:
        loss = tf.reduce_sum(first(x)) + tf.reduce_sum(second(x) ** 2)
    a.apply_gradients(zip(tape.gradient(loss, first.trainable_weights), first.trainable_weights))
    b.apply(tape.gradient(loss, second.trainable_weights), second.trainable_weights)
    return loss
for _ in range(3):
    step(tf.constant(x))
"""
    done = captured(run, "--every", "1", command=code(text))

    assert done.code == 0, done.err
    assert "trained by SGD and Adam" in done.err
    opened = open_run(run)
    assert opened.layers("gradients") == [
        *("Sequential.fc.kernel", "Sequential.fc.bias"),
        *("Sequential2.fc.kernel", "Sequential2.fc.bias"),
    ]
    assert opened.layers("activations") == ["Sequential.fc", "Sequential2.fc"]
    assert opened.steps("weights").tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("model('m').predict(x, verbose=0)", "keras was imported, but nothing was trained by fit"),
        (
            """
from filmstrip.capture.keras import Capture
model("m").fit(x, y, verbose=0, callbacks=[Capture("own.zarr", enabled=False)])
""",
            "the script captures by itself",
        ),
        (
            """
made, optimizer = model("m"), keras.optimizers.SGD(0.1)
@tf.function
def epoch(data):
    for x in data:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(made(x))
        weights = made.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)
epoch(tf.data.Dataset.from_tensor_slices(x).batch(4))
""",
            "make a tf.function of one step",
        ),
    ],
    ids=["nothing", "own", "epoch"],
)
def test_why_nothing_was_captured_is_said_once(run: str, code: Script, text: str, why: str) -> None:
    done = captured(run, command=code(text + "\nprint('done')"))

    assert done.out.endswith("done\n"), done.err
    assert "nothing was captured: " in spoken(done.err)[-1]
    assert why in spoken(done.err)[-1]
    assert not Path(run).exists()


def test_what_goes_wrong_in_capture_is_not_fits_and_a_run_that_is_there_stays(
    run: str, code: Script
) -> None:
    text = """
first, second = model("first"), model("second")
for _ in range(2):
    first.fit(x, y, batch_size=4, verbose=0)
second.fit(x, y, batch_size=4, verbose=0)
try:
    first.fit(x, y[:3])
except ValueError as error:
    print("theirs")
"""
    Path(run).mkdir()
    (Path(run) / "mine").touch()
    first = captured(run, "--every", "1", command=code(text))
    assert first.out.endswith("theirs\n")
    assert "nothing is captured" in first.err
    assert [entry.name for entry in Path(run).iterdir()] == ["mine"]

    (Path(run) / "mine").unlink()
    Path(run).rmdir()
    with create_run(run):
        pass
    second = captured(run, "--every", "1", command=code(text))
    assert "a new run is made beside it" in second.err
    assert spoken(second.err)[-1] == "filmstrip: second was trained, too, but not captured"
    assert open_run(run.replace(".zarr", "-2.zarr")).steps("weights").tolist() == [0, 1, 2, 3]


def test_a_fit_that_is_told_to_end_closes_its_run(run: str, code: Script) -> None:
    text = """
class Tell(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs):
        if epoch == 1: print("ready", flush=True)
model("m").fit(x, y, epochs=10**6, verbose=0, callbacks=[Tell()])
"""
    with started((*CAPTURE, run, "--every", "1000", "--", *code(text))) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        done = ended(process)

    assert done.code == 128 + signal.SIGTERM
    assert open_run(run).status().state == "finished"
