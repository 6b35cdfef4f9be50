from __future__ import annotations

import argparse
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from capture.keras_training import L, Observed, compiled, digits, fit, network

import filmstrip.capture.tensorflow
from filmstrip.capture import (
    CaptureError,
    PlanError,
    UnsupportedModelError,
    add_capture_arguments,
    capture_from_arguments,
)
from filmstrip.capture.keras import Capture
from filmstrip.store import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras' own
]
GRAPH = {"jit_compile": False}
EAGER = {"run_eagerly": True}


@pytest.mark.parametrize(
    "keywords", [EAGER, GRAPH, {**GRAPH, "steps_per_execution": 4}], ids=["eager", "graph", "block"]
)
def test_training_has_the_same_bits_with_and_without_capture(
    run: str, keywords: dict[str, Any]
) -> None:
    plain = fit(compiled(network(), **keywords))
    captured = fit(compiled(network(), **keywords), [Capture(run, every=2)])

    assert captured == plain
    opened = open_run(run)
    assert opened.steps("activations").tolist() == opened.steps("weights").tolist()
    assert opened.steps("gradients").tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("keywords", [GRAPH, {"jit_compile": True}], ids=["graph", "xla"])
def test_optimized_training_is_within_rounding(
    run: str, keywords: dict[str, Any], graph_optimizer: None
) -> None:
    plain = fit(compiled(network(), "sgd", **keywords))
    captured = fit(compiled(network(), "sgd", **keywords), [Capture(run, every=2)])

    assert captured.distance(plain) < 1e-5
    assert open_run(run).steps("activations").tolist() == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("clip", [{}, {"clipnorm": 0.01}, {"clipvalue": 0.001}])
def test_frames_are_what_an_observer_of_the_optimizer_sees(
    run: str, clip: dict[str, float]
) -> None:
    optimizer = Observed(**clip)
    model = compiled(network(), optimizer, **EAGER)
    fit(model, [Capture(run, every=3)], epochs=1)

    opened = open_run(run)
    names = ["conv1.kernel", "conv1.bias", "bn.gamma", "bn.beta", "fc.kernel", "fc.bias"]
    assert opened.layers("gradients") == names
    for step in (0, 3):
        for name, (gradient, weight) in zip(names, optimizer.seen[step].values(), strict=True):
            np.testing.assert_array_equal(opened.gradients[name].frame(step), gradient)
            np.testing.assert_array_equal(opened.weights[name].frame(step), weight)


@pytest.mark.parametrize("keywords", [EAGER, GRAPH, {"jit_compile": True}])
def test_an_activation_is_that_of_the_weights_in_the_same_row(
    run: str, keywords: dict[str, Any]
) -> None:
    model = compiled(
        keras.Sequential([keras.Input((8, 8, 1)), L.Conv2D(4, 3, name="conv"), L.Flatten()]),
        **keywords,
    )
    x, y = digits()
    model.fit(
        *(x, y),
        batch_size=16,
        verbose=0,
        shuffle=False,
        callbacks=[Capture(run, every=1, samples=16)],
    )

    opened = open_run(run)
    for step in range(4):
        kernel = opened.weights["conv.kernel"].frame(step)
        bias = opened.weights["conv.bias"].frame(step)
        expected = tf.nn.conv2d(x[step * 16 : step * 16 + 16], kernel, 1, "VALID") + bias
        frame = opened.activations["conv"].frame(step)
        np.testing.assert_allclose(frame, expected, rtol=1e-5, atol=1e-6)
        total = opened.statistics("activations")["conv", "sum"].values[step]
        np.testing.assert_allclose(total, frame.astype(np.float64).sum(), rtol=1e-9, atol=1e-9)


def test_names_and_layouts_are_those_of_keras_without_the_models_own(run: str) -> None:
    fit(compiled(network(), **EAGER), [Capture(run, every=100)], epochs=1)

    opened = open_run(run)
    found = {name: opened.activations[name].layout for name in opened.layers("activations")}
    assert found == {
        **dict.fromkeys(("conv1", "bn", "relu", "drop"), "NHWC"),
        "flat": "NC",
        "fc": "NC",
    }
    assert opened.weights["conv1.kernel"].layout == "HWIO"
    assert opened.weights["fc.kernel"].layout == "IO"
    assert {"bn.moving_mean", "bn.moving_variance"} < set(opened.layers("weights"))


