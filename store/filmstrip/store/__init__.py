"""The ground floor: how a run lies on disk, how it is written, and how it is queried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filmstrip.store._attach import create_run
    from filmstrip.store._bits import BINS, bin_edges, bit_histogram, quantiles, rebin
    from filmstrip.store._check import Finding, check
    from filmstrip.store._copy import Copied, copy
    from filmstrip.store._frame import FrameSpec
    from filmstrip.store._prune import Pruned, prune
    from filmstrip.store._recording import RunWriter
    from filmstrip.store._repair import Repair, repair
    from filmstrip.store._run import NonFinite, Run, open_run
    from filmstrip.store._select import select
    from filmstrip.store._statistics import Statistics
    from filmstrip.store._status import Status
    from filmstrip.store._strip import Strip
    from filmstrip.store._summary import STATISTICS, summarize
    from filmstrip.store._usage import Usage, usage
    from filmstrip.store._view import Series
    from filmstrip.store._writer import KindWriter, StatisticsWriter
    from filmstrip.store.errors import (
        DeniedError,
        FormatError,
        FrameNotFoundError,
        KindNotFoundError,
        LayerNotFoundError,
        NotARunError,
        RunExistsError,
        RunLockedError,
        RunNotFoundError,
        SelectionError,
        StatisticNotFoundError,
        StoreError,
        StoreWriteError,
    )

_HOMES = {
    "_bits": ("BINS", "bin_edges", "bit_histogram", "quantiles", "rebin"),
    "_check": ("Finding", "check"),
    "_copy": ("Copied", "copy"),
    "_frame": ("FrameSpec",),
    "_attach": ("create_run",),
    "_prune": ("Pruned", "prune"),
    "_recording": ("RunWriter",),
    "_repair": ("Repair", "repair"),
    "_run": ("NonFinite", "Run", "open_run"),
    "_status": ("Status",),
    "_select": ("select",),
    "_statistics": ("Statistics",),
    "_strip": ("Strip",),
    "_summary": ("STATISTICS", "summarize"),
    "_usage": ("Usage", "usage"),
    "_view": ("Series",),
    "_writer": ("KindWriter", "StatisticsWriter"),
    "errors": (
        "DeniedError",
        "FormatError",
        "FrameNotFoundError",
        "KindNotFoundError",
        "LayerNotFoundError",
        "NotARunError",
        "RunExistsError",
        "RunLockedError",
        "RunNotFoundError",
        "SelectionError",
        "StatisticNotFoundError",
        "StoreError",
        "StoreWriteError",
    ),
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BINS",
    "STATISTICS",
    "Copied",
    "DeniedError",
    "Finding",
    "FormatError",
    "FrameNotFoundError",
    "FrameSpec",
    "KindNotFoundError",
    "KindWriter",
    "LayerNotFoundError",
    "NonFinite",
    "NotARunError",
    "Pruned",
    "Repair",
    "Run",
    "RunExistsError",
    "RunLockedError",
    "RunNotFoundError",
    "RunWriter",
    "SelectionError",
    "Series",
    "StatisticNotFoundError",
    "Statistics",
    "StatisticsWriter",
    "Status",
    "StoreError",
    "StoreWriteError",
    "Strip",
    "Usage",
    "bin_edges",
    "bit_histogram",
    "check",
    "copy",
    "create_run",
    "open_run",
    "prune",
    "quantiles",
    "rebin",
    "repair",
    "select",
    "summarize",
    "usage",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, and nothing before: a command line must start at once."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
