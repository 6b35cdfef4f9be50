"""Trains a Keras model batch by batch."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

x, y = np.random.default_rng(0).normal(size=(40, 6)), np.arange(40) % 3
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((6,)),
        keras.layers.Dense(5, activation="tanh", name="hidden"),
        keras.layers.Dense(3, name="fc"),
    ]
)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
for start in range(0, 40, 8):
    print(float(model.train_on_batch(x[start : start + 8], y[start : start + 8])))
