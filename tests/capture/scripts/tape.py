"""Trains a Keras model by a function with a gradient tape."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

x, y = np.random.default_rng(0).normal(size=(40, 6)).astype("float32"), np.arange(40) % 3
keras.utils.set_random_seed(0)


class Net(keras.Model):  # type: ignore[misc]
    """Is built by its first batch."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.hidden = keras.layers.Dense(5, activation="tanh", name="hidden")
        self.drop = keras.layers.Dropout(0.3, name="drop")
        self.fc = keras.layers.Dense(3, name="fc")

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Return logits."""
        return self.fc(self.drop(self.hidden(x), training=training))


model = Net()
optimizer = keras.optimizers.SGD(0.1)
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@tf.function  # type: ignore[untyped-decorator]
def train_step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Do a step."""
    print("tracing")
    with tf.GradientTape() as tape:
        loss = loss_of(y, model(x, training=True))
    variables = model.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    return loss


@tf.function  # type: ignore[untyped-decorator]
def evaluate(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Return the loss."""
    return loss_of(y, model(x))


data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
for epoch in range(2):
    for features, labels in data:
        loss = train_step(features, labels)
    print(epoch, float(loss), float(evaluate(x, y)))
