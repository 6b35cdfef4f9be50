from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from capture.training import Batches, Trained, state

from filmstrip.capture.pytorch import Capture
from filmstrip.store import open_run


@pytest.mark.parametrize("probed", [False, True])
def test_training_has_the_same_bits_with_and_without_capture(
    run: str,
    trained: Callable[[], Trained],
    batches: Batches,
    digits: tuple[torch.Tensor, torch.Tensor],
    probed: bool,
) -> None:
    plain, captured = trained(), trained()
    torch.manual_seed(1)
    plain.run(batches(8))
    expected = state(plain)
    torch.manual_seed(1)
    probe = digits[0][-4:] if probed else None
    with Capture(captured.model, captured.optimizer, run, every=1, probe=probe):
        captured.run(batches(8))

    found = state(captured)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert open_run(run).steps("activations").tolist() == list(range(8))


def test_a_probe_gives_the_frames_and_training_the_statistics(
    run: str,
    trained: Callable[[], Trained],
    batches: Batches,
    digits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    training = trained()
    probe = digits[0][-4:]
    expected = []

    def observe(*_: object) -> None:
        modes = {module: module.training for module in training.model.modules()}
        training.model.eval()
        with torch.no_grad():
            expected.append(training.model.conv(probe).clone())
        for module, mode in modes.items():
            module.training = mode

    training.optimizer.register_step_pre_hook(observe)
    with Capture(training.model, training.optimizer, run, every=1, probe=probe):
        training.run(batches(3))

    opened = open_run(run)
    assert opened.activations["conv"].shape == (4, 8, 8, 8)
    for step in range(3):
        np.testing.assert_array_equal(
            opened.activations["conv"].frame(step), expected[step].numpy()
        )
    assert opened.statistics("activations")["conv", "count"].values.tolist() == [16 * 8 * 64.0] * 3
    assert opened.inputs["input"].steps.tolist() == [0]
    np.testing.assert_array_equal(opened.inputs["input"].frame(0), probe.numpy())


def test_a_probe_has_its_frames_though_only_statistics_are_due_at_first(
    run: str,
    trained: Callable[[], Trained],
    batches: Batches,
    digits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    training = trained()
    every = {"statistics": 1, "frames": 3}
    with Capture(
        training.model, training.optimizer, run, every=every, start=1, probe=digits[0][:2]
    ):
        training.run(batches(7))

    opened = open_run(run)
    assert opened.steps("activations").tolist() == [3, 6]
    assert opened.statistics("activations").steps.tolist() == [1, 2, 3, 4, 5, 6]


def test_a_probe_runs_in_eval_mode_and_leaves_every_module_as_it_was(
    run: str,
    trained: Callable[[], Trained],
    batches: Batches,
    digits: tuple[torch.Tensor, torch.Tensor],
) -> None:
    training = trained()
    training.model.norm.eval()  # a frozen batch norm
    modes = []
    training.model.drop.register_forward_hook(
        lambda module, args, output: modes.append(module.training)
    )
    with Capture(training.model, training.optimizer, run, every=1, probe=digits[0][:2]):
        training.run(batches(2))

    assert modes == [True, False, True, False]
    assert training.model.training
    assert not training.model.norm.training


class Restless(torch.nn.Module):
    """Draws random numbers, and changes one buffer and replaces another even in eval mode."""

    calls: torch.Tensor
    replaced: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.replaced = self.replaced + 1
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return self.fc(x) * noise  # type: ignore[no-any-return]


def test_a_probe_leaves_buffers_and_random_numbers_as_they_were(run: str) -> None:
    def train(capture: bool) -> list[float]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        model = Restless()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        taken = Capture(model, optimizer, run, every=1, probe=torch.ones(2, 3), enabled=capture)
        losses = []
        for _ in range(3):
            loss = model(torch.ones(4, 3)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [float(loss.detach()), float(model.calls), float(model.replaced)]
        taken.close()
        return losses

    assert train(True) == train(False)


@pytest.mark.parametrize("form", ["tuple", "mapping"])
def test_a_probe_of_several_inputs_is_kept_by_name(run: str, form: str) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.fc(x) * scale
            return output

    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, scale = torch.ones(2, 3), torch.tensor(2.0)
    probe = (x, scale) if form == "tuple" else {"x": x, "scale": scale}
    with Capture(model, optimizer, run, every=1, probe=probe):
        model(x, scale).sum().backward()
        optimizer.step()

    names = ["input.0", "input.1"] if form == "tuple" else ["input.x", "input.scale"]
    assert open_run(run).layers("inputs") == names


def test_a_probe_that_the_model_cannot_take_does_not_stop_training(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = trained()
    capture = Capture(training.model, training.optimizer, run, every=1, probe=torch.ones(2, 3))
    training.run(batches(3))

    with pytest.raises(Exception, match="1 exceptions in taps"):
        capture.close()
    assert len(training.losses) == 3
    assert open_run(run).steps("weights").tolist() == [0, 1, 2]
