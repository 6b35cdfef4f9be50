"""The stores of three ranks against dicts: each is started, written, killed, rewound by itself."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store.faults import Disk, Killed

from filmstrip.store import (
    FrameSpec,
    Run,
    _group,
    _layout,
    _publish,
    bit_histogram,
    check,
    create_run,
    open_run,
    repair,
    summarize,
)
from filmstrip.store._recording import RunWriter

WORLD = 3
RANKS = st.integers(0, WORLD - 1)
SHAPES = {"rows": (30, 6), "columns": (4, 9), "mesh": (5, 3), "late": (8,)}
"""Global shapes of the layers of which every rank holds a piece."""
JOINED, OWN = "joined", "own"
SAMPLES = 3
KINDS = ("weights", "activations")
Box = tuple[slice, ...]


def whole(layer: str, shape: tuple[int, ...], step: int, attempt: int) -> np.ndarray:
    """Return a global frame, of small whole numbers, so that sums of them are exact."""
    values = np.arange(int(np.prod(shape))) * 5 + step * 7 + attempt * 13 + len(layer)
    return (values % 251 - 40).reshape(shape).astype(np.float32)


@dataclass
class Row:
    """One row of one rank: in which attempt it was written, with which layers and samples."""

    attempt: int
    layers: frozenset[str]
    samples: int


@dataclass
class Rank:
    """What one rank has written."""

    number: int
    started: bool = False
    run: RunWriter | None = None
    attempt: int = 0
    late: bool = False
    rows: dict[str, dict[int, Row]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    described: dict[int, int] = field(default_factory=dict)

    @property
    def last(self) -> int | None:
        return max((step for rows in self.rows.values() for step in rows), default=None)


class RanksMachine(RuleBasedStateMachine):
    """Ranks share nothing; queries put together what all owners have."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        for module, name, value in (
            (_group, "FIRST_CAPACITY", 4),
            (_layout, "COLUMN_ROWS", 4),
            (_layout, "SHARD_BYTES", 600),
            (_layout, "BLOCK_BYTES", 64),
            (_layout, "LARGEST_BLOCK", 64),  # pieces of "rows" lie in several files
            (_layout, "SLOTS", 4),
            (_publish, "SECONDS", 1e6),
        ):
            self.patch.setattr(module, name, value)
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "run.zarr"
        self.ranks = [Rank(number) for number in range(WORLD)]
        self.boxes: dict[str, list[Box]] = {}

    @initialize(
        rows=st.lists(st.integers(0, 30), min_size=2, max_size=2),
        columns=st.lists(st.integers(0, 9), min_size=2, max_size=2),
    )
    def cut(self, rows: list[int], columns: list[int]) -> None:
        """Decide who holds what: uneven pieces, some empty, and one that two ranks hold alike."""
        row_spans = itertools.pairwise([0, *sorted(rows), 30])
        column_spans = itertools.pairwise([0, *sorted(columns), 9])
        self.boxes = {
            "rows": [(slice(*span), slice(0, 6)) for span in row_spans],
            "columns": [(slice(0, 4), slice(*span)) for span in column_spans],
            "mesh": [(slice(*span), slice(0, 3)) for span in ((0, 2), (0, 2), (2, 5))],
            "late": [(slice(*span),) for span in ((0, 3), (3, 3), (3, 8))],
        }
        self.attach(self.ranks[0], None)

    def holds(self, layer: str, rank: int) -> bool:
        """Return whether a rank's piece has something in it."""
        return all(span.start < span.stop for span in self.boxes[layer][rank])

    def specs(self, rank: Rank, kind: str) -> dict[str, FrameSpec]:
        if kind == "activations":
            own = {OWN: FrameSpec((2,), "float32", layout="C")} if rank.number == 1 else {}
            return {JOINED: FrameSpec((SAMPLES, 4), "float32", layout="NC")} | own
        return {
            layer: FrameSpec(
                tuple(span.stop - span.start for span in self.boxes[layer][rank.number]),
                "float32",
                global_shape=shape,
                offset=tuple(span.start for span in self.boxes[layer][rank.number]),
            )
            for layer, shape in SHAPES.items()
            if self.holds(layer, rank.number) and (layer != "late" or rank.late)
        }

    def frame(self, layer: str, rank: int, step: int, row: Row) -> np.ndarray:
        """Return what a rank wrote of a layer."""
        if layer == JOINED:
            return whole(layer, (SAMPLES, 4), step, row.attempt)[: row.samples] + 100 * rank
        if layer == OWN:
            return whole(layer, (2,), step, row.attempt)
        return whole(layer, SHAPES[layer], step, row.attempt)[self.boxes[layer][rank]]

    def attach(self, rank: Rank, first: int | None) -> None:
        rank.run = create_run(
            self.path,
            if_exists="resume" if rank.started else "auto",
            first_step=first,
            rank=rank.number,
            world_size=WORLD,
        )
        rank.started = True

    @rule(number=RANKS, gap=st.sampled_from([1, 1, 1, 2]), kind=st.sampled_from(KINDS),
          skipped=st.sets(st.sampled_from(["rows", "mesh", JOINED]), max_size=1),
          samples=st.integers(1, SAMPLES), count=st.sampled_from([1, 1, 3]))  # fmt: skip
    def append(
        self, number: int, gap: int, kind: str, skipped: set[str], samples: int, count: int
    ) -> None:
        for _ in range(count):
            self._append(self.ranks[number], gap, kind, skipped, samples)

    @rule(count=st.integers(1, 3), kind=st.sampled_from(KINDS))
    def append_everywhere(self, count: int, kind: str) -> None:
        """Write the next steps of the rank that is furthest, as all of a job do."""
        last = max((step for rank in self.ranks for step in rank.rows[kind]), default=-1)
        for rank in self.ranks:
            for step in range(last + 1, last + 1 + count):
                self._append(rank, step - max(rank.rows[kind], default=-1), kind, set(), SAMPLES)

    def _append(
        self, rank: Rank, gap: int, kind: str, skipped: set[str], samples: int
    ) -> tuple[int, Row] | None:
        if rank.run is None:
            return None
        specs = self.specs(rank, kind)
        step = max(rank.rows[kind], default=-1) + gap
        row = Row(rank.attempt, frozenset(specs) - skipped, samples)
        frames = {layer: self.frame(layer, rank.number, step, row) for layer in row.layers}
        rank.run.writer(kind, specs).append(step, frames)
        rank.rows[kind][step] = row
        return step, row

    @rule(number=RANKS, gap=st.integers(1, 2), count=st.sampled_from([1, 4]))
    def describe(self, number: int, gap: int, count: int) -> None:
        """Write statistics of what the weights would be, also of steps without a frame."""
        rank = self.ranks[number]
        names = [layer for layer in self.specs(rank, "weights") if layer != "late"]
        if rank.run is None or not names:
            return
        rank.run.writer("weights", self.specs(rank, "weights"))
        writer = rank.run.statistics_writer("weights", names)
        for _ in range(count):
            step = max(rank.described, default=-1) + gap
            pieces = [self.described_piece(layer, number, step, rank.attempt) for layer in names]
            writer.append(
                step, np.stack([*map(summarize, pieces)]), np.stack([*map(bit_histogram, pieces)])
            )
            rank.described[step] = rank.attempt

    def described_piece(self, layer: str, rank: int, step: int, attempt: int) -> np.ndarray:
        return whole(layer, SHAPES[layer], step, attempt)[self.boxes[layer][rank]]

    @rule(number=RANKS)
    def grow(self, number: int) -> None:
        self.ranks[number].late = True

    @rule(number=RANKS)
    def publish(self, number: int) -> None:
        run = self.ranks[number].run
        if run is not None:
            run.publish()

    @rule(number=RANKS)
    def close(self, number: int) -> None:
        rank = self.ranks[number]
        if rank.run is not None:
            rank.run.close()
            rank.run = None

    @rule(number=RANKS)
    def die(self, number: int) -> None:
        """Leave everything as a killed process does: nothing sealed, nothing published."""
        rank = self.ranks[number]
        if rank.run is not None:
            rank.run._abandon_after_fork()
            rank.run = None

    @rule(number=RANKS, kind=st.sampled_from(KINDS), at=st.integers(1, 40))
    def die_in_a_row(self, number: int, kind: str, at: int) -> None:
        """Die at some change of an append, after which its row is there whole or not at all."""
        rank = self.ranks[number]
        if rank.run is None:
            return
        step = max(rank.rows[kind], default=-1) + 1
        row = Row(rank.attempt, frozenset(self.specs(rank, kind)), SAMPLES)
        with Disk() as disk:
            disk.arm(at, "kill")
            try:
                self._append(rank, 1, kind, set(), SAMPLES)
            except Killed:
                disk.at = 0
            disk.dead = False
            self.die(number)
        if (
            self.arrays(number, kind)
            and step in dict(open_run(self.path).views(kind))[number].steps()
        ):
            rank.rows[kind][step] = row

    @precondition(lambda self: any(rank.run is None for rank in self.ranks))
    @rule(number=RANKS, back=st.none() | st.integers(0, 6))
    def resume(self, number: int, back: int | None) -> None:
        """Start a rank, or attach it again, perhaps some steps before its last one."""
        rank = self.ranks[number]
        if rank.run is not None:
            return
        if not rank.started:
            self.attach(rank, None)
            return
        last = max([rank.last or 0, *rank.described])
        first = None if back is None else max(0, last + 1 - back)
        self.attach(rank, first)
        rank.attempt += 1
        if first is not None:
            tables: list[dict[int, Any]] = [*rank.rows.values(), rank.described]
            for table in tables:
                for step in [step for step in table if step >= first]:
                    del table[step]

    def store(self, number: int) -> Path:
        return self.path / "ranks" / f"{number:04d}" if number else self.path

    def arrays(self, number: int, group: str) -> set[str]:
        """Return the arrays that a rank's metadata name, read without filmstrip."""
        store = self.store(number)
        if not (store / "zarr.json").exists():
            return set()
        root = json.loads((store / "zarr.json").read_text())
        if group not in root["attributes"]["filmstrip"]["groups"]:
            return set()
        document = json.loads((store / group / "zarr.json").read_text())
        return set(document["consolidated_metadata"]["metadata"])

    def owners(self, kind: str, layer: str, ranks: Sequence[int] = range(WORLD)) -> list[int]:
        """Return the ranks, of some, whose pieces make up a layer."""
        there = [rank for rank in ranks if layer in self.arrays(rank, kind)]
        if layer == "mesh" and {0, 1} <= set(there):
            there.remove(1)
        return there

    def complete(self, layer: str, there: list[int]) -> bool:
        if layer not in SHAPES:
            return True
        pieces = [np.empty(SHAPES[layer])[self.boxes[layer][rank]] for rank in there]
        return sum(piece.size for piece in pieces) == np.empty(SHAPES[layer]).size

    def together(self, layer: str, pieces: dict[int, np.ndarray]) -> np.ndarray:
        """Return the frame that ranks' pieces make up."""
        if layer not in SHAPES:
            return np.concatenate(list(pieces.values()))
        frame = np.full(SHAPES[layer], np.nan, np.float32)
        for rank, piece in pieces.items():
            frame[self.boxes[layer][rank]] = piece
        return frame

    @invariant()
    def frames_are_what_all_owners_have(self) -> None:
        if not self.path.exists():
            return
        run = open_run(self.path)
        for kind in KINDS:
            having = [rank for rank in self.ranks if self.arrays(rank.number, kind)]
            assert all(not rank.rows[kind] for rank in self.ranks if rank not in having)
            if not having:
                assert kind not in run.kinds
                continue
            common = set.intersection(*(set(rank.rows[kind]) for rank in having))
            assert run.steps(kind).tolist() == sorted(common)
            for layer in run.layers(kind):
                self._strip_is_that_of_the_model(run, kind, layer, common)

    def _strip_is_that_of_the_model(
        self, run: Run, kind: str, layer: str, common: set[int]
    ) -> None:
        strip, owners = run.strip(kind, layer), self.owners(kind, layer)
        written = {
            rank: {s: row for s, row in self.ranks[rank].rows[kind].items() if layer in row.layers}
            for rank in range(WORLD)
        }
        assert [piece.rank for piece in strip.pieces] == owners
        assert all(rank in owners or not rows or layer == "mesh" for rank, rows in written.items())
        for piece in strip.pieces:
            rows = written[piece.rank]
            assert piece.steps.tolist() == sorted(rows)
            for step in sorted(rows)[-3:]:
                np.testing.assert_array_equal(
                    piece.frame(step), self.frame(layer, piece.rank, step, rows[step])
                )
        steps = sorted(set.intersection(*(set(written[rank]) for rank in owners)))
        if not self.complete(layer, owners):
            steps = []
        assert strip.steps.tolist() == steps

        def expected(step: int) -> np.ndarray:
            return self.together(
                layer,
                {rank: self.frame(layer, rank, step, written[rank][step]) for rank in owners},
            )

        for step in steps[-3:]:
            np.testing.assert_array_equal(strip.frame(step), expected(step))
        if steps:
            np.testing.assert_array_equal(strip.frame(), expected(steps[-1]))
        if layer in SHAPES:
            index: Any = (slice(1, 4), *(-1 for _ in strip.shape[1:]))
            read = strip.read(slice(None), index)
            wanted = [expected(step)[index] for step in steps if step in common]
            np.testing.assert_array_equal(read, np.array(wanted).reshape(read.shape))

    @invariant()
    def statistics_are_those_of_the_whole(self) -> None:
        having = [r for r in range(WORLD) if self.arrays(r, "statistics/weights")]
        if not having:
            assert not any(rank.described for rank in self.ranks)
            return
        statistics = open_run(self.path).statistics("weights")
        for layer in statistics.layers:
            owners = self.owners("weights", layer, having)
            complete = not owners or self.complete(layer, owners)
            owners = owners or [rank for rank in having if self.holds(layer, rank)]
            common = set.intersection(*(set(self.ranks[rank].described) for rank in owners))
            steps = sorted(common) if complete else []
            frames = [
                np.concatenate(
                    [
                        self.described_piece(layer, r, step, self.ranks[r].described[step]).ravel()
                        for r in owners
                    ]
                )
                for step in steps
            ]
            kept, values = statistics.values(layer)
            assert kept.tolist() == steps
            np.testing.assert_array_equal(
                values, np.array([*map(summarize, frames)]).reshape(values.shape)
            )
            kept, counts = statistics.bits(layer)
            assert kept.tolist() == steps
            np.testing.assert_array_equal(
                counts, np.array([*map(bit_histogram, frames)]).reshape(counts.shape)
            )

    @invariant()
    def status_names_who_is_missing_or_behind(self) -> None:
        if not self.path.exists():
            return
        status = open_run(self.path).status()
        started = [rank for rank in self.ranks if rank.started]
        furthest = max((rank.last for rank in started if rank.last is not None), default=None)

        assert status.ranks == WORLD
        assert status.missing == tuple(rank.number for rank in self.ranks if not rank.started)
        assert status.behind == {r.number: r.last for r in started if r.last != furthest}

    def teardown(self) -> None:
        for number in range(WORLD):
            self.close(number)
        if self.path.exists() and all(rank.started for rank in self.ranks):
            for rank in self.ranks:
                self.resume(rank.number, None)
                self.close(rank.number)
            repair(self.path)  # of what a killed rank began, and nobody went on with
            assert [str(finding) for finding in check(self.path)] == []
            self.frames_are_what_all_owners_have()
            self.statistics_are_those_of_the_whole()
        shutil.rmtree(self.folder)
        self.patch.undo()


LONG = "FILMSTRIP_TORTURE" in os.environ
RanksMachine.TestCase.settings = settings(
    max_examples=100 if LONG else 8, stateful_step_count=40 if LONG else 20, deadline=None
)
TestRanks = RanksMachine.TestCase
