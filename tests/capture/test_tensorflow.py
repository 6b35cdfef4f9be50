from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from capture.keras_training import L, digits, network

from filmstrip.capture import CaptureError, PlanError, UnsupportedModelError
from filmstrip.capture._budget import COUNT_BYTES, Order, Take
from filmstrip.capture._survey import view
from filmstrip.capture.keras._layers import underlying
from filmstrip.capture.tensorflow import Capture, CaptureHook, capture_session
from filmstrip.capture.tensorflow._stage import HeldStage, numbers
from filmstrip.store import bit_histogram, open_run, summarize
from filmstrip.store._bits import ascending

pytestmark = pytest.mark.slow
WAYS = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": tf.function(jit_compile=True),
}


def loop(
    way: Callable[[Any], Any], steps: int = 6, **keywords: Any
) -> tuple[list[float], list[Any], Any]:
    """Return losses and weights of a loop, captured if keywords are given."""
    x, y = digits()
    model = network()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)

    def train_step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(y, model(x, training=True), True)
            loss = tf.reduce_mean(losses)
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    step = way(train_step)
    keras.utils.set_random_seed(1)
    capture = None
    if keywords:
        capture = Capture(model, optimizer, **keywords)
        step = capture.wrap(step)
    losses = []
    for number in range(steps):
        loss = step(tf.constant(x[number : number + 8]), tf.constant(y[number : number + 8]))
        losses.append(float(loss))
        if capture is not None:
            capture.log(loss=loss)
            capture.image("x", tf.constant(x[number, ..., 0]), layout="HW")
    if capture is not None:
        capture.close()
    return losses, [weight.numpy() for weight in model.weights], model


@pytest.mark.parametrize("way", ["eager", "graph"])
def test_a_loop_has_the_same_bits_with_and_without_capture(run: str, way: str) -> None:
    losses, weights, _ = loop(WAYS[way])
    captured_losses, captured_weights, _ = loop(WAYS[way], run=run, every=2)

    assert captured_losses == losses
    assert all(map(np.array_equal, captured_weights, weights))
    opened = open_run(run)
    assert opened.steps("activations").tolist() == opened.steps("gradients").tolist() == [0, 2, 4]
    np.testing.assert_allclose(opened.scalars["loss"].values, losses, rtol=1e-6)
    np.testing.assert_array_equal(opened.images["x"].frame(4), digits()[0][4, ..., 0])


@pytest.mark.parametrize("way", ["graph", "xla"])
def test_an_optimized_loop_is_within_rounding(run: str, way: str, graph_optimizer: None) -> None:
    losses, weights, _ = loop(WAYS[way])
    captured_losses, captured_weights, _ = loop(WAYS[way], run=run, every=2)

    np.testing.assert_allclose(captured_losses, losses, rtol=1e-5)
    for captured, plain in zip(captured_weights, weights, strict=True):
        np.testing.assert_allclose(captured, plain, atol=1e-5)
    assert open_run(run).layers("activations") == ["conv1", "bn", "relu", "drop", "flat", "fc"]


def test_weights_of_one_step_follow_from_those_and_gradients_of_the_step_before(run: str) -> None:
    model = keras.Sequential([keras.Input((3,)), L.Dense(2, name="fc")])
    optimizer = keras.optimizers.SGD(0.5)

    @tf.function  # type: ignore[untyped-decorator]
    def train_step(x: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x) ** 2)
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)

    with Capture(model, optimizer, run, every=1) as capture:
        step = capture.wrap(train_step)
        for _ in range(5):
            step(tf.ones((4, 3)))

    opened = open_run(run)
    for number in range(4):
        weight = opened.weights["fc.kernel"].frame(number)
        moved = weight - np.float32(0.5) * opened.gradients["fc.kernel"].frame(number)
        np.testing.assert_allclose(opened.weights["fc.kernel"].frame(number + 1), moved, rtol=1e-6)


