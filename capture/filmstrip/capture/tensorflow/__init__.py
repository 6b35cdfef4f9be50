"""Capture for TensorFlow's own training loops, and for sessions of TensorFlow 1."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filmstrip.capture.tensorflow._capture import Capture
    from filmstrip.capture.tensorflow._sessions import CaptureHook, capture_session

_WHERE = {"Capture": "_capture", "CaptureHook": "_sessions", "capture_session": "_sessions"}

__all__ = ["Capture", "CaptureHook", "capture_session"]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
