"""The promises of all adapters, kept by each."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import torch
from capture.tap_contract import (
    PARAMETERS,
    RATE,
    STEPS,
    After,
    Outcome,
    TapContract,
    batch,
    nothing,
    start,
)
from torch import nn

import filmstrip.capture.keras
import filmstrip.capture.pytorch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras' own
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.conv1(x).permute(0, 2, 3, 1).flatten(1))
        return logits


class TestPyTorch(TapContract):
    names: ClassVar = {"conv1.kernel": "conv1.weight", "fc.kernel": "fc.weight"}

    def train(self, after: After = nothing, **keywords: Any) -> Outcome:
        model = Net()
        first = start()
        turns = {"conv1.kernel": (3, 2, 0, 1), "fc.kernel": (1, 0)}
        with torch.no_grad():
            for name, parameter in zip(PARAMETERS, model.parameters(), strict=True):
                array = first[name]
                parameter.copy_(torch.tensor(array.transpose(turns.get(name, (0,)))))
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        outcome = Outcome()
        if keywords:
            outcome.capture = filmstrip.capture.pytorch.Capture(model, optimizer, **keywords)
        try:
            for step in range(STEPS):
                x, y = map(torch.tensor, batch(step))
                loss = nn.functional.cross_entropy(model(x.permute(0, 3, 1, 2)), y)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                outcome.losses.append(loss.item())
                after(step, outcome.capture)
        finally:
            outcome.close()
        outcome.weights = [parameter.detach().numpy() for parameter in model.parameters()]
        return outcome


def network() -> Any:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, padding="same", name="conv1"),
            layers.Flatten(name="flat"),
            layers.Dense(10, name="fc"),
        ]
    )
    model.set_weights(list(start().values()))
    return model


def loss_function() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class TestKeras(TapContract):
    def train(self, after: After = nothing, **keywords: Any) -> Outcome:
        model = network()
        model.compile(keras.optimizers.SGD(RATE), loss_function(), run_eagerly=True)
        outcome = Outcome()
        if keywords:
            outcome.capture = filmstrip.capture.keras.Capture(model=model, **keywords)
        try:
            for step in range(STEPS):
                outcome.losses.append(float(model.train_on_batch(*batch(step))))
                after(step, outcome.capture)
        finally:
            outcome.close()
        outcome.weights = model.get_weights()
        return outcome


if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    import filmstrip.capture.tensorflow

    class TestFunctions(TapContract):
        def train(self, after: After = nothing, **keywords: Any) -> Outcome:
            model, optimizer, loss_of = network(), keras.optimizers.SGD(RATE), loss_function()

            @tf.function  # type: ignore[untyped-decorator]
            def train_step(x: Any, y: Any) -> Any:
                with tf.GradientTape() as tape:
                    loss = loss_of(y, model(x, training=True))
                weights = model.trainable_variables
                optimizer.apply(tape.gradient(loss, weights), weights)
                return loss

            outcome, step_of = Outcome(), train_step
            if keywords:
                capture = filmstrip.capture.tensorflow.Capture(model, optimizer, **keywords)
                outcome.capture, step_of = capture, capture.wrap(train_step)
            try:
                for step in range(STEPS):
                    x, y = batch(step)
                    outcome.losses.append(float(step_of(tf.constant(x), tf.constant(y))))
                    after(step, outcome.capture)
            finally:
                outcome.close()
            outcome.weights = model.get_weights()
            return outcome

    class TestSessions(TapContract):
        names: ClassVar = {"conv1": "conv1.out", "fc": "fc.out"}

        def train(self, after: After = nothing, **keywords: Any) -> Outcome:
            v1 = tf.compat.v1
            graph = tf.Graph()
            with graph.as_default():
                x = v1.placeholder(tf.float32, (None, 8, 8, 1), name="x")
                y = v1.placeholder(tf.int64, (None,), name="y")
                variables = {
                    name: v1.get_variable(name.replace(".", "/"), initializer=array)
                    for name, array in start().items()
                }
                kernel, bias, matrix, offset = variables.values()
                conv1 = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias, name="conv1/out")
                flat = tf.reshape(conv1, (-1, 256))
                fc = tf.nn.bias_add(flat @ matrix, offset, name="fc/out")
                loss = v1.losses.sparse_softmax_cross_entropy(y, fc)
                train = v1.train.GradientDescentOptimizer(RATE).minimize(loss)
                outcome = Outcome()
                with v1.Session() as session, ExitStack() as stack:
                    session.run(v1.global_variables_initializer())
                    if keywords:
                        outcome.capture = stack.enter_context(
                            filmstrip.capture.tensorflow.capture_session(session, **keywords)
                        )
                    try:
                        for step in range(STEPS):
                            images, labels = batch(step)
                            feed = {x: images, y: labels}
                            outcome.losses.append(float(session.run((loss, train), feed)[0]))
                            after(step, outcome.capture)
                    finally:
                        outcome.close()
                    outcome.weights = session.run(list(variables.values()))
            return outcome


def test_keras_on_the_torch_backend_keeps_the_promises_too() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--no-header", "--no-cov", f"{__file__}::TestKeras"),
        ],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
