"""Errors of the renderer, grouped by what a caller does next.

RenderError
├── SpecError (ValueError)         change what was asked for: an option, a shape, a layout
├── SourceError (LookupError)      ask for something that the run holds
├── OutputError (OSError)          choose another place, or make room, for the pictures
└── ExecutorError (RuntimeError)   draw elsewhere, or bring workers back

Every ``str(error)`` is one line for a user. Errors of the store pass through unchanged.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ExecutorError", "OutputError", "RenderError", "SourceError", "SpecError"]


class RenderError(Exception):
    """Base of everything that the renderer raises itself."""


class SpecError(RenderError, ValueError):
    """Raised when what was asked for cannot be drawn from any data."""


class SourceError(RenderError, LookupError):
    """Raised when the run, or the array, does not hold what was asked for."""


class OutputError(RenderError, OSError):
    """Raised when a picture cannot be written where it should go."""


class ExecutorError(RenderError, RuntimeError):
    """Raised when there is nothing, or nothing left, that draws."""


def nearest(name: str, known: Iterable[str], *, none: str = "none") -> str:
    """List what was probably meant, or the first few of what there is.

    Examples
    --------
    >>> nearest("los", ["loss", "accuracy"])
    'loss'
    >>> nearest("x", ["loss", "accuracy"])
    'loss, accuracy'
    >>> nearest("x", [])
    'none'
    """
    names = list(known)
    close = get_close_matches(name, names, n=4, cutoff=0.5)
    listed = close or names[:8]
    return ", ".join(listed) + (", …" if not close and len(names) > 8 else "") or none