class Affine(tf.Module):  # type: ignore[misc]
    """Holds variables without Keras."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w = tf.Variable(tf.ones((inputs, outputs)) / 8)
        self.b = tf.Variable(tf.zeros(outputs))

    def __call__(self, x: Any) -> Any:
        """Return an affine map, in words that AutoGraph must rewrite."""
        if tf.reduce_sum(x) > 1e9:
            x = -x
        return x @ self.w + self.b


class Tower(tf.Module):  # type: ignore[misc]
    """A module of modules, one of which is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [Affine(3, 3), Affine(3, 2)]

    def __call__(self, x: Any) -> Any:
        """Apply the first twice."""
        return self.layers[1](tf.nn.relu(self.layers[0](self.layers[0](x))))


def test_modules_without_keras_are_selected_by_their_types(run: str) -> None:
    tower = Tower()
    tower.module, tower.scale = Affine(2, 2), tf.Variable(1.0)

    def train_step(x: Any) -> Any:
        return tf.reduce_sum(tower.module(tower(x)) * tower.scale)

    with Capture(tower, None, run, every=1, layers=[Affine], exclude="layers.0*") as agent:
        agent.wrap(train_step)(tf.ones((4, 3)))

    opened = open_run(run)
    assert opened.layers("activations") == ["layers.1", "module"]
    assert opened.layers("weights") == ["layers.1.b", "layers.1.w", "module.b", "module.w"]


class Plain:
    """An optimizer that is none of Keras'."""

    def apply_gradients(self, grads_and_vars: Any) -> None:
        """Descend."""
        for gradient, variable in grads_and_vars:
            variable.assign_sub(0.1 * gradient)


@pytest.mark.parametrize("way", ["eager", "graph"])
def test_modules_without_keras_are_named_by_their_attributes(run: str, way: str) -> None:
    def train(capture: bool) -> tuple[list[float], Any]:
        tower, optimizer = Tower(), Plain()

        def train_step(x: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tower(x) ** 2)
            weights = tower.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return loss

        step = WAYS[way](train_step)
        if capture:
            with Capture(tower, optimizer, run, every=1) as agent:
                wrapped = agent.wrap(step)
                return [float(wrapped(tf.ones((4, 3)))) for _ in range(3)], tower
        return [float(step(tf.ones((4, 3)))) for _ in range(3)], tower

    assert train(True)[0] == train(False)[0]
    opened = open_run(run)
    assert opened.layers("activations") == ["layers.0", "layers.0#1", "layers.1"]
    assert opened.layers("gradients") == ["layers.0.b", "layers.0.w", "layers.1.b", "layers.1.w"]
    assert opened.weights["layers.0.w"].layout == "IO"
    assert type(Tower().layers[0])(1, 1)(tf.ones((1, 1))).shape == (1, 1)
    assert Affine.__call__.__qualname__ == "Affine.__call__"


