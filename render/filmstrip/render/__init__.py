"""The darkroom: pictures of what a run holds, and of bare arrays.

A picture is a pure function of the store and a frozen spec. Names are imported when they are
first used, so that importing this package imports neither matplotlib nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filmstrip.render._api import animation, curve, grid, histogram, mosaic
    from filmstrip.render._image import Picture
    from filmstrip.render.errors import (
        ExecutorError,
        OutputError,
        RenderError,
        SourceError,
        SpecError,
    )

__all__ = [
    "ExecutorError",
    "OutputError",
    "Picture",
    "RenderError",
    "SourceError",
    "SpecError",
    "animation",
    "curve",
    "grid",
    "histogram",
    "mosaic",
]

_HOMES = {
    "_api": ("animation", "curve", "grid", "histogram", "mosaic"),
    "_image": ("Picture",),
    "errors": ("ExecutorError", "OutputError", "RenderError", "SourceError", "SpecError"),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and nothing before."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    try:
        module = importlib.import_module(f"{__name__}.{_WHERE[name]}")
    except ModuleNotFoundError as error:
        if error.name in {"matplotlib", "PIL"}:
            message = f"pictures need {error.name}: pip install 'filmstrip[render]'"
            raise ImportError(message, name=error.name) from error
        raise
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
