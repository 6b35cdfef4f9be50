"""What the tests of capture share: real digits, and a model to train on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from capture.training import Batches, Net, Trained
from sklearn.datasets import load_digits


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FILMSTRIP", "FILMSTRIP_RUN", "FILMSTRIP_EVERY", "FILMSTRIP_MAX_RUN_BYTES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (n, 1, 8, 8) and labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)


@pytest.fixture
def batches(digits: tuple[torch.Tensor, torch.Tensor]) -> Batches:
    """Return what yields so many batches of 16 digits, the same every time."""

    def some(count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        x, y = digits
        for start in range(0, 16 * count, 16):
            yield x[start : start + 16], y[start : start + 16]

    return some


@pytest.fixture
def trained() -> Callable[[], Trained]:
    """Return what makes a fresh model, the same every time."""

    def fresh() -> Trained:
        torch.manual_seed(0)
        model = Net()
        return Trained(model, torch.optim.Adam(model.parameters(), lr=1e-3))

    return fresh


@pytest.fixture
def graph_optimizer() -> Iterator[None]:
    """Let TensorFlow optimize graphs, as it does outside of these tests."""
    import tensorflow as tf

    options = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    yield
    tf.config.optimizer.set_experimental_options(options)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Return the path of a run that does not exist yet."""
    return str(tmp_path / "run.zarr")
