from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from capture.training import Batches, Trained
from torch import nn

from filmstrip.capture.pytorch import Capture
from filmstrip.store import bit_histogram, open_run, summarize

LAYERS = ("conv", "norm", "relu", "drop", "fc")


class Observer:
    """Clones what capture should see, by other means: methods of the modules, not hooks."""

    def __init__(self, trained: Trained) -> None:
        self.step = 0
        self.seen: dict[str, dict[tuple[str, int], np.ndarray]] = defaultdict(dict)
        self.model, optimizer = trained.model, trained.optimizer
        for name in LAYERS:
            self._watch(name, getattr(self.model, name))
        step: Callable[..., Any] = optimizer.step

        def observed(*args: Any, **kwargs: Any) -> Any:
            for name, parameter in self.model.named_parameters():
                self._keep("weights", name, parameter)
                assert parameter.grad is not None
                self._keep("gradients", name, parameter.grad)
            result = step(*args, **kwargs)
            self.step += 1
            return result

        optimizer.step = observed  # type: ignore[method-assign]

    def _watch(self, name: str, module: nn.Module) -> None:
        forward = module.forward

        def observed(x: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = forward(x)
            self._keep("activations", name, output)
            return output

        module.forward = observed

    def _keep(self, kind: str, name: str, tensor: torch.Tensor) -> None:
        self.seen[kind][name, self.step] = tensor.detach().clone().numpy()


@pytest.mark.parametrize("every", [1, 2])
def test_every_frame_equals_what_an_observer_cloned(
    run: str, trained: Callable[[], Trained], batches: Batches, every: int
) -> None:
    training = trained()
    observer = Observer(training)
    with Capture(
        training.model, training.optimizer, run, every=every, samples=16, on_pressure="block"
    ):
        training.run(batches(6))

    steps = list(range(0, 6, every))
    opened = open_run(run)
    for kind, seen in observer.seen.items():
        assert opened.steps(kind).tolist() == steps
        assert set(opened.layers(kind)) == {name for name, _ in seen}
        for (name, step), expected in seen.items():
            if step % every == 0:
                np.testing.assert_array_equal(opened.strip(kind, name).frame(step), expected)


def test_the_output_before_an_in_place_relu_keeps_its_negative_values(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = trained()
    with Capture(training.model, training.optimizer, run, every=1, kinds=["activations"]):
        training.run(batches(2))

    opened = open_run(run)
    for step in range(2):
        before = opened.activations["norm"].frame(step)
        assert before.min() < 0
        np.testing.assert_array_equal(opened.activations["relu"].frame(step), np.maximum(before, 0))


def test_statistics_are_of_the_whole_tensor_though_one_sample_is_kept(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = trained()
    observer = Observer(training)
    with Capture(training.model, training.optimizer, run, every=1, samples=1):
        training.run(batches(3))

    opened = open_run(run)
    for kind, seen in observer.seen.items():
        statistics = opened.statistics(kind)
        for (name, step), tensor in seen.items():
            expected = summarize(tensor)
            found = [
                statistics[name, what].values[step] for what in ("count", "zeros", "min", "sumsq")
            ]
            np.testing.assert_allclose(found, expected[[0, 4, 5, 8]], rtol=1e-12)
            steps, counts = statistics.bits(name)
            np.testing.assert_array_equal(counts[steps == step][0], bit_histogram(tensor))
    assert opened.activations["conv"].shape == (1, 8, 8, 8)


def test_the_survey_step_is_captured_like_any_other_when_the_budget_is_tight(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = trained()
    observer = Observer(training)
    with Capture(
        training.model, training.optimizer, run, every=1, samples=16, max_capture_bytes=30_000
    ):
        training.run(batches(3))

    opened = open_run(run)
    frames = sum(
        opened.strip(kind, name).nbytes for kind in observer.seen for name in opened.layers(kind)
    )
    assert frames <= 2 * 30_000  # bfloat16 is widened on disk
    strip = opened.weights["fc.weight"]
    stride = next(stride for stride in (2, 4, 8, 16) if -(-10 // stride) == strip.shape[0])
    for step in range(3):
        whole = observer.seen["weights"]["fc.weight", step][::stride]
        np.testing.assert_allclose(strip.frame(step), whole, rtol=2**-8)
        conv = opened.activations["conv"].frame(step)
        np.testing.assert_allclose(
            conv,
            observer.seen["activations"]["conv", step][: len(conv), :: 8 // conv.shape[1]],
            rtol=2**-8,
        )
    assert strip.attributes["degraded"]


def test_a_short_last_batch_has_fewer_samples(
    run: str, trained: Callable[[], Trained], digits: tuple[torch.Tensor, torch.Tensor]
) -> None:
    training = trained()
    x, y = digits
    with Capture(training.model, training.optimizer, run, every=1, samples=8):
        training.run(iter([(x[:16], y[:16]), (x[:3], y[:3]), (x[:16], y[:16])]))

    strip = open_run(run).activations["conv"]
    assert [len(strip.frame(step)) for step in range(3)] == [8, 3, 8]


def test_another_shape_is_skipped_and_said_while_its_statistics_go_on(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.AdaptiveAvgPool1d(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=1):
        for length in (8, 12, 8):
            model(torch.ones(4, 1, length)).sum().backward()
            optimizer.step()

    opened = open_run(run)
    assert opened.activations["0"].steps.tolist() == [0, 2]
    assert opened.activations["1"].steps.tolist() == [0, 1, 2]
    assert opened.statistics("activations")["0", "count"].values.tolist() == [48.0, 80.0, 48.0]
    assert "changed shape from (4, 2, 6) to (4, 2, 10) at step 1" in caplog.text
    assert opened.status().errors == 0


def test_frames_can_be_kept_in_another_dtype(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = trained()
    observer = Observer(training)
    with Capture(training.model, training.optimizer, run, every=1, dtype="float16"):
        training.run(batches(2))

    strip = open_run(run).weights["fc.weight"]
    assert strip.dtype == np.float16
    for step in range(2):
        expected = observer.seen["weights"]["fc.weight", step].astype(np.float16)
        np.testing.assert_array_equal(strip.frame(step), expected)


def test_bfloat16_frames_keep_every_value(run: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = model.weight.detach().clone()
    with Capture(model, optimizer, run, every=1):
        model(torch.ones(4, 5, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()

    strip = open_run(run).weights["weight"]
    assert strip.source_dtype == "bfloat16"
    np.testing.assert_array_equal(strip.frame(0), expected.float().numpy())


def test_autocast_outputs_are_kept_in_the_dtype_of_their_first_capture(run: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outputs = []
    with Capture(model, optimizer, run, every=1, samples=4):
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                output = model(torch.ones(4, 5))
            outputs.append(output.detach().float().numpy())
            output.float().sum().backward()
            optimizer.step()

    opened = open_run(run)
    assert opened.activations[opened.layers("activations")[0]].source_dtype == "bfloat16"
    for step, output in enumerate(outputs):
        np.testing.assert_array_equal(
            opened.activations[opened.layers("activations")[0]].frame(step), output
        )


def test_each_tier_is_taken_at_its_own_steps(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = trained()
    every = {"statistics": 2, "histograms": 4, "frames": 3}
    with Capture(training.model, training.optimizer, run, every=every):
        training.run(batches(9))

    opened = open_run(run)
    statistics = opened.statistics("weights")
    assert opened.steps("weights").tolist() == [0, 3, 6]
    assert statistics.steps.tolist() == [0, 2, 4, 6, 8]
    assert statistics.bits("fc.weight")[0].tolist() == [0, 4, 8]


def test_statistics_alone_write_no_frame(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = trained()
    with Capture(training.model, training.optimizer, run, every=1, frames=False, histograms=False):
        training.run(batches(3))

    opened = open_run(run)
    assert opened.kinds == ()
    assert np.isfinite(opened.statistics("gradients")["conv.weight", "l2"].values).all()


def test_layouts_and_the_order_of_the_forward_pass_are_kept(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = trained()
    with Capture(training.model, training.optimizer, run, every=1):
        training.run(batches(1))

    opened = open_run(run)
    assert opened.layers("activations") == list(LAYERS)
    layouts = {name: opened.activations[name].layout for name in LAYERS}
    assert layouts == {"conv": "NCHW", "norm": "NCHW", "relu": "NCHW", "drop": "NCHW", "fc": "NC"}
    assert opened.weights["conv.weight"].layout == "OIHW"
    assert opened.gradients["fc.weight"].layout == "OI"
    assert opened.weights["fc.bias"].layout == "C"


def test_what_capture_cost_is_kept_for_every_due_step(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = trained()
    with Capture(training.model, training.optimizer, run, every=2) as capture:
        training.run(batches(5), lambda loss: capture.log({"loss": loss}))

    opened = open_run(run)
    health = opened.steps("health")
    assert health.tolist() == [0, 2, 4]
    expected = [float(loss) for loss in training.losses]
    assert opened.scalars["loss"].values.tolist() == expected
    assert opened.scalars["loss"].steps.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("compiled", [False, True])
def test_inputs_are_what_the_model_was_given(run: str, compiled: bool) -> None:
    if compiled and torch.__version__ < "2.7":
        pytest.skip("needs torch 2.7 to see what compiled code is given")

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
            return self.fc(x) * mask  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Masked()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.randn(4, 3), torch.randint(2, (4, 2))) for _ in range(6)]
    with Capture(model, optimizer, run, every=2, samples=2, kinds=("inputs", "weights")):
        call = torch.compile(model, backend="aot_eager") if compiled else model
        for x, mask in batches:
            optimizer.zero_grad()
            call(x, mask=mask).sum().backward()
            optimizer.step()

    opened = open_run(run)
    assert opened.kinds == ("inputs", "weights")
    assert opened.layers("inputs") == ["input.0", "input.mask"]
    for step in (0, 2, 4):
        x, mask = batches[step]
        np.testing.assert_array_equal(opened.inputs["input.0"].frame(step), x[:2])
        np.testing.assert_array_equal(opened.inputs["input.mask"].frame(step), mask[:2])
    sums = opened.statistics("inputs")["input.mask", "sum"].values
    assert sums.tolist() == [float(batches[step][1].sum()) for step in (0, 2, 4)]


def test_inputs_alone_are_kept_and_the_probe_s_in_their_place(tmp_path: Path) -> None:
    x, probe = torch.randn(4, 1, 5, 5), torch.randn(2, 1, 5, 5)
    model = nn.Sequential(nn.Conv2d(1, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name, given in (("alone", None), ("probed", probe)):
        run = tmp_path / f"{name}.zarr"
        with Capture(model, optimizer, run, every=1, kinds="inputs", probe=given):
            for _ in range(2):
                model(x).sum().backward()
                optimizer.step()

    alone, probed = (open_run(tmp_path / f"{name}.zarr") for name in ("alone", "probed"))
    assert alone.inputs["input"].steps.tolist() == [0, 1]
    assert alone.inputs["input"].layout == "NCHW"
    np.testing.assert_array_equal(alone.inputs["input"].frame(1), x[:1])
    np.testing.assert_array_equal(probed.inputs["input"].frame(-1), probe)
