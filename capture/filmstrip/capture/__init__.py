"""Capture: the agent that lives in the training process and records what happens there."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filmstrip.capture._flags import add_capture_arguments, capture_from_arguments
    from filmstrip.capture._plan import Plan
    from filmstrip.capture.errors import (
        AlreadyCompiledError,
        CaptureError,
        PlanError,
        UnsupportedModelError,
    )

_HOMES = {
    "_flags": ("add_capture_arguments", "capture_from_arguments"),
    "_plan": ("Plan",),
    "errors": ("AlreadyCompiledError", "CaptureError", "PlanError", "UnsupportedModelError"),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AlreadyCompiledError",
    "CaptureError",
    "Plan",
    "PlanError",
    "UnsupportedModelError",
    "add_capture_arguments",
    "capture_from_arguments",
]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
