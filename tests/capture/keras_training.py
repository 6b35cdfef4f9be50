"""A Keras model of digits, and what trains and observes it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Sums that several threads share end differently, now and then, with nobody looking; and what
    # the graph optimizer joins depends on what else is fetched. Both off, bits can be compared.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

L = keras.layers
Array = npt.NDArray[Any]


def digits() -> tuple[Array, Array]:
    """Return 64 images (n, 8, 8, 1) and labels."""
    images, labels = load_digits(return_X_y=True)
    return images[:64].reshape(-1, 8, 8, 1).astype("float32") / 16, labels[:64]


class Observed(keras.optimizers.SGD):  # type: ignore[misc]
    """Notes, run eagerly, what each update is given, and the weights at that time."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(learning_rate=0.1, **keywords)
        self.seen: list[dict[str, tuple[Array, Array]]] = []

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        """Begin a step."""
        self.seen.append({})
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Note a variable and its gradient, by the order in which they come."""
        self.seen[-1][str(len(self.seen[-1]))] = (np.array(gradient), variable.numpy())
        super().update_step(gradient, variable, learning_rate)


def compiled(model: Any, optimizer: Any = "adam", **keywords: Any) -> Any:
    """Return the model, ready for fit."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], **keywords)
    return model


def network() -> Any:
    """Return a network with batch norm and dropout, the same every time."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(4, 3, padding="same", name="conv1"),
            L.BatchNormalization(name="bn"),
            L.ReLU(name="relu"),
            L.Dropout(0.3, name="drop"),
            L.Flatten(name="flat"),
            L.Dense(10, name="fc"),
        ],
        name="net",
    )


@dataclass
class Trained:
    """What training leaves behind."""

    losses: list[float]
    weights: list[Array]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Trained)
            and self.losses == other.losses
            and all(map(np.array_equal, self.weights, other.weights))
        )

    def distance(self, other: Trained) -> float:
        """Return how far weights are apart at most."""
        pairs = zip(self.weights, other.weights, strict=True)
        return max(float(np.abs(a - b).max()) for a, b in pairs)


class Losses(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes the loss after every batch."""

    def __init__(self, after: Callable[[int], None] = lambda batch: None) -> None:
        super().__init__()
        self.losses: list[float] = []
        self._after = after

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """Note it."""
        self.losses.append(logs["loss"])
        self._after(len(self.losses))


def fit(
    model: Any,
    callbacks: Sequence[Any] = (),
    *,
    epochs: int = 2,
    after: Callable[[int], None] = lambda batch: None,
) -> Trained:
    """Train in batches of 12, of which the last is short: 6 steps an epoch."""
    x, y = digits()
    losses = Losses(after)
    keras.utils.set_random_seed(1)
    model.fit(x, y, batch_size=12, epochs=epochs, verbose=0, callbacks=[losses, *callbacks])
    return Trained(losses.losses, [weight.numpy() for weight in model.weights])
