"""Reports: the only place that words what capture tells people on stderr."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from filmstrip.capture._budget import Blueprint, storable
from filmstrip.capture._seams import Site
from filmstrip.capture._settings import Settings
from filmstrip.capture._size import size_text

_SHARD_BYTES = 64 << 20
_SLOTS_PER_SHARD = 255


def say(text: str) -> None:
    """Write lines to stderr, unless FILMSTRIP_QUIET is set."""
    if not os.environ.get("FILMSTRIP_QUIET"):
        lines = "".join(f"filmstrip: {line}\n" for line in text.splitlines())
        with suppress(Exception):  # there may be no stderr, or nobody who reads it
            sys.stderr.write(lines)
            sys.stderr.flush()


def attach_line(layers: Mapping[str, int], settings: Settings, *, path: str, writers: int) -> str:
    """Return the line at attach: how many layers of each kind go where, and when.

    Parameters
    ----------
    layers : mapping of str to int
        Number of layers by kind.
    settings : Settings
        What was asked for.
    path : str
        The run.
    writers : int
        Ranks that write to it.
    """
    ranks = f" from {writers} ranks" if writers > 1 else ""
    kinds = ", ".join(f"{number} {kind}" for kind, number in layers.items() if number)
    return f"capturing {kinds} to {path}{ranks} {settings.schedule.text}"


def spared(settings: Settings, least: int) -> Settings:
    """Return settings with statistics every `least` steps at most; say so where that is fewer."""
    sparing = settings.sparing(least)
    if sparing is not settings:
        say(
            f"on an accelerator statistics every {least} steps at most do not hold up training; "
            f"taking {sparing.schedule.text}"
        )
    return sparing


def survey_lines(
    plan: Blueprint, settings: Settings, *, unfired: Sequence[str], writers: int = 1
) -> str:
    """Return what the survey found: bytes and files, what was degraded, what never fired."""
    nbytes = plan.frame_bytes
    frames = [
        order.take.nbytes for order in plan.orders if order is not None and order.take is not None
    ]
    lines = [f"a capture adds {len(frames)} frames, {size_text(nbytes)} and {_files(frames)}"]
    if frames and nbytes:
        captures = settings.max_run_bytes // writers // nbytes
        limit = size_text(settings.max_run_bytes)
        lines[0] += f"; max_run_bytes={limit} leaves room for at least {captures:,} captures"
    degraded = list(_degraded(plan))
    if degraded:
        limit = size_text(settings.max_capture_bytes)
        lines.append(f"to stay under max_capture_bytes={limit}: {_some(degraded, '; ')}")
    strange = [
        f"{site.kind} of {site.layer!r} ({site.dtype})"
        for site in plan.sites
        if site.dtype and site.tiers.frames and not storable(site.dtype)
    ]
    if strange:
        lines.append(f"no frames of {_some(strange, ', ')}, whose dtype is not one of the store's")
    if unfired:
        lines.append(
            f"nothing came from {_some(unfired, ', ')}: not called in the first captured step, or "
            "in a way that hooks do not see"
        )
    return "\n".join(lines)


def _files(frames: Sequence[int]) -> str:
    """Return in words how many shard files the frames of a capture add, on the average."""
    files = sum(
        1 / max(1, min(_SHARD_BYTES // max(nbytes, 1), _SLOTS_PER_SHARD)) for nbytes in frames
    )
    return f"{files:.2g} files on the average"


def _degraded(plan: Blueprint) -> Iterable[str]:
    for site, order in zip(plan.sites, plan.orders, strict=True):
        if order is None:
            continue
        if order.take is not None and (words := order.take.degraded(site.dtype)):
            yield f"{site.kind} of {site.layer!r}: {words}"
        elif order.take is None and site.tiers.frames and storable(site.dtype):
            yield f"{site.kind} of {site.layer!r}: statistics only"


def _some(items: Sequence[str], separator: str, most: int = 5) -> str:
    more = len(items) - most
    return separator.join(items[:most]) + (f" and {more} more" if more > 0 else "")


def table(plan: Blueprint, settings: Settings) -> str:
    """Return the table of a dry run: every layer, what would be kept of it, and the sum."""
    rows = [("kind", "layer", "tensor", "frame", "bytes", "")]
    for site, order in zip(plan.sites, plan.orders, strict=True):
        if order is None:
            continue
        take = order.take
        rows.append(
            (
                site.kind,
                site.layer or "(the model)",
                f"{site.dtype} {_shape(site)}",
                "statistics only" if take is None else f"{take.dtype} {_lengths(take.shape)}",
                "" if take is None else size_text(take.nbytes),
                "" if take is None else take.degraded(site.dtype) or "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines.append(survey_lines(plan, settings, unfired=()).splitlines()[0])
    lines.append("dry run: nothing is written")
    return "\n".join(lines)


def _shape(site: Site) -> str:
    return _lengths(site.shape or ())


def _lengths(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def losses(counts: Mapping[str, int]) -> str:
    """Return what was lost in words, empty when nothing was.

    Examples
    --------
    >>> losses({"dropped": 2, "failed": 0})
    '2 due steps dropped'
    """
    words = {
        "dropped": "due steps dropped",
        "thinned": "due steps left out to stay under max_overhead",
        "failed": "writes failed",
        "errors": "exceptions in taps",
        "skipped": "tensors skipped",
        "unlogged": "scalars or images not kept",
    }
    found = Counter(counts)
    return ", ".join(f"{found[name]} {text}" for name, text in words.items() if found[name])
