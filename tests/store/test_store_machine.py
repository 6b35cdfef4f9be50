"""A run against a dict: append, skip layers, close, resume, rewind, die, in any order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from filmstrip.store import FrameSpec, create_run, open_run
from filmstrip.store._recording import RunWriter

SPECS = {
    "big": FrameSpec((3, 2000), "float32"),
    "small": FrameSpec((2,), "int32"),
    "number": FrameSpec((), "float32"),
}


def frame(layer: str, step: int, attempt: int) -> np.ndarray:
    spec = SPECS[layer]
    return np.full(spec.shape, step * 10 + attempt, spec.dtype)


class RunMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "run.zarr"
        self.model: dict[int, dict[str, int]] = {}
        self.scalars: dict[int, float] = {}
        self.attempt = 0
        self.run: RunWriter | None = None

    @initialize()
    def create(self) -> None:
        self.run = create_run(self.path)
        self.run.writer("activations", SPECS)

    @precondition(lambda self: self.run is not None)
    @rule(gap=st.integers(1, 3), layers=st.sets(st.sampled_from(sorted(SPECS))))
    def append(self, gap: int, layers: set[str]) -> None:
        assert self.run is not None
        step = max(self.model, default=-1) + gap
        frames = {layer: frame(layer, step, self.attempt) for layer in layers}
        self.run.writer("activations", SPECS).append(step, frames)
        self.model[step] = dict.fromkeys(layers, self.attempt)

    @precondition(lambda self: self.run is not None)
    @rule(count=st.integers(30, 140))
    def append_many(self, count: int) -> None:
        for _ in range(count):
            self.append(1, {"small"})

    @precondition(lambda self: self.run is not None)
    @rule(gap=st.integers(0, 3), value=st.floats(allow_nan=False))
    def log(self, gap: int, value: float) -> None:
        assert self.run is not None
        step = max(self.scalars, default=0) + gap
        self.run.log(step, {"loss": value})
        self.scalars[step] = value

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
        last = max([*self.model, *self.scalars], default=0)
        first = data.draw(st.none() | st.integers(0, last + 1))
        self.run = create_run(self.path, if_exists="resume", first_step=first)
        self.attempt += 1
        if first is not None:
            self.model = {step: row for step, row in self.model.items() if step < first}
            self.scalars = {step: value for step, value in self.scalars.items() if step < first}

    @invariant()
    def the_run_is_the_dict(self) -> None:
        if not self.path.exists():
            return
        run = open_run(self.path)
        assert run.steps("activations").tolist() == list(self.model)
        for layer, strip in run.activations.items():
            kept = {step: row[layer] for step, row in self.model.items() if layer in row}
            assert strip.steps.tolist() == list(kept)
            expected = [frame(layer, step, attempt) for step, attempt in kept.items()]
            if expected:
                np.testing.assert_array_equal(strip.read(), np.stack(expected))
        if self.scalars:
            assert (
                dict(zip(*map(np.ndarray.tolist, run.scalars["loss"]), strict=True)) == self.scalars
            )

    def teardown(self) -> None:
        if self.run is not None:
            self.run.close()
        shutil.rmtree(self.folder)


RunMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestRun = RunMachine.TestCase