class Block(L.Layer):  # type: ignore[misc]
    """Has a layer that it makes when it is built."""

    def build(self, shape: Any) -> None:
        """Make it."""
        self.late = L.Dense(5, name="late")
        super().build(shape)

    def call(self, x: Any) -> Any:
        """Call it twice."""
        return self.late(x) + self.late(x)


class Nested(keras.Model):  # type: ignore[misc]
    """A model that is built by its first batch, with blocks, a recurrent layer and two outputs."""

    def __init__(self) -> None:
        super().__init__(name="nested")
        self.blocks = [Block(name="b0"), Block(name="b1")]
        self.lstm = L.LSTM(3, name="lstm", return_state=True)
        self.out = L.Dense(10, name="out")

    def call(self, x: Any, training: bool = False) -> Any:
        """Return logits."""
        for block in self.blocks:
            x = block(x)
        return self.out(self.lstm(x[..., 0, :])[0])


def test_a_model_that_is_built_by_its_first_batch_is_captured_whole(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(compiled(Nested(), **GRAPH), [Capture(run, every=3)], epochs=1)

    opened = open_run(run)
    assert opened.layers("activations") == [
        *("b0.late", "b0.late#1", "b1.late", "b1.late#1"),
        *("lstm.0", "lstm.1", "lstm.2", "out"),
    ]
    assert opened.layers("weights") == [
        *("b0.late.kernel", "b0.late.bias", "b1.late.kernel", "b1.late.bias"),
        *("lstm.kernel", "lstm.recurrent_kernel", "lstm.bias", "out.kernel", "out.bias"),
    ]
    assert opened.steps("gradients").tolist() == [0, 3]
    assert "nothing came from" not in capsys.readouterr().err


def test_a_container_is_taken_by_its_exact_name(run: str) -> None:
    fit(compiled(Nested(), **GRAPH), [Capture(run, every=3, layers=["b1"])], epochs=1)

    assert open_run(run).layers("activations") == ["b1"]


def test_layers_are_selected_by_their_types(run: str) -> None:
    layers = ["type:Dense", L.LSTM, Block]
    fit(compiled(Nested(), **GRAPH), [Capture(run, every=3, layers=layers, exclude="b0.*")])

    opened = open_run(run)
    outputs = {name.partition("#")[0] for name in opened.activations}
    assert outputs == {"b0", "b1", "b1.late", "lstm.0", "lstm.1", "lstm.2", "out"}
    assert {name.partition(".")[0] for name in opened.weights} == {"b1", "lstm", "out"}


class Holder(L.Layer):  # type: ignore[misc]
    """Calls a layer that others may call, too."""

    def __init__(self, inner: Any, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.inner = inner

    def call(self, x: Any) -> Any:
        """Call it."""
        return self.inner(x)


@pytest.mark.parametrize("name", ["module.fc", "again.fc", "a*.fc"])
def test_a_layer_in_two_places_is_selected_by_either_name(run: str, name: str) -> None:
    fc = L.Dense(64, name="fc")
    first, second = Holder(fc, name="module"), Holder(fc, name="again")
    model = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), first, second])
    fit(compiled(model, **GRAPH), [Capture(run, every=3, layers=name)], epochs=1)

    opened = open_run(run)
    assert opened.layers("activations") == ["module.fc", "module.fc#1"]
    assert opened.layers("weights") == ["module.fc.kernel", "module.fc.bias"]
    kernel = opened.weights["again.fc.kernel"].frame(3)
    np.testing.assert_array_equal(kernel, opened.weights["module.fc.kernel"].frame(3))
    assert opened.statistics("gradients")["again.fc.bias", "count"].values.tolist() == [64, 64]


def test_numbers_of_fit_become_scalars_and_the_run_is_closed(run: str) -> None:
    x, y = digits()
    model = compiled(network(), **EAGER)
    history = model.fit(
        *(x, y), batch_size=16, epochs=2, verbose=0, validation_data=(x, y),
        callbacks=[Capture(run, every="epoch")],
    ).history  # fmt: skip

    opened = open_run(run)
    assert opened.scalars["loss"].steps.tolist() == list(range(8))
    np.testing.assert_allclose(opened.scalars["loss"].values[[3, 7]], history["loss"], rtol=1e-6)
    assert opened.scalars["val_loss"].steps.tolist() == [3, 7]
    assert opened.scalars["val_loss"].values.tolist() == history["val_loss"]
    assert opened.steps("weights").tolist() == [0, 4]
    assert opened.status().state == "finished"


