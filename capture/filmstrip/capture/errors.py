"""Errors of capture, grouped by what a caller does next.

::

    CaptureError                              raised by close(): the message says what was lost
    ├── PlanError             (ValueError)    correct the keyword, flag, variable or plan named
    ├── UnsupportedModelError (TypeError)     attach to what is named instead
    ├── AlreadyCompiledError  (RuntimeError)  attach before compiling ahead of time
    └── CheckpointError       (ValueError)    correct the path or the step, or save weights alone

CheckpointError is raised by `filmstrip ingest`; the others but the first when capture is attached,
before training starts. What the store refuses at attach (a run that exists, a path that cannot be
written) comes through as its own StoreError. Once training runs, capture raises nothing until
`close()`.
"""

from __future__ import annotations


class CaptureError(Exception):
    """Base of every error of capture; raised itself by ``close()`` when something was lost."""


class PlanError(CaptureError, ValueError):
    """Raised when a keyword of capture has a value that cannot be used."""


class UnsupportedModelError(CaptureError, TypeError):
    """Raised when a model, or an optimizer, is of a kind that capture cannot watch."""


class AlreadyCompiledError(CaptureError, RuntimeError):
    """Raised when a model was compiled ahead of time, so that no tap would fire."""


class CheckpointError(CaptureError, ValueError):
    """Raised when a saved model cannot be taken into a run."""
