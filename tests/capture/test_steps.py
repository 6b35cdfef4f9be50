from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from capture.training import Batches, Trained
from torch import nn

from filmstrip.capture.pytorch import Capture
from filmstrip.store import RunExistsError, open_run


def line() -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def forward_and_back(model: nn.Module) -> torch.Tensor:
    loss: torch.Tensor = model(torch.ones(2, 3)).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def test_a_window_and_a_list_of_steps_are_kept(
    run: str, trained: Callable[[], Trained], batches: Batches
) -> None:
    training = trained()
    with (
        Capture(training.model, training.optimizer, f"{run}-1", every=2, start=3, stop=8),
        Capture(training.model, training.optimizer, f"{run}-2", steps=[1, 5, 6]),
    ):
        training.run(batches(9))

    assert open_run(f"{run}-1").steps("weights").tolist() == [4, 6]
    assert open_run(f"{run}-2").steps("weights").tolist() == [1, 5, 6]


def test_the_first_step_can_be_given(run: str) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run, every=10, step=95) as capture:
        for _ in range(20):
            forward_and_back(model)
            optimizer.step()
        assert capture.state_dict() == {"step": 115}

    assert open_run(run).steps("weights").tolist() == [100, 110]


def test_the_trainers_own_step_is_read_at_the_forward_pass(run: str) -> None:
    model, optimizer = line()
    trainer = {"step": 0}
    with Capture(model, optimizer, run, every=4, step=lambda: trainer["step"]) as capture:
        for _ in range(6):
            loss = forward_and_back(model)
            optimizer.step()
            capture.log(loss=loss)
            trainer["step"] += 2

    opened = open_run(run)
    assert opened.steps("weights").tolist() == opened.steps("activations").tolist() == [0, 4, 8]
    assert opened.scalars["loss"].steps.tolist() == [0, 2, 4, 6, 8, 10]


def test_a_trainers_step_that_stands_still_is_kept_once(run: str) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run, every=1, step=lambda: 7):
        for _ in range(3):
            forward_and_back(model)
            optimizer.step()

    assert open_run(run).steps("weights").tolist() == [7]


def test_a_trainers_step_that_cannot_be_read_does_not_stop_training(run: str) -> None:
    model, optimizer = line()
    steps = iter([0, 0])
    capture = Capture(model, optimizer, run, every=1, step=lambda: next(steps))
    for _ in range(3):
        forward_and_back(model)
        optimizer.step()

    with pytest.raises(Exception, match="exceptions in taps"):
        capture.close()
    assert open_run(run).steps("weights").tolist() == [0]


def test_a_step_in_which_an_exception_was_caught_is_given_up(run: str) -> None:
    model, optimizer = line()
    step = 0
    outputs = {}
    with Capture(model, optimizer, run, every=1, step=lambda: step) as capture:
        for step in range(5):
            output = model(torch.full((2, 3), float(step)))
            outputs[step] = output.detach().numpy()
            capture.log(step=step)
            with suppress(ZeroDivisionError):
                if step in (0, 2):
                    raise ZeroDivisionError
                output.sum().backward()
                optimizer.step()

    opened = open_run(run)
    assert opened.steps("weights").tolist() == opened.steps("activations").tolist() == [1, 3, 4]
    for kept in (1, 3, 4):
        np.testing.assert_array_equal(opened.activations[""].frame(kept), outputs[kept][:1])
    logged = opened.scalars["step"]
    assert logged.steps.tolist() == logged.values.tolist() == [0, 1, 2, 3, 4]


def test_a_trainers_step_stays_one_while_batches_are_accumulated(run: str) -> None:
    model, optimizer = line()
    step = 0
    with Capture(model, optimizer, run, every=1, step=lambda: step):
        for batch in range(9):
            model(torch.full((2, 3), float(batch))).sum().backward()
            if batch % 3 == 2:
                optimizer.step()
                with torch.no_grad():
                    model(torch.full((2, 3), -1.0))  # the trainer has not counted yet
                step += 1
                optimizer.zero_grad()

    opened = open_run(run)
    assert opened.steps("activations").tolist() == [0, 1, 2]
    weights, biases = opened.weights["weight"], opened.weights["bias"]
    for kept in range(3):
        first = np.full((1, 3), 3.0 * kept, np.float32)
        expected = first @ weights.frame(kept).T + biases.frame(kept)
        np.testing.assert_allclose(opened.activations[""].frame(kept), expected, rtol=1e-5)
    assert opened.gradients["bias"].read()[:].ravel().tolist() == [6, 6, 6]


