"""The sink: the only place of capture that calls the store, always in the writer thread."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from filmstrip.capture._budget import Blueprint
from filmstrip.capture._ledger import Ledger
from filmstrip.capture._row import Kept, Row
from filmstrip.capture._size import size_text
from filmstrip.capture._survey import view
from filmstrip.store._bits import ascending
from filmstrip.store._frame import FrameSpec
from filmstrip.store._names import RANKS, Canonical

if TYPE_CHECKING:
    from filmstrip.store._recording import RunWriter
    from filmstrip.store._writer import KindWriter, StatisticsWriter

_STATISTICS, _BINS = 9, 4096
_LONGEST_ESTIMATE = 64  # rows, between two looks at how large the run is


@dataclass(slots=True)
class _Kind:
    """What is written of one kind: its frames, and its statistics side by side in a slot."""

    frames: dict[int, str]
    counted: list[int]
    counted_bits: list[int]
    writer: KindWriter | None = None
    statistics: StatisticsWriter | None = None


class RunSink:
    """Writes rows, scalars and whole frames to a run.

    Parameters
    ----------
    run : RunWriter
        The run.
    ledger : Ledger
        What was lost so far goes into the run's health.
    framework : str
        Goes into every layer's metadata.
    max_run_bytes : int
        Frames end when the run holds so many bytes.
    writers : int
        Ranks that write to the run; each may fill its share of it.
    min_free : int or float
        Frames end when fewer bytes, or a smaller share of the disk, are free.
    """

    def __init__(
        self,
        run: RunWriter,
        *,
        ledger: Ledger,
        framework: str,
        max_run_bytes: int,
        writers: int,
        min_free: int | float,
    ) -> None:
        self._run, self._ledger, self._framework = run, ledger, framework
        self._max_run_bytes, self._min_free = max_run_bytes // writers, min_free
        share = f" (a rank's share of {size_text(max_run_bytes)})" if writers > 1 else ""
        self._full = f"the run holds max_run_bytes={size_text(self._max_run_bytes)}{share}"
        self._plan: Blueprint | None = None
        self._kinds: dict[str, _Kind] = {}
        self._written = self._rows = self._looked_up = 0
        self._last_step: int | None = None
        self._told: dict[str, int] = {}  # losses, up to the last row of health
        self._told_before: dict[str, int] = {}  # and up to the one before
        self.queued: Callable[[], int] = lambda: 0

    def write(self, row: Row) -> None:
        """Write a row of every kind, and what it cost."""
        started = time.perf_counter()
        cost = {
            "capture_seconds": row.seconds,
            "queued": float(self.queued()),
        }
        try:
            cost["bytes"] = float(self._write_kinds(row))
        except Exception:
            with contextlib.suppress(Exception):  # the store may be what failed
                self._health(row.step, cost)
            raise
        cost["write_seconds"] = time.perf_counter() - started
        self._health(row.step, cost)

    def _write_kinds(self, row: Row) -> int:
        if self._plan is not row.plan:
            self._prepare(row.plan)
        frames = row.tiers.frames and self._room()
        nbytes = 0
        for kind in self._kinds.values():
            if frames:
                nbytes += self._write_frames(kind, row)
            if row.tiers.statistics:
                self._write_statistics(kind, row)
        self._written += nbytes
        return nbytes

    def lose(self, step: int) -> None:
        """Note a due step of which nothing was kept."""
        self._health(step, {})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        self._run.log(step, values)

    def whole(self, kind: str, step: int, frames: Mapping[str, tuple[Kept, FrameSpec]]) -> None:
        """Write frames that did not pass through a slot: images, and a probe's inputs."""
        if not self._room():
            return
        writer = self._run.writer(kind, {layer: spec for layer, (_, spec) in frames.items()})
        writer.append(step, {layer: array for layer, (array, _) in frames.items()})
        self._written += sum(array.nbytes for array, _ in frames.values())

    def rewind(self, step: int) -> None:
        """Take back the rows at and behind a step."""
        self._run.rewind(step)

    def close(self) -> None:
        """Close the run; losses that no row told of yet are added to the last one."""
        if self._last_step is not None and self._told != self._ledger.snapshot():
            with contextlib.suppress(Exception):  # they are raised to the user in any case
                self._health(self._last_step, {})
        self._run.close()

    def _prepare(self, plan: Blueprint) -> None:
        """Create the arrays of everything that will be written."""
        kinds: dict[str, _Kind] = {}
        for number, (site, order) in enumerate(zip(plan.sites, plan.orders, strict=True)):
            if order is None:
                continue
            kind = kinds.setdefault(site.kind, _Kind({}, [], []))
            if order.take is not None:
                kind.frames[number] = site.layer
            if order.values is not None:
                kind.counted.append(number)
            if order.counts is not None:
                kind.counted_bits.append(number)
        for name, kind in kinds.items():
            if kind.frames:
                kind.writer = self._run.writer(
                    name, {Canonical(plan.sites[n].layer): self._spec(plan, n) for n in kind.frames}
                )
            if kind.counted:
                layers = [Canonical(plan.sites[number].layer) for number in kind.counted]
                kind.statistics = self._run.statistics_writer(name, layers)
        self._plan, self._kinds = plan, kinds

    def _spec(self, plan: Blueprint, number: int) -> FrameSpec:
        site, order = plan.sites[number], plan.orders[number]
        assert order is not None
        assert order.take is not None
        take = order.take
        layout = site.layout if site.layout and len(site.layout) == len(take.shape) else None
        piece = site.piece
        return FrameSpec(
            take.shape,
            take.dtype,
            layout=layout,
            order=number,
            original=site.original or site.layer,
            framework=self._framework,
            source_dtype=site.dtype,
            aliases=site.aliases,
            take=None if take.samples is None else f"first {take.samples} samples",
            degraded=take.degraded(site.dtype),
            global_shape=None if piece is None else piece.global_shape,
            offset=None if piece is None else piece.offset,
            mesh=None if piece is None else piece.mesh,
            placements=None if piece is None else piece.placements,
        )

    def _write_frames(self, kind: _Kind, row: Row) -> int:
        frames: dict[str, npt.NDArray[Any]] = {}
        for number, layer in kind.frames.items():
            kept = row.taken.get(number, -1)
            order = row.plan.orders[number]
            if kept < 0 or order is None or order.take is None or order.frame is None:
                continue
            frame = view(row.memory.memory, order.frame, order.take)
            frames[layer] = frame if order.take.samples is None else frame[:kept]
        if kind.writer is None or not frames:
            return 0
        kind.writer.append(row.step, frames)
        return sum(frame.nbytes for frame in frames.values())

    def _write_statistics(self, kind: _Kind, row: Row) -> None:
        if kind.statistics is None or not any(number in row.taken for number in kind.counted):
            return
        values = _rows(row, kind.counted, np.dtype(np.float64), _STATISTICS)
        counts = None
        if row.tiers.histograms and kind.counted_bits == kind.counted:
            counts = ascending(_rows(row, kind.counted, np.dtype(np.int64), _BINS))
        kind.statistics.append(row.step, values, counts)

    def _room(self) -> bool:
        """Return whether frames may still be written; say it once when not."""
        if self._ledger.frames_over:
            return False
        usage = shutil.disk_usage(self._run.path)
        floor = (
            self._min_free * usage.total if isinstance(self._min_free, float) else self._min_free
        )
        if usage.free < floor:
            self._ledger.end_frames(
                f"only {size_text(usage.free)} are free (min_free is {size_text(floor)})"
            )
        elif self._size() >= self._max_run_bytes:
            self._ledger.end_frames(self._full)
        return not self._ledger.frames_over

    def _size(self) -> int:
        """Return the run's bytes: looked up on disk now and then, with frames added in between."""
        if self._looked_up == self._rows or self._written >= self._max_run_bytes:
            self._written = _bytes_below(self._run.path)
            self._looked_up = self._rows + min(self._rows + 1, _LONGEST_ESTIMATE)
        self._rows += 1
        return self._written

    def _health(self, step: int, cost: Mapping[str, float]) -> None:
        losses = self._ledger.snapshot()
        if step != self._last_step:
            self._told_before = self._told
        news = {name: number - self._told_before.get(name, 0) for name, number in losses.items()}
        self._run.log_health(step, {**cost, **news})
        self._last_step, self._told = step, losses


def _bytes_below(folder: str | PathLike[str]) -> int:
    """Return what a store takes on the disk, without the ranks' below it; files come and go."""
    found = 0
    for path in Path(folder).rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and path.relative_to(folder).parts[0] != RANKS:
                found += path.stat().st_blocks * 512
    return found


def _rows(row: Row, numbers: list[int], dtype: np.dtype[Any], width: int) -> npt.NDArray[Any]:
    """Return one row a site; sites that were not taken have NaN, or no counts."""
    floating = dtype.kind == "f"
    result = np.full((len(numbers), width), np.nan if floating else 0, dtype)
    for position, number in enumerate(numbers):
        order = row.plan.orders[number]
        start = None if order is None else order.values if floating else order.counts
        if start is not None and number in row.taken:
            result[position] = row.memory.memory[start : start + width * dtype.itemsize].view(dtype)
    return result
