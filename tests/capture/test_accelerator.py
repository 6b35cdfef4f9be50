"""What must hold on a real accelerator; ``pytest -m gpu`` runs it where there is one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from capture.extract_contract import ExtractContract
from capture.training import Batches, Trained, accelerator
from torch import nn

from filmstrip.capture.pytorch import Capture
from filmstrip.capture.pytorch._device import Accelerator
from filmstrip.capture.pytorch._extract_device import DeviceExtractor
from filmstrip.capture.pytorch._stage import AccelStage, stage_for
from filmstrip.store import open_run
from filmstrip.store._bits import ascending

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(accelerator() is None, reason="there is no accelerator"),
]
DEVICE = accelerator() or torch.device("cpu")


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise, on CUDA, where the device is waited for."""
    if DEVICE.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class TestAccelerator(ExtractContract):
    extractor = DeviceExtractor()
    doubles = DEVICE.type != "mps"
    rounding = 1e-12 if doubles else 1e-6

    def extract(self, tensor: torch.Tensor) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint64]]:
        there = tensor.to(DEVICE)
        self.extractor.extract(there)  # what is made once may be waited for
        with no_waiting():
            values, counts = self.extractor.extract(there)
        return values.cpu().numpy(), ascending(counts.cpu().numpy())


def moved(training: Trained) -> Trained:
    training.model.to(DEVICE)
    return Trained(training.model, torch.optim.Adam(training.model.parameters(), lr=1e-3))


def there(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[Any]:
    return ((x.to(DEVICE), y.to(DEVICE)) for x, y in batches)


def test_training_has_the_same_bits_and_frames_are_those_of_an_observer(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    plain, captured = moved(trained()), moved(trained())
    torch.manual_seed(1)
    plain.run(there(batches(8)))
    seen: list[dict[str, torch.Tensor]] = []

    def observe(*_: object) -> None:
        seen.append(
            {
                name: parameter.detach().cpu().clone()
                for name, parameter in captured.model.named_parameters()
            }
        )

    captured.optimizer.register_step_pre_hook(observe)
    torch.manual_seed(1)
    with Capture(captured.model, captured.optimizer, run, every=1, samples=16):
        captured.run(there(batches(8)))

    assert all(map(torch.equal, captured.losses, plain.losses))
    opened = open_run(run)
    assert opened.steps("weights").tolist() == list(range(8))
    assert opened.statistics("weights").steps.tolist() == [0]
    for step, weights in enumerate(seen):
        for name, weight in weights.items():
            np.testing.assert_array_equal(opened.weights[name].frame(step), weight.numpy())
    relu, norm = opened.activations["relu"], opened.activations["norm"]
    for step in range(8):
        assert (norm.frame(step) < 0).any()  # not yet overwritten
        np.testing.assert_array_equal(relu.frame(step), norm.frame(step).clip(min=0))


def test_after_the_survey_nothing_waits_for_the_device(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = moved(trained())
    given = list(there(batches(25)))
    with Capture(training.model, training.optimizer, run, every=1, on_pressure="block"):
        training.run(iter(given[:2]))
        with no_waiting():
            training.run(iter(given[2:]))

    opened = open_run(run)
    assert opened.steps("weights").tolist() == list(range(25))
    assert opened.statistics("weights").steps.tolist() == [0, 10, 20]


@pytest.mark.skipif(DEVICE.type != "cuda", reason="only CUDA records graphs")
def test_what_is_recorded_into_a_graph_is_left_out_and_its_replays_are_as_without_capture(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(3, 3).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(2, 3, device=DEVICE)
    plain = model(x).detach()
    with Capture(model, optimizer, run, every=1):
        for _ in range(2):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()
            with torch.no_grad():
                expected = model(x)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded), torch.no_grad():
            output = model(x)
        recorded.replay()
        assert torch.equal(output, expected)
        assert not torch.equal(output, plain)

    assert open_run(run).steps("weights").tolist() == [0, 1]
    assert "exceptions" not in caplog.text


def test_images_and_numbers_are_what_they_were_when_they_were_given(run: str) -> None:
    model = nn.Linear(3, 1).to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Capture(model, optimizer, run, every=1) as capture:
        for step in range(5):
            model(torch.ones(2, 3, device=DEVICE)).sum().backward()
            picture = torch.full((4, 3, 5, 5), float(step), device=DEVICE)
            capture.image("x", picture, layout="NCHW")
            capture.log(mean=picture.mean())
            picture.zero_()
            optimizer.step()

    opened = open_run(run)
    assert [float(opened.images["x"].frame(step).max()) for step in range(5)] == list(range(5))
    assert opened.scalars["mean"].values.tolist() == list(range(5))


def test_a_model_half_on_the_host_is_captured_whole(run: str) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.host, self.device = nn.Linear(3, 4), nn.Linear(4, 2).to(DEVICE)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.device(self.host(x).to(DEVICE))  # type: ignore[no-any-return]

    model = Half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    outputs = []
    model.host.register_forward_hook(lambda m, i, output: outputs.append(output.detach().clone()))
    with Capture(model, optimizer, run, every=1, samples=5, on_pressure="block"):
        for _ in range(4):
            model(torch.ones(5, 3)).sum().backward()
            optimizer.step()

    opened = open_run(run)
    for step in range(4):
        frame = opened.activations["host"].frame(step)
        np.testing.assert_array_equal(frame, outputs[step].cpu().numpy())
    assert opened.activations["device"].steps.tolist() == [0, 1, 2, 3]


def test_slots_are_page_locked_and_allocated_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert isinstance(stage_for(nn.Linear(2, 1).to(DEVICE)), AccelStage)
    with caplog.at_level(logging.WARNING, "filmstrip"):
        (slot,) = AccelStage(Accelerator()).ring(1, 1 << 20)

    assert slot.bytes.is_pinned()
    assert caplog.records == []


def test_a_tensor_that_is_overwritten_on_another_stream_is_kept_as_it_was() -> None:
    from filmstrip.capture.pytorch._device import Later

    stream = torch.Stream(device=DEVICE)
    tensor = torch.zeros(1 << 22, device=DEVICE)
    torch.get_device_module(DEVICE).synchronize()
    with stream:
        tensor.fill_(3.0)
        later = Later(tensor)
        tensor.fill_(5.0)

    assert (np.asarray(later) == 3.0).all()


def test_a_scaler_that_leaves_its_work_to_a_fused_optimizer_is_not_waited_for(run: str) -> None:
    model = nn.Linear(3, 1).to(DEVICE)
    optimizer: Any = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    optimizer.grad_scale = torch.tensor(1000.0, device=DEVICE)
    used: list[Any] = []
    with Capture(model, optimizer, run, every=1, histograms=False):
        for left_out in (0.0, 0.0, 1.0, 0.0):
            optimizer.found_inf = torch.tensor(left_out, device=DEVICE)
            x = torch.randn(4, 3).to(DEVICE)
            optimizer.zero_grad()
            (model(x).square().sum() * 1000.0).backward()
            with no_waiting() if used else nullcontext():
                optimizer.step()
            assert model.weight.grad is not None
            used.append(model.weight.grad.cpu().numpy())

    gradients = open_run(run).gradients["weight"]
    assert gradients.steps.tolist() == [0, 1, 2, 3]
    for step, gradient in enumerate(used):
        gradient = gradient / np.float32(1000) if step == 2 else gradient
        np.testing.assert_allclose(gradients.frame(step), gradient, rtol=1e-6)