def test_without_an_optimizer_gradients_are_left_out_and_it_is_said(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tower = Tower()
    with Capture(tower, run=run, every=1) as capture:
        capture.wrap(tf.function(tower))(tf.ones((4, 3)))

    assert open_run(run).kinds == ("activations", "weights")
    assert "no gradients" in capsys.readouterr().err


def test_an_embedding_has_dense_gradients(run: str) -> None:
    model = keras.Sequential([keras.Input((2,), dtype="int32"), L.Embedding(5, 3, name="e")])
    optimizer = keras.optimizers.SGD(0.1)

    def train_step(x: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    with Capture(model, optimizer, run, every=1) as capture:
        capture.wrap(tf.function(train_step))(tf.constant([[1, 1], [3, 1]]))

    assert open_run(run).gradients["e.embeddings"].frame(0)[:, 0].tolist() == [0, 3, 0, 1, 0]


def test_what_is_inside_of_a_loop_is_left_out_and_reported(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inner, outer = L.Dense(3, name="inner"), L.Dense(3, name="outer")

    class Looping(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = inner, outer

        def call(self, x: Any) -> Any:
            _, x = tf.while_loop(lambda i, x: i < 2, lambda i, x: (i + 1, self.inner(x)), (0, x))
            return self.outer(x)

    model = Looping()
    inner.build((None, 3))
    with Capture(model, run=run, every=1) as capture:
        capture.wrap(tf.function(lambda x: model(x)))(tf.ones((2, 3)))

    assert open_run(run).layers("activations") == ["outer"]
    assert "nothing came from inner" in capsys.readouterr().err


def test_a_step_inside_of_another_function_is_said_to_be_out_of_reach(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    tower = Tower()
    with Capture(tower, run=run, every=1) as capture:
        step = capture.wrap(tf.function(tower))
        total = tf.function(lambda x: step(x) + step(x))(tf.ones((1, 3)))

    assert total.shape == (1, 2)
    assert "wrap the function around it" in caplog.text


def test_a_method_of_an_object_can_be_wrapped(run: str) -> None:
    class Trainer:
        def __init__(self) -> None:
            self.tower = Tower()

        @tf.function(input_signature=[tf.TensorSpec((None, 3))])  # type: ignore[untyped-decorator]
        def step(self, x: Any) -> Any:
            return self.tower(x)

    trainer = Trainer()
    with Capture(trainer.tower, run=run, every=1) as capture:
        step = capture.wrap(trainer.step)
        for count in (1, 5, 3):
            assert step(tf.ones((count, 3))).shape == (count, 2)

    counts = open_run(run).statistics("activations")["layers.1", "count"].values
    assert counts.tolist() == [2.0, 10.0, 6.0]


@pytest.mark.parametrize("form", ["function", "method"])
def test_arguments_of_a_signature_can_be_given_by_name(run: str, form: str) -> None:
    tower = Tower()
    signature = [tf.TensorSpec((None, 3)), tf.TensorSpec(())]

    class Trainer:
        @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
        def step(self, x: Any, scale: Any) -> Any:
            return tower(x) * scale

    function = tf.function(lambda x, scale: tower(x) * scale, input_signature=signature)
    with Capture(tower, run=run, every=1) as capture:
        step = capture.wrap(Trainer().step if form == "method" else function)
        by_name = step(x=tf.ones((2, 3)), scale=tf.constant(2.0))
        half = step(tf.ones((2, 3)), scale=tf.constant(2.0))

    np.testing.assert_array_equal(by_name, 2 * tower(tf.ones((2, 3))))
    np.testing.assert_array_equal(half, by_name)
    assert open_run(run).steps("activations").tolist() == [0, 1]


def test_pause_resume_and_the_step_of_a_checkpoint(run: str) -> None:
    tower = Tower()
    with Capture(tower, run=run, every=1, step=10) as capture:
        step = capture.wrap(tf.function(tower))
        step(tf.ones((1, 3)))
        capture.pause()
        step(tf.ones((1, 3)))
        capture.resume()
        step(tf.ones((1, 3)))
        state = capture.state_dict()

    assert state == {"step": 13}
    assert open_run(run).steps("activations").tolist() == [10, 12]


def test_an_error_of_a_step_is_the_loops_own_and_the_step_is_not_counted(run: str) -> None:
    tower = Tower()

    @tf.function  # type: ignore[untyped-decorator]
    def train_step(x: Any) -> Any:
        tf.debugging.assert_less(x, 5.0)
        return tower(x)

    with Capture(tower, run=run, every=1) as capture:
        step = capture.wrap(train_step)
        step(tf.ones((1, 3)))
        with pytest.raises(tf.errors.InvalidArgumentError):
            step(9 * tf.ones((1, 3)))
        step(tf.ones((1, 3)))

    assert open_run(run).steps("activations").tolist() == [0, 1]


def test_a_step_whose_error_the_loop_caught_leaves_its_number_to_nothing(run: str) -> None:
    tower = Tower()
    number = 0

    @tf.function  # type: ignore[untyped-decorator]
    def train_step(x: Any) -> Any:
        tf.debugging.assert_less(x, 5.0)
        return tower(x)

    with Capture(tower, run=run, every=1, step=lambda: number) as capture:
        step = capture.wrap(train_step)
        for number in range(3):
            with suppress(tf.errors.InvalidArgumentError):
                step((9.0 if number == 1 else 1.0) * tf.ones((1, 3)))

    assert open_run(run).steps("activations").tolist() == [0, 2]


def test_an_error_of_the_first_step_leaves_no_second_one(run: str) -> None:
    tower = Tower()
    bias = tower.layers[1].b

    @tf.function  # type: ignore[untyped-decorator]
    def train_step(x: Any) -> Any:
        moved = bias.assign_add([1.0, 1.0])
        with tf.control_dependencies([moved]):
            x = tf.debugging.check_numerics(x, "no number")
        return tower(x)

    with Capture(tower, run=run, every=1) as capture:
        step = capture.wrap(train_step)
        with pytest.raises(tf.errors.InvalidArgumentError, match="no number"):
            step(np.nan * tf.ones((1, 3)))
        assert bias.numpy().tolist() == [1.0, 1.0]
        step(tf.ones((1, 3)))

    assert open_run(run).weights["layers.1.b"].frame(0).tolist() == [1.0, 1.0]


def test_a_step_that_is_compiled_only_without_taps_is_run_without(run: str) -> None:
    class Spoken(L.Layer):  # type: ignore[misc]
        """Where it is overheard, uses words, which XLA knows nothing of."""

        def call(self, x: Any) -> Any:
            heard = "filmstrip" in L.Layer.__call__.__module__
            return tf.strings.to_number(tf.as_string(x)) if heard else x

    layer = Spoken()
    count = tf.Variable(0)

    @tf.function(jit_compile=True)  # type: ignore[untyped-decorator]
    def train_step(x: Any) -> Any:
        count.assign_add(1)
        return layer(x)

    capture = Capture(layer, run=run, every=1)
    step = capture.wrap(train_step)
    for number in (1, 2):
        np.testing.assert_array_equal(step(tf.ones((2, 3))), np.ones((2, 3)))
        assert count.numpy() == number
    with pytest.raises(CaptureError, match="unsupported operations"):
        capture.close()


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [(3, None, "neither a Keras model nor a tf.Module"), (Tower(), 3, "neither apply nor")],
)
def test_what_cannot_be_watched_is_named(
    run: str, model: object, optimizer: object, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Capture(model, optimizer, run)

    assert not Path(run).exists()


def test_misuse_is_refused(run: str) -> None:
    with pytest.raises(PlanError, match="give a number of steps"):
        Capture(Tower(), run=run, every="epoch")
    with pytest.raises(TypeError, match="unexpected keyword argument 'interval'"):
        Capture(Tower(), run=run, interval=3)  # type: ignore[call-arg]
    with Capture(Tower(), run=run) as capture, pytest.raises(PlanError, match="called twice"):
        capture.wrap(capture.wrap(lambda x: x))


def test_only_the_first_worker_writes(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"worker": ["localhost:1", "localhost:2"]}
    task = {"type": "worker", "index": 1}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    tower = Tower()
    x = tf.ones((2, 3))
    with Capture(tower, run=run, every=1) as capture:
        step = capture.wrap(tf.function(tower))
        np.testing.assert_array_equal(step(x), tower(x))
        capture.log(loss=1)
        assert not capture.enabled

    np.testing.assert_array_equal(step(x), tower(x))
    assert not Path(run).exists()


def test_capture_that_is_off_gives_the_function_back(run: str) -> None:
    function = tf.function(Tower())

    assert Capture(3, run=run, enabled=False).wrap(function) is function


@pytest.mark.parametrize("way", ["eager", "graph"])
def test_a_probe_puts_back_what_a_module_counts(run: str, way: str) -> None:
    class Counting(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.affine = Affine(3, 2)
            self.norm = L.BatchNormalization()
            self.norm.build((None, 2))
            self.calls = tf.Variable(0, trainable=False)

        def __call__(self, x: Any) -> Any:
            self.calls.assign_add(1)
            return self.norm(self.affine(x), training=True)

    model = Counting()
    with Capture(model, run=run, every=1, probe=(np.full((2, 3), 9.0, np.float32),)) as capture:
        step = capture.wrap(WAYS[way](lambda x: model(x)))
        for _ in range(3):
            step(tf.ones((5, 3)))

    assert model.calls.numpy() == 3
    moved = (1 - 0.99**3) * 3 / 8  # towards the mean of the batches alone
    np.testing.assert_allclose(model.norm.moving_mean.numpy(), [moved] * 2, rtol=1e-5)
    assert open_run(run).steps("activations").tolist() == [0, 1, 2]


@pytest.mark.parametrize("form", ["array", "tuple"])
def test_a_probe_of_a_module_gives_the_frames(run: str, form: str) -> None:
    tower = Tower()
    probe = np.full((2, 3), 2.0, np.float32)
    with Capture(tower, run=run, every=1, probe=probe if form == "array" else (probe,)) as capture:
        capture.wrap(tf.function(tower))(tf.ones((5, 3)))

    opened = open_run(run)
    np.testing.assert_array_equal(
        opened.activations["layers.0"].frame(0), probe @ np.ones((3, 3)) / 8
    )
    assert opened.statistics("activations")["layers.0", "count"].values.tolist() == [15.0]


MIRRORED = """
import os, sys, tempfile, warnings
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, tensorflow as tf
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
from filmstrip.capture.keras import Capture
from filmstrip.capture import tensorflow as capturing
from filmstrip.store import open_run

x = np.random.default_rng(0).normal(size=(32, 3)).astype("f")
y = x @ np.ones((3, 2), "f")

def train(path):
    keras.utils.set_random_seed(0)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="fc")])
        model.compile(keras.optimizers.SGD(0.5), "mse", jit_compile=False)
    callbacks = [Capture(path, every=1, samples=8)] if path else []
    model.fit(x, y, batch_size=8, epochs=1, verbose=0, shuffle=False, callbacks=callbacks)
    for callback in callbacks:
        callback.close()
    return [w.value.numpy() for w in model.weights]

plain = train(None)
captured = train(sys.argv[1])
assert all(map(np.array_equal, plain, captured))
run = open_run(sys.argv[1])
assert run.steps("weights").tolist() == [0, 1, 2, 3], run.steps("weights")
assert run.activations["fc"].frame(0).shape == (4, 2)
w = run.weights["fc.kernel"]
for step in range(3):
    moved = w.frame(step) - np.float32(0.5) * run.gradients["fc.kernel"].frame(step)
    np.testing.assert_allclose(w.frame(step + 1), moved, rtol=1e-5)
    expected = x[8 * step : 8 * step + 4] @ w.frame(step) + run.weights["fc.bias"].frame(step)
    np.testing.assert_allclose(run.activations["fc"].frame(step), expected, rtol=1e-5)

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="fc")])
    optimizer = keras.optimizers.SGD(0.5)

def replica(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x)) / 8
    weights = model.trainable_variables
    optimizer.apply(tape.gradient(loss, weights), weights)

with capturing.Capture(model, optimizer, sys.argv[1] + "-loop", every=1) as cap:
    step = cap.wrap(tf.function(lambda x: strategy.run(replica, args=(x,))))
    data = tf.data.Dataset.from_tensor_slices(x).batch(8)
    for batch in strategy.experimental_distribute_dataset(data):
        step(batch)
run = open_run(sys.argv[1] + "-loop")
assert run.steps("gradients").tolist() == [0, 1, 2, 3]
np.testing.assert_allclose(
    run.gradients["fc.kernel"].frame(0)[:, 0], x[:8].sum(0) / 8, rtol=1e-5
)
print("done")
"""


def test_of_several_replicas_the_first_is_kept_and_gradients_are_summed(run: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", MIRRORED, run],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.stdout.endswith("done\n"), done.stderr


WORKER = """
import os, sys
import keras
import numpy as np
import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()
from filmstrip.capture.tensorflow import Capture

x = np.random.default_rng(0).normal(size=(48, 3)).astype("f")

class Net(tf.Module):
    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.ones((3, 2)), name="kernel")

    def __call__(self, x):
        return tf.matmul(x, self.kernel)

def train(path):
    with strategy.scope():
        model, optimizer = Net(), keras.optimizers.SGD(0.5)
        optimizer.build([model.kernel])

    def replica(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x)) / 8
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)

    step = tf.function(lambda x: strategy.run(replica, args=(x,)))
    data = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(x).batch(8))
    if path is None:
        for batch in data:
            step(batch)
        return model.kernel.numpy()
    with Capture(model, optimizer, path, every=2, samples=8, on_pressure="block") as cap:
        step = cap.wrap(step)
        for number, batch in enumerate(data):
            if number == 4 and '"index":0' in os.environ["TF_CONFIG"]:
                cap.pause()  # on one of two workers, as when its disk is full
            step(batch)
    return model.kernel.numpy()

plain, captured = train(None), train(sys.argv[1])
assert np.array_equal(plain, captured), (plain, captured)
print("done")
"""


def test_workers_that_train_together_go_through_the_same_graphs(run: str) -> None:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two)]
    path = os.pathsep.join(filter(None, sys.path))
    processes = []
    for index in (0, 1):
        task = {"type": "worker", "index": index}
        told = json.dumps({"cluster": {"worker": workers}, "task": task}, separators=(",", ":"))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, run],
                env={**os.environ, "PYTHONPATH": path, "TF_CONFIG": told},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        ended = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()

    assert [out for out, _ in ended] == ["done\n"] * 2, ended
    opened = open_run(run)
    assert opened.steps("gradients").tolist() == [0, 2]
    x = np.random.default_rng(0).normal(size=(48, 3)).astype("f")
    gradients = opened.gradients["kernel"]
    for step in (0, 2):  # those of both workers, added up
        expected = x[8 * step : 8 * step + 8].sum(0) / 8
        np.testing.assert_allclose(gradients.frame(step)[:, 0], expected, rtol=1e-5)


def old_graph() -> tuple[Any, Any, Any, Any]:
    """Return a graph of TensorFlow 1, its placeholder, and what trains and what only looks."""
    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default():
        x = v1.placeholder(tf.float32, (None, 3), name="x")
        w = v1.get_variable("dense/w", initializer=tf.ones((3, 2)))
        y = tf.nn.relu(tf.matmul(x, w, name="dense/MatMul"), name="dense/Relu")
        loss = tf.reduce_sum(y)
        count = v1.train.get_or_create_global_step()
        train = v1.train.GradientDescentOptimizer(0.5).minimize(loss, global_step=count)
    return graph, x, train, y


def check_old(run: str) -> None:
    opened = open_run(run)
    assert opened.layers("activations") == ["dense.MatMul", "dense.Relu"]
    assert opened.steps("weights").tolist() == [0, 2, 4]
    for step in (0, 2, 4):
        weight = opened.weights["dense.w"].frame(step)
        np.testing.assert_allclose(weight, np.full((3, 2), 1 - 2.0 * step))
        relu = np.maximum(np.ones((1, 3)) @ weight, 0)
        np.testing.assert_allclose(opened.activations["dense.Relu"].frame(step), relu)


def test_a_monitored_session_is_captured_by_a_hook(run: str) -> None:
    graph, x, train, y = old_graph()
    with graph.as_default():
        hook = CaptureHook(run, every=2)
        with tf.compat.v1.train.MonitoredSession(hooks=[hook]) as session:
            for _ in range(5):
                session.run(train, {x: np.ones((4, 3))})
                session.run(y, {x: np.ones((1, 3))})
                session.run(tf.compat.v1.train.get_global_step())

    opened = open_run(run)
    assert opened.steps("weights").tolist() == [0, 2, 4]
    assert opened.gradients["dense.w"].frame(0).tolist() == [[4.0, 4.0]] * 3
    assert opened.weights["dense.w"].frame(2).tolist() == [[-1.0, -1.0]] * 3
    assert opened.layers("activations") == ["dense.MatMul", "dense.Relu"]
    assert opened.status().state == "finished"


def test_a_plain_session_is_captured_while_it_is_asked_for(run: str) -> None:
    graph, x, train, y = old_graph()
    with graph.as_default(), tf.compat.v1.Session() as session:
        session.run(tf.compat.v1.global_variables_initializer())
        with capture_session(session, run, every=1) as capture:
            result = session.run({"y": y, "t": train}, feed_dict={x: np.ones((4, 3))})
            capture.log(loss=1.0)
            session.run(train, {x: np.ones((4, 3))})
        session.run(train, {x: np.ones((4, 3))})

    assert result["y"].shape == (4, 2)
    opened = open_run(run)
    assert opened.steps("gradients").tolist() == [0, 1]
    assert opened.scalars["loss"].steps.tolist() == [0]


@pytest.mark.parametrize("way", ["hook", "session"])
def test_what_a_run_does_not_need_is_not_computed_for_it(run: str, way: str) -> None:
    v1 = tf.compat.v1

    def train(*, captured: bool) -> tuple[list[float], float]:
        """Return what is left of a pipeline of validation, and the weight."""
        with tf.Graph().as_default() as graph:
            v1.train.get_or_create_global_step()
            x = v1.placeholder(tf.float32, (None, 1), name="x")
            given = v1.placeholder(tf.float32, (None, 1), name="given")
            numbers = tf.data.Dataset.range(4).map(lambda i: tf.cast(i, tf.float32)[None, None])
            held_out = v1.data.make_one_shot_iterator(numbers).get_next()
            w = v1.get_variable("w", initializer=tf.ones((1, 1)))
            loss = tf.reduce_sum(tf.matmul(x, w, name="train"))
            check = tf.matmul(held_out, w, name="check")
            tf.matmul(given, w, name="idle")
            update = v1.train.GradientDescentOptimizer(0.0625).minimize(loss)
            if way == "hook":
                hooks = [CaptureHook(run, every=1)] if captured else []
                with v1.train.MonitoredSession(hooks=hooks) as session:
                    for _ in range(3):
                        session.run(update, {x: np.ones((2, 1))})
                    return [session.run(check).item() for _ in range(4)], session.run(w).item()
        with v1.Session(graph=graph) as session, graph.as_default():
            session.run(v1.global_variables_initializer())
            with capture_session(session, run, every=1) if captured else nullcontext():
                session.run(update, {x: np.ones((2, 1))})
                session.run([update], feed_dict={"x:0": np.ones((2, 1))})
                session.run({"named": update.name}, {x: np.ones((2, 1))})
                return [session.run(check).item() for _ in range(4)], session.run(w).item()

    assert train(captured=True) == train(captured=False)
    opened = open_run(run)
    assert opened.layers("activations") == ["train"]
    assert [opened.weights["w"].frame(step).item() for step in range(3)] == [1, 0.875, 0.75]
    assert opened.gradients["w"].frame(2).item() == 2.0


def test_what_a_run_is_fed_is_not_computed(run: str) -> None:
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 1), name="x")
        w = v1.get_variable("w", initializer=tf.ones((1, 1)))
        below = tf.nn.relu(tf.matmul(x, w, name="below"), name="cut")
        loss = tf.reduce_sum(tf.matmul(below, w, name="above"))
        update = v1.train.GradientDescentOptimizer(0.5).minimize(loss, var_list=[w])
        direct = v1.assign_sub(w, tf.reduce_sum(tf.matmul(below, w, name="tail"))[None, None])
        session.run(v1.global_variables_initializer())
        with capture_session(session, run, every=1):
            session.run(update, {x: np.ones((2, 1))})
            session.run(direct, {below: np.full((2, 1), 3.0)})

    opened = open_run(run)
    assert opened.activations["below"].steps.tolist() == [0]
    assert opened.layers("activations") == ["below", "cut", "above"]


@pytest.mark.parametrize(
    ("keyword", "selector", "message"),
    [
        ("layers", "dense.conv", r"no layer matches 'dense.conv'; nearest: dense"),
        ("layers", "type:Dense", "types are known only of modules .* this graph has none"),
        ("exclude", ["type:Dense"], "types are known only of modules"),
    ],
)
def test_a_selector_that_matches_no_operation_is_refused(
    run: str, keyword: str, selector: Any, message: str
) -> None:
    graph, _, _, _ = old_graph()
    with (
        graph.as_default(),
        tf.compat.v1.Session() as session,
        pytest.raises(PlanError, match=message),
        capture_session(session, run, **{keyword: selector}),
    ):
        pass

    assert not Path(run).exists()


def test_the_variable_inside_of_a_keras_variable_is_the_same_at_every_look() -> None:
    dense = L.Dense(2)
    dense.build((None, 3))

    assert underlying(dense.kernel) is underlying(dense.kernel)


@pytest.mark.parametrize(
    ("array", "dtype", "frame"),
    [
        (np.arange(12.0).reshape(4, 3), "float64", np.arange(6.0).reshape(2, 3)),
        (np.array([0.1, -np.inf, np.nan, 3e38] * 2), "float32", None),
        (np.array([0.1, 2.0, -3.5, 0.0]), "bfloat16", None),
        (np.array([True, False, True, True]), "bool", None),
        (np.array([1 + 2j, 3 - 4j]), "complex64", None),
        (np.array([7, -8, 9, 2**40]), "int64", None),
        (np.array([0.5, 448.0]), "float8_e4m3fn", None),
    ],
)
def test_a_slot_holds_the_samples_and_what_the_store_would_count(
    array: Any, dtype: str, frame: Any
) -> None:
    stage = HeldStage()
    tensor = tf.cast(tf.constant(array), dtype)
    expected = numbers(tensor.numpy())
    kept = tensor.numpy()[:2] if frame is None else frame
    kind = "float16" if dtype.startswith("float8") else dtype
    take = Take((2, *array.shape[1:]), kind, samples=2)
    order = Order(0, array.shape, take, frame=0, values=64, counts=192)
    slot = stage.slot(192 + COUNT_BYTES)
    stage.put(slot, order, tensor)
    fence = stage.fence()
    stage.wait(fence)
    stage.wait(fence)

    if kind == "bfloat16":
        kept = kept.view(np.uint16)
    found = view(slot.memory, 0, take)
    np.testing.assert_array_equal(found, kept.astype(found.dtype))
    np.testing.assert_array_equal(slot.memory[64 : 64 + 72].view(np.float64), summarize(expected))
    counts = slot.memory[192:].view(np.int64)
    np.testing.assert_array_equal(ascending(counts), bit_histogram(expected))


@pytest.mark.parametrize("output", ["string", "ragged", "mapping"])
def test_unusual_outputs_are_kept_or_left_out_and_nothing_fails(run: str, output: str) -> None:
    class Odd(tf.Module):  # type: ignore[misc]
        def __call__(self, x: Any) -> Any:
            if output == "string":
                return tf.strings.as_string(x)
            return tf.RaggedTensor.from_tensor(x) if output == "ragged" else {"a": x, "b": (x,)}

    class Both(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.odd, self.fc = Odd(), Affine(3, 2)

        def __call__(self, x: Any) -> Any:
            self.odd(x)
            return self.fc(x)

    model = Both()
    with Capture(model, run=run, every=1) as capture:
        step = capture.wrap(tf.function(model))
        for _ in range(2):
            step(tf.ones((4, 3)))

    expected = ["odd.a", "odd.b.0", "fc"] if output == "mapping" else ["fc"]
    assert open_run(run).layers("activations") == expected
    assert open_run(run).status().errors == 0
