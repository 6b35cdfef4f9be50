"""Fits a Keras model twice, as tutorials do, on whatever backend."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from sklearn.datasets import load_digits

images, labels = load_digits(return_X_y=True)
x, y = images[:64].reshape(-1, 8, 8, 1).astype("float32") / 16, labels[:64]
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(4, 3, activation="relu", name="conv1"),
        keras.layers.Dropout(0.2, name="drop"),
        keras.layers.Flatten(name="flat"),
        keras.layers.Dense(10, name="fc"),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"], jit_compile=False)
model.evaluate(x, y, verbose=0)
history = model.fit(x, y, batch_size=16, verbose=0, validation_data=(x, y))
print(history.history)
stop = keras.callbacks.EarlyStopping("loss", patience=5)
print(model.fit(x, y, batch_size=16, epochs=2, verbose=0, callbacks=[stop]).history)
print([float(keras.ops.sum(weight.value)) for weight in model.weights])
