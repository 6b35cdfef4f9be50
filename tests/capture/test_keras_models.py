from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from capture.keras_training import L, compiled

from filmstrip.capture.keras import Capture
from filmstrip.store import open_run

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' own
@pytest.mark.parametrize(
    ("name", "eagerly"), [("ResNet50", True), ("MobileNetV2", False), ("EfficientNetB0", True)]
)
def test_a_model_of_keras_applications_is_captured_whole_by_default(
    run: str,
    name: str,
    eagerly: bool,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    keras.utils.set_random_seed(0)
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None)
    x = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    compiled(model, "sgd", jit_compile=False, run_eagerly=eagerly)
    model.fit(x, np.array([1, 2]), batch_size=2, verbose=0, callbacks=[Capture(run)])

    opened = open_run(run)
    layers = {layer.name for layer in model.layers if not isinstance(layer, L.InputLayer)}
    assert set(opened.layers("activations")) == layers
    assert len(opened.layers("weights")) == len(model.weights)
    assert len(opened.layers("gradients")) == len(model.trainable_weights)
    said = capsys.readouterr().err
    assert "nothing came from" not in said
    assert "statistics only" not in said
    assert not caplog.records


TORCH = """
import os, sys
os.environ["KERAS_BACKEND"] = "torch"
import numpy as np, keras
import filmstrip.capture.keras._torch
assert "tensorflow" not in sys.modules
from filmstrip.capture.keras import Capture
from filmstrip.store import open_run
L, run = keras.layers, sys.argv[1]
rng = np.random.default_rng(0)
x, y = rng.normal(size=(32, 8, 8, 1)).astype("f"), rng.integers(0, 10, 32)

def train(callbacks):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([
        keras.Input((8, 8, 1)), L.Conv2D(4, 3, name="conv1"), L.BatchNormalization(name="bn"),
        L.Dropout(0.3, name="drop"), L.Flatten(name="flat"), L.Dense(10, name="fc"),
    ])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss)
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=callbacks,
                        validation_data=(x, y)).history
    return history, [weight.value.detach().numpy().copy() for weight in model.weights]

plain = train([])
captured = train([Capture(run, every=1, probe=x[:3])])
assert plain[0] == captured[0]
assert all(map(np.array_equal, plain[1], captured[1]))
run = open_run(run)
assert run.layers("activations") == ["conv1", "bn", "drop", "flat", "fc"]
assert run.activations["conv1"].layout == "NHWC" and run.activations["conv1"].shape[0] == 3
assert run.weights["conv1.kernel"].layout == "HWIO" and run.weights["fc.kernel"].layout == "IO"
assert run.inputs["input"].layout == "NHWC"
kernel, gradient = run.weights["fc.kernel"], run.gradients["fc.kernel"]
assert kernel.steps.tolist() == list(range(8))
for step in range(7):
    moved = kernel.frame(step) - np.float32(0.5) * gradient.frame(step)
    np.testing.assert_allclose(kernel.frame(step + 1), moved, rtol=1e-5, atol=1e-7)
assert run.scalars["val_loss"].steps.tolist() == [3, 7]
assert len(run.scalars["loss"].steps) == 8
typed = sys.argv[1] + "-typed"
train([Capture(typed, every=1, layers=["type:Conv*", L.Dense], exclude="*.bias")])
typed = open_run(typed)
assert typed.layers("activations") == ["conv1", "fc"]
assert typed.layers("weights") == ["conv1.kernel", "fc.kernel"]
print("done")
"""


def test_on_the_torch_backend_the_agent_of_pytorch_takes_keras_names(run: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TORCH, run],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.stdout.endswith("done\n"), done.stderr


def test_the_recipes_of_the_readme_run(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text()
    blocks = re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    code = "\n".join(block for block in blocks if re.search("capture.(keras|tensorflow)", block))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert open_run(tmp_path / "keras.zarr").activations["conv2"].shape == (8, 8, 8, 64)
    assert open_run(tmp_path / "loop.zarr").steps("gradients").tolist() == [0, 10]
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {"conv2.png", "kernels.png", "fc.png", "curve.png"}


def test_the_names_of_the_adapters_are_sorted_and_all_of_them_resolve() -> None:
    import filmstrip.capture.keras
    import filmstrip.capture.tensorflow

    modules: list[Any] = [filmstrip.capture.keras, filmstrip.capture.tensorflow]
    for module in modules:
        assert module.__all__ == sorted(module.__all__) == dir(module)
        assert all(getattr(module, name).__name__ == name for name in module.__all__)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            module.nothing  # noqa: B018
