"""Capture for Keras: a callback of ``model.fit``, on the backends TensorFlow and PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filmstrip.capture.keras._callback import Capture

__all__ = ["Capture"]


def __getattr__(name: str) -> object:
    if name == "Capture":
        return import_module(f"{__name__}._callback").Capture
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