def test_a_second_fit_goes_on_in_the_same_run(run: str) -> None:
    model = compiled(network(), **EAGER)
    capture = Capture(run, every=4)
    fit(model, [capture])
    fit(model, [capture])

    assert open_run(run).steps("weights").tolist() == [0, 4, 8, 12, 16, 20]


def test_a_model_that_is_loaded_goes_on_where_it_was(run: str, tmp_path: Path) -> None:
    model = compiled(network(), **EAGER)
    fit(model, [Capture(run, every=4)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    fit(loaded, [Capture(run, every=4)])

    assert open_run(run).steps("weights").tolist() == [0, 4, 8, 12, 16, 20]


def test_training_that_is_restored_by_a_callback_goes_on_where_it_was(
    run: str, tmp_path: Path
) -> None:
    def backup() -> Any:
        return keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)

    fit(compiled(network(), **EAGER), [Capture(run, every=4), backup()], epochs=1)
    fit(compiled(network(), **EAGER), [Capture(run, every=4), backup()], epochs=2)

    assert open_run(run).steps("weights").tolist() == [0, 4, 8]


def test_train_on_batch_is_captured_while_the_capture_is_open(run: str) -> None:
    x, y = digits()
    model = compiled(network(), **GRAPH)
    with Capture(run, model=model, every=2) as capture:
        for _ in range(5):
            model.train_on_batch(x[:16], y[:16])
        capture.log(extra=1.0)
        capture.image("x", x[0, ..., 0], layout="HW")
    model.train_on_batch(x[:16], y[:16])

    opened = open_run(run)
    assert opened.steps("weights").tolist() == [0, 2, 4]
    assert opened.scalars["extra"].steps.tolist() == opened.images["x"].steps.tolist() == [4]


def test_a_probe_gives_the_frames_and_leaves_training_as_it_was(run: str) -> None:
    x, _ = digits()
    plain = fit(compiled(network(), **GRAPH))
    captured = fit(compiled(network(), **GRAPH), [Capture(run, every=5, probe=x[-3:])])

    assert captured == plain
    opened = open_run(run)
    assert opened.activations["conv1"].shape == (3, 8, 8, 4)
    np.testing.assert_array_equal(opened.inputs["input"].frame(0), x[-3:])
    np.testing.assert_array_equal(
        opened.activations["drop"].frame(5), opened.activations["relu"].frame(5)
    )
    assert opened.statistics("activations")["conv1", "count"].values[0] == 12 * 8 * 8 * 4


@pytest.mark.parametrize(("micro_batches", "layers"), [("first", 1), ("last", 1), ("all", 3)])
def test_gradients_that_the_optimizer_accumulates_are_those_that_it_applies(
    run: str, micro_batches: str, layers: int
) -> None:
    optimizer = Observed(gradient_accumulation_steps=3, clipnorm=0.05)
    model = compiled(network(), optimizer, **EAGER)
    fit(model, [Capture(run, every=1, micro_batches=micro_batches)])

    opened = open_run(run)
    assert opened.steps("gradients").tolist() == [0, 1, 2, 3]
    assert len(opened.layers("activations", "fc*")) == layers
    updates = [seen for seen in optimizer.seen if seen]
    assert len(updates) == 4
    for step, seen in enumerate(updates):
        gradients = [opened.gradients[name].frame(step) for name in opened.layers("gradients")]
        for mine, (theirs, _) in zip(gradients, seen.values(), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_graph_accumulates_as_a_loop_does(tmp_path: Path) -> None:
    runs = []
    for name, keywords in (("eager", EAGER), ("graph", GRAPH)):
        path = str(tmp_path / name)
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
        dense = L.Dense(10, kernel_initializer="zeros", name="fc")
        model = keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), dense])
        fit(compiled(model, optimizer, **keywords), [Capture(path, every=1)])
        runs.append(open_run(path))

    for step in range(4):
        for kind in ("gradients", "weights"):
            eager, graph = (opened.strip(kind, "fc.kernel").frame(step) for opened in runs)
            np.testing.assert_allclose(eager, graph, rtol=1e-4, atol=1e-6)