def test_a_trainers_step_that_moves_on_between_optimizers_is_that_of_the_first(run: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in model]
    iteration = 0
    seen = {}
    with Capture(model, optimizers, run, every=1, step=lambda: iteration):
        for iteration in range(6):
            weight: Any = model[0].weight
            seen[iteration] = weight.detach().clone().numpy()
            model.zero_grad()
            forward_and_back(model)
            optimizers[iteration % 2].step()

    weights = open_run(run).weights["0.weight"]
    assert weights.steps.tolist() == [0, 2, 4]
    for step in (0, 2, 4):
        np.testing.assert_array_equal(weights.frame(step), seen[step])


def test_numbers_belong_to_the_step_in_progress_or_the_one_that_just_ended(run: str) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run) as capture:
        for step in range(3):
            forward_and_back(model)
            capture.log({"before": step})
            optimizer.step()
            capture.log({"after": step})

    scalars = open_run(run).scalars
    for name in ("before", "after"):
        assert scalars[name].steps.tolist() == scalars[name].values.tolist() == [0, 1, 2]


def test_without_an_optimizer_the_loop_says_when_a_step_is_over(run: str) -> None:
    model, _ = line()
    seen = []
    with Capture(model, run=run, every=2) as capture:
        for _ in range(4):
            model.zero_grad()
            forward_and_back(model)
            seen.append(model.weight.detach().clone().numpy())
            capture.step()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(0.1 * parameter.grad)

    opened = open_run(run)
    assert opened.steps("gradients").tolist() == [0, 2]
    np.testing.assert_array_equal(opened.weights["weight"].frame(2), seen[2])


def test_step_does_nothing_where_the_optimizer_counts(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run, every=1) as capture:
        for _ in range(2):
            forward_and_back(model)
            optimizer.step()
            capture.step()

    assert open_run(run).steps("weights").tolist() == [0, 1]
    assert "the optimizer counts the steps" in caplog.text


def test_of_several_optimizers_each_gives_its_own_and_the_last_ends_the_step(run: str) -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 3), nn.Linear(3, 1)
    model = nn.Sequential(first, second)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (first, second)]
    seen = []
    with Capture(model, optimizers, run, every=1):
        for _ in range(3):
            model.zero_grad()
            forward_and_back(model)
            seen.append([part.weight.detach().clone().numpy() for part in (first, second)])
            for optimizer in optimizers:
                optimizer.step()

    opened = open_run(run)
    assert opened.steps("weights").tolist() == [0, 1, 2]
    for step, weights in enumerate(seen):
        for name, weight in zip(("0.weight", "1.weight"), weights, strict=True):
            np.testing.assert_array_equal(opened.weights[name].frame(step), weight)
            assert step in opened.gradients[name].steps


def test_optimizers_that_step_inside_of_the_backward_pass_end_the_step_with_it(run: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    parameters = list(model.parameters())
    optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in parameters]
    seen: dict[int, list[torch.Tensor]] = {number: [] for number in range(len(parameters))}

    def step(parameter: torch.Tensor, number: int) -> None:
        assert parameter.grad is not None
        seen[number].append(parameter.grad.clone())
        optimizers[number].step()
        optimizers[number].zero_grad()

    with Capture(model, optimizers, run, every=1, on_pressure="block"):
        for number, parameter in enumerate(parameters):
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(step, number=number)
            )
        for _ in range(4):
            model(torch.randn(5, 6)).square().mean().backward()

    opened = open_run(run)
    assert opened.steps("gradients").tolist() == [0, 1, 2, 3]
    for number, name in enumerate(("0.weight", "0.bias", "2.weight", "2.bias")):
        for at, gradient in enumerate(seen[number]):
            np.testing.assert_array_equal(opened.gradients[name].frame(at), gradient.numpy())


