"""What every adapter promises: one network, trained alike, of which the same things are kept."""

from __future__ import annotations

import errno
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import conv2d, cross_entropy

from filmstrip.capture import CaptureError, PlanError
from filmstrip.render import mosaic
from filmstrip.store import RunExistsError, open_run

Array = npt.NDArray[Any]
STEPS, BATCH, RATE = 5, 8, 0.1
OUTPUTS = ("conv1", "fc")
PARAMETERS = ("conv1.kernel", "conv1.bias", "fc.kernel", "fc.bias")


def batch(step: int) -> tuple[Array, Array]:
    """Return the images (n, 8, 8, 1) and labels of a step."""
    images, labels = load_digits(return_X_y=True)
    part = slice(step * BATCH, (step + 1) * BATCH)
    return images[part].reshape(-1, 8, 8, 1).astype("float32") / 16, labels[part]


def start() -> dict[str, Array]:
    """Return the parameters before the first step, of layouts HWIO, C, IO and C."""
    rng = np.random.default_rng(0)
    shapes = ((3, 3, 1, 4), (4,), (256, 10), (10,))
    drawn = [rng.normal(0, 0.1, shape).astype("float32") for shape in shapes]
    return dict(zip(PARAMETERS, drawn, strict=True))


@cache
def reference() -> list[dict[str, dict[str, Array]]]:
    """Return what each step uses, in float64 and the order of Keras: what no adapter has seen."""
    now = {name: torch.tensor(array, dtype=torch.float64) for name, array in start().items()}
    steps = []
    for step in range(STEPS):
        x, y = map(torch.as_tensor, batch(step))
        leaves = {name: value.clone().requires_grad_() for name, value in now.items()}
        kernel = leaves["conv1.kernel"].permute(3, 2, 0, 1)
        conv1 = conv2d(x.double().permute(0, 3, 1, 2), kernel, leaves["conv1.bias"], padding=1)
        conv1 = conv1.permute(0, 2, 3, 1)
        fc = conv1.flatten(1) @ leaves["fc.kernel"] + leaves["fc.bias"]
        loss = cross_entropy(fc, y.long())
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        used = {
            "activations": {"conv1": conv1, "fc": fc},
            "weights": now,
            "gradients": dict(zip(leaves, gradients, strict=True)),
            "scalars": {"loss": loss},
        }
        steps.append(
            {
                kind: {name: value.detach().numpy() for name, value in values.items()}
                for kind, values in used.items()
            }
        )
        now = {
            name: value - RATE * gradient
            for (name, value), gradient in zip(now.items(), gradients, strict=True)
        }
    return steps


def turned(array: Array, layout: str | None) -> Array:
    """Return a frame in the order of Keras, whatever the order in which it is kept."""
    target = {"NCHW": "NHWC", "OIHW": "HWIO", "OI": "IO"}.get(layout or "")
    if target is None or layout is None:
        return array
    return array.transpose([layout.index(axis) for axis in target])


@dataclass
class Outcome:
    """What training leaves: losses, parameters, the capture, and what it lost."""

    losses: list[float] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)
    capture: Any = None
    error: CaptureError | None = None

    def close(self) -> None:
        """Close the capture, if there is one, and keep what it complains of."""
        try:
            if self.capture is not None:
                self.capture.close()
        except CaptureError as error:
            self.error = error

    def equals(self, other: Outcome) -> bool:
        """Return whether training had the same bits."""
        return self.losses == other.losses and all(map(np.array_equal, self.weights, other.weights))


After = Callable[[int, Any], None]


def nothing(step: int, capture: Any) -> None:
    """Do nothing after a step."""


