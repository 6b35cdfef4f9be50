"""A run against dicts: append, skip layers, grow, close, resume, rewind, die, in any order."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from filmstrip.store import (
    FrameSpec,
    _group,
    _layout,
    bit_histogram,
    create_run,
    open_run,
    summarize,
)
from filmstrip.store._recording import RunWriter

ACTIVATIONS = {
    "big": FrameSpec((3, 2000), "float32", layout="NC"),
    "small": FrameSpec((2,), "int32"),
    "number": FrameSpec((), "float32"),
}
WEIGHTS = {"w": FrameSpec((4, 5), "float16"), "bias": FrameSpec((), "float64")}
SPECS = {"activations": ACTIVATIONS, "weights": WEIGHTS}
LATE = {"late": FrameSpec((7,), "float64")}
DESCRIBED = ["big", "small"]


def frame(spec: FrameSpec, step: int, attempt: int) -> np.ndarray:
    return np.full(spec.shape, step % 250 * 8 + attempt, spec.dtype)


def described(step: int, attempt: int) -> tuple[np.ndarray, np.ndarray]:
    values = [np.full(5, step + place / 8, np.float32) * (1 + attempt) for place in range(2)]
    return (
        np.stack([summarize(value) for value in values]),
        np.stack([bit_histogram(value) for value in values]),
    )


class RunMachine(RuleBasedStateMachine):
    """Every row of the model: the attempt in which it was written, and how much of it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(_group, "FIRST_CAPACITY", 8)
        self.patch.setattr(_layout, "COLUMN_ROWS", 16)
        self.patch.setattr(_layout, "COLUMN_BYTES", 1 << 11)
        self.patch.setattr(_layout, "SHARD_BYTES", 5 * 24_000)
        self.patch.setattr(_layout, "BLOCK_BYTES", 10_000)
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "run.zarr"
        self.frames: dict[str, dict[int, tuple[int, frozenset[str], int]]] = {
            kind: {} for kind in SPECS
        }
        self.scalars: dict[int, dict[str, float]] = {}
        self.statistics: dict[int, tuple[int, bool]] = {}
        self.specs: dict[str, dict[str, FrameSpec]] = {k: dict(v) for k, v in SPECS.items()}
        self.attempt = 0
        self.run: RunWriter | None = None

    @property
    def tables(self) -> list[dict[int, Any]]:
        return [*self.frames.values(), self.scalars, self.statistics]

    @initialize()
    def create(self) -> None:
        self.run = create_run(self.path)

    @precondition(lambda self: self.run is not None)
    @rule(
        kind=st.sampled_from(sorted(SPECS)),
        gap=st.integers(1, 3),
        data=st.data(),
        samples=st.sampled_from([3, 3, 2, 1]),
    )
    def append(self, kind: str, gap: int, data: st.DataObject, samples: int) -> None:
        layers = data.draw(st.sets(st.sampled_from(sorted(self.specs[kind]))))
        self._append(kind, gap, frozenset(layers), samples)

    def _append(self, kind: str, gap: int, layers: frozenset[str], samples: int = 3) -> None:
        assert self.run is not None
        step = max(self.frames[kind], default=-1) + gap
        frames = {layer: frame(self.specs[kind][layer], step, self.attempt) for layer in layers}
        if "big" in frames:
            frames["big"] = frames["big"][:samples]
        self.run.writer(kind, self.specs[kind]).append(step, frames)
        self.frames[kind][step] = (self.attempt, layers, samples)

    @precondition(lambda self: self.run is not None)
    @rule(kind=st.sampled_from(sorted(SPECS)), count=st.integers(10, 40))
    def append_many(self, kind: str, count: int) -> None:
        for number in range(count):
            layers = frozenset(sorted(SPECS[kind])[number % 2 :])
            self._append(kind, 1, layers)

    @precondition(lambda self: self.run is not None)
    @rule()
    def add_a_layer(self) -> None:
        assert self.run is not None
        self.specs["activations"] |= LATE
        self.run.writer("activations", self.specs["activations"])

    @precondition(lambda self: self.run is not None)
    @rule(
        gap=st.integers(0, 3),
        name=st.sampled_from(["loss", "lr", "late/name"]),
        value=st.floats(allow_nan=False),
    )
    def log(self, gap: int, name: str, value: float) -> None:
        assert self.run is not None
        step = max(self.scalars, default=0) + gap
        self.run.log(step, {name: value})
        self.scalars.setdefault(step, {})[name] = value

    @precondition(lambda self: self.run is not None)
    @rule(gap=st.integers(1, 3), count=st.sampled_from([1, 1, 12]), histograms=st.booleans())
    def describe(self, gap: int, count: int, histograms: bool) -> None:
        assert self.run is not None
        writer = self.run.statistics_writer("activations", DESCRIBED)
        for _ in range(count):
            step = max(self.statistics, default=-1) + gap
            values, counts = described(step, self.attempt)
            writer.append(step, values, counts if histograms else None)
            self.statistics[step] = (self.attempt, histograms)

    @precondition(lambda self: self.run is not None)
    @rule()
    def publish(self) -> None:
        assert self.run is not None
        self.run.publish()

    @precondition(lambda self: self.run is not None)
    @rule()
    def close(self) -> None:
        assert self.run is not None
        self.run.close()
        self.run = None

    @precondition(lambda self: self.run is not None)
    @rule()
    def die(self) -> None:
        """Leave everything as a killed process does: nothing sealed, nothing published."""
        assert self.run is not None
        self.run._abandon_after_fork()
        self.run = None

    @precondition(lambda self: self.run is None)
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        last = max([step for table in self.tables for step in table], default=0)
        first = data.draw(st.none() | st.integers(0, last + 1))
        self.run = create_run(self.path, if_exists="resume", first_step=first)
        self.attempt += 1
        if first is not None:
            for table in self.tables:
                for step in [step for step in table if step >= first]:
                    del table[step]

    @invariant()
    def frames_are_those_of_the_model(self) -> None:
        if not self.path.exists():
            return
        run = open_run(self.path)
        for kind, rows in self.frames.items():
            if kind not in run.kinds:
                assert not rows
                continue
            assert run.steps(kind).tolist() == list(rows)
            for layer, strip in getattr(run, kind).items():
                spec = self.specs[kind][layer]
                kept = {step: row for step, row in rows.items() if layer in row[1]}
                assert strip.steps.tolist() == list(kept)
                for step in list(kept)[-7:]:
                    attempt, _, samples = kept[step]
                    whole = frame(spec, step, attempt)
                    np.testing.assert_array_equal(
                        strip.frame(step), whole[:samples] if layer == "big" else whole
                    )

    @invariant()
    def numbers_are_those_of_the_model(self) -> None:
        if not self.path.exists():
            return
        run = open_run(self.path)
        for name in run.scalars:
            expected = {s: row[name] for s, row in self.scalars.items() if name in row}
            steps, values = run.scalars[name]
            assert dict(zip(steps.tolist(), values.tolist(), strict=True)) == expected
        if "statistics/activations" not in run.groups():
            assert not self.statistics
            return
        statistics = run.statistics("activations")
        for place, layer in enumerate(DESCRIBED):
            steps, means = statistics[layer, "mean"]
            assert steps.tolist() == list(self.statistics)
            expected_means = [
                (step + place / 8) * (1 + attempt) for step, (attempt, _) in self.statistics.items()
            ]
            np.testing.assert_allclose(means, expected_means)

    @invariant()
    def others_see_a_beginning_of_it(self) -> None:
        if not self.path.exists():
            return
        import zarr

        root: Any = zarr.open_group(self.path, mode="r")
        for kind, rows in self.frames.items():
            if kind in root:
                committed = root[kind]["step"][:].tolist()
                if self.run is None or not rows:
                    assert set(committed) <= set(rows)
                assert committed == list(rows)[: len(committed)]

    def teardown(self) -> None:
        if self.run is not None:
            self.run.close()
        shutil.rmtree(self.folder)
        self.patch.undo()


LONG = "FILMSTRIP_TORTURE" in os.environ
RunMachine.TestCase.settings = settings(
    max_examples=100 if LONG else 8, stateful_step_count=40 if LONG else 16, deadline=None
)
TestRun = RunMachine.TestCase