def test_gradients_of_a_closure_are_those_that_the_step_used(run: str) -> None:
    model, optimizer = line()
    gradients = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = (model(torch.ones(2, 3)) ** 2).sum()
        loss.backward()
        assert model.weight.grad is not None
        gradients.append(model.weight.grad.clone().numpy())
        return float(loss.detach())

    weights = []
    with Capture(model, optimizer, run, every=1):
        for _ in range(3):
            weights.append(model.weight.detach().clone().numpy())
            optimizer.step(closure)

    opened = open_run(run)
    for step in range(3):
        np.testing.assert_array_equal(opened.gradients["weight"].frame(step), gradients[step])
        np.testing.assert_array_equal(opened.weights["weight"].frame(step), weights[step])
    assert opened.steps("activations").tolist() == [0, 1, 2]


def test_clipped_gradients_are_kept_as_the_optimizer_sees_them(run: str) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run, every=1):
        forward_and_back(model)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    gradients = open_run(run).gradients
    norm = sum(float((gradients[name].frame(0) ** 2).sum()) for name in ("weight", "bias")) ** 0.5
    assert norm == pytest.approx(0.5, rel=1e-4)


def test_a_step_that_a_scaler_leaves_out_is_no_step(run: str) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run, every=1):
        for attempt in range(3):
            optimizer.zero_grad()
            forward_and_back(model)
            if attempt != 1:
                optimizer.step()

    assert open_run(run).steps("weights").tolist() == [0, 1]


def test_nothing_is_kept_while_paused_and_steps_go_on(run: str) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run, every=1) as capture:
        for step in range(6):
            if step == 2:
                capture.pause()
                assert not capture.enabled
            if step == 4:
                capture.resume()
            forward_and_back(model)
            optimizer.step()

    assert open_run(run).steps("weights").tolist() == [0, 1, 4, 5]


def test_a_resumed_run_takes_back_what_lies_behind_its_first_step(run: str) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run, every=1):
        for _ in range(5):
            forward_and_back(model)
            optimizer.step()
    with pytest.raises(RunExistsError):
        Capture(model, optimizer, run, every=1)
    with Capture(model, optimizer, run, every=1, step=3):
        forward_and_back(model)
        optimizer.step()

    assert open_run(run).steps("weights").tolist() == [0, 1, 2, 3]


def test_a_step_loaded_from_a_checkpoint_goes_on_from_there(run: str) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run, every=5) as capture:
        capture.load_state_dict({"step": 9})
        for _ in range(3):
            forward_and_back(model)
            optimizer.step()

    assert open_run(run).steps("weights").tolist() == [10]


def test_images_are_kept_at_steps_at_which_frames_are_due(run: str) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run, every=2, samples=2) as capture:
        for step in range(5):
            picture = torch.full((4, 3, 5, 5), float(step))
            forward_and_back(model)
            capture.image("before", picture, layout="NCHW")
            optimizer.step()
            capture.image("after", picture[0].numpy(), layout="CHW")
            picture.zero_()

    images = open_run(run).images
    assert images["before"].steps.tolist() == images["after"].steps.tolist() == [0, 2, 4]
    assert images["before"].frame(4).shape == (2, 3, 5, 5)
    assert (images["before"].frame(4) == 4).all()
    assert (images["after"].frame(2) == 2).all()
    assert images["after"].layout == "CHW"


def test_what_is_no_number_is_not_logged_and_said_once(
    run: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = line()
    with Capture(model, optimizer, run) as capture:
        for value in ("high", torch.ones(3), None):
            capture.log({"loss": value, "lr": 0.1})

    scalars = open_run(run).scalars
    assert set(scalars) == {"lr"}
    assert caplog.text.count("needs one number") == 1


def test_a_tensor_that_is_logged_and_then_changed_keeps_its_value(run: str) -> None:
    model, optimizer = line()
    value = torch.tensor(3.0)
    with Capture(model, optimizer, run) as capture:
        capture.log(value=value)
        value.zero_()

    assert open_run(run).scalars["value"].values.tolist() == [3.0]