class TapContract(ABC):
    """Subclassed once for each adapter."""

    names: ClassVar[Mapping[str, str]] = {}
    """The adapter's names, by those of Keras, where they differ."""

    @abstractmethod
    def train(self, after: After = nothing, **keywords: Any) -> Outcome:
        """Train the network for `STEPS` steps of SGD from `start`, captured if there are keywords.

        Parameters
        ----------
        after : callable
            Is given each step that has ended, and the capture.
        **keywords
            Of the capture; `close` has been called in the end.
        """

    def _name(self, name: str) -> str:
        return self.names.get(name, name)

    def test_training_has_the_same_bits_and_the_run_what_each_step_used(self, run: str) -> None:
        plain = self.train()
        captured = self.train(run=run, every=1, samples=BATCH)

        assert captured.error is None
        assert captured.equals(plain)
        np.testing.assert_allclose(
            plain.losses, [step["scalars"]["loss"] for step in reference()], rtol=1e-4
        )
        opened = open_run(run)
        assert {"activations", "gradients", "weights"} <= set(opened.kinds)
        for kind, names in (
            *(("activations", OUTPUTS), ("weights", PARAMETERS), ("gradients", PARAMETERS)),
        ):
            assert opened.steps(kind).tolist() == list(range(STEPS))
            for name in names:
                strip = opened.strip(kind, self._name(name))
                for step, used in enumerate(reference()):
                    frame = turned(strip.frame(step), strip.layout)
                    np.testing.assert_allclose(frame, used[kind][name], rtol=1e-4, atol=1e-6)

    def test_tiles_are_the_same_whatever_the_framework(self, run: str) -> None:
        self.train(run=run, steps=[2])

        opened, used = open_run(run), reference()[2]
        for strip, expected, layout in (
            (opened.activations[self._name("conv1")], used["activations"]["conv1"], "NHWC"),
            (opened.weights[self._name("conv1.kernel")], used["weights"]["conv1.kernel"], "HWIO"),
            (
                opened.gradients[self._name("conv1.kernel")],
                used["gradients"]["conv1.kernel"],
                "HWIO",
            ),
            (opened.weights[self._name("fc.kernel")], used["weights"]["fc.kernel"], "IO"),
        ):
            tiles = mosaic(strip, padding=2)
            np.testing.assert_allclose(
                tiles, mosaic(expected, layout, padding=2), rtol=1e-5, atol=1e-6
            )

    def test_what_is_counted_is_the_whole_tensor(self, run: str) -> None:
        self.train(run=run, every=2)

        opened = open_run(run)
        name = self._name("conv1")
        assert opened.activations[name].shape[0] == 1
        found = opened.statistics("activations")
        for row, step in enumerate((0, 2, 4)):
            whole = reference()[step]["activations"]["conv1"]
            assert found[name, "count"].values[row] == whole.size
            np.testing.assert_allclose(found[name, "max"].values[row], whole.max(), rtol=1e-4)

    @pytest.mark.parametrize(
        ("asked", "frames", "statistics"),
        [
            ({"every": 3}, [0, 3], [0, 3]),
            ({"every": 2, "start": 1, "stop": 4}, [2], [2]),
            ({"steps": [1, 4]}, [1, 4], [1, 4]),
            ({"every": {"statistics": 1, "frames": 2}}, [0, 2, 4], [0, 1, 2, 3, 4]),
            ({"every": 1, "step": 7}, [7, 8, 9, 10, 11], [7, 8, 9, 10, 11]),
            ({"every": 1, "frames": False}, [], [0, 1, 2, 3, 4]),
        ],
    )
    def test_steps_are_due_as_the_plan_says(
        self, run: str, asked: dict[str, Any], frames: list[int], statistics: list[int]
    ) -> None:
        self.train(run=run, **asked)

        opened = open_run(run)
        for kind in ("activations", "weights", "gradients"):
            kept = opened.steps(kind).tolist() if kind in opened.kinds else []
            assert kept == frames
            assert opened.statistics(kind).steps.tolist() == statistics

    def test_selectors_pick_kinds_and_layers(self, run: str) -> None:
        bias = self._name("fc.bias")
        layers = [self._name("fc"), bias.replace("bias", "*")]
        self.train(run=run, every=2, kinds=("weights", "activations"), layers=layers, exclude=bias)

        opened = open_run(run)
        assert "gradients" not in opened.kinds
        assert opened.layers("activations") == [self._name("fc")]
        assert opened.layers("weights") == [self._name("fc.kernel")]

    def test_a_selector_that_matches_nothing_names_what_is_near(self, run: str) -> None:
        with pytest.raises(PlanError, match=r"no layer matches 'conv9'; nearest: .*conv1"):
            self.train(run=run, layers="conv9")

        assert not Path(run).exists()

    def test_numbers_belong_to_the_step_that_ended(self, run: str) -> None:
        def log(step: int, capture: Any) -> None:
            capture.log({"a": step}, b=np.float32(step) / 2)

        self.train(log, run=run, every=3)

        opened = open_run(run)
        for name, values in (("a", [0, 1, 2, 3, 4]), ("b", [0, 0.5, 1, 1.5, 2])):
            assert opened.scalars[name].steps.tolist() == list(range(STEPS))
            assert opened.scalars[name].values.tolist() == values

    def test_nothing_is_kept_between_pause_and_resume(self, run: str) -> None:
        def pause(step: int, capture: Any) -> None:
            if step == 0:
                capture.pause()
            if step == 2:
                capture.resume()
            assert capture.enabled is (step not in (0, 1))

        self.train(pause, run=run, every=1)

        assert open_run(run).steps("weights").tolist() == [0, 3, 4]

    def test_a_state_holds_the_step_and_training_goes_on_from_it(self, run: str) -> None:
        states = []

        def keep(step: int, capture: Any) -> None:
            states.append(capture.state_dict())
            if step == 2:
                capture.load_state_dict({"step": 12})

        self.train(keep, run=run, every=1)

        assert states == [{"step": step} for step in (1, 2, 3, 13, 14)]
        assert open_run(run).steps("weights").tolist() == [0, 1, 2, 12, 13]

    def test_a_run_that_is_there_is_refused_or_taken_up(self, run: str) -> None:
        self.train(run=run, every=1, stop=3)
        with pytest.raises(RunExistsError):
            self.train(run=run, every=1, if_exists="fail")
        self.train(run=run, every=1, if_exists="resume", step=2)

        assert open_run(run).steps("weights").tolist() == [0, 1, 2, 3, 4, 5, 6]

    def test_a_dry_run_prints_a_table_and_writes_nothing(
        self, run: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        captured = self.train(run=run, every=1, dry_run=True)

        said = capsys.readouterr().err
        assert f"weights      {self._name('conv1.kernel')}" in said
        assert "dry run: nothing is written" in said
        assert captured.capture.path is None
        assert not Path(run).exists()
        assert captured.equals(self.train())

    def test_attach_and_survey_are_a_line_each(
        self, run: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        captured = self.train(run=run, every=2)
        lines = capsys.readouterr().err.splitlines()

        assert len(lines) == 2
        assert lines[0].startswith("filmstrip: capturing ")
        assert lines[0].endswith(f" activations, 4 weights, 4 gradients to {run} every 2 steps")
        assert lines[1].startswith("filmstrip: a capture adds ")
        assert re.search(r"; the first took [\d.]+ m?s of training time\b", lines[1])
        assert open_run(run).status().state == "finished"
        captured.capture.close()
        assert not capsys.readouterr().err

    def test_capture_that_is_off_writes_and_says_nothing(
        self, run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("FILMSTRIP", "off")

        def use(step: int, capture: Any) -> None:
            capture.log(loss=step)
            capture.pause()
            capture.resume()
            assert not capture.enabled

        captured = self.train(use, run=run, every=1)

        assert captured.equals(self.train())
        assert captured.capture.path is None
        assert not capsys.readouterr().err
        assert not Path(run).exists()

    def test_a_full_disk_ends_capture_and_not_training(
        self, run: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = [False]

        def unless_full(write: Any) -> Any:
            def written(*given: Any) -> Any:
                if full[0]:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(*given)

            return written

        for name in ("pwrite", "pwritev"):
            monkeypatch.setattr(os, name, unless_full(getattr(os, name)))
        captured = self.train(
            lambda step, capture: full.__setitem__(0, step >= 2), run=run, every=1
        )
        full[0] = False

        assert captured.equals(self.train())
        assert "No space left on device" in str(captured.error)
        captured.capture.close()
        steps = open_run(run).steps("weights").tolist()
        assert steps == list(range(len(steps)))
        assert len(steps) < STEPS

    def test_a_write_that_fails_is_raised_in_the_end_and_training_goes_on(self, run: str) -> None:
        def break_it(step: int, capture: Any) -> None:
            if step == 2:
                (Path(run) / "weights").rename(Path(run) / "elsewhere")
                (Path(run) / "weights").write_text("in the way")

        captured = self.train(break_it, run=run, every=1)

        assert captured.equals(self.train())
        assert "lost something" in str(captured.error)

    def test_an_error_of_the_loop_is_the_loops_own_and_the_run_reads(self, run: str) -> None:
        def stop(step: int, capture: Any) -> None:
            if step == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self.train(stop, run=run, every=1)

        assert open_run(run).steps("weights").tolist() == [0, 1, 2]

    def test_a_keyword_that_is_not_one_is_a_type_error(self, run: str) -> None:
        with pytest.raises(TypeError, match="unexpected keyword argument 'interval'"):
            self.train(run=run, interval=3)
