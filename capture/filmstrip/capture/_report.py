"""Reports: the only place that words what capture tells people on stderr."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

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
    kinds = [f"{number} {kind}" for kind, number in layers.items() if number]
    kinds += ["inputs"] if "inputs" in settings.kinds else []  # how many, a forward pass tells
    return f"capturing {', '.join(kinds)} to {path}{ranks} {settings.schedule.text}"


def spared(settings: Settings, least: int) -> Settings:
    """Return settings with statistics every `least` steps at most; say so where that is fewer."""
    sparing = settings.sparing(least)
    if sparing is not settings:
        say(
            f"on an accelerator statistics every {least} steps at most do not hold up training; "
            f"taking {sparing.schedule.text}"
        )
    return sparing


@dataclass(frozen=True, slots=True)
class Cost:
    """What the first capture cost training, which is more than what later ones do as a rule.

    Parameters
    ----------
    seconds : float
        Of the training thread, without what is done once.
    step : float or None
        Seconds of a step without a capture, where they are known.
    apart : str
        What else it takes, in words.
    """

    seconds: float
    step: float | None = None
    apart: str = ""

    @property
    def text(self) -> str:
        """The cost in words.

        Examples
        --------
        >>> Cost(0.0034, 0.12).text
        'the first took 3.4 ms of training time (2.8 % of a step), later ones mostly less'
        >>> Cost(1.5, apart="to ask for it").text
        'the first took 1.5 s of training time to ask for it, later ones mostly less'
        """
        percent = 100 * self.seconds / self.step if self.step else 0
        share = f" ({percent:.{int(percent < 10)}f} % of a step)" if self.step else ""
        apart = f" {self.apart}" if self.apart else ""
        time = f"{_time_text(self.seconds)} of training time{apart}{share}"
        return f"the first took {time}, later ones mostly less"


def _time_text(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.{int(seconds < 0.01)}f} ms"
    return f"{seconds:.{int(seconds < 10)}f} s"


def survey_lines(
    plan: Blueprint,
    settings: Settings,
    *,
    unfired: Sequence[str],
    writers: int = 1,
    cost: Cost | None = None,
) -> str:
    """Return what the survey found: what a capture takes, what was degraded, what never fired."""
    nbytes = plan.frame_bytes
    frames = [
        order.take.nbytes for order in plan.orders if order is not None and order.take is not None
    ]
    lines = [f"a capture adds {len(frames)} frames, {size_text(nbytes)} and {_files(frames)}"]
    if cost is not None:
        lines[0] += f"; {cost.text}"
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
        lines.append(silence(unfired, settings))
    return "\n".join(lines)


def silence(unfired: Sequence[str], settings: Settings) -> str:
    """Return from which layers nothing came, and why that may be."""
    if "train" not in settings.phases:
        return (
            f"nothing came yet from {_some(unfired, ', ')}: phases='eval' takes outputs of passes "
            "in eval mode, and there was none in the first captured step; they are taken from the "
            "next captured step on that has one before the optimizer steps"
        )
    return (
        f"nothing came from {_some(unfired, ', ')}: not called in the first captured step, or "
        "in a way that hooks do not see"
    )


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


def dry_run(plan: Blueprint, settings: Settings, *, unfired: Sequence[str]) -> str:
    """Return what a dry run prints: the table, the sum, and what never fired."""
    lines = [table(plan), survey_lines(plan, settings, unfired=()).splitlines()[0]]
    if unfired:
        lines.append(silence(unfired, settings))
    return "\n".join([*lines, "dry run: nothing is written"])


def table(plan: Blueprint) -> str:
    """Return a table of every layer and what is kept of it."""
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
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _shape(site: Site) -> str:
    return _lengths(site.shape or ())


def _lengths(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"


def losses(counts: Mapping[str, int], causes: Mapping[str, Mapping[str, int]]) -> str:
    """Return what was lost in words, empty when nothing was.

    Examples
    --------
    >>> losses({"dropped": 2, "failed": 0}, {"dropped": {"the disk is full": 2}})
    '2 due steps dropped (2: the disk is full)'
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
    return ", ".join(
        f"{found[name]} {text}{_because(causes.get(name, {}))}"
        for name, text in words.items()
        if found[name]
    )


def _because(causes: Mapping[str, int]) -> str:
    said = "; ".join(f"{number}: {cause}" for cause, number in causes.items())
    return f" ({said})" if said else ""
