"""Pictures of finished runs of scripts that contain no drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from capture.keras_training import L, compiled, digits
from PIL import Image

from filmstrip import render
from filmstrip.capture.keras import Capture
from filmstrip.capture.tensorflow import capture_session
from filmstrip.store import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras' own
]
PICTURES = ("maps", "kernels", "weights", "activations", "loss")


def train_keras(run: str) -> None:
    x, y = digits()
    keras.utils.set_random_seed(0)
    conv = {"padding": "same", "activation": "relu"}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(16, 3, name="conv1", **conv),
            L.Conv2D(64, 3, name="conv2", **conv),
            L.Flatten(name="flatten"),
            L.Dense(10, name="fc"),
        ]
    )
    compiled(model, jit_compile=False)
    capture = Capture(run, every=2)
    model.fit(x, y, batch_size=16, epochs=3, verbose=0, callbacks=[capture])


def train_session(run: str) -> None:
    x, y = digits()
    v1, graph = tf.compat.v1, tf.Graph()
    with graph.as_default(), v1.Session() as session:
        v1.set_random_seed(0)
        images, labels = v1.placeholder(tf.float32, (None, 8, 8, 1)), v1.placeholder(tf.int64, None)

        def convolved(name: str, value: Any, filters: int) -> Any:
            shape = (3, 3, int(value.shape[-1]), filters)
            with v1.variable_scope(name):
                kernel = v1.get_variable("kernel", shape)
                return tf.nn.relu(tf.nn.conv2d(value, kernel, 1, "SAME"), name="relu")

        maps = convolved("conv2", convolved("conv1", images, 16), 64)
        with v1.variable_scope("fc"):
            matrix = v1.get_variable("kernel", (64 * 64, 10))
            logits = tf.matmul(tf.reshape(maps, (-1, 64 * 64)), matrix, name="out")
        loss = v1.losses.sparse_softmax_cross_entropy(labels, logits)
        train = v1.train.AdamOptimizer(1e-3).minimize(loss)
        session.run(v1.global_variables_initializer())
        with capture_session(session, run, every=2) as capture:
            for start in [*range(0, 64, 16)] * 3:
                feed = {images: x[start : start + 16], labels: y[start : start + 16]}
                value, _ = session.run((loss, train), feed)
                capture.log(loss=value)


@pytest.mark.parametrize(
    ("train", "output"),
    [(train_keras, "conv2"), (train_session, "conv2.relu")],
    ids=["keras", "session"],
)
def test_a_finished_run_is_drawn_without_the_script(
    run: str, tmp_path: Path, train: Any, output: str
) -> None:
    train(run)

    opened = open_run(run)
    maps, kernels = opened.activations[output], opened.weights["conv1.kernel"]
    assert (maps.shape, maps.layout) == ((1, 8, 8, 64), "NHWC")
    assert (kernels.shape, kernels.layout) == ((3, 3, 1, 16), "HWIO")
    tiles = render.mosaic(maps, columns=8, padding=0)
    assert tiles.shape == (64, 64)
    for channel in (0, 9, 63):
        row, column = divmod(channel, 8)
        np.testing.assert_array_equal(
            tiles[8 * row : 8 * row + 8, 8 * column : 8 * column + 8],
            maps.frame(-1)[0, ..., channel],
        )
    drawn = {
        "maps": render.grid(maps),
        "kernels": render.grid(kernels),
        "weights": render.histogram(opened.weights["fc.kernel"]),
        "activations": render.histogram(maps),
        "loss": render.curve(opened.scalars["loss"]),
    }
    for name in PICTURES:
        drawn[name].save(tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    losses = opened.scalars["loss"].values
    assert losses[-1] < losses[0]
