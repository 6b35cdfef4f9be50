"""Models that are compiled, trained, saved and copied again, and what cannot be captured."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import ZipFile

import keras
import numpy as np
import pytest
import tensorflow as tf
from capture.keras_training import L, compiled, fit, network

from filmstrip.capture import PlanError, UnsupportedModelError
from filmstrip.capture.keras import Capture
from filmstrip.store import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras' own
]
EAGER = {"run_eagerly": True}
GRAPH = {"jit_compile": False}


def test_a_model_that_is_compiled_anew_goes_on_in_the_same_run(run: str) -> None:
    model, capture = compiled(network(), **EAGER), Capture(run, every=2)
    fit(model, [capture], epochs=1)
    compiled(model, "sgd", **EAGER)
    for _ in range(2):
        fit(model, [capture], epochs=1)

    assert capture.state_dict() == {"step": 18}
    opened = open_run(run)
    assert opened.steps("gradients").tolist() == list(range(0, 18, 2))
    assert opened.scalars["loss"].steps.tolist() == list(range(18))


@pytest.mark.parametrize(("parts", "scaled"), [(2, False), (2, True), (None, True)])
def test_an_optimizer_that_accumulates_or_scales_goes_on_in_the_same_run(
    run: str, parts: int | None, scaled: bool
) -> None:
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=parts)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0)
    model = keras.Sequential([keras.Input((3,)), L.Dense(2, name="fc")])
    model.compile(optimizer, "mse", **EAGER)
    capture = Capture(run, every=1, if_exists="fail")
    for _ in range(2):
        x, y = np.ones((16, 3), np.float32), np.ones((16, 2), np.float32)
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[capture])
    capture.close()

    opened = open_run(run)
    assert opened.steps("weights").tolist() == list(range(8 // (parts or 1)))
    assert opened.steps("gradients").tolist() == opened.steps("weights").tolist()


def test_where_layers_are_frozen_by_a_callback_a_new_run_begins(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    class Freeze(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.get_layer("conv1").trainable = epoch != 0
            compiled(self.model, "sgd", **EAGER).make_train_function()

    fit(compiled(network(), **EAGER), [Freeze(), Capture(run, every=3)], epochs=3)

    assert capsys.readouterr().err.count("a new run is made beside it") == 2
    found = [open_run(run.replace(".zarr", f"{more}.zarr")) for more in ("", "-2", "-3")]
    steps = [opened.gradients["fc.kernel"].steps.tolist() for opened in found]
    assert steps == [[0, 3], [6, 9], [12, 15]]
    assert "conv1.kernel" not in found[1].layers("gradients")
    assert found[2].layers("gradients") == found[0].layers("gradients")


def test_what_is_saved_or_copied_in_the_meantime_has_nothing_of_capture(
    run: str, tmp_path: Path
) -> None:
    copies: list[Any] = []

    class Saver(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 1 and not copies:
                self.model.save(tmp_path / "saved.keras")
                self.model.export(tmp_path / "exported", verbose=False)
                copies.append(keras.models.clone_model(self.model))

    fit(compiled(network(), jit_compile=False), [Saver(), Capture(run, every=1)], epochs=1)
    copies.append(keras.models.load_model(tmp_path / "saved.keras"))
    for model in copies:
        fit(compiled(model, **EAGER), epochs=1)

    assert open_run(run).steps("weights").tolist() == [0, 1, 2, 3, 4, 5]
    with ZipFile(tmp_path / "saved.keras") as archive:
        assert not any(b"filmstrip" in archive.read(name) for name in archive.namelist())
    files = [path for path in (tmp_path / "exported").rglob("*") if path.is_file()]
    assert files
    assert not any(b"filmstrip" in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (3, "model is a int, not a keras.Model"),
        (L.Dense(3), "model is a Dense, not a keras.Model"),
        (keras.Sequential([keras.Input((3,))], name="plain"), "'plain' is not compiled"),
    ],
)
def test_a_model_without_a_train_step_is_refused(run: str, model: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Capture(run, model=model)

    assert not Path(run).exists()


class Counter(L.Layer):  # type: ignore[misc]
    """Counts its calls in a variable of Keras and in one of TensorFlow, and in a random state."""

    def build(self, shape: Any) -> None:
        """Begin to count."""
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.others = tf.Variable(0.0, trainable=False)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x: Any) -> Any:
        """Return what depends on all of them."""
        self.calls.assign_add(1.0)
        self.others.assign_add(1.0)
        noise = keras.random.uniform((), seed=self.seeds)
        return x * (1 + self.calls + keras.ops.convert_to_tensor(self.others) + noise) / 16


@pytest.mark.parametrize("keywords", [EAGER, GRAPH, {"jit_compile": True}])
@pytest.mark.parametrize("what", ["counter", "stateful"])
def test_a_probe_leaves_what_a_model_remembers_as_it_was(
    run: str, what: str, keywords: dict[str, Any]
) -> None:
    x = np.random.default_rng(0).normal(size=(16, 5, 2)).astype(np.float32)

    def train(callbacks: list[Any]) -> list[Any]:
        keras.utils.set_random_seed(0)
        remembering = [Counter(), L.Flatten()] if what == "counter" else [L.LSTM(3, stateful=True)]
        model = keras.Sequential([keras.Input((5, 2), batch_size=4), *remembering, L.Dense(1)])
        model.compile("sgd", "mse", **keywords)
        history = model.fit(
            *(x, x[:, 0, :1]), batch_size=4, epochs=2, shuffle=False, verbose=0, callbacks=callbacks
        ).history
        return [history["loss"], *model.get_weights()]

    plain, captured = train([]), train([Capture(run, every=2, probe=x[4:8])])

    for mine, theirs in zip(captured, plain, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)
    assert open_run(run).steps("activations").tolist() == [0, 2, 4, 6]


def test_a_probe_that_is_no_array_of_numbers_is_refused(run: str) -> None:
    probes: tuple[object, ...] = ("text", [])
    for probe in probes:
        with pytest.raises(PlanError, match="give what the model is called with"):
            fit(compiled(network(), **EAGER), [Capture(run, probe=probe)])


def test_a_sequence_model_with_loops_masks_and_shared_layers_is_the_same_to_the_bit(
    run: str,
) -> None:
    def train(callbacks: list[Any]) -> list[Any]:
        keras.utils.set_random_seed(0)
        tokens = keras.Input((6,))
        embedded = L.Embedding(20, 6, mask_zero=True, name="embed")(tokens)
        both = L.Bidirectional(L.LSTM(3, return_sequences=True, name="lstm"), name="both")(embedded)
        shared = L.Dense(6, name="shared")
        attended = L.MultiHeadAttention(2, 3, name="mha")(shared(both), shared(embedded))
        pooled = L.GlobalAveragePooling1D(name="pool")(L.Dropout(0.2, name="drop")(attended))
        outputs = {"a": L.Dense(3, name="a")(pooled), "b": L.Dense(1, name="b")(pooled)}
        model = keras.Model(tokens, outputs)
        losses = {"a": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "b": "mse"}
        optimizer = keras.optimizers.Adam(
            0.01, use_ema=True, weight_decay=0.01, global_clipnorm=0.5
        )
        model.compile(optimizer, losses, **EAGER)
        x = np.random.default_rng(0).integers(0, 20, (12, 6))
        y = {"a": x[:, 0] % 3, "b": x[:, :1] / 20}
        weights = {"a": np.linspace(0, 1, 12), "b": np.ones(12)}
        history = model.fit(
            *(x, y), sample_weight=weights, batch_size=5, verbose=0, callbacks=callbacks
        ).history
        return [history, *model.get_weights()]

    plain, captured = train([]), train([Capture(run, every=2)])

    assert plain[0] == captured[0]
    assert all(map(np.array_equal, plain[1:], captured[1:]))
    opened = open_run(run)
    found = opened.layers("activations")
    assert {"embed", "shared", "shared#1", "mha.query", "drop", "pool", "a", "b"} <= set(found)
    assert {name.partition("_")[0] for name in found if "both" in name} == {
        "both.forward",
        "both.backward",
    }
    assert len(opened.layers("weights")) == len(plain) - 1
    assert opened.status().errors == 0