def test_gradients_of_a_scaled_loss_are_unscaled(run: str) -> None:
    inner = Observed()
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
    fit(compiled(network(), optimizer, **EAGER), [Capture(run, every=1)], epochs=1)

    opened = open_run(run)
    for step in range(6):
        gradients = [opened.gradients[name].frame(step) for name in opened.layers("gradients")]
        for mine, (theirs, _) in zip(gradients, inner.seen[step].values(), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_step_that_a_scaled_loss_leaves_out_is_no_step(run: str) -> None:
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.01), initial_scale=2.0**127
    )
    model = compiled(network(), optimizer, **GRAPH)
    fit(model, [Capture(run, every=1)], epochs=1)

    count = int(optimizer.iterations)
    assert count < 6
    assert open_run(run).steps("weights").tolist() in (list(range(count)), list(range(count + 1)))


def test_half_precision_is_kept_to_the_bit(run: str) -> None:
    keras.utils.set_random_seed(0)
    dense = L.Dense(10, name="fc", dtype="mixed_bfloat16")
    model = compiled(keras.Sequential([keras.Input((64,)), dense]), **EAGER)
    seen = []
    real = dense.call

    def call(x: Any, training: bool | None = None) -> Any:
        seen.append(real(x))
        return seen[-1]

    dense.call = call
    x, y = digits()
    model.fit(x.reshape(-1, 64), y, batch_size=64, verbose=0, callbacks=[Capture(run, samples=64)])

    strip = open_run(run).activations["fc"]
    assert seen[-1].dtype == tf.bfloat16
    np.testing.assert_array_equal(strip.frame(0), tf.cast(seen[-1], tf.float32))


def test_every_optimizer_of_a_model_of_several_is_heard(run: str) -> None:
    class Two(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = L.Dense(4, name="a"), L.Dense(10, name="b")

        def compile(self, first: Any, second: Any, **keywords: Any) -> None:
            super().compile(**keywords)
            self.first, self.second = first, second

        def call(self, x: Any) -> Any:
            return self.b(self.a(x))

        def train_step(self, data: Any) -> dict[str, Any]:
            x, _ = data
            with tf.GradientTape(persistent=True) as tape:
                loss = tf.reduce_mean(self(x, training=True) ** 2)
            for optimizer, layer in ((self.first, self.a), (self.second, self.b)):
                weights = layer.trainable_weights
                optimizer.apply(tape.gradient(loss, weights), weights)
            return {"loss": loss}

    model = Two()
    model.compile(keras.optimizers.SGD(), keras.optimizers.Adam(), run_eagerly=True)
    x, y = digits()
    model.fit(x.reshape(-1, 64), y, batch_size=16, verbose=0, callbacks=[Capture(run, every=1)])

    opened = open_run(run)
    assert opened.layers("gradients") == ["a.kernel", "a.bias", "b.kernel", "b.bias"]
    assert opened.steps("gradients").tolist() == [0, 1, 2, 3]


def test_there_is_one_more_trace_and_memory_stays(run: str) -> None:
    traces: list[None] = []

    class Counting(L.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            traces.append(None)
            return x

    def train(callbacks: list[Any]) -> int:
        traces.clear()
        model = compiled(
            keras.Sequential([keras.Input((8, 8, 1)), Counting(), L.Flatten(), L.Dense(10)]),
            **GRAPH,
        )
        fit(model, callbacks, epochs=30)
        return len(traces)

    plain = train([])
    assert train([Capture(run, every=2)]) == plain + 1
    assert len(open_run(run).steps("weights")) == 90


def test_a_full_disk_ends_capture_and_not_training(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fit(compiled(network(), **GRAPH))
    full = [False]

    def unless_full(write: Any) -> Any:
        def written(*given: Any) -> Any:
            if full[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(*given)

        return written

    monkeypatch.setattr(os, "pwrite", unless_full(os.pwrite))
    monkeypatch.setattr(os, "pwritev", unless_full(os.pwritev))
    capture = Capture(run, every=1)
    captured = fit(
        compiled(network(), **GRAPH), [capture], after=lambda n: full.__setitem__(0, n >= 4)
    )
    full[0] = False
    with pytest.raises(CaptureError, match="No space left on device"):
        capture.close()

    assert captured == plain
    steps = open_run(run).steps("weights").tolist()
    assert steps == list(range(len(steps)))
    assert 1 <= len(steps) < 12


def test_a_run_that_is_deleted_does_not_end_training(run: str) -> None:
    plain = fit(compiled(network(), **GRAPH))
    capture = Capture(run, every=1)
    captured = fit(
        compiled(network(), **GRAPH),
        [capture],
        after=lambda n: shutil.rmtree(run, ignore_errors=True) if n == 4 else None,
    )

    assert captured == plain


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_ends_fit_passes_and_the_next_capture_takes_over(
    run: str, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    model = compiled(network(), **EAGER)

    def stop(batch: int) -> None:
        if batch == 5:
            raise error("stop")

    with pytest.raises(error, match="stop"):
        fit(model, [Capture(run, every=2)], after=stop)
    fit(model, [Capture(run, every=2)])

    assert open_run(run).steps("weights").tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16]
    assert "another one takes its place" in capsys.readouterr().err
    assert type(model.train_function).__name__ == "function"


def test_a_step_that_cannot_be_traced_with_taps_is_run_without(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(L.Layer):  # type: ignore[misc]
        """Looks at who calls it."""

        def call(self, x: Any) -> Any:
            if "filmstrip" in L.Layer.__call__.__module__:
                raise ValueError("not with taps")
            return x

    def made() -> Any:
        keras.utils.set_random_seed(0)
        return compiled(
            keras.Sequential([keras.Input((8, 8, 1)), Odd(), L.Flatten(), L.Dense(10)]), **GRAPH
        )

    plain = fit(made())
    capture = Capture(run, every=1)
    captured = fit(made(), [capture])
    with pytest.raises(CaptureError, match="not with taps"):
        capture.close()

    assert captured == plain
    assert "capture ends here" in caplog.text


def test_an_error_of_the_users_own_is_theirs(run: str) -> None:
    def wrong(*given: Any, **named: Any) -> Any:
        raise ValueError("a mistake of my own")

    model = compiled(keras.Sequential([keras.Input((8, 8, 1)), L.Flatten(), L.Dense(10)]), **GRAPH)
    model.layers[-1].call = wrong
    with pytest.raises(ValueError, match="a mistake of my own"):
        fit(model, [Capture(run)])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"layers": "conv9"}, "no layer matches 'conv9'; nearest: conv1"),
        ({"layers": "type:LSTM"}, r"'type:LSTM'; types of this Sequential: Conv2D, BatchN"),
        ({"phases": "eval"}, "probe="),
        ({"replicas": "all"}, "replicas='first'"),
        ({"kinds": "inputs"}, "give probe="),
        ({"every": 0}, "every=0"),
    ],
)
def test_misuse_is_refused_in_one_line(run: str, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        fit(compiled(network(), **GRAPH), [Capture(run, **keywords)])

    assert "\n" not in str(caught.value)
    assert not Path(run).exists()


def test_a_backend_that_capture_cannot_watch_is_named_with_those_that_it_can(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UnsupportedModelError, match=r"jax.*KERAS_BACKEND=tensorflow"):
        Capture(run)


def test_capture_that_is_off_leaves_the_model_alone(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FILMSTRIP", "off")
    model = compiled(network(), **EAGER)
    capture = Capture(run)
    fit(model, [capture], epochs=1)

    assert capture.path is None
    assert not Path(run).exists()


def test_a_command_line_asks_for_the_callback_of_a_keras_model(run: str) -> None:
    parser = add_capture_arguments(argparse.ArgumentParser())
    model = compiled(network(), **EAGER)
    off = capture_from_arguments(parser.parse_args([]), model)
    args = parser.parse_args(["--capture", run, "--capture-every", "epoch"])
    fit(model, [off, capture_from_arguments(args, model, every=3)])

    assert open_run(run).steps("weights").tolist() == [0, 6]
    assert isinstance(
        capture_from_arguments(parser.parse_args([]), tf.Module()),
        filmstrip.capture.tensorflow.Capture,
    )
